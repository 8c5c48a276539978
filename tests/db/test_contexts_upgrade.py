"""Contexts that were kept as packed arrays, until revision 0017, are read as they were after an upgrade."""

from collections.abc import Iterator

import numpy as np
import pytest
from sqlalchemy import Engine, LargeBinary, bindparam, inspect, text

from db.engine import make_engine, reading, write_connection
from db.migrate import upgrade
from db.packing import pack_array, pack_texts
from db.store import load_feature, load_top_contexts
from safe_sail.records import Context, FeatureId, Histogram
from tests.db.test_search_after_upgrade import WRITTEN

CONTEXTS = (
    Context(tokens=("a", '"', "\\"), token_ids=(1, 2, 3), activations=(0.5, 2.0, 0.0), peak=1, source_id="d/1"),
    Context(tokens=("\ud800", "\x00"), token_ids=(-4, 5), activations=(0.0, 0.25), peak=1, source_id="\udfff"),
)
FEATURE = (
    "INSERT INTO feature (sae_key, feature_index, n_tokens_seen, density, max_activation, n_contexts, run_id)"
    " VALUES (1, :i, 9, 0.5, 2.0, :n, 'r')"
)
HISTOGRAM = Histogram(edges=(0.0, 1.0, 2.0), counts=(3, 4))


@pytest.fixture
def old(empty_url: str) -> Iterator[Engine]:
    engine = make_engine(empty_url)
    upgrade(engine, "0017")
    yield engine
    engine.dispose()


def packed(contexts: tuple[Context, ...]) -> dict[str, bytes]:
    def one_after_another(name: str, code: str) -> bytes:
        return pack_array(np.array([value for one in contexts for value in getattr(one, name)], code))

    return {
        "lengths": pack_array(np.array([len(one.tokens) for one in contexts], "<i4")),
        "peaks": pack_array(np.array([one.peak for one in contexts], "<i4")),
        "token_ids": one_after_another("token_ids", "<i4"),
        "activations": one_after_another("activations", "<f4"),
        "tokens": pack_texts([token for one in contexts for token in one.tokens]),
        "source_ids": pack_texts([one.source_id for one in contexts]),
    }


@pytest.mark.parametrize("n", [0, 1, 600])  # none, one portion, three
def test_packed_contexts_are_read_after_an_upgrade(old: Engine, n: int) -> None:
    histogram = {
        "histogram_edges": pack_array(np.array(HISTOGRAM.edges, "<f8")),
        "histogram_counts": pack_array(np.array(HISTOGRAM.counts, "<i8")),
    }
    kept = {index: CONTEXTS if index % 2 else () for index in range(10, 10 + n)}
    names = (*packed(()), *histogram)
    insert = text(
        f"INSERT INTO contexts (sae_key, feature_index, run_id, {', '.join(names)})"
        f" VALUES (1, :feature_index, 'r', {', '.join(':' + name for name in names)})"
    ).bindparams(*(bindparam(name, type_=LargeBinary) for name in names))
    with write_connection(old) as connection:
        for statement in WRITTEN:
            connection.execute(text(statement))
        connection.execute(text("UPDATE sae SET width = 1000"))
        for index, contexts in kept.items():
            connection.execute(text(FEATURE), {"i": index, "n": len(contexts)})
            connection.execute(insert, {"feature_index": index} | packed(contexts) | histogram)
    upgrade(old)
    with reading(old) as session:
        for index in list(kept)[:: max(1, n // 7)]:
            feature_id = FeatureId(sae="s", index=index)
            found = load_top_contexts(session, feature_id)
            assert found is not None
            assert (found.record.contexts, found.record.histogram, found.run_id) == (kept[index], HISTOGRAM, "r")
            assert load_feature(session, feature_id).top_contexts == found
        assert session.execute(text("SELECT count(*) FROM contexts")).scalar() == n
    with old.connect() as connection:
        assert "packed_contexts" not in inspect(connection).get_table_names()
