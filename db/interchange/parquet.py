"""A folder of Parquet files, one a table: the whole of what is kept of features, and nothing lost in a round trip.

1. `TABLES` names each file's columns and types; a column is nullable only where a record's field may be None.
2. `export_parquet` writes page by page. Parquet's texts are UTF-8: a half character shows as U+FFFD in `tokens`, and
   the column `exact` then holds the context's texts byte for byte.
3. `import_parquet` reads in batches: `contexts` must stand in the order of `features`, `n_contexts` for each.

Not in the files: runs (the import is a run of its own), and what belongs to SAEs and concepts rather than features.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from db import store, tables
from db.interchange import parquet_samples, reading
from db.interchange.files import refuse, staged
from db.packing import pack_texts, unpack_texts
from safe_sail.errors import BadInput, DatabaseUnreachable, ExportRefused, ImportUnreadable
from safe_sail.records import (
    Context,
    Estimate,
    Explanation,
    ExplanationScore,
    FeatureId,
    FeatureTags,
    Histogram,
    JudgeMethod,
    ModelRef,
    PublishedScore,
    SaeRef,
    TopContexts,
)
from safe_sail.sites import Site

Row = dict[str, Any]

_ROW_GROUP = 64  # features whose contexts are written at a time: a group each would cost more than its rows
_BATCH = 512  # rows read at a time; as many contexts make about a megabyte

# --------------------------------------------------------------------------------------------- 1. the tables

_FEATURE = {"sae": "string", "index": "int64"}
_EXPLANATION = _FEATURE | {"explainer": "string", "prompt_version": "string"}
ESTIMATE: Mapping[str, str] = {"": "float64", "_low": "float64", "_high": "float64", "_n": "int64", "_level": "float64"}
TABLES: Mapping[str, Mapping[str, str]] = {
    "models": dict.fromkeys(("model_id", "architecture", "source"), "string")
    | dict.fromkeys(("n_layers", "n_heads", "d_head", "d_model", "d_mlp", "d_vocab"), "int64"),
    "saes": {
        "slug": "string", "release": "string?", "sae_id": "string", "model_id": "string?", "site": "string",
        "d_in": "int64", "width": "int64", "architecture": "string",
    },
    "features": _FEATURE
    | {"n_tokens_seen": "int64", "density": "float64", "max_activation": "float64", "n_contexts": "int64"}
    | {"histogram_edges": "float64[]?", "histogram_counts": "int64[]?"},
    "contexts": _FEATURE
    | {"rank": "int64", "tokens": "string[]", "token_ids": "int32[]", "activations": "float32[]", "peak": "int32"}
    | {"source_id": "string", "exact": "binary?"},
    "context_samples": _FEATURE | parquet_samples.COLUMNS,
    "explanations": _EXPLANATION | {"text": "string"},
    "scores": _EXPLANATION
    | {"method": "string", "n_excluded": "int64"}
    | {f"{name}{end}": kind for name in ("score", "control") for end, kind in ESTIMATE.items()},
    "published_scores": _FEATURE | {"source": "string", "method": "string", "value": "float64"},
    "tags": _FEATURE | {"source": "string", "tags": "string[]"},
}  # fmt: skip
"""Columns by file name without `.parquet`; `[]` is a list, `?` may be null."""


class Counts(NamedTuple):
    """Rows by table."""

    rows: Mapping[str, int]

    def __str__(self) -> str:
        return ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in self.rows.items())


def require_pyarrow() -> Any:
    """The package, or BadInput that says how to get it."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise BadInput("Parquet needs pyarrow, which is not installed; type `pip install pyarrow`.") from error
    return pyarrow


def arrow_field(pyarrow: Any, name: str, kind: str) -> Any:
    """The column of a kind as `TABLES` writes it."""
    plain = kind.rstrip("?")
    base = pyarrow.type_for_alias(plain.removesuffix("[]"))
    whole = pyarrow.list_(pyarrow.field("element", base, nullable=False)) if plain.endswith("[]") else base
    return pyarrow.field(name, whole, nullable=kind.endswith("?"))


def _schema(pyarrow: Any, table: str) -> Any:
    return pyarrow.schema([arrow_field(pyarrow, name, kind) for name, kind in TABLES[table].items()])


# --------------------------------------------------------------------------------------------- 2. export


def export_parquet(session: Session, saes: list[str], target: Path) -> Counts:
    """Writes the SAEs and all that is kept of their features.

    Raises:
        NotFound: no SAE has such a slug.
        ExportRefused: the target exists or cannot be written, or there is no SAE.
    """
    pyarrow = require_pyarrow()
    if not saes:
        raise ExportRefused("the database holds no SAE; there is nothing to write.")
    counts = dict.fromkeys(TABLES, 0)
    with staged(target, folder=True) as stage:
        schemas = {table: _schema(pyarrow, table) for table in TABLES}
        writers = {
            table: pyarrow.parquet.ParquetWriter(stage / f"{table}.parquet", schema, compression="zstd")
            for table, schema in schemas.items()
        }
        try:
            for table, rows in _all_rows(session, sorted(set(saes))):
                if rows:
                    writers[table].write_table(pyarrow.Table.from_pylist(rows, schemas[table]))
                    counts[table] += len(rows)
        finally:
            for writer in writers.values():
                writer.close()
    return Counts(counts)


