"""What a command's work is done in: a database to save in, and what may be named; of a job, or of a command line.

A command that can be a job turns its options into the job's settings and does the same work in `at_command_line`.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from sqlalchemy import Engine

from api.offers import ORGANISM_MODELS, ORGANISM_SAES
from db.engine import make_engine, writing
from db.migrate import current_revision, require_head, upgrade
from safe_sail.errors import BadInput
from safe_sail.settings import LlmSettings

if TYPE_CHECKING:
    from safe_sail.model.handle import HookedModel
    from safe_sail.sae.handle import SAEHandle

T = TypeVar("T")
OWNER_FILE = ".job"
"""Says which job a made folder belongs to: an attempt goes on in it, another job does not."""


class Names(Protocol):
    """What names stand for."""

    @property
    def llm_base_url(self) -> str | None:
        """Endpoint of the language models."""

    def model(self, name: str) -> str:
        """Folder or hub name of a model; a variant of the organism is its own name."""

    def model_id(self, name: str) -> str | None:
        """What records call it; None where its files say it."""

    def sae(self, name: str) -> str:
        """Folder, file or registry name of an SAE."""

    def file(self, name: str) -> Path:
        """Path of a file."""

    def llm(self, name: str) -> str:
        """Name that the endpoint knows a language model by."""

    def guard(self, name: str) -> str:
        """Folder of a guard."""

    def made(self, name: str) -> Path:
        """Folder that is made."""


@dataclass(frozen=True)
class AsGiven:
    """Names of a command line, where a person may name any file: each stands for itself."""

    given_id: str | None = None
    """What records call the model, where the command line says it."""
    llm_base_url: str | None = None

    def model(self, name: str) -> str:
        """The name."""
        return name

    def model_id(self, name: str) -> str | None:
        """What the command line says."""
        return self.given_id

    def sae(self, name: str) -> str:
        """The name."""
        return name

    def file(self, name: str) -> Path:
        """The name, as a path."""
        return Path(name)

    def llm(self, name: str) -> str:
        """The name."""
        return name

    def guard(self, name: str) -> str:
        """The name."""
        return name

    def made(self, name: str) -> Path:
        """The name, as a path."""
        return Path(name)


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
    offers: Names
    work: Path
    """Folder of this job alone, which survives the worker: a killed job finds there what it left."""
    device: str = "cpu"
    dtype: str = "float32"
    llm_in_flight: int = 64
    loaded: Loaded = field(default_factory=Loaded)
    job_id: str | None = None
    """None on a command line."""

    def database(self, *, must_exist: bool = False) -> Engine:
        """Where results are kept; on a command line it is brought to this program's schema first.

        Raises:
            SchemaOutOfDate: it must be there and is not, or is another program's.
        """
        if self.job_id is None:
            if must_exist and current_revision(self.engine) is None:
                require_head(self.engine)
            upgrade(self.engine)
        return self.engine

    def model(self, name: str | None) -> tuple[str | None, str | None]:
        """Folder or hub name of a model, and the id it is known by; two None for the embedded organism itself."""
        return (None, None) if name is None else (self.offers.model(name), self.offers.model_id(name))

    def source(self, name: str | None) -> str:
        """Where a model comes from, as records say it."""
        return "the embedded organism" if name is None or name in ORGANISM_MODELS else self.offers.model(name)

    def handle(self, name: str | None) -> "HookedModel":
        """The loaded model; those that jobs used last are kept for the next job."""
        from scripts.subjects import load_handle  # torch: commands that need none of it start without

        path, model_id = self.model(name)
        key = (path or "", model_id or "", self.device, self.dtype)
        return self.loaded.models.get(
            key, partial(load_handle, path, model_id, device=self.device, dtype=self.dtype)
        )  # fmt: skip

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
        return name if name is None or self.job_id is None else str(self.offers.file(name))

    def made(self, name: str) -> Path:
        """Folder in which a job leaves files that later jobs may name; it is this job's alone, in every attempt.

        Raises:
            BadInput: another job has made a folder of that name.
        """
        folder = self.offers.made(name)
        if self.job_id is None:
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"{OWNER_FILE}.{self.job_id}"
        fresh.write_text(self.job_id, encoding="utf-8")
        try:
            os.link(fresh, folder / OWNER_FILE)  # unlike writing the file, whole or not at all, and by one job alone
        except FileExistsError:
            owner = (folder / OWNER_FILE).read_text(encoding="utf-8")
            if owner != self.job_id:
                raise BadInput(f"`{name}` was made by job {owner}; give another name.") from None
        finally:
            fresh.unlink()
        return folder

    @contextmanager
    def holding(self) -> Iterator[None]:
        """A block that writes files only while the worker holds the job, as each transaction does with rows."""
        if self.job_id is None:
            yield
            return
        with writing(self.engine):
            yield

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


@contextmanager
def at_command_line(
    database: str, *, device: str, dtype: str = "float32", model_id: str | None = None
) -> Iterator[JobContext]:
    """The same for a command: names are paths, nobody else has the work, and the database may have to be made."""
    engine = make_engine(database)
    try:
        yield JobContext(engine=engine, offers=AsGiven(model_id), work=Path(), device=device, dtype=dtype)
    finally:
        engine.dispose()


def named(path: Path | None) -> str | None:
    """A path of the command line as what settings name."""
    return None if path is None else str(path)
