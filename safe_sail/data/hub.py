"""Data sets of the Hugging Face hub, and folders of the same forms: their rows, one after the other, nothing kept.

A name is `OWNER/NAME`, or `hf:` with a name or a folder and what tells one part of it from others:

    hf:OWNER/NAME?config=20231101.en&split=train&revision=0a1b2c3
    hf:./folder?split=test

1. A hub name is pinned to one commit first, so that a run can say what it read.
2. Rows are streamed by the `datasets` library: parquet, JSON, CSV and text files; a folder that its `save_to_disk`
   wrote is mapped into memory. Code from a repository never runs; the library no longer can.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from httpx2 import HTTPError

from safe_sail.errors import BadInput, CorpusUnreadable

_SCHEME: Final = "hf:"
_HUB_NAME: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SAVED: Final = ("dataset_info.json", "dataset_dict.json")
"""What `save_to_disk` of the `datasets` library leaves in a folder."""


class DatasetName(NamedTuple):
    """Which rows of which data set."""

    path: str
    """Name on the hub, or a folder."""
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    """Commit on the hub."""

    @property
    def is_folder(self) -> bool:
        """Whether it is on this machine."""
        return Path(self.path).is_dir()

    def __str__(self) -> str:
        words = {name: getattr(self, name) for name in ("config", "split", "revision")}
        query = "&".join(f"{name}={value}" for name, value in words.items() if value is not None)
        return self.path + (f"?{query}" if query else "")


def dataset_name(text: str) -> DatasetName | None:
    """The data set that a text names; None for a path of files.

    A path that exists is a path, unless `save_to_disk` wrote it or `hf:` stands before it.

    Raises:
        BadInput: the text begins with `hf:` and goes on with something unknown.
    """
    if text.startswith(_SCHEME):
        path, _, query = text.removeprefix(_SCHEME).partition("?")
        words = dict(parse_qsl(query, keep_blank_values=True))
        unknown = sorted(set(words) - {"config", "split", "revision"})
        if unknown or not path or not all(words.values()) or not (_HUB_NAME.fullmatch(path) or Path(path).is_dir()):
            raise BadInput(f"expected hf:OWNER/NAME or hf:FOLDER, with ?config=..&split=..&revision=..; got `{text}`.")
        return DatasetName(path, **words)
    if any((Path(text) / name).is_file() for name in _SAVED):
        return DatasetName(text)
    if Path(text).exists() or Path(text).suffix in (".txt", ".jsonl", ".csv", ".parquet"):
        return None
    return DatasetName(text) if _HUB_NAME.fullmatch(text) else None


def pinned(name: DatasetName) -> DatasetName:
    """The same data set at the commit that the hub has now; a folder and a name with a revision are what they are.

    Raises:
        CorpusUnreadable: the hub cannot be reached or has no such data set.
    """
    if name.is_folder or name.revision is not None:
        return name
    from huggingface_hub import HfApi

    try:
        return name._replace(revision=HfApi().dataset_info(name.path).sha)
    except (OSError, HTTPError) as error:
        raise _unreachable(name, error) from error


def dataset_rows(name: DatasetName, *, columns: tuple[str, ...] | None = None) -> Iterator[Mapping[str, Any]]:
    """Rows of one split in order; only these columns are read, where they are given.

    Raises:
        CorpusUnreadable: the data set is not there, cannot be read, or lacks a column.
        BadInput: it has several splits or configurations and none is named, or not the named one.
    """
    source = _split_of(name)
    known = list(source.features or source.column_names or ())
    missing = [column for column in columns or () if known and column not in known]
    if missing:
        raise CorpusUnreadable(f"data set `{name}` has no column `{missing[0]}`; its columns are {', '.join(known)}.")
    if columns is not None and known:
        source = source.select_columns(list(columns))
    try:
        yield from source
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        # what the library raises where a file is damaged or the connection breaks off
        raise CorpusUnreadable(f"data set `{name}` cannot be read to its end: {_first_line(error)}") from error


def _split_of(name: DatasetName) -> Any:
    import datasets

    try:
        if any((Path(name.path) / saved).is_file() for saved in _SAVED):
            if name.config is not None or name.revision is not None:
                raise BadInput(f"`{name}`: a folder that save_to_disk wrote has no configurations and no revisions.")
            found = datasets.load_from_disk(name.path)
        else:
            found = datasets.load_dataset(name.path, name.config, revision=name.revision, streaming=True)
    except (OSError, HTTPError) as error:
        raise _unreachable(name, error) from error
    except ValueError as error:
        # the library has one class for a configuration that is missing or unknown and for files that are damaged
        if "onfig" in str(error):
            raise BadInput(
                f"data set `{name}`: {_first_line(error)}. Name one as in hf:{name.path}?config=.."
            ) from error
        raise CorpusUnreadable(f"data set `{name}` cannot be read: {_first_line(error)}") from error
    if not isinstance(found, dict):
        if name.split is not None:
            raise BadInput(f"data set `{name}` has no splits; leave the split out.")
        return found
    if name.split is None and len(found) == 1:
        return next(iter(found.values()))
    if name.split not in found:
        first = next(iter(found))
        raise BadInput(
            f"data set `{name}` has the splits {', '.join(found)}; name one as in hf:{name.path}?split={first}."
        )
    return found[name.split]


def _unreachable(name: DatasetName, error: OSError | HTTPError) -> CorpusUnreadable:
    if name.is_folder:
        return CorpusUnreadable(f"folder `{name.path}` cannot be read as a data set: {_first_line(error)}")
    return CorpusUnreadable(
        f"`{name.path}` is neither a path here nor a data set that the hub gives ({_first_line(error)}). Connect, or "
        f"give a copy: a file, a folder of parquet files, or one that save_to_disk wrote."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