def _all_rows(session: Session, saes: list[str]) -> Iterator[tuple[str, list[Row]]]:
    refs = [store.load_sae(session, slug) for slug in saes]
    models = sorted({ref.model_id for ref in refs if ref.model_id is not None})
    yield "models", [_plain(store.load_model(session, model)) for model in models]
    yield "saes", [_plain(ref) | {"site": str(ref.site)} for ref in refs]
    for slug in saes:
        for sae_key, page in reading.pages(session, slug):
            collected = [kept.record for kept in reading.top_contexts(session, slug, sae_key, page)]
            yield "features", [_feature_row(one) for one in collected]
            for first in range(0, len(collected), _ROW_GROUP):
                some = collected[first : first + _ROW_GROUP]
                yield "contexts", [_context_row(one, rank) for one in some for rank in range(len(one.contexts))]
            sampled = reading.context_samples(session, slug, sae_key, page)
            yield "context_samples", [parquet_samples.sample_row(one) | _plain(one.feature) for one in sampled]
            said = reading.explanations(session, slug, sae_key, page)
            yield "explanations", [_of(one.record.feature, _plain(one.record)) for one in said]
            judged = reading.explanation_scores(session, slug, sae_key, page)
            yield "scores", [_score_row(one.record) for one in judged]
            numbers = reading.published_scores(session, sae_key, page)
            yield "published_scores", [
                {"sae": slug, "index": one.feature_index, "source": one.source, "method": one.method,
                 "value": one.value}
                for one in numbers
            ]  # fmt: skip
            tagged: dict[tuple[int, str], list[str]] = {}
            for tag in reading.tags(session, sae_key, page):
                tagged.setdefault((tag.feature_index, tag.source), []).append(tag.tag)
            yield (
                "tags",
                [
                    {"sae": slug, "index": index, "source": source, "tags": names}
                    for (index, source), names in tagged.items()
                ],
            )


def _plain(record: Any) -> Row:
    return {name: getattr(record, name) for name in type(record).__dataclass_fields__}


def _of(feature: FeatureId, row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "feature"} | _plain(feature)


def _feature_row(one: TopContexts) -> Row:
    row = _of(one.feature, _plain(one)) | {"n_contexts": len(one.contexts)}
    seen = one.histogram
    row |= {"histogram_edges": seen and list(seen.edges), "histogram_counts": seen and list(seen.counts)}
    return {name: row[name] for name in TABLES["features"]}


def _context_row(one: TopContexts, rank: int) -> Row:
    context = one.contexts[rank]
    texts = [*context.tokens, context.source_id]
    shown = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
    return _plain(one.feature) | {
        "rank": rank,
        "tokens": shown[:-1],
        "token_ids": list(context.token_ids),
        "activations": list(context.activations),
        "peak": context.peak,
        "source_id": shown[-1],
        "exact": None if shown == texts else pack_texts(texts),
    }


def _score_row(one: ExplanationScore) -> Row:
    row = _of(one.feature, _plain(one)) | {"method": str(one.method)}
    for name in ("score", "control"):
        estimate = row.pop(name)
        row |= {f"{name}{end}": getattr(estimate, end[1:] or "value") for end in ESTIMATE}
    return row


# --------------------------------------------------------------------------------------------- 3. import


def import_parquet(session: Session, folder: Path, *, run_id: str) -> Counts:
    """Keeps what the files hold; a missing file other than `saes` is an empty table.

    Raises:
        ImportUnreadable: a file is missing or damaged, has other columns, or a row that is no record.
        BadInput: an SAE or a model is known with other facts.
    """
    files = _Files(require_pyarrow(), folder)
    if not (folder / "saes.parquet").is_file():
        raise ImportUnreadable(f"{folder}: expected a folder with saes.parquet, as `safe-sail export` writes it.")
    for model in files.records("models", lambda row: ModelRef(**row)):
        if session.get(tables.ModelRow, model.model_id) is None:
            store.save_model(session, model, run_id=run_id)
        elif (known := store.load_model(session, model.model_id)) != model:
            refuse(f"{folder}/models.parquet", f"the model that the database knows, {known}", model)
    for sae in files.records("saes", lambda row: SaeRef(**row | {"site": Site.parse(row["site"])})):
        _keep_sae(session, folder, sae, run_id)
    store.save_top_contexts(session, _top_contexts(files), run_id=run_id)
    samples = files.records("context_samples", parquet_samples.sample_of_row)
    store.save_context_samples(session, samples, run_id=run_id)
    store.save_explanations(session, files.records("explanations", _explanation), run_id=run_id)
    store.save_explanation_scores(session, files.records("scores", _score), run_id=run_id)
    store.save_published_scores(session, files.records("published_scores", _published), run_id=run_id)
    store.save_feature_tags(session, files.records("tags", _tags), run_id=run_id)
    return Counts(files.counts)


