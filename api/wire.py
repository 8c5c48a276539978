"""Records that are answered whole: the same fields over the wire, with sites, heads and neurons by name.

`wire_type` makes the type that describes a record in the OpenAPI document, `as_wire` the value that fits it.
"""

import dataclasses
from collections.abc import Mapping
from functools import cache
from types import GenericAlias, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from api.schemas import FromRun, Listing
from safe_sail.records import HeadRef, NeuronRef
from safe_sail.sites import Site

_NAMED = (Site, HeadRef, NeuronRef)
"""Answered by name, as `resid_post.12`, `L3.H5`, `L3.N902`: a head and a neuron have the same fields."""


@cache
def wire_type(record: Any) -> Any:
    """The record's type as it is answered."""
    if record in _NAMED:
        return str
    if dataclasses.is_dataclass(record) and isinstance(record, type):
        hints = get_type_hints(record)
        fields = [(field.name, wire_type(hints[field.name])) for field in dataclasses.fields(record)]
        made = dataclasses.make_dataclass(record.__name__, fields, frozen=True, kw_only=True, slots=True)
        made.__doc__, made.__module__ = record.__doc__, record.__module__
        return made
    origin, inner = get_origin(record), tuple(one if one is Ellipsis else wire_type(one) for one in get_args(record))
    if origin in (Union, UnionType):
        return Union[inner]  # noqa: UP007 - made from a tuple
    if origin is Mapping:
        return GenericAlias(dict, inner)
    return GenericAlias(origin, inner) if isinstance(origin, type) and origin is tuple else record


def as_wire(value: Any) -> Any:
    """The value as JSON values."""
    if isinstance(value, _NAMED):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_wire(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: as_wire(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [as_wire(inner) for inner in value]
    return value


def one_of(record: type) -> Any:
    """Type of an answer that is one such record with its run."""
    return FromRun.__class_getitem__(wire_type(record))  # type: ignore[attr-defined]


def list_of(record: type, *, with_run: bool = True) -> Any:
    """Type of an answer that is a list of such records."""
    return Listing.__class_getitem__(one_of(record) if with_run else wire_type(record))  # type: ignore[attr-defined]
