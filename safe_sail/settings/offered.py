"""Marks of what a job may name and the server must have: a model, an SAE, a file, a guard, a folder of results.

Paths, addresses and keys are never part of a job: the server has them.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints

OfferedKind = Literal["model", "sae", "file", "llm", "guard", "made"]


class Offered(NamedTuple):
    """Mark of a text that names something that the server must offer."""

    kind: OfferedKind


OfferedModel = Annotated[str, Offered("model")]
OfferedSae = Annotated[str, Offered("sae")]
OfferedFile = Annotated[str, Offered("file")]
OfferedLlm = Annotated[str, Offered("llm")]
OfferedGuard = Annotated[str, Offered("guard")]
MadeName = Annotated[str, Offered("made")]
"""Name of a new folder of results; later jobs name what is in it as `made/NAME/...`."""


def offered_names(settings: object) -> Iterator[tuple[OfferedKind, str]]:
    """Everything that a job names and the server must offer, in the order of its fields."""
    assert not isinstance(settings, type)
    hints = get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):  # type: ignore[arg-type]
        kind = _mark(hints[field.name])
        value = getattr(settings, field.name)
        if kind is not None and value is not None:
            yield from ((kind, name) for name in ((value,) if isinstance(value, str) else value))


def _mark(hint: Any) -> OfferedKind | None:
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, Offered):
            return mark.kind
    return next((kind for inner in get_args(hint) if (kind := _mark(inner)) is not None), None)
