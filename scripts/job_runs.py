"""What a job's function gets besides its settings: a database to save in, and what the server offers."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from sqlalchemy import Engine

from api.offers import ORGANISM_MODELS, ORGANISM_SAES, Offers
from safe_sail.errors import BadInput
from safe_sail.settings import LlmSettings

if TYPE_CHECKING:
    from safe_sail.model.handle import HookedModel
    from safe_sail.sae.handle import SAEHandle


T = TypeVar("T")


class LastUsed(Generic[T]):
    """A few things by name, those used last; what is used longest ago goes before another is made."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._kept: OrderedDict[tuple[str, ...], T] = OrderedDict()

    def get(self, key: tuple[str, ...], make: Callable[[], T]) -> T:
        """The thing of this name, made where it is not kept."""
        if key not in self._kept:
            while len(self._kept) >= self.n:
                self._kept.popitem(last=False)  # frees its memory before the next one needs some
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]


@dataclass
class Loaded:
    """Models and SAEs that a worker used last, so that the next job about them need not load them again."""

    models: "LastUsed[HookedModel]" = field(default_factory=lambda: LastUsed(1))
    saes: "LastUsed[SAEHandle]" = field(default_factory=lambda: LastUsed(16))


@dataclass(frozen=True, kw_only=True, slots=True)
class JobContext:
    """What a job runs in. `run_job(settings, context)` of a command's module returns what the job brought, as JSON."""

    engine: Engine
    """Saves only while the worker holds the job."""
    offers: Offers
    work: Path
    """Folder of this job alone, which survives the worker: a killed job finds there what it left."""
    device: str = "cpu"
    dtype: str = "float32"
    llm_in_flight: int = 64
    loaded: Loaded = field(default_factory=Loaded)

    def model(self, name: str | None) -> tuple[str | None, str | None]:
        """Folder or hub name of a model, and the id it is known by; two None for the embedded organism itself."""
        if name is None:
            return None, None
        path = self.offers.model(name)
        return (path, f"organism-{name}") if name in ORGANISM_MODELS else (path, name)

    def handle(self, name: str | None) -> "HookedModel":
        """The loaded model; those used last are kept for the next job."""
        from safe_sail.organism.load import organism_path  # torch: commands that need none of it start without
        from scripts.subjects import load_handle

        def make() -> "HookedModel":
            path, model_id = self.model(name)
            if name in ORGANISM_MODELS:
                path = str(organism_path(name))
            return load_handle(path, model_id, device=self.device, dtype=self.dtype)

        return self.loaded.models.get((name or "", self.device, self.dtype), make)

    def sae_handles(self, model: "HookedModel", names: Sequence[str] | None) -> "list[SAEHandle]":
        """Loaded SAEs that fit the model; None are those of the organism's variant. Those used last are kept.

        Raises:
            BadInput: no SAE of the organism belongs to the model, or two are one.
            SaeWidthMismatch, SaeModelMismatch: an SAE does not fit the model.
        """
        from safe_sail.organism.load import organism_sae_paths
        from scripts.subjects import load_saes

        variant = model.model_id.removeprefix("organism-")
        given = list(organism_sae_paths(variant)) if names is None and variant in ORGANISM_MODELS else list(names or ())
        if not given:
            raise BadInput(f"no SAE of the organism is trained on {model.model_id}; name `saes` that are.")

        def make(name: str) -> "SAEHandle":
            (sae,) = load_saes([self.sae_path(name)], model, device=self.device)
            return sae

        return [
            self.loaded.saes.get((name, model.model_id, self.device), partial(make, name))
            for name in dict.fromkeys(given)
        ]

    def sae_path(self, name: str) -> str:
        """Folder, file or registry name of an offered SAE."""
        from safe_sail.organism.load import ASSETS

        return str(ASSETS / "saes" / name) if name in ORGANISM_SAES else self.offers.sae(name)

    def saes(self, names: Sequence[str] | None) -> list[str] | None:
        """Folders or registry names of SAEs; None for the organism's."""
        return None if names is None else [self.sae_path(name) for name in names]

    def file(self, name: str | None) -> Path | None:
        """Path of a file of the server's folder."""
        return None if name is None else self.offers.file(name)

    def file_name(self, name: str | None) -> str | None:
        """The same as text, for what may also name a data set elsewhere: an absolute path is none."""
        path = self.file(name)
        return None if path is None else str(path)

    def llm(self, name: str | None, *, budget_tokens: int | None, budget_money: float | None) -> LlmSettings | None:
        """How a language model of the server's endpoint is asked; None where nobody is."""
        if name is None:
            return None
        model = self.offers.llm(name)
        assert self.offers.llm_base_url is not None
        return LlmSettings(
            base_url=self.offers.llm_base_url,
            model=model,
            budget_tokens=budget_tokens,
            budget_money=budget_money,
            max_in_flight=self.llm_in_flight,
        )
