"""What asking a language model cost survives the store, on both databases, and runs do not overwrite each other."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from db.engine import reading, writing
from db.store import Kept, features_failed, load_ledger, save_ledger_entries, save_run, save_sae
from db.tables import Base
from safe_sail.errors import BadRecord, NotFound
from safe_sail.records import LEDGER_TEXT_LIMIT, JudgeMethod, LedgerEntry, Stage
from tests.db import builders as a
from tests.db import strategies as some


def an_entry(index: int = 3, **changes: object) -> LedgerEntry:
    entry = LedgerEntry(
        feature=a.feature(index), stage=Stage.EXPLAIN, explainer="m", prompt_version="1", method=None, model="m",
        reason=None, message="", raw=None, attempts=1, prompt_tokens=10, completion_tokens=5, assumed_tokens=0,
        cost=0.5,
    )  # fmt: skip
    return replace(entry, **changes)  # type: ignore[arg-type]


def test_entries_survive(shared_engine: Engine) -> None:
    counts = st.integers(0, 2**63 - 1)

    @settings(
        max_examples=25,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(st.data())
    def survive(data: st.DataObject) -> None:
        with writing(shared_engine) as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))
        run, sae = data.draw(some.runs), data.draw(some.saes(st.none()))
        method = data.draw(st.none() | st.sampled_from(JudgeMethod))
        entry = LedgerEntry(
            feature=data.draw(some.features(sae)),
            stage=Stage.EXPLAIN if method is None else Stage.JUDGE,
            explainer=data.draw(some.names),
            prompt_version=data.draw(some.names),
            method=method,
            model=data.draw(some.names),
            reason=data.draw(st.none() | some.names),
            message=data.draw(some.any_text),
            raw=data.draw(st.none() | some.any_text),
            attempts=data.draw(counts),
            prompt_tokens=data.draw(counts),
            completion_tokens=data.draw(counts),
            assumed_tokens=data.draw(counts),
            cost=data.draw(st.none() | st.floats(0, allow_infinity=False)),
        )
        with writing(shared_engine) as session:
            save_run(session, run)
            save_sae(session, sae, run_id=run.run_id)
            save_ledger_entries(session, [entry], run_id=run.run_id)
        with reading(shared_engine) as session:
            assert load_ledger(session, entry.feature) == [Kept(entry, run.run_id)]

    survive()


def test_a_later_run_adds_to_what_was_paid_and_the_same_run_replaces(engine: Engine) -> None:
    a.catalogue(engine)
    failed = an_entry(reason="timeout", message="late", cost=None)
    with writing(engine) as session:
        save_ledger_entries(session, [failed, failed], run_id=a.RUN)
        save_ledger_entries(session, [an_entry()], run_id=a.LATER_RUN)
    with reading(engine) as session:
        assert load_ledger(session, a.feature(3)) == [Kept(failed, a.RUN), Kept(an_entry(), a.LATER_RUN)]
        assert load_ledger(session, a.feature(4)) == []


def test_failures_are_found_by_model_stage_and_reason(engine: Engine) -> None:
    a.catalogue(engine)
    judged = {"stage": Stage.JUDGE, "method": JudgeMethod.TOKEN_SIMULATION}
    with writing(engine) as session:
        save_ledger_entries(
            session,
            [
                an_entry(0, reason="truncated"), an_entry(1, reason="timeout"), an_entry(2),
                an_entry(3, reason="truncated", model="other"), an_entry(4, reason="truncated", **judged),
            ],
            run_id=a.RUN,
        )  # fmt: skip

    def failed(stage: Stage, method: JudgeMethod | None, *reasons: str) -> set[int]:
        with reading(engine) as session:
            return features_failed(
                session, a.SAE, stage, reasons=reasons, model="m", explainer="m", prompt_version="1", method=method
            )

    assert failed(Stage.EXPLAIN, None, "truncated") == {0}
    assert failed(Stage.EXPLAIN, None, "truncated", "timeout") == {0, 1}
    assert failed(Stage.JUDGE, JudgeMethod.TOKEN_SIMULATION, "truncated") == {4}
    assert failed(Stage.JUDGE, JudgeMethod.SEGMENT_SIMULATION, "truncated") == set()


def test_what_does_not_fit_is_refused(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        with pytest.raises(NotFound, match="its features are 0 to 15"):
            save_ledger_entries(session, [an_entry(a.WIDTH)], run_id=a.RUN)
        with pytest.raises(NotFound, match="run `nope`"):
            save_ledger_entries(session, [an_entry()], run_id="nope")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cost": -1.0}, "at least 0"),
        ({"cost": float("nan")}, "at least 0"),
        ({"attempts": -1}, "attempts counts from 0"),
        ({"stage": Stage.JUDGE}, "judging has a method"),
        ({"method": JudgeMethod.TOKEN_SIMULATION}, "explaining has none"),
        ({"model": ""}, "names explainer, version and model"),
        ({"raw": "x" * (LEDGER_TEXT_LIMIT + 1)}, "4001 characters"),
    ],
)
def test_entries_that_contradict_themselves_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(BadRecord, match=says):
        an_entry(**changes)
