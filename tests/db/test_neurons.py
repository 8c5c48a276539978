"""Searches for neurons, comparisons and guards survive the store whole, on both databases, and replace each other."""

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from db import store
from db.engine import reading, writing
from db.store.whole import from_json, to_json
from db.tables import Base
from safe_sail.errors import BadInput, BadRecord, NotFound
from safe_sail.records import (
    CrossPatch,
    GuardEvaluation,
    GuardScore,
    KnownNeurons,
    NeuronChange,
    NeuronRef,
    NeuronSearch,
    NeuronTax,
    PatchEffect,
    SetOverlap,
)
from tests.db import builders as a
from tests.db import strategies as some

count = st.integers(0, 2**40)
few = settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
neurons = st.builds(NeuronRef, count, count)
named = st.dictionaries(some.any_text, some.estimates(), max_size=2)


def rows(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(inner, max_size=2).map(tuple)


@st.composite
def patches(draw: st.DrawFn) -> PatchEffect:
    layers = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple))
    draws = draw(rows(some.numbers))
    return PatchEffect(
        n_neurons=sum(layers), share=draw(some.shares), first_rank=draw(st.none() | count), layer_counts=layers,
        score=draw(some.estimates()), effect=draw(some.estimates()), same_replies=draw(some.estimates()),
        random_effect=draw(some.estimates()) if draws else None, random_draws=draws,
        p_value=draw(some.shares) if draws else None,
    )  # fmt: skip


def changes(slug: str) -> st.SearchStrategy[NeuronChange]:
    return st.builds(
        NeuronChange, slug=st.just(slug), first_model=st.just("tiny"), second_model=st.just("tiny"),
        positions=some.any_text, text_source=some.any_text, n_texts=st.integers(1), n_empty=count,
        n_positions=st.integers(1), scores=st.lists(rows(some.numbers), min_size=1, max_size=3).map(tuple).filter(any),
    )  # fmt: skip


@st.composite
def searches(draw: st.DrawFn) -> NeuronSearch:
    kept = draw(st.lists(st.tuples(neurons, some.numbers), max_size=3))
    curve = draw(st.lists(patches(), max_size=2, unique_by=lambda one: one.n_neurons))
    known = st.builds(
        KnownNeurons, n_known=count, found=some.estimates(), chance=some.shares, patched=patches()
    )  # fmt: skip
    return NeuronSearch(
        slug=draw(some.slugs), first_model="tiny", second_model="tiny", scorer=draw(some.any_text),
        n_neurons=draw(count), neurons=tuple(one for one, _ in kept), change=tuple(value for _, value in kept),
        first_score=draw(some.estimates()), second_score=draw(some.estimates()),
        curve=tuple(sorted(curve, key=lambda one: one.n_neurons)), windows=draw(rows(patches())),
        needed=curve[0].n_neurons if curve else None, effect_wanted=draw(some.shares), known=draw(st.none() | known),
        n_failed=draw(count), notes=draw(rows(some.any_text)),
    )  # fmt: skip


crosses = st.builds(
    CrossPatch, first_model=some.any_text, second_model=some.any_text, n_neurons=count, before=named, after=named,
    moved=named, random_moved=named,
)  # fmt: skip
overlaps = st.builds(
    SetOverlap, n_neurons=count, share=some.shares, chance=some.shares, random_layers=some.shares
)  # fmt: skip
taxes = st.builds(
    NeuronTax, slug=some.slugs, spearman=some.estimates(), overlaps=rows(overlaps), n_common=count,
    crosses=rows(crosses), notes=rows(some.any_text),
    **dict.fromkeys(("base_model", "safety_model", "helpful_model"), st.just("tiny")),
)  # fmt: skip
guard_scores = st.builds(
    GuardScore, features=some.any_text, n_features=count, layers=rows(count), random_draws=rows(some.numbers),
    threshold=some.shares, false_refusals=named, roc=rows(st.tuples(some.shares, some.shares)),
    **dict.fromkeys(
        ("auroc", "random_auroc", "gain", "brier", "calibration_error", "caught"), some.estimates()
    ),
)  # fmt: skip


@st.composite
def guards(draw: st.DrawFn) -> GuardEvaluation:
    found = draw(st.lists(guard_scores, min_size=1, max_size=2))
    return GuardEvaluation(
        slug=draw(some.slugs), model_id="tiny", change=draw(some.any_text), scorer=draw(some.any_text),
        n_train=draw(count), n_validation=draw(count), n_test=draw(count),
        n_unsafe=draw(st.dictionaries(some.any_text, count, max_size=2)), scores=tuple(found),
        kept=found[0].features, notes=draw(rows(some.any_text)),
    )  # fmt: skip


