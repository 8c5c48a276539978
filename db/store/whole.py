"""Whole records as one JSON text and back, for records that are read whole and never searched inside.

1. To JSON: fields by name, sites, heads and neurons by their text, tuples as arrays.
2. Back: each field is built as its annotation says, so records validate themselves as when they were made. A field that
   has a default may be missing: a record that was kept before the field was thought of.
"""

import dataclasses
import json
import types
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from safe_sail.errors import DatabaseUnreachable
from safe_sail.records import FeatureId, HeadRef, NeuronRef, parse_unit
from safe_sail.sites import Site

T = TypeVar("T")


def to_json(record: Any) -> str:
    """The record as JSON; floats are written so that reading gives the same bits."""
    return json.dumps(_plain(record), allow_nan=False, separators=(",", ":"))


def from_json(kind: type[T], text: str) -> T:
    """The record that `to_json` wrote.

    Raises:
        DatabaseUnreachable: the text is damaged, or was written for another shape of the record.
    """
    try:
        found = _built(kind, json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise DatabaseUnreachable(
            f"a kept {kind.__name__} of {len(text)} characters cannot be read ({error!r}); run its command again."
        ) from error
    assert isinstance(found, kind)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Site | HeadRef | NeuronRef):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value


def _is_needed(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _built(kind: Any, value: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        options = [one for one in inner if one is not types.NoneType]
        if len(options) > 1:  # several kinds occur as units alone: heads and neurons are texts, features are not
            return _built(HeadRef if isinstance(value, str) else FeatureId, value)
        return _built(options[0], value)
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[1:] == (Ellipsis,) else inner
        return tuple(_built(one, each) for one, each in zip(kinds, value, strict=True))
    if origin is Mapping:
        return {name: _built(inner[1], each) for name, each in value.items()}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(value)
    if kind is Site:
        return Site.parse(value)
    if kind in (HeadRef, NeuronRef):
        return parse_unit(value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        make: Any = kind
        given = [field.name for field in dataclasses.fields(kind) if field.name in value or _is_needed(field)]
        return make(**{name: _built(hints[name], value[name]) for name in given})
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)  # a float field may have been given a whole number
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value
