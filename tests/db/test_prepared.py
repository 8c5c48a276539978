"""Prepared statements give what the same statement gives when SQLAlchemy runs it, on both databases."""

from sqlalchemy import Engine, bindparam, select

from db import tables
from db.engine import reading, writing
from db.prepared import Prepared
from db.store import load_feature, save_explanation_scores, save_explanations, save_top_contexts
from tests.db import builders as a


def test_every_column_of_every_table_comes_back_as_its_type_makes_it(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_top_contexts(session, [a.top_contexts(3), a.top_contexts(4)], run_id=a.RUN)
        save_explanations(session, [a.explanation(3)], run_id=a.RUN)
        save_explanation_scores(session, [a.explanation_score(3)], run_id=a.RUN)
    rows = 0
    with reading(engine) as session:
        for table in tables.Base.metadata.sorted_tables:
            statement = select(*table.c).order_by(*table.primary_key)
            expected = session.execute(statement).all()
            found = Prepared(statement).all(session, {})
            assert [repr(tuple(row)) for row in found] == [repr(tuple(row)) for row in expected], table.name
            rows += len(found)
    assert rows > 10


def test_parameters_find_their_places_by_name(engine: Engine) -> None:
    a.catalogue(engine)
    run = tables.RunRow
    second_first = Prepared(
        select(run.run_id, run.command).where(run.command == bindparam("b"), run.run_id == bindparam("a"))
    )
    with reading(engine) as session:
        assert [tuple(row) for row in second_first.all(session, {"a": a.RUN, "b": "demo"})] == [(a.RUN, "demo")]
        assert second_first.all(session, {"a": "demo", "b": a.RUN}) == []
        assert second_first.all(session, {"a": "x' OR 1=1 --", "b": "demo"}) == []


def test_a_feature_with_several_explanations_keeps_their_scores_apart(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        told = [a.explanation(3, "b", "zz"), a.explanation(3, "a", "aa"), a.explanation(3, "unjudged", "mm")]
        save_explanations(session, told, run_id=a.RUN)
        judged = [a.explanation_score(3, 0.25, "zz"), a.explanation_score(3, 0.5, "aa")]
        save_explanation_scores(session, judged, run_id=a.LATER_RUN)
    with reading(engine) as session:
        found = load_feature(session, a.feature(3))
        assert [(one.explanation.record.explainer, [kept.record.score.value for kept in one.scores])
                for one in found.explanations] == [("aa", [0.5]), ("mm", []), ("zz", [0.25])]  # fmt: skip
        assert [one.explanation.run_id for one in found.explanations] == [a.RUN] * 3
        assert found.explanations[0].scores[0].run_id == a.LATER_RUN
        assert found.top_contexts is None