def start(engine: Engine) -> None:
    with writing(engine) as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
    with writing(engine) as session:
        store.save_run(session, a.run())
        store.save_model(session, a.model(), run_id=a.RUN)


def one_search(needed: int | None = None) -> NeuronSearch:
    return NeuronSearch(
        slug="tiny.tiny", first_model="tiny", second_model="tiny", scorer="refusal phrases", n_neurons=2,
        neurons=(NeuronRef(1, 0),), change=(0.5,), first_score=a.estimate(0.0), second_score=a.estimate(1.0),
        curve=(), windows=(), needed=needed, effect_wanted=0.9, known=None, n_failed=0, notes=(),
    )  # fmt: skip


def one_change() -> NeuronChange:
    return NeuronChange(
        slug="tiny.tiny", first_model="tiny", second_model="tiny", positions="predicting", text_source="first",
        n_texts=3, n_empty=0, n_positions=12, scores=((), (0.5, 0.25)),
    )  # fmt: skip


def test_every_record_of_neurons_survives(shared_engine: Engine) -> None:
    @few
    @given(st.data(), searches(), taxes, guards())
    def survive(data: st.DataObject, search: NeuronSearch, tax: NeuronTax, guard: GuardEvaluation) -> None:
        change = data.draw(changes(search.slug))
        start(shared_engine)
        with writing(shared_engine) as session:
            store.save_neuron_search(session, search, change, run_id=a.RUN)
            store.save_neuron_tax(session, tax, run_id=a.RUN)
            store.save_guard_evaluation(session, guard, run_id=a.RUN)
        with reading(shared_engine) as session:
            assert store.load_neuron_search(session, search.slug) == store.Kept(search, a.RUN)
            assert store.load_neuron_change(session, search.slug) == store.Kept(change, a.RUN)
            assert store.list_neuron_searches(session, model_id="tiny") == [store.Kept(search, a.RUN)]
            assert store.load_neuron_tax(session, tax.slug) == store.Kept(tax, a.RUN)
            assert store.list_neuron_taxes(session) == [store.Kept(tax, a.RUN)]
            assert store.load_guard_evaluation(session, guard.slug) == store.Kept(guard, a.RUN)
            assert store.list_guard_evaluations(session, model_id="tiny") == [store.Kept(guard, a.RUN)]

    survive()


def test_a_search_that_is_saved_again_replaces_what_was_there(engine: Engine) -> None:
    start(engine)
    with writing(engine) as session:
        store.save_neuron_search(session, one_search(), one_change(), run_id=a.RUN)
        newer = dataclasses.replace(one_search(), scorer="a judge")
        store.save_neuron_search(session, newer, one_change(), run_id=a.RUN)
    with reading(engine) as session:
        assert store.load_neuron_search(session, "tiny.tiny").record == newer
        assert store.list_neuron_searches(session, model_id="other") == []
        assert store.list_guard_evaluations(session) == []


def test_what_is_not_kept_or_does_not_belong_is_named(engine: Engine) -> None:
    start(engine)
    with reading(engine) as session:
        for load in (
            store.load_neuron_search, store.load_neuron_change, store.load_neuron_tax, store.load_guard_evaluation
        ):  # fmt: skip
            for slug in ("x", "\x00"):
                with pytest.raises(NotFound, match=r"no .* is called `"):
                    load(session, slug)
        with pytest.raises(BadInput, match="limit"):
            store.list_neuron_searches(session, limit=0)
    with writing(engine) as session, pytest.raises(NotFound, match="model `other` of tiny"):
        store.save_neuron_search(
            session, dataclasses.replace(one_search(), second_model="other"), one_change(), run_id=a.RUN
        )
    other = dataclasses.replace(one_change(), slug="y")
    with writing(engine) as session, pytest.raises(BadRecord, match=r"got tiny\.tiny with y"):
        store.save_neuron_search(session, one_search(), other, run_id=a.RUN)


def test_records_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(BadRecord, match="3 is no point of the curve"):
        one_search(needed=3)
    with pytest.raises(BadRecord, match="one change score for each neuron"):
        dataclasses.replace(one_search(), change=())
    with pytest.raises(BadRecord, match="scores of at least one neuron"):
        dataclasses.replace(one_change(), scores=((), ()))
    assert one_change().top(5) == (NeuronRef(1, 0), NeuronRef(1, 1))
    assert from_json(NeuronSearch, to_json(one_search())) == one_search()
