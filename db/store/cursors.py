"""Cursors: where a page of a list ended, as one opaque word.

A listing of features ends at a sort value and a key; any other list at the texts it is ordered by.
"""

import base64
import binascii
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from db.packing import is_plain_text
from safe_sail.errors import BadInput


class LastRow(NamedTuple):
    """Where a page ended."""

    sae_key: int
    feature_index: int
    value: float


def write_cursor(sort: str, last: Sequence[Any]) -> str:
    """The word for a page that ended with this row of SAE, index and sort value."""
    sae_key, index, value = last
    return base64.urlsafe_b64encode(json.dumps([sort, value, sae_key, index]).encode()).decode().rstrip("=")


def read_cursor(sort: str, cursor: str) -> LastRow:
    """The row that a word of `write_cursor` means.

    Raises:
        BadInput: it is not one of this order.
    """
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        kind, value, sae_key, index = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if kind != sort or type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError("other fields than expected")
        if any(type(part) is not int or not 0 <= part < 2**31 for part in (sae_key, index)):
            raise ValueError("other keys than expected")
        return LastRow(sae_key, index, float(value))
    except (ValueError, TypeError, OverflowError, binascii.Error) as error:
        raise BadInput(
            f"`{cursor[:80]!r}` is no cursor of a listing sorted by `{sort}`; pass on `next_cursor` of the page "
            f"before, with the same order, or leave it out."
        ) from error


class LinkPlace(NamedTuple):
    """Where a page of links ended: they are ordered by descending strength, then by study and place in it."""

    strength: float
    study: str
    place: int


def write_link_place(name: str, last: LinkPlace) -> str:
    """The word for a page of links that ended at this place."""
    return write_place(name, repr(last.strength), last.study, str(last.place))


def read_link_place(name: str, cursor: str) -> LinkPlace:
    """The place that a word of `write_link_place` means.

    Raises:
        BadInput: it is not one of this list.
    """
    strength, study, place = read_place(name, cursor, 3)
    try:
        found = LinkPlace(float(strength), study, int(place))
        if not math.isfinite(found.strength) or not 0 <= found.place < 2**31:
            raise ValueError("no place of a link")
    except ValueError as error:
        raise _no_place(name, cursor) from error
    return found


def write_place(name: str, *key: str) -> str:
    """The word for a page of a list that ended with the row of this key."""
    return base64.urlsafe_b64encode(json.dumps([name, *key]).encode()).decode().rstrip("=")


def read_place(name: str, cursor: str, n: int) -> tuple[str, ...]:
    """The key of n texts that a word of `write_place` means.

    Raises:
        BadInput: it is not one of this list.
    """
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        kind, *key = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if kind != name or len(key) != n or not all(isinstance(part, str) and is_plain_text(part) for part in key):
            raise ValueError("other fields than expected")
    except (ValueError, TypeError, binascii.Error) as error:
        raise _no_place(name, cursor) from error
    return tuple(key)


def _no_place(name: str, cursor: str) -> BadInput:
    return BadInput(
        f"`{cursor[:80]!r}` is no cursor of the list of {name}; pass on `next_cursor` of the page before, or leave "
        f"it out."
    )
