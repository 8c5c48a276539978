"""Corpora that commands read: files, folders and data sets of the Hugging Face hub, by name."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from safe_sail.data.corpus import Document, read_dataset, read_documents
from safe_sail.data.hub import dataset_name, pinned
from safe_sail.errors import CorpusUnreadable
from safe_sail.model.handle import HookedModel

CorpusName = Annotated[
    str | None,
    typer.Option(
        help=".txt, .jsonl or .parquet file, a folder of them, or a hub data set: OWNER/NAME, hf:NAME?split=.."
    ),
]
TextField = Annotated[str, typer.Option(help="Where .jsonl, .parquet and data sets hold the text.")]


def fixed(corpus: str | None) -> str | None:
    """The same corpus by a name that will mean the same tomorrow: a hub data set at the commit that it has now.

    Raises:
        CorpusUnreadable: there is no such file or folder, the hub cannot be reached, or it has no such data set.
    """
    name = None if corpus is None else dataset_name(corpus)
    if corpus is not None and name is None and not Path(corpus).exists():  # said before a model is loaded for it
        raise CorpusUnreadable(f"`{corpus}` cannot be read: there is no such file or folder.")
    return corpus if name is None or name.is_folder else f"hf:{pinned(name)}"


def read_corpus(corpus: str, text_field: str) -> Iterator[Document]:
    """Its documents, one after the other.

    Raises:
        CorpusUnreadable: it is missing, malformed or holds no text.
    """
    name = dataset_name(corpus)
    return (
        read_documents(Path(corpus), text_field=text_field)
        if name is None
        else read_dataset(name, text_field=text_field)
    )


def corpus_facts(corpus: str, text_field: str) -> dict[str, object]:
    """What tells this corpus from others: SHA-256 over its files' names and bytes, or the commit of a data set."""
    name = dataset_name(corpus)
    if name is not None and not name.is_folder:
        return {"name": str(name), "text_field": text_field}
    folder = Path(corpus if name is None else name.path)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]:
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0".encode())
            with path.open("rb") as file:
                while part := file.read(2**20):
                    digest.update(part)
    facts: dict[str, object] = {"name": folder.name, "sha256": digest.hexdigest(), "text_field": text_field}
    if name is not None:
        facts |= {"config": name.config, "split": name.split}
    return facts


def starts_with_bos(model: HookedModel) -> bool:
    """Whether the tokenizer puts a start token before a text by itself."""
    bos = model.tokenizer.bos_token_id
    return bos is not None and model.tokenizer("a")["input_ids"][:1] == [bos]
