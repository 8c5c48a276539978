"""What a job's function gets besides its settings: a database to save in, and what the server offers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from api.offers import ORGANISM_MODELS, Offers
from safe_sail.settings import LlmSettings

if TYPE_CHECKING:
    from safe_sail.model.handle import HookedModel


@dataclass
class Loaded:
    """The last model that a worker loaded, so that the next job about it need not load it again."""

    key: tuple[str, ...] | None = None
    model: "HookedModel | None" = None


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
        """The loaded model; the last one is kept for the next job."""
        from safe_sail.organism.load import organism_path  # torch: commands that need none of it start without
        from scripts.subjects import load_handle

        key = (name or "", self.device, self.dtype)
        if self.loaded.model is None or self.loaded.key != key:
            self.loaded.model = None  # frees its memory before the next one needs some
            path, model_id = self.model(name)
            if name in ORGANISM_MODELS:
                path = str(organism_path(name))
            self.loaded.model = load_handle(path, model_id, device=self.device, dtype=self.dtype)
            self.loaded.key = key
        return self.loaded.model

    def saes(self, names: Sequence[str] | None) -> list[str] | None:
        """Folders or registry names of SAEs; None for the organism's."""
        return None if names is None else [self.offers.sae(name) for name in names]

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
