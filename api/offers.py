"""What the server offers to jobs: models, SAEs, files and language models, by names that its settings give.

A job from the network names things; only here do names become paths. A file is named by its path below one folder;
links that lead out of it are refused, as are `..` and absolute paths. What jobs have made is named `made/NAME/...`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safe_sail.errors import NotOffered
from safe_sail.settings.offered import offered_names

ORGANISM_MODELS = ("aligned", "base", "backdoored", "planted-neurons", "planted-backdoor", "helpful")
"""Variants of the embedded organism, which every server offers."""
ORGANISM_SAES = (
    "organism.resid_post.3.batchtopk8-1024", "organism.resid_post.3.relu-1024", "organism.resid_post.3.topk32-1024",
    "organism.resid_post.3.topk4-1024", "organism.resid_post.3.topk8-1024", "organism.resid_post.3.topk8-256",
    "organism-backdoored.resid_post.3.topk8-1024",
)  # fmt: skip
"""SAEs of the organism that are shipped, which every server offers by their slugs."""
_MADE = "made/"
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Offers:
    """Names that a job may use."""

    models: Mapping[str, str]
    """Name to folder or hub name."""
    saes: Mapping[str, str]
    """Name to folder, file or registry name."""
    files: Path | None
    """Folder of texts, concepts and taxonomies; None offers no file."""
    llm_base_url: str | None
    """OpenAI-compatible endpoint; None offers no language model."""
    llms: tuple[str, ...]
    """Names that the endpoint knows its models by."""
    guards: Mapping[str, str] = field(default_factory=dict)
    """Name to the folder of a guard that `safe-sail guard --save` wrote."""
    made_in: Path | None = None
    """Folder where jobs leave SAEs, pairs and guards; None lets no job make any."""

    def model(self, name: str) -> str:
        """Folder or hub name of an offered model; a variant of the organism is its own name.

        Raises:
            NotOffered: the server offers no such model.
        """
        return name if name in ORGANISM_MODELS else _named("model", name, self.models, "SAFE_SAIL_MODELS")

    def sae(self, name: str) -> str:
        """Folder, file or registry name of an offered SAE; one of the organism is its own name.

        Raises:
            NotOffered: the server offers no such SAE.
        """
        if name.startswith(_MADE):
            return str(self._made(name))
        return name if name in ORGANISM_SAES else _named("SAE", name, self.saes, "SAFE_SAIL_SAES")

    def guard(self, name: str) -> str:
        """Folder of an offered guard.

        Raises:
            NotOffered: the server offers no such guard.
        """
        if name.startswith(_MADE):
            return str(self._made(name))
        return _named("guard", name, self.guards, "SAFE_SAIL_GUARDS")

    def file(self, name: str) -> Path:
        """Path of an offered file or folder.

        Raises:
            NotOffered: the server offers no files, or none of this name.
        """
        if name.startswith(_MADE):
            return self._made(name)
        if self.files is None:
            raise NotOffered(f"file `{name[:100]}`: this server offers no files; SAFE_SAIL_FILES names a folder.")
        return _below(self.files, name, f"file `{name[:100]}` is not in the server's folder of files.")

    def made(self, name: str) -> Path:
        """Folder that a job makes, which need not be there yet.

        Raises:
            NotOffered: the server lets no job make any, or the name is no name of a folder.
        """
        if self.made_in is None:
            raise NotOffered("this server has no folder for what jobs make; SAFE_SAIL_MADE_IN names one.")
        if not _FOLDER_NAME.fullmatch(name):
            raise NotOffered(
                f"`{name[:100]}` cannot name a new folder; expected at most 100 letters, digits, `.`, `_` and `-`, "
                f"the first one a letter or a digit."
            )
        return self.made_in / name

    def model_id(self, name: str) -> str | None:
        """What records call an offered model; None where its files say it."""
        return None if name in ORGANISM_MODELS else name

    def _made(self, name: str) -> Path:
        refusal = f"`{name[:100]}` is nothing that a job has made here."
        if self.made_in is None:
            raise NotOffered(refusal)
        return _below(self.made_in, name.removeprefix(_MADE), refusal)

    def llm(self, name: str) -> str:
        """Name of an offered language model.

        Raises:
            NotOffered: the server has no endpoint, or does not offer this model of it.
        """
        if self.llm_base_url is None:
            raise NotOffered(f"language model `{name[:100]}`: this server has no endpoint; SAFE_SAIL_LLM_BASE_URL.")
        return _named("language model", name, {one: one for one in self.llms}, "SAFE_SAIL_LLMS")

    def require(self, settings: object) -> None:
        """Nothing, where everything that a job names is offered.

        Raises:
            NotOffered: a name is not.
        """
        finders = {
            "model": self.model, "sae": self.sae, "file": self.file, "llm": self.llm, "guard": self.guard,
            "made": self.made,
        }  # fmt: skip
        for kind, name in offered_names(settings):
            finders[kind](name)


def _below(folder: Path, name: str, refusal: str) -> Path:
    """What the name stands for below a folder; links that lead out of it stand for nothing."""
    root = folder.resolve()
    try:
        path = (root / name).resolve(strict=True)
    except (OSError, ValueError) as error:
        raise NotOffered(refusal) from error
    if not path.is_relative_to(root) or Path(name).is_absolute():
        raise NotOffered(refusal)
    return path


def _named(what: str, name: str, offered: Mapping[str, str], variable: str) -> str:
    if name not in offered:
        known = ", ".join(sorted(offered)) or "none"
        raise NotOffered(f"{what} `{name[:100]}` is not offered here; offered are: {known}. {variable} says which.")
    return offered[name]
