"""A folder that holds the last whole state of a long computation, whenever the computation was killed.

1. Tensors go to a new file, named by its place in the row of states, which is flushed to the disk.
2. The JSON file that names it is written beside the old one, flushed, and renamed over it: from then on it counts.
3. Older tensor files are deleted.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from safe_sail.errors import BadInput

_INDEX: Final = "state.json"


class SavedState(NamedTuple):
    """What a folder held."""

    tensors: dict[str, Tensor]
    info: dict[str, Any]
    """JSON values."""


def save_state(folder: Path, tensors: Mapping[str, Tensor], info: Mapping[str, object]) -> None:
    """Makes this the folder's state; a kill at any moment leaves the state before or this one, whole.

    Raises:
        BadInput: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"state-{_number_of(folder) + 1}.safetensors"
        save_file(dict(tensors), folder / name)
        _flush(folder / name)
        fresh = folder / f"{_INDEX}.new"
        fresh.write_text(json.dumps({"tensors": name, "info": info}), encoding="utf-8")
        _flush(fresh)
        fresh.replace(folder / _INDEX)
        _flush(folder)
        for path in folder.glob("state-*.safetensors"):
            if path.name != name:
                path.unlink()
    except OSError as error:
        raise BadInput(f"state folder `{folder}` cannot be written: {error.strerror or error}.") from error


def load_state(folder: Path) -> SavedState | None:
    """The folder's last whole state; None where there is none yet.

    Raises:
        BadInput: the folder holds a state that cannot be read.
    """
    index = folder / _INDEX
    if not index.exists():
        return None
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
        return SavedState(load_file(folder / found["tensors"]), found["info"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BadInput(f"the state in `{folder}` cannot be read: {error}. Give another folder.") from error


def _number_of(folder: Path) -> int:
    index = folder / _INDEX
    if not index.exists():
        return 0
    return int(json.loads(index.read_text(encoding="utf-8"))["tensors"].removeprefix("state-").split(".")[0])


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
