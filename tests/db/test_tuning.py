"""Studies of tuning survive the store whole, on both databases, and replace each other by slug."""

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from db import store
from db.engine import reading, writing
from db.store.whole import from_json, to_json
from safe_sail.errors import BadRecord, NotFound
from safe_sail.records import TuningArm, TuningStudy
from tests.db import builders as a
from tests.db import strategies as some

arms = st.builds(
    TuningArm, name=some.any_text, n_trained=some.counts, n_draws=some.counts, safety=some.estimates(),
    over_refusal=some.estimates(), degenerate=some.estimates(), loss=some.estimates(), unchanged=st.booleans(),
)  # fmt: skip


def arm(name: str, safety: float) -> TuningArm:
    return TuningArm(
        name=name, n_trained=10, n_draws=1, safety=a.estimate(safety), over_refusal=a.estimate(0.0),
        degenerate=a.estimate(0.0), loss=a.estimate(0.5), unchanged=True,
    )  # fmt: skip


def study(*found: TuningArm, slug: str = "tiny.circuit.excluded.rows") -> TuningStudy:
    return TuningStudy(
        slug=slug, model_id="tiny", circuit="tiny.circuit", mode="excluded", method="rows", task="answers", n_rows=8,
        n_steps=3, learning_rate=1e-3, arms=found, notes=("one",),
    )  # fmt: skip


@settings(max_examples=15, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(arms, max_size=3, unique_by=lambda one: one.name), some.any_text)
def test_every_study_is_the_same_as_text(found: list[TuningArm], task: str) -> None:
    whole = dataclasses.replace(study(*found), task=task)
    assert from_json(TuningStudy, to_json(whole)) == whole


def test_a_study_survives_and_is_replaced_by_slug(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        store.save_tuning_study(session, study(arm("before", 0.9)), run_id=a.RUN)
        store.save_tuning_study(session, study(arm("before", 0.9), arm("full", 0.1)), run_id=a.LATER_RUN)
        store.save_tuning_study(session, study(slug="another"), run_id=a.RUN)
    with reading(engine) as session:
        kept = store.load_tuning_study(session, "tiny.circuit.excluded.rows")
        assert kept == store.Kept(study(arm("before", 0.9), arm("full", 0.1)), a.LATER_RUN)
        assert kept.record.arm("full").safety.value == 0.1
        assert [one.record.slug for one in store.list_tuning_studies(session, model_id="tiny")] == [
            "another", "tiny.circuit.excluded.rows",
        ]  # fmt: skip
        assert store.list_tuning_studies(session, model_id="other") == []
        with pytest.raises(NotFound, match="no tuning study is called"):
            store.load_tuning_study(session, "x")
    with writing(engine) as session, pytest.raises(NotFound, match="model `other`"):
        store.save_tuning_study(session, dataclasses.replace(study(), model_id="other"), run_id=a.RUN)


def test_a_study_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(BadRecord, match="each arm comes once"):
        study(arm("full", 0.1), arm("full", 0.2))
    with pytest.raises(BadRecord, match="mode is one of"):
        dataclasses.replace(study(), mode="half")
