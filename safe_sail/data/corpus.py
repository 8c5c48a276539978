"""Texts of any number to batches of token windows, each row with the name of its document and window.

1. Documents are read one by one: paragraphs of .txt, rows of .jsonl, .parquet and data sets of the hub.
2. A document's tokens are cut into windows of one length; the last one is shorter. No window spans two documents.
3. Windows are gathered into batches, padded on the right.

Memory holds one document and one batch.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from safe_sail.data.hub import DatasetName, dataset_rows
from safe_sail.errors import BadInput, BadText, CorpusUnreadable
from safe_sail.model.tokens import TokenBatch, batch_of_ids, pad_id_of

_LONGEST_PARAGRAPH: Final = 1_000_000
"""Characters; a longer paragraph of a .txt file is read in pieces, so that memory stays bounded."""


class Document(NamedTuple):
    """One text of a corpus."""

    name: str
    """File name and place in it, counted from 0: `news.jsonl:17`."""
    text: str


# 1. documents


def read_documents(source: Path, *, text_field: str = "text") -> Iterator[Document]:
    """Documents of a file, or of all known files of a folder by name; blank ones are left out, places still count them.

    Raises:
        CorpusUnreadable: a file is missing, of unknown kind, malformed, or holds no text; the message names the line.
    """
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.suffix in _READERS and path.is_file())
        if not files:
            raise CorpusUnreadable(f"folder `{source}` holds no {', '.join(_READERS)} file.")
    else:
        files = [source]
    for path in files:
        yield from _read_file(path, str(path.relative_to(source)) if source.is_dir() else path.name, text_field)


def read_dataset(name: DatasetName, *, text_field: str = "text") -> Iterator[Document]:
    """Documents of a data set's split; blank ones are left out, places still count them.

    Raises:
        CorpusUnreadable: the data set is not there, lacks the field, has a row without text, or no text at all.
        BadInput: it has several splits or configurations and none is named.
    """
    is_empty = True
    for place, row in enumerate(dataset_rows(name, columns=(text_field,))):
        text = row.get(text_field)
        if not isinstance(text, str):
            raise CorpusUnreadable(f"data set `{name}` row {place}: `{text_field}` must be a text, got {text!r}.")
        if text.strip():
            is_empty = False
            yield Document(f"{name.path}:{place}", text)
    if is_empty:
        raise CorpusUnreadable(f"data set `{name}` holds no text in `{text_field}`.")


def _read_file(path: Path, name: str, text_field: str) -> Iterator[Document]:
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise CorpusUnreadable(f"`{path}` is of unknown kind; expected {', '.join(_READERS)}.")
    is_empty = True
    try:
        for place, text in enumerate(reader(path, text_field)):
            if text.strip():
                is_empty = False
                yield Document(f"{name}:{place}", text)
    except OSError as error:
        raise CorpusUnreadable(f"`{path}` cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise CorpusUnreadable(f"`{path}` is not text in UTF-8: {error}") from error
    if is_empty:
        raise CorpusUnreadable(f"`{path}` holds no text.")


def _read_paragraphs(path: Path, text_field: str) -> Iterator[str]:
    lines: list[str] = []
    length = 0
    with path.open(encoding="utf-8-sig") as file:
        # a bounded read, because a line may be as long as the file
        while line := file.readline(_LONGEST_PARAGRAPH):
            if line.strip():
                lines.append(line)
                length += len(line)
            if lines and (not line.strip() or length >= _LONGEST_PARAGRAPH):
                yield "".join(lines).strip()
                lines, length = [], 0
    if lines:
        yield "".join(lines).strip()


def _read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusUnreadable(f"`{path}` line {number} is not JSON: {error}") from error
            text = row.get(text_field) if isinstance(row, dict) else row
            if not isinstance(text, str):
                raise CorpusUnreadable(
                    f"`{path}` line {number}: expected a text or an object with the text `{text_field}`, got "
                    f"{line.strip()[:60]!r}."
                )
            yield text


def _read_parquet(path: Path, text_field: str) -> Iterator[str]:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError as error:
        raise CorpusUnreadable(f"`{path}` needs pyarrow, which is not installed; install it or give .jsonl.") from error
    try:
        with pq.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                raise CorpusUnreadable(
                    f"`{path}` has no column `{text_field}`; its columns are {', '.join(file.schema_arrow.names)}."
                )
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str):
                        raise CorpusUnreadable(f"`{path}` row {row}: `{text_field}` must be a text, got {text!r}.")
                    yield text
                    row += 1
    except pa.ArrowException as error:
        raise CorpusUnreadable(f"`{path}` is not a whole parquet file: {error}") from error


_READERS: Final[dict[str, Callable[[Path, str], Iterator[str]]]] = {
    ".txt": _read_paragraphs,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


# 2. and 3. windows and batches


def corpus_batches(
    documents: Iterable[Document],
    tokenizer: Any,
    *,
    window: int,
    batch_size: int,
    max_positions: int,
    prepend_bos: bool,
) -> Iterator[TokenBatch]:
    """Batches of at most `batch_size` windows; rows are named `document#window`, windows counted from 0.

    A window has at most `window` tokens, the start token included that `prepend_bos` puts before each; SAEs say in
    `SAEHandle.prepend_bos` whether they were trained so.

    Raises:
        BadInput: a window has no room for a content token, or is longer than the model accepts.
        BadText: there is no document, or a start token is asked of a tokenizer that has none.
    """
    start = _start_of(tokenizer, prepend_bos=prepend_bos)
    room = window - len(start)
    if room < 1 or window > max_positions or batch_size < 1:
        raise BadInput(
            f"expected windows of {len(start) + 1} to {max_positions} tokens and batches of 1 or more; got {window} "
            f"and {batch_size}."
        )
    pad_id = pad_id_of(tokenizer)
    rows: list[list[int]] = []
    names: list[str] = []
    is_empty = True
    for document in documents:
        for index, part in enumerate(_windows(tokenizer, document.text, room)):
            rows.append(start + part)
            names.append(f"{document.name}#{index}")
            is_empty = False
            if len(rows) == batch_size:
                yield _batch(rows, names, pad_id, max_positions)
                rows, names = [], []
    if rows:
        yield _batch(rows, names, pad_id, max_positions)
    if is_empty:
        raise BadText("the corpus has no token; expected at least one document with text.")


def _windows(tokenizer: Any, text: str, room: int) -> Iterator[list[int]]:
    # `verbose` would warn of texts longer than the model, which are cut here
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    for first in range(0, len(ids), room):
        yield list(ids[first : first + room])


def _start_of(tokenizer: Any, *, prepend_bos: bool) -> list[int]:
    if not prepend_bos:
        return []
    if tokenizer.bos_token_id is None:
        raise BadText("a start token was asked for, and the tokenizer has none; pass prepend_bos=False.")
    return [int(tokenizer.bos_token_id)]


def _batch(rows: Sequence[Sequence[int]], names: Sequence[str], pad_id: int, max_positions: int) -> TokenBatch:
    return batch_of_ids(rows, pad_id=pad_id, padding_side="right", max_positions=max_positions, source_ids=names)
