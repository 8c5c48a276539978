"""Data sets by name: what is read equals what was written, whatever wrote it, and what is not there says so."""

import json
import socket
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import constants

from safe_sail.data.concepts import read_concepts
from safe_sail.data.corpus import read_dataset, read_documents
from safe_sail.data.hub import DatasetName, dataset_name, dataset_rows, pinned
from safe_sail.errors import BadInput, CorpusUnreadable

TEXTS = ["the cat sat", "a dog ran", "", "rain fell"]
CONCEPT_ROWS: dict[str, list[Any]] = {
    "text": ["bad one", "good one", "bad two", "good two"],
    "label": [1, 0, 1, 0],
    "pair": ["a", "a", "b", "b"],
    "concept": ["insult"] * 4,
}


@pytest.fixture(autouse=True)
def _no_bars() -> None:
    datasets.disable_progress_bars()


def parquet_folder(folder: Path, **columns: list[Any]) -> Path:
    """As a repository of the hub looks: one file a split."""
    folder.mkdir()
    datasets.Dataset.from_dict(columns).to_parquet(folder / "train.parquet")
    return folder


def saved_folder(folder: Path, **columns: list[Any]) -> Path:
    datasets.Dataset.from_dict(columns).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("make", [parquet_folder, saved_folder])
def test_documents_of_a_folder_are_its_rows(make: Any, tmp_path: Path):
    folder = make(tmp_path / "set", text=TEXTS, other=[1, 2, 3, 4])
    name = dataset_name(f"hf:{folder}")
    assert name is not None
    found = list(read_dataset(name))
    assert [document.text for document in found] == ["the cat sat", "a dog ran", "rain fell"]
    assert [document.name.rpartition(":")[2] for document in found] == ["0", "1", "3"]


def test_parquet_files_read_as_a_data_set_and_as_files_give_the_same_texts(tmp_path: Path):
    folder = parquet_folder(tmp_path / "set", body=TEXTS)
    as_set = read_dataset(DatasetName(str(folder)), text_field="body")
    as_files = read_documents(folder, text_field="body")
    assert [one.text for one in as_set] == [one.text for one in as_files]


def test_one_of_several_splits_is_named(tmp_path: Path):
    folder = parquet_folder(tmp_path / "set", text=["from train"])
    datasets.Dataset.from_dict({"text": ["from test"]}).to_parquet(folder / "test.parquet")
    saved = tmp_path / "saved"
    parts = {"train": datasets.Dataset.from_dict({"text": ["from train"]})}
    parts["test"] = datasets.Dataset.from_dict({"text": ["from test"]})
    datasets.DatasetDict(parts).save_to_disk(saved)
    for where in (folder, saved):
        named = dataset_name(f"hf:{where}?split=test")
        assert named is not None
        assert [row["text"] for row in dataset_rows(named)] == ["from test"]
        with pytest.raises(BadInput, match="has the splits train, test"):
            list(dataset_rows(DatasetName(str(where))))
        with pytest.raises(BadInput, match="has the splits train, test"):
            list(dataset_rows(DatasetName(str(where), split="dev")))


@pytest.mark.parametrize("make", [parquet_folder, saved_folder])
def test_concepts_of_a_data_set_are_those_of_a_file(make: Any, tmp_path: Path):
    folder = make(tmp_path / "pairs", **CONCEPT_ROWS)
    lines = [dict(zip(CONCEPT_ROWS, row, strict=True)) for row in zip(*CONCEPT_ROWS.values(), strict=True)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (expected,) = read_concepts(tmp_path / "pairs.jsonl")
    (found,) = read_concepts(f"hf:{folder}")
    assert found.sha256 == expected.sha256
    assert found.pairs == (("bad one", "good one"), ("bad two", "good two"))


def test_names_are_told_from_paths(tmp_path: Path):
    (tmp_path / "texts.txt").write_text("text")
    for path in (str(tmp_path), str(tmp_path / "texts.txt"), "missing.jsonl", "folder/missing.txt", "missing"):
        assert dataset_name(path) is None
    assert dataset_name("Salesforce/wikitext") == DatasetName("Salesforce/wikitext")
    named = dataset_name("hf:Salesforce/wikitext?config=wikitext-2-v1&split=train&revision=0a1b")
    assert named == DatasetName("Salesforce/wikitext", "wikitext-2-v1", "train", "0a1b")
    assert dataset_name(f"hf:{named}") == named
    saved = saved_folder(tmp_path / "saved", text=TEXTS)
    assert dataset_name(str(saved)) == DatasetName(str(saved))


@pytest.mark.parametrize("text", ["hf:", "hf:one", "hf:a/b?split", "hf:a/b?part=train", "hf:./no/such/folder"])
def test_names_that_say_nothing_known_are_refused(text: str):
    with pytest.raises(BadInput, match="expected hf:OWNER/NAME"):
        dataset_name(text)


def test_a_hub_that_cannot_be_reached_says_what_to_give_instead():
    for use in (pinned, lambda name: list(dataset_rows(name))):
        with pytest.raises(
            CorpusUnreadable, match=r"neither a path here nor a data set that the hub gives.*Connect, or"
        ):
            use(DatasetName("nobody/nothing"))


def test_a_hub_that_refuses_the_connection_says_so_too(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # held, and never listened on
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(CorpusUnreadable, match=r"neither a path here nor .* \(.*refused.*\)\. Connect, or"):
            pinned(DatasetName("nobody/nothing"))


def test_rows_without_text_are_refused(tmp_path: Path):
    folder = parquet_folder(tmp_path / "numbers", text=[1, 2])
    with pytest.raises(CorpusUnreadable, match="row 0: `text` must be a text, got 1"):
        list(read_dataset(DatasetName(str(folder))))
    with pytest.raises(CorpusUnreadable, match="has no column `body`; its columns are text"):
        list(read_dataset(DatasetName(str(folder)), text_field="body"))
    blank = parquet_folder(tmp_path / "blank", text=["", " "])
    with pytest.raises(CorpusUnreadable, match="holds no text in `text`"):
        list(read_dataset(DatasetName(str(blank))))


def test_damaged_and_empty_folders_are_refused(tmp_path: Path):
    folder = parquet_folder(tmp_path / "set", text=TEXTS * 1000)
    whole = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusUnreadable, match="cannot be read"):
        list(dataset_rows(DatasetName(str(folder))))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusUnreadable, match="cannot be read as a data set"):
        list(dataset_rows(DatasetName(str(tmp_path / "empty"))))
    whole_set = parquet_folder(tmp_path / "whole", text=TEXTS)
    with pytest.raises(BadInput, match=r"Name one as in hf:.*\?config=\.\."):
        list(dataset_rows(DatasetName(str(whole_set), config="other")))
