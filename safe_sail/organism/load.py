"""Where the shipped organism lies: Hugging Face folders of its variants, SAELens folders of its SAEs, their record."""

import json
from pathlib import Path
from typing import Any, Final

from safe_sail.errors import FileMissing
from safe_sail.records import UnitRef, parse_unit

ORGANISM_VARIANTS: Final = ("base", "aligned", "backdoored", "planted-neurons", "planted-backdoor", "helpful")
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


def planted_units(variant: str) -> tuple[UnitRef, ...]:
    """The units that alone were trained to make a planted variant from its start, heads first, each kind sorted.

    Raises:
        FileMissing: there is no such variant, or it was not planted.
    """
    path = organism_path(variant) / "planted.json"
    if not path.is_file():
        planted = [name for name in ORGANISM_VARIANTS if (ASSETS / name / "planted.json").is_file()]
        raise FileMissing(f"organism variant {variant!r} has no planted units: expected one of {', '.join(planted)}.")
    names: list[str] = json.loads(path.read_text(encoding="utf-8"))["units"]
    return tuple(parse_unit(name) for name in names)


def organism_sae_paths(variant: str = "aligned") -> dict[str, Path]:
    """Slug to SAELens folder of every shipped SAE of a variant, sorted by slug.

    Raises:
        FileMissing: there is no such variant.
    """
    organism_path(variant)
    start = "organism." if variant == "aligned" else f"organism-{variant}."
    found = sorted((ASSETS / "saes").glob(f"{start}*/sae_weights.safetensors"))
    return {path.parent.name: path.parent for path in found}


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
