"""Arrays, token texts and contexts as bytes, and back: what the packed columns hold.

An array is kept as: type code (3 ASCII letters, little-endian), number of axes (1 byte), length of each axis (uint32),
then the values in row order. Texts and contexts are JSON in UTF-8 with lone surrogates passed through: a tokenizer may
write NUL or half a character, and no text type of PostgreSQL holds those.
"""

import json
import re
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from sqlalchemy import Dialect, LargeBinary
from sqlalchemy.types import TypeDecorator

from safe_sail.errors import BadRecord, DatabaseUnreachable
from safe_sail.records import Context

_CODES = ("<f4", "<f8", "<i4", "<i8")
_LIMITS = {"<i4": 2**31, "<i8": 2**63}
_HALF_CHARACTER = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


def pack_array(array: NDArray[Any]) -> bytes:
    """The array with its type and shape as bytes."""
    little = np.asarray(array, array.dtype.newbyteorder("<"))
    assert little.dtype.str in _CODES
    head = little.dtype.str.encode("ascii") + struct.pack(f"<B{little.ndim}I", little.ndim, *little.shape)
    return head + little.tobytes()


def unpack_array(data: bytes) -> NDArray[Any]:
    """The array that `pack_array` wrote; read-only.

    Raises:
        DatabaseUnreachable: the bytes are damaged.
    """
    try:
        kind, lengths = _head(data[:4])
        return np.frombuffer(data, kind, offset=4 + lengths.size).reshape(lengths.unpack_from(data, 4))
    except (ValueError, IndexError, struct.error) as error:
        raise DatabaseUnreachable(
            f"a packed array of {len(data)} bytes is damaged ({error}); restore the database."
        ) from error


@lru_cache(maxsize=64)
def _head(data: bytes) -> tuple[np.dtype[Any], struct.Struct]:
    """Type of the values and form of the axes' lengths."""
    code, n_axes = data[:3].decode("ascii"), data[3]
    if code not in _CODES:
        raise ValueError(f"unknown type code {code!r}")
    return np.dtype(code), struct.Struct(f"<{n_axes}I")


def to_array(values: Sequence[float], code: str) -> NDArray[Any]:
    """One axis of values in the type of `code`; float32 rounds to nearest.

    Raises:
        BadRecord: a value does not fit the type.
    """
    limit = _LIMITS.get(code)
    if limit is not None:
        if any(not -limit <= value < limit for value in values):
            raise BadRecord(f"an integer of the array {_shortened(values)} does not fit {8 * int(code[2])} bits.")
        return np.array(values, np.dtype(code))
    with np.errstate(over="ignore"):
        array = np.array(values, np.dtype(code))
    if not np.isfinite(array).all():
        raise BadRecord(f"a number of the array {_shortened(values)} is too large for a {8 * int(code[2])}-bit float.")
    return array


def _shortened(values: Sequence[float]) -> str:
    return str(list(values[:8]))[:-1] + (", ...]" if len(values) > 8 else "]")


def pack_texts(texts: Sequence[str]) -> bytes:
    """Texts of any characters as bytes."""
    return _json(list(texts))


def unpack_texts(data: bytes) -> list[str]:
    """The texts that `pack_texts` wrote.

    Raises:
        DatabaseUnreachable: the bytes are damaged.
    """
    return _list(data)


def pack_contexts(contexts: Sequence[Context]) -> bytes:
    """Contexts as a list of JSON, each with the record's fields; activations are rounded to float32.

    Raises:
        BadRecord: a token id does not fit 32 bits, or an activation float32.
    """
    token_ids = to_array([token for one in contexts for token in one.token_ids], "<i4")
    activations = to_array([value for one in contexts for value in one.activations], "<f4").astype("<f8")
    listed, start = [], 0
    for one in contexts:
        end = start + len(one.tokens)
        listed.append(
            {
                "tokens": orjson.Fragment(_json(one.tokens)),
                "token_ids": token_ids[start:end],
                "activations": activations[start:end],
                "peak": one.peak,
                "source_id": orjson.Fragment(_json(one.source_id)),
            }
        )
        start = end
    return orjson.dumps(listed, option=orjson.OPT_SERIALIZE_NUMPY)


