"""Staged writing and bounded reading of files, and errors that name the place in a file.

1. Writing goes into a new file or folder beside the target, which is renamed when all is written and else removed.
2. Reading passes gzip through, in lines or whole, and refuses more than it was told to hold in memory.
"""

import gzip
import json
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast
from uuid import uuid4

from db.packing import is_plain_text
from safe_sail.errors import ExportRefused, ImportUnreadable

MAX_LINE = 64 * 2**20
"""Bytes of one line after unpacking: a feature of hundreds of long contexts has a few megabytes."""

# --------------------------------------------------------------------------------------------- 1. writing


@contextmanager
def staged(target: Path, *, folder: bool) -> Iterator[Path]:
    """A new path beside the target to write to; becomes the target at the end of the block, or is removed if it raises.

    Raises:
        ExportRefused: the target exists, or cannot be written.
    """
    if target.exists() or target.is_symlink():
        raise ExportRefused(f"{target} exists already; nothing is overwritten. Name another, or remove it first.")
    stage = target.with_name(f".{target.name}.{uuid4().hex[:8]}.partial")
    try:
        if folder:
            stage.mkdir()
        yield stage
        stage.rename(target)
    except OSError as error:
        raise ExportRefused(f"{target} cannot be written ({error.strerror or error}); name another place.") from error
    finally:
        if stage.is_dir():
            shutil.rmtree(stage)
        else:
            stage.unlink(missing_ok=True)


def json_line(record: Mapping[str, Any]) -> bytes:
    """The record as one line of ASCII JSON; characters that are no ASCII, half ones too, are escaped."""
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


# --------------------------------------------------------------------------------------------- 2. reading


def refuse(place: str, expected: str, got: object) -> NoReturn:
    """Raises ImportUnreadable: where, what was expected and what came instead, shortened."""
    shown = repr(got)
    raise ImportUnreadable(f"{place}: expected {expected}; got {shown[:120]}{'...' if len(shown) > 120 else ''}.")


@contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where it is gzip.

    Raises:
        ImportUnreadable: there is no such file, it cannot be read, or its gzip data is damaged.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not packed:
                yield raw
            else:
                with gzip.open(raw) as inner:
                    yield cast(BinaryIO, inner)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ImportUnreadable(f"{path}: the gzip data is damaged ({error}); fetch the file again.") from error
    except OSError as error:
        raise ImportUnreadable(f"{path} cannot be read ({error.strerror}); name an existing file.") from error


def read_whole(path: Path, max_bytes: int) -> Any:
    """The file's one JSON value, held in memory.

    Raises:
        ImportUnreadable: no such file, larger than `max_bytes` after unpacking, or no JSON; a key given twice.
    """
    with unpacked(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ImportUnreadable(f"{path}: expected at most {max_bytes} bytes after unpacking; it has more.")
    return parse_json(data, str(path))


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's place, for messages, and its JSON object; blank lines are passed over.

    Raises:
        ImportUnreadable: no such file, or a line is no JSON object or longer than MAX_LINE.
    """
    with unpacked(path) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            place = f"{path}, line {number}"
            if len(line) > MAX_LINE:
                raise ImportUnreadable(f"{place}: expected at most {MAX_LINE} bytes; the line is longer.")
            if not line.isspace():
                record = parse_json(line, place)
                if not isinstance(record, dict):
                    refuse(place, "a JSON object", record)
                yield place, record


def parse_json(data: bytes, place: str) -> Any:
    """The JSON value of UTF-8 bytes.

    Raises:
        ImportUnreadable: no UTF-8, no JSON, a number that is not finite, or a key given twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            refuse(place, "every key once", twice)
        return found

    try:
        text = data.decode("utf-8")
        return json.loads(text, object_pairs_hook=unique, parse_constant=lambda name: refuse(place, "numbers", name))
    except UnicodeDecodeError as error:
        raise ImportUnreadable(f"{place}: expected UTF-8; byte {error.start} is none.") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError too
        raise ImportUnreadable(f"{place}: expected JSON; {error}.") from error


def plain_text(place: str, value: object, name: str, *, may_be_empty: bool = False) -> str:
    """The value as a text that a column of both databases can hold.

    Raises:
        ImportUnreadable: it is no text, empty where it may not be, or holds NUL or half a character.
    """
    if not isinstance(value, str) or not is_plain_text(value) or not (may_be_empty or value.strip()):
        refuse(
            place,
            f"`{name}` to be a text without NUL and half characters{'' if may_be_empty else ', not empty'}",
            value,
        )
    return value


def finite(place: str, value: object, name: str) -> float:
    """The value as a finite float.

    Raises:
        ImportUnreadable: it is no number, or too large for a float.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        refuse(place, f"`{name}` to be a finite number", value)
    return float(value)


def whole(place: str, value: object, name: str, *, below: int = 2**63) -> int:
    """The value as an integer from 0 to below the bound.

    Raises:
        ImportUnreadable: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
        refuse(place, f"`{name}` to be an integer from 0 to {below - 1}", value)
    return value
