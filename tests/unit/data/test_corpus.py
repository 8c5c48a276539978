"""Corpus files to windows: nothing lost, nothing twice, bad files named by line."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from safe_sail.data import corpus
from safe_sail.data.corpus import Document, corpus_batches, read_documents
from safe_sail.errors import BadInput, BadText, CorpusUnreadable


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: w0 to w99; 100 begins a text, 101 pads, 102 is any other word."""
    vocabulary = {f"w{i}": i for i in range(100)} | {"<s>": 100, "<pad>": 101, "<unk>": 102}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", pad_token="<pad>", unk_token="<unk>")


def documents(*lengths: int) -> list[Document]:
    return [Document(f"d{i}", " ".join(f"w{t}" for t in range(length))) for i, length in enumerate(lengths)]


def rows(batches: Iterator[object]) -> list[tuple[str, list[int]]]:
    return [
        (name, ids[mask.bool()].tolist())
        for batch in batches
        for name, ids, mask in zip(batch.source_ids, batch.token_ids, batch.attention_mask, strict=True)  # type: ignore[attr-defined]
    ]


def test_windows_put_together_are_the_documents(tokenizer: PreTrainedTokenizerFast) -> None:
    found = rows(
        corpus_batches(documents(7, 3, 10), tokenizer, window=5, batch_size=2, max_positions=64, prepend_bos=False)
    )

    assert found == [
        ("d0#0", [0, 1, 2, 3, 4]),
        ("d0#1", [5, 6]),
        ("d1#0", [0, 1, 2]),
        ("d2#0", [0, 1, 2, 3, 4]),
        ("d2#1", [5, 6, 7, 8, 9]),
    ]


def test_every_window_begins_with_the_start_token_when_asked(tokenizer: PreTrainedTokenizerFast) -> None:
    found = rows(corpus_batches(documents(7), tokenizer, window=5, batch_size=9, max_positions=64, prepend_bos=True))

    assert found == [("d0#0", [100, 0, 1, 2, 3]), ("d0#1", [100, 4, 5, 6])]


def test_batches_have_the_asked_size_and_read_no_further(tokenizer: PreTrainedTokenizerFast) -> None:
    read = 0

    def endless() -> Iterator[Document]:
        nonlocal read
        while True:
            read += 1
            yield Document(f"d{read}", "w1 w2 w3")

    batches = corpus_batches(endless(), tokenizer, window=8, batch_size=4, max_positions=64, prepend_bos=False)

    assert [tuple(next(batches).token_ids.shape) for _ in range(3)] == [(4, 3)] * 3
    assert read == 12


@pytest.mark.parametrize(("window", "batch_size"), [(1, 1), (65, 1), (8, 0)])
def test_window_that_does_not_fit_is_refused(window: int, batch_size: int, tokenizer: PreTrainedTokenizerFast) -> None:
    batches = corpus_batches(
        documents(3), tokenizer, window=window, batch_size=batch_size, max_positions=64, prepend_bos=True
    )
    with pytest.raises(BadInput, match="expected windows of 2 to 64 tokens"):
        next(batches)


def test_corpus_without_tokens_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    for nothing in ([], [Document("d0", "")]):
        with pytest.raises(BadText, match="no token"):
            list(corpus_batches(nothing, tokenizer, window=8, batch_size=1, max_positions=64, prepend_bos=True))


def test_start_token_of_a_tokenizer_without_one_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>")

    with pytest.raises(BadText, match="start token"):
        list(corpus_batches(documents(3), bare, window=8, batch_size=1, max_positions=64, prepend_bos=True))


def write_all_kinds(folder: Path) -> None:
    (folder / "b").mkdir()
    (folder / "a.txt").write_text("one\nline two\n\n\n \nsecond", encoding="utf-8")
    (folder / "b" / "c.jsonl").write_text('{"text": "third"}\n\n{"text": " "}\n"fourth 你"\n', encoding="utf-8")
    pq.write_table(pa.table({"text": ["fifth", "sixth"], "n": [1, 2]}), folder / "d.parquet")
    (folder / "notes.md").write_text("not read")


def test_folder_of_all_kinds_is_read_by_name(tmp_path: Path) -> None:
    write_all_kinds(tmp_path)

    assert list(read_documents(tmp_path)) == [
        Document("a.txt:0", "one\nline two"),
        Document("a.txt:1", "second"),
        Document("b/c.jsonl:0", "third"),
        Document("b/c.jsonl:2", "fourth 你"),
        Document("d.parquet:0", "fifth"),
        Document("d.parquet:1", "sixth"),
    ]


def test_other_field_is_read_when_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "no", "body": "yes"}')

    assert [one.text for one in read_documents(tmp_path / "a.jsonl", text_field="body")] == ["yes"]


def test_text_without_blank_lines_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_LONGEST_PARAGRAPH", 10)
    (tmp_path / "a.txt").write_text("abcdefghij" * 3 + "\nklm")

    assert [one.text for one in read_documents(tmp_path / "a.txt")] == ["abcdefghij"] * 3 + ["klm"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'"one"\n{', "line 2 is not JSON"),
        ("a.jsonl", b'"one"\n\n{"body": "x"}', "line 3: expected a text"),
        ("a.jsonl", b'{"text": 5}', "line 1: expected a text"),
        ("a.jsonl", b"", "holds no text"),
        ("a.txt", b" \n\n ", "holds no text"),
        ("a.txt", b"\xff\xfe\x00", "not text in UTF-8"),
        ("a.parquet", b"PAR1 no", "not a whole parquet file"),
        ("a.pdf", b"x", "unknown kind"),
    ],
)
def test_bad_file_says_what_and_where(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(CorpusUnreadable, match=says):
        list(read_documents(tmp_path / name))


def test_parquet_of_other_columns_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["x", None]}), tmp_path / "b.parquet")

    with pytest.raises(CorpusUnreadable, match="no column `text`; its columns are n"):
        list(read_documents(tmp_path / "a.parquet"))
    with pytest.raises(CorpusUnreadable, match="row 1: `text` must be a text, got None"):
        list(read_documents(tmp_path / "b.parquet"))


def test_missing_file_and_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusUnreadable, match="cannot be read"):
        list(read_documents(tmp_path / "none.txt"))
    with pytest.raises(CorpusUnreadable, match=r"holds no \.txt, \.jsonl, \.parquet file"):
        list(read_documents(tmp_path))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """What Python allocates, and not what the system gives the process: that differs between two starts."""
    line = json.dumps({"text": "word " * 200}) + "\n"
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        file.writelines(line for _ in range(5_000))
    assert path.stat().st_size > 5_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_documents(path)) == 5_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 500_000
