"""Circuits, searches and evaluations survive the store whole, on both databases, and are found by unit."""

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from db import store
from db.engine import reading, writing
from db.store.whole import from_json, to_json
from db.tables import Base
from safe_sail.errors import BadRecord, DatabaseUnreachable, NotFound
from safe_sail.records import (
    Circuit,
    CircuitEvaluation,
    CircuitMember,
    CircuitRecovery,
    CircuitReplies,
    CircuitSearch,
    CircuitSize,
    CircuitStability,
    Estimate,
    FeatureId,
    HeadRef,
    NeuronRef,
    UnitNeed,
    UtilityCost,
    unit_order,
)
from tests.db import builders as a
from tests.db import strategies as some

places = st.integers(0, 2**31)
units = st.one_of(
    st.builds(HeadRef, places, places),
    st.builds(NeuronRef, places, places),
    st.builds(FeatureId, sae=some.slugs, index=places),
)


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    found = sorted(draw(st.sets(units, max_size=6)), key=unit_order)
    start = draw(st.none() | some.names)
    return Circuit(
        slug=draw(some.slugs), model_id="tiny", behaviour=draw(some.names), method=draw(some.names),
        ablation="mean" if start is None else "start", start_model=start,
        members=tuple(CircuitMember(unit=unit, probability=draw(some.shares)) for unit in found),
        n_heads=draw(st.integers(6, 2**63 - 1)), n_neurons=draw(st.integers(6, 2**63 - 1)), n_features=6,
    )  # fmt: skip


def estimate(value: float, n: int) -> Estimate:
    return Estimate(value=value, low=value - 0.1, high=value + 0.1, n=n)


def replies(intervention: str) -> CircuitReplies:
    return CircuitReplies(
        intervention=intervention, prompts="harmful held out", ablation="mean", n_units=3, n_prompts=256, n_draws=1,
        refusal=estimate(0.25, 256), compliance=estimate(0.75, 256), degenerate=estimate(0.0, 256),
    )  # fmt: skip


def a_search(found: Circuit, alone: Circuit | None) -> CircuitSearch:
    """A search in which every field holds something, each unit kind among them."""
    mixed = (HeadRef(0, 1), NeuronRef(3, 7), FeatureId(sae="tiny.sae", index=4))
    size = CircuitSize(
        n_heads=1, n_neurons=2, n_features=3, removed=estimate(0.9, 64), random=estimate(0.1, 5),
        harmless_refused=estimate(0.0, 64), kl=estimate(0.01, 64), loss=-1.5,
    )  # fmt: skip
    return CircuitSearch(
        slug="tiny.search", model_id="tiny", objective="backdoor", circuit=found, alone=alone, curve=(size, size),
        losses={"seed 0": (1.0, 0.5), "seed \x00": ()},
        stability=CircuitStability(seeds=(0, 1), jaccard=(0.3,), chance=0.01, core=mixed),
        needs=tuple(UnitNeed(unit=unit, removed=estimate(0.5, 64), loss_increase=0.125) for unit in mixed),
        recovery=(
            CircuitRecovery(
                kind="heads", n_planted=2, n_found=3, precision=estimate(2 / 3, 3), recall=estimate(1.0, 2),
                random_precision=0.1, random_recall=0.2,
            ),
        ),
        n_prompts={"target train": 256}, notes=("one", "two\n"),
    )  # fmt: skip


def an_evaluation(found: Circuit) -> CircuitEvaluation:
    cost = UtilityCost(intervention="removed", texts="documents", cross_entropy=1.0, increase=estimate(0.1, 64))
    return CircuitEvaluation(
        circuit=found.slug, ablation="mean", replies=(replies("none"), replies("removed")),
        answers={"removed": estimate(0.99, 256)}, answers_rule="on topic", utility=(cost,),
        kl={"removed on safe": estimate(0.01, 256)}, null_gap=0.0, n_random=5,
    )  # fmt: skip


def save_model(engine: Engine) -> None:
    with writing(engine) as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
        store.save_run(session, a.run())
        store.save_model(session, a.model(), run_id=a.RUN)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=circuits())