def _keep_sae(session: Session, folder: Path, sae: SaeRef, run_id: str) -> None:
    same = [one.sae for one in store.list_saes(session) if one.sae.slug == sae.slug]
    if not same:
        store.save_sae(session, sae, run_id=run_id)
    elif same[0] != sae:
        refuse(f"{folder}/saes.parquet", f"the SAE that the database knows, {same[0]}", sae)


class _Files:
    """Rows of the folder's files, counted."""

    def __init__(self, pyarrow: Any, folder: Path) -> None:
        self._pyarrow = pyarrow
        self._folder = folder
        self.counts = dict.fromkeys(TABLES, 0)

    def records(self, table: str, made: Callable[[Row], Any]) -> Iterator[Any]:
        """A record of each row."""
        for place, row in self.rows(table):
            with _named(place):
                record = made(row)
            yield record

    def rows(self, table: str) -> Iterator[tuple[str, Row]]:
        """Each row and its place."""
        path = self._folder / f"{table}.parquet"
        if not path.exists():
            return
        schema = _schema(self._pyarrow, table)
        number = 0
        try:
            with self._pyarrow.parquet.ParquetFile(path) as file:
                names = set(file.schema_arrow.names)
                if not set(schema.names) <= names:
                    refuse(str(path), f"the columns {', '.join(schema.names)}", sorted(names))
                for batch in file.iter_batches(_BATCH, columns=schema.names):
                    for row in self._pyarrow.Table.from_batches([batch]).select(schema.names).cast(schema).to_pylist():
                        number += 1
                        yield f"{path}, row {number}", row
        except (self._pyarrow.ArrowException, ValueError, OSError) as error:
            raise ImportUnreadable(f"{path}: expected Parquet of the documented columns; {error}.") from error
        self.counts[table] = number


@contextmanager
def _named(place: str) -> Iterator[None]:
    try:
        yield
    except (BadInput, ValueError, DatabaseUnreachable) as error:
        raise ImportUnreadable(f"{place}: {error}") from error


def _top_contexts(files: _Files) -> Iterator[TopContexts]:
    contexts = files.rows("contexts")
    for place, row in files.rows("features"):
        with _named(place):
            feature = FeatureId(sae=row["sae"], index=row["index"])
        mine = list(islice(contexts, max(row["n_contexts"], 0)))
        for at, one in mine:
            if (one["sae"], one["index"]) != (feature.sae, feature.index):
                refuse(at, f"a context of {feature}, in the order of features.parquet", f"{one['sae']}/{one['index']}")
        with _named(place):
            if len(mine) != row["n_contexts"]:
                raise BadInput(f"expected {row['n_contexts']} contexts in contexts.parquet; got {len(mine)}.")
            yield TopContexts(
                feature=feature,
                contexts=tuple(_context(one) for _, one in sorted(mine, key=lambda pair: pair[1]["rank"])),
                n_tokens_seen=row["n_tokens_seen"],
                density=row["density"],
                max_activation=row["max_activation"],
                histogram=None if row["histogram_edges"] is None else Histogram(
                    edges=tuple(row["histogram_edges"]), counts=tuple(row["histogram_counts"] or ())
                ),
            )  # fmt: skip
    for at, one in contexts:
        refuse(at, "no context beyond those of features.parquet", f"{one['sae']}/{one['index']}")


def _context(row: Row) -> Context:
    *tokens, source_id = [*row["tokens"], row["source_id"]] if row["exact"] is None else unpack_texts(row["exact"])
    return Context(
        tokens=tuple(tokens), token_ids=tuple(row["token_ids"]), activations=tuple(row["activations"]),
        peak=row["peak"], source_id=source_id,
    )  # fmt: skip


def _with_feature(row: Row) -> Row:
    rest = {name: value for name, value in row.items() if name not in ("sae", "index")}
    return rest | {"feature": FeatureId(sae=row["sae"], index=row["index"])}


def _explanation(row: Row) -> Explanation:
    return Explanation(**_with_feature(row))


def _score(row: Row) -> ExplanationScore:
    found = _with_feature(row) | {"method": JudgeMethod(row["method"])}
    for name in ("score", "control"):
        parts = {end[1:] or "value": found.pop(f"{name}{end}") for end in ESTIMATE}
        found[name] = Estimate(**parts)
    return ExplanationScore(**found)


def _published(row: Row) -> PublishedScore:
    return PublishedScore(**_with_feature(row))


def _tags(row: Row) -> FeatureTags:
    return FeatureTags(**_with_feature(row) | {"tags": tuple(row["tags"])})
