"""Records refuse what contradicts itself, and say what they expected."""

from datetime import datetime

import pytest

from safe_sail.errors import BadRecord
from safe_sail.records import (
    Context,
    Estimate,
    Explanation,
    FeatureId,
    HeadRef,
    Histogram,
    NeuronRef,
    RunInfo,
    TopContexts,
    UnitRef,
    parse_unit,
)
from safe_sail.sites import Site


def context(source_id: str, *activations: float) -> Context:
    n = len(activations)
    peak = activations.index(max(activations))
    return Context(tokens=("x",) * n, token_ids=(1,) * n, activations=activations, peak=peak, source_id=source_id)


def top(*contexts: Context) -> TopContexts:
    return TopContexts(
        feature=FeatureId(sae="s", index=0),
        contexts=contexts,
        n_tokens_seen=9,
        density=0.5,
        max_activation=3.0,
        histogram=None,
    )


def test_feature_id_reads_what_it_writes():
    feature = FeatureId(sae="organism.resid_post.3.topk8-1024", index=17)
    assert FeatureId.parse(str(feature)) == feature


@pytest.mark.parametrize("text", ["no-slash", "sae/", "sae/-1", "sae/x", "/3", "a b/3"])
def test_feature_id_refuses_other_texts(text: str):
    with pytest.raises(BadRecord):
        FeatureId.parse(text)


@pytest.mark.parametrize(
    ("value", "low", "high", "n", "complaint"),
    [
        (float("nan"), 0, 1, 5, "finite"),
        (0.5, 0, float("inf"), 5, "finite"),
        (0.5, 0.9, 0.1, 5, "backwards"),
        (0.5, 0, 1, 0, "at least one observation"),
    ],
)
def test_estimate_refuses_what_was_never_measured(value: float, low: float, high: float, n: int, complaint: str):
    with pytest.raises(BadRecord, match=complaint):
        Estimate(value=value, low=low, high=high, n=n)


def test_context_must_name_its_true_peak():
    with pytest.raises(BadRecord, match="largest"):
        Context(tokens=("a", "b"), token_ids=(1, 2), activations=(0.0, 1.0), peak=0, source_id="d0")


def test_context_needs_as_many_activations_as_tokens():
    with pytest.raises(BadRecord, match="as many tokens"):
        Context(tokens=("a", "b"), token_ids=(1, 2), activations=(1.0,), peak=0, source_id="d0")


def test_top_contexts_descend_and_repeat_no_window():
    high, low = context("d1", 0.0, 3.0), context("d2", 2.0)
    assert top(high, low).contexts[0].peak_activation == 3.0
    with pytest.raises(BadRecord, match="descend"):
        top(low, high)
    with pytest.raises(BadRecord, match="twice"):
        top(high, high)


def test_histogram_has_one_more_edge_than_counts():
    with pytest.raises(BadRecord, match="one more edge"):
        Histogram(edges=(0.0, 1.0), counts=(1, 2))


def test_an_empty_explanation_is_refused():
    with pytest.raises(BadRecord, match="failure"):
        Explanation(feature=FeatureId(sae="s", index=0), text=" ", explainer="lexical", prompt_version="1")


def test_run_times_need_a_zone():
    with pytest.raises(BadRecord, match="time zone"):
        RunInfo(
            run_id="r",
            command="demo",
            seed=0,
            settings={},
            git_commit=None,
            versions={},
            device="cpu",
            started=datetime(2026, 1, 1),
        )


@pytest.mark.parametrize(("name", "unit"), [("L3.H5", HeadRef(3, 5)), ("L0.N902", NeuronRef(0, 902))])
def test_units_are_named_as_they_are_read(name: str, unit: UnitRef):
    assert parse_unit(name) == unit
    assert str(unit) == name
    assert unit.site == Site.parse(f"{'head_out' if name == 'L3.H5' else 'mlp_act'}.{unit.layer}")


@pytest.mark.parametrize("text", ["", "L3", "L3.H", "3.H5", "L3.X5", "L-1.H0", "L03.H5", "L3.H5 ", "L3.H5.N2"])
def test_other_texts_are_not_units(text: str):
    with pytest.raises(BadRecord, match=r"L3\.H5"):
        parse_unit(text)
