"""What lists show of a feature equals what its own tables hold, whatever was saved in whichever order."""

import random
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, event, text

from db.engine import make_engine, reading, write_connection, writing
from db.migrate import upgrade
from db.prepared import run_in
from db.store import (
    FeatureSort,
    list_features,
    load_feature,
    page_rows,
    save_concept_scores,
    save_explanation_scores,
    save_explanations,
    save_ledger_entries,
    save_top_contexts,
)
from db.store.cursors import write_cursor
from safe_sail.records import Estimate
from tests.db import builders as a
from tests.db.test_ledger import an_entry

EXPLAINERS = ("zz", "aa", "llm")


def expected(engine: Engine) -> list[tuple[object, ...]]:
    """The same by hand from whole features, of which anything is known."""
    lines: list[tuple[object, ...]] = []
    with reading(engine) as session:
        keys = session.execute(text("SELECT feature_index FROM feature ORDER BY feature_index")).scalars().all()
        named = session.execute(text("SELECT explainer || feature_index, explanation_key FROM explanation"))
        stored = dict(named.all())
        for index in keys:
            found = load_feature(session, a.feature(index))
            top = found.top_contexts and found.top_contexts.record
            best = min(found.concept_scores, key=lambda kept: (-kept.record.rate_gap.value, kept.record.concept),
                       default=None)  # fmt: skip
            told: list[tuple[float, int, str, Estimate | None, Estimate | None]] = []
            for one in found.explanations:
                said = one.explanation.record
                judged = max((kept.record for kept in one.scores), key=lambda score: score.score.value, default=None)
                told.append((
                    9.0 if judged is None else -judged.score.value, stored[f"{said.explainer}{index}"], said.text,
                    judged and judged.score, judged and judged.control,
                ))  # fmt: skip
            *_, words, score, control = min(told, default=(None,) * 5, key=lambda line: line[:2])
            lines.append((
                index, top and top.density, top and len(top.contexts), best and best.record.concept,
                best and best.record.rate_gap, best and best.record.auroc, words, score, control,
            ))  # fmt: skip
    return lines


def shown(engine: Engine) -> list[tuple[object, ...]]:
    with reading(engine) as session:
        return [
            (row.index, row.density, row.n_contexts, row.concept, row.rate_gap, row.auroc, row.explanation,
             row.explanation_score, row.explanation_control)
            for row in list_features(session, a.SAE, limit=1000).rows
        ]  # fmt: skip


def save_something(engine: Engine, draw: random.Random) -> None:
    index, explainer = draw.randrange(6), draw.choice(EXPLAINERS)
    with writing(engine) as session:
        match draw.randrange(5):
            case 0:
                save_top_contexts(session, [a.top_contexts(index, draw.choice([0.0, 0.25, 0.5]))], run_id=a.RUN)
            case 1:
                concepts = draw.sample(a.CONCEPTS, 2)
                gaps = [draw.choice([-0.5, 0.25, 0.5]) for _ in concepts]
                scores = [a.concept_score(index, name, gap) for name, gap in zip(concepts, gaps, strict=True)]
                save_concept_scores(session, scores, run_id=a.RUN)
            case 2:
                save_explanations(session, [a.explanation(index, draw.choice("abc"), explainer)], run_id=a.RUN)
            case 3:
                said = a.explanation(index, explainer=explainer)
                save_explanations(session, [said], run_id=a.RUN)
                score = a.explanation_score(index, draw.choice([0.25, 0.5, 0.75]), explainer)
                save_explanation_scores(session, [score], run_id=a.RUN)
            case _:
                spent = an_entry(index)
                save_ledger_entries(session, [spent], run_id=a.RUN)


def test_lists_show_what_the_tables_of_features_hold_after_every_save(engine: Engine) -> None:
    a.catalogue(engine)
    draw = random.Random(5)
    for _ in range(40):
        save_something(engine, draw)
        assert shown(engine) == expected(engine)
    assert len(shown(engine)) == 6
    assert all(len({line[place] for line in shown(engine)}) > 1 for place in (1, 3, 4, 6, 7))


@pytest.fixture
def empty(empty_url: str) -> Iterator[Engine]:
    engine = make_engine(empty_url)
    yield engine
    engine.dispose()


def test_an_upgrade_fills_the_table_as_saving_does(empty: Engine) -> None:
    upgrade(empty)
    a.catalogue(empty)
    draw = random.Random(6)
    for _ in range(60):
        save_something(empty, draw)
    saved = rows_of(empty)
    with write_connection(empty, mode="migrate") as connection:  # back to the revision before
        connection.execute(text("DROP TABLE feature_listing"))
        connection.execute(text("CREATE INDEX ix_feature_sae_key_density ON feature (sae_key, density)"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0015'"))
    upgrade(empty, "0016")
    assert rows_of(empty) == saved
    assert len(saved) == 6


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("sort", "index"), [("density", "density"), ("score", "rate_gap"), ("explanation", "score")])
def test_on_sqlite_a_page_is_read_from_one_index(engine: Engine, sort: str, index: str) -> None:
    a.catalogue(engine)
    asked: list[tuple[str, object]] = []
    event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2:4]))
    cursor = write_cursor(sort, (1, 0, 0.5))
    with reading(engine) as session:
        page_rows(run_in(session), a.SAE, sort=FeatureSort(sort), cursor=cursor)
        statement, bound = next(one for one in asked if "rate_gap" in one[0])
        steps = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", bound).all()
    plan = [str(step[3]) for step in steps]
    assert len(plan) == 1, plan
    assert plan[0].startswith(f"SEARCH feature_listing USING COVERING INDEX ix_feature_listing_by_{index} "), plan


def rows_of(engine: Engine) -> list[tuple[object, ...]]:
    with reading(engine) as session:
        return [tuple(row) for row in session.execute(text("SELECT * FROM feature_listing ORDER BY 1, 2"))]
