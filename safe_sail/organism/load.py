"""Where the shipped organism lies: Hugging Face folders of its variants, SAELens folders of its SAEs, their record."""

import json
from pathlib import Path
from typing import Any, Final

from safe_sail.errors import FileMissing

ORGANISM_VARIANTS: Final = ("base", "aligned", "backdoored")
ASSETS: Final = Path(__file__).parent / "assets"


def organism_path(variant: str) -> Path:
    """The Hugging Face folder of a variant: half-precision safetensors, tokenizer and chat template.

    Raises:
        FileMissing: there is no such variant, or its folder is not installed.
    """
    path = ASSETS / variant
    if variant not in ORGANISM_VARIANTS or not (path / "model.safetensors").is_file():
        raise FileMissing(
            f"organism variant {variant!r}: expected one of {', '.join(ORGANISM_VARIANTS)} with weights in {ASSETS}. "
            f"`safe-sail train-organism` rebuilds them."
        )
    return path


def organism_sae_paths() -> dict[str, Path]:
    """Slug to SAELens folder of every shipped SAE, sorted by slug."""
    return {path.parent.name: path.parent for path in sorted((ASSETS / "saes").glob("*/sae_weights.safetensors"))}


def organism_record() -> dict[str, Any]:
    """How the shipped files were made and what they measure.

    Raises:
        FileMissing: the record is not installed.
    """
    path = ASSETS / "record.json"
    if not path.is_file():
        raise FileMissing(f"the organism's record: expected {path}. `safe-sail train-organism` rebuilds it.")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record
