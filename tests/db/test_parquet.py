"""What leaves as Parquet comes back equal, from either database to either; a bad file leaves nothing behind."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine, delete

from db.engine import reading, writing
from db.interchange.parquet import TABLES, export_parquet, import_parquet
from db.store import (
    list_models,
    list_saes,
    load_context_sample,
    load_explanation_scores,
    load_explanations,
    load_feature_tags,
    load_published_scores,
    load_top_contexts,
    save_context_samples,
    save_explanation_scores,
    save_explanations,
    save_feature_tags,
    save_published_scores,
    save_run,
    save_top_contexts,
)
from db.tables import Base
from safe_sail.errors import ExportRefused, ImportUnreadable
from safe_sail.records import Context, ContextSample, FeatureTags, PublishedScore, TopContexts
from tests.db import builders as a

HOSTILE = Context(
    tokens=("\ud83d", "\x00", "<script>", "a\u2028b", ""), token_ids=(0, -1, 2**31 - 1, 3, 4),
    activations=(0.0, 1.5, 0.25, 0.0, 0.0), peak=1, source_id="half \udc00",
)  # fmt: skip


def fill(engine: Engine) -> None:
    a.catalogue(engine)
    hostile = TopContexts(
        feature=a.feature(7), contexts=(HOSTILE,), n_tokens_seen=9, density=0.1, max_activation=1.5, histogram=None
    )
    silent = TopContexts(
        feature=a.feature(8), contexts=(), n_tokens_seen=9, density=0.0, max_activation=0.0, histogram=None
    )
    sample = ContextSample(feature=a.feature(7), spread=(HOSTILE,), random=(), near_misses=(), quantile_999=0.5)
    with writing(engine) as session:
        save_top_contexts(session, [a.top_contexts(3, n=3), a.top_contexts(5), hostile, silent], run_id=a.RUN)
        save_context_samples(session, [a.context_sample(3), sample], run_id=a.RUN)
        save_explanations(session, [a.explanation(3), a.explanation(3, "bombs", "gpt"), a.explanation(9)], run_id=a.RUN)
        save_explanation_scores(session, [a.explanation_score(3)], run_id=a.RUN)
        score = PublishedScore(feature=a.feature(11), method="correlation_score", value=0.1, source="theirs")
        save_published_scores(session, [score], run_id=a.RUN)
        tags = FeatureTags(feature=a.feature(11), tags=("violence", "politics"), source="theirs")
        save_feature_tags(session, [tags], run_id=a.RUN)


def everything(engine: Engine) -> dict[str, object]:
    loads = (load_explanations, load_explanation_scores, load_published_scores, load_feature_tags)
    with reading(engine) as session:
        found: dict[str, object] = {"models": [one.record for one in list_models(session)]}
        found["saes"] = [one.sae for one in list_saes(session)]
        for index in range(a.WIDTH):
            seen = load_top_contexts(session, a.feature(index))
            found[f"contexts {index}"] = seen and seen.record
            sample = load_context_sample(session, a.feature(index))
            found[f"sample {index}"] = sample and sample.record
            found[f"rest {index}"] = [[one.record for one in load(session, a.feature(index))] for load in loads]
    return found


def clear(engine: Engine) -> None:
    with writing(engine) as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))


def bring(engine: Engine, folder: Path) -> str:
    with writing(engine) as session:
        save_run(session, a.run())
        return str(import_parquet(session, folder, run_id=a.RUN))


@pytest.fixture
def folder(engine: Engine, tmp_path: Path) -> Path:
    """What a filled database exports; the database is empty again."""
    fill(engine)
    with reading(engine) as session:
        export_parquet(session, [a.SAE], tmp_path / "out")
    return tmp_path / "out"


def test_parquet_comes_back_equal_with_every_character(engine: Engine, folder: Path) -> None:
    before = everything(engine)
    assert before["contexts 7"].contexts == (HOSTILE,)  # type: ignore[attr-defined]
    clear(engine)
    first = bring(engine, folder)
    assert everything(engine) == before
    assert bring(engine, folder) == first
    assert first.startswith("1 models, 1 saes, 4 features, 6 contexts, 2 context samples, 3 explanations, 1 scores, 1 ")


def test_pandas_reads_every_file(folder: Path) -> None:
    for name, columns in TABLES.items():
        assert list(pd.read_parquet(folder / f"{name}.parquet").columns) == list(columns)
    contexts = pd.read_parquet(folder / "contexts.parquet")
    assert [list(tokens) for tokens in contexts["tokens"]][-1] == ["\ufffd", "\x00", "<script>", "a\u2028b", ""]
    assert contexts["exact"].notna().tolist() == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("table", "column", "values", "complaint"),
    [
        ("features", "density", [2.0, 0.1, 0.1, 0.1], r"features.parquet, row 1: .* density lies in \[0, 1\]"),
        ("features", "index", [5, 3, 7, 8], r"contexts.parquet, row 1: expected a context of .*/5, in the order"),
        ("features", "n_contexts", [3, 2, 1, 1], "row 4: expected 1 contexts in contexts.parquet; got 0"),
        ("features", "n_contexts", [3, 2, 0, 0], "expected no context beyond those of features"),
        ("features", "index", [3, 5, 7, 16], "the features of .* are 0 to 15"),
        ("contexts", "peak", [2] * 6, "does not hold the largest activation"),
        ("context_samples", "kinds", [["spread"] * 3, ["top"]], "row 2: kinds of contexts are spread, random"),
        ("context_samples", "peaks", [[0], [1]], "row 1: expected lists for 3 contexts of 9 tokens"),
        ("context_samples", "quantile_999", [0.1, -1.0], r"row 2: .* Q\(0.999\) is finite and at least 0"),
        ("scores", "method", ["guess"], "scores.parquet, row 1: 'guess' is not a valid JudgeMethod"),
        ("scores", "score_n", [0], "needs at least one observation"),
        ("explanations", "text", ["", "b", "c"], "row 1: .* an empty explanation"),
        ("explanations", "text", [None, "b", "c"], "explanations.parquet: expected Parquet of the documented"),
        ("explanations", "index", ["x", "y", "z"], "explanations.parquet: expected Parquet of the documented"),
        ("published_scores", "value", [float("inf")], "is finite"),
        ("saes", "site", ["nowhere"], "saes.parquet, row 1: `nowhere` is not a site"),
        ("saes", "d_in", [9], "expected the SAE that the database knows"),
        ("models", "n_heads", [9], "expected the model that the database knows"),
    ],
)
def test_a_bad_row_is_named_and_leaves_nothing(
    engine: Engine, folder: Path, table: str, column: str, values: list[object], complaint: str
) -> None:
    if "database knows" not in complaint:
        clear(engine)
    before = everything(engine) if "database knows" in complaint else None
    path = folder / f"{table}.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(rows.schema.get_field_index(column), column, pa.array(values)), path)
    with pytest.raises(Exception, match=complaint) as caught:
        bring(engine, folder)
    assert type(caught.value).__name__ in ("ImportUnreadable", "BadRecord")
    if before is None:
        with reading(engine) as session:
            assert list_saes(session) == []
    else:
        assert everything(engine) == before


def test_other_folders_are_refused(engine: Engine, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ImportUnreadable, match=r"expected a folder with saes.parquet"):
        bring(engine, tmp_path / "nowhere")
    (folder / "tags.parquet").write_bytes(b"PAR1" + json.dumps({}).encode())
    with pytest.raises(ImportUnreadable, match=r"tags.parquet: expected Parquet"):
        bring(engine, folder)
    pq.write_table(pa.table({"sae": ["x"]}), folder / "tags.parquet")
    with pytest.raises(ImportUnreadable, match=r"tags.parquet: expected the columns sae, index, source, tags"):
        bring(engine, folder)
    with reading(engine) as session, pytest.raises(ExportRefused, match="exists already"):
        export_parquet(session, [a.SAE], folder)