def unpack_contexts(data: bytes) -> tuple[Context, ...]:
    """The contexts that `pack_contexts` wrote.

    Raises:
        DatabaseUnreachable: the bytes are damaged.
    """
    try:
        return tuple(
            Context(
                tokens=tuple(one["tokens"]),
                token_ids=tuple(one["token_ids"]),
                activations=tuple(one["activations"]),
                peak=one["peak"],
                source_id=one["source_id"],
            )
            for one in _list(data)
        )
    except (KeyError, TypeError) as error:
        raise _damaged(data, error) from error


def plain_json(data: bytes) -> bytes:
    """What `pack_texts` or `pack_contexts` wrote as JSON that may be passed on.

    Half characters (lone surrogates, which UTF-8 cannot hold) become U+FFFD.

    Raises:
        DatabaseUnreachable: the bytes are damaged, as far as can be told without reading them as JSON.
    """
    whole = _HALF_CHARACTER.sub(_REPLACEMENT, data) if b"\xed" in data else data
    try:
        whole.decode()
    except ValueError as error:
        raise _damaged(data, error) from error
    if not (whole.startswith(b"[") and whole.endswith(b"]")):
        raise _damaged(data, ValueError("no list"))
    return whole


def _json(value: Any) -> bytes:
    return _ENCODER.encode(value).encode("utf-8", "surrogatepass")


def _list(data: bytes) -> list[Any]:
    try:
        found = orjson.loads(data)  # three times as fast, but strict
    except ValueError:
        found = _list_with_half_characters(data)
    if not isinstance(found, list):
        raise _damaged(data, ValueError("no list"))
    return found


def _list_with_half_characters(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise _damaged(data, error) from error


def _damaged(data: bytes, error: Exception) -> DatabaseUnreachable:
    return DatabaseUnreachable(
        f"packed texts or contexts of {len(data)} bytes are damaged ({error!r}); restore the database."
    )


def is_plain_text(text: str) -> bool:
    """Whether a text column of both databases can hold the text: no NUL and no lone surrogate."""
    return "\x00" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


class PackedArray(TypeDecorator[NDArray[Any]]):
    """A column of arrays, kept as `pack_array` writes them."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: NDArray[Any] | None, dialect: Dialect) -> bytes | None:
        """Array to bytes."""
        return None if value is None else pack_array(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> NDArray[Any] | None:
        """Bytes to array."""
        return None if value is None else unpack_array(value)


class PackedTexts(TypeDecorator[list[str]]):
    """A column of lists of texts, kept as `pack_texts` writes them."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: list[str] | None, dialect: Dialect) -> bytes | None:
        """Texts to bytes."""
        return None if value is None else pack_texts(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> list[str] | None:
        """Bytes to texts."""
        return None if value is None else unpack_texts(value)


def _unzipped(data: bytes) -> bytes:
    try:
        return zlib.decompress(data)
    except zlib.error as error:
        raise DatabaseUnreachable(f"{len(data)} packed bytes are damaged ({error}); restore the database.") from error


class ZippedArray(PackedArray):
    """A column of arrays that are mostly zeros, or repeat themselves: `pack_array`'s bytes, deflated."""

    cache_ok = True

    def process_bind_param(self, value: NDArray[Any] | None, dialect: Dialect) -> bytes | None:
        """Array to bytes."""
        return None if value is None else zlib.compress(pack_array(value))

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> NDArray[Any] | None:
        """Bytes to array."""
        return None if value is None else unpack_array(_unzipped(value))


class ZippedTexts(PackedTexts):
    """A column of lists of texts that repeat themselves: `pack_texts`' bytes, deflated."""

    cache_ok = True

    def process_bind_param(self, value: list[str] | None, dialect: Dialect) -> bytes | None:
        """Texts to bytes."""
        return None if value is None else zlib.compress(pack_texts(value))

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> list[str] | None:
        """Bytes to texts."""
        return None if value is None else unpack_texts(_unzipped(value))