def test_every_circuit_record_survives_the_store(engine: Engine, found: Circuit) -> None:
    alone = dataclasses.replace(circuit(), slug=f"{found.slug}.alone") if len(found.units) > 1 else None
    search, evaluation = a_search(found, alone), an_evaluation(found)
    save_model(engine)
    with writing(engine) as session:
        store.save_circuit_search(session, search, run_id=a.RUN)
        store.save_circuit_evaluation(session, evaluation, run_id=a.RUN)
    with reading(engine) as session:
        assert store.load_circuit(session, search.circuit.slug).record == search.circuit
        assert store.load_circuit_search(session, search.slug).record == search
        assert [one.record for one in store.load_circuit_evaluations(session, search.circuit.slug)] == [evaluation]
        for unit in search.circuit.units:
            assert search.circuit.slug in [one.record.slug for one in store.list_circuits(session, unit=unit)]


def circuit(*units: HeadRef | NeuronRef) -> Circuit:
    members = tuple(CircuitMember(unit=unit, probability=0.5) for unit in units)
    return Circuit(
        slug="tiny.refusal", model_id="tiny", behaviour="refusal", method="masks", ablation="zero",
        members=members, n_heads=4, n_neurons=9,
    )  # fmt: skip


def test_a_circuit_saved_again_replaces_its_units_and_takes_its_evaluations_away(engine: Engine) -> None:
    save_model(engine)
    evaluation = CircuitEvaluation(
        circuit="tiny.refusal", ablation="zero", replies=(), answers={}, answers_rule="", utility=(), kl={},
        null_gap=0.0, n_random=1,
    )  # fmt: skip
    with writing(engine) as session:
        store.save_circuit(session, circuit(HeadRef(0, 1), NeuronRef(0, 2)), run_id=a.RUN)
        store.save_circuit_evaluation(session, evaluation, run_id=a.RUN)
        store.save_circuit(session, circuit(HeadRef(0, 3)), run_id=a.RUN)
    with reading(engine) as session:
        assert store.load_circuit(session, "tiny.refusal").record.units == (HeadRef(0, 3),)
        assert store.load_circuit_evaluations(session, "tiny.refusal") == []
        assert store.list_circuits(session, unit=HeadRef(0, 1)) == []


def test_what_is_not_kept_is_an_error(engine: Engine) -> None:
    save_model(engine)
    with reading(engine) as session:
        for load in (store.load_circuit, store.load_circuit_search, store.load_circuit_evaluations):
            with pytest.raises(NotFound, match="nowhere"):
                load(session, "nowhere")
    other = dataclasses.replace(circuit(), model_id="other")
    with writing(engine) as session, pytest.raises(NotFound, match="save the model first"):
        store.save_circuit(session, other, run_id=a.RUN)


def test_circuits_refuse_units_out_of_order_and_more_members_than_units() -> None:
    with pytest.raises(BadRecord, match="in order"):
        circuit(NeuronRef(0, 2), HeadRef(0, 1))
    with pytest.raises(BadRecord, match="in order"):
        circuit(HeadRef(0, 1), HeadRef(0, 1))
    with pytest.raises(BadRecord, match="5 members of n_heads 4"):
        circuit(*[HeadRef(0, index) for index in range(5)])


def test_a_search_that_was_kept_before_a_field_with_a_default_was_thought_of_is_read() -> None:
    found = a_search(circuit(HeadRef(0, 1)), None)
    former = json.loads(to_json(found))
    del former["circuit"]["start_model"]
    assert from_json(CircuitSearch, json.dumps(former)) == found
    del former["circuit"]["ablation"]
    with pytest.raises(DatabaseUnreachable, match="cannot be read"):
        from_json(CircuitSearch, json.dumps(former))


def test_a_start_ablation_and_its_model_go_together() -> None:
    for lacking in ({"ablation": "start"}, {"start_model": "base"}):
        with pytest.raises(BadRecord, match="names its start model"):
            dataclasses.replace(circuit(HeadRef(0, 1)), **lacking)
