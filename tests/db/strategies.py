"""Hypothesis strategies: any valid record, at the edges of what records allow."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
from hypothesis import strategies as st

from safe_sail.records import (
    Concept,
    ConceptScore,
    Context,
    ContextSample,
    Estimate,
    Explanation,
    ExplanationScore,
    FeatureId,
    Histogram,
    Intervention,
    InterventionScore,
    JudgeMethod,
    ModelRef,
    RunInfo,
    SaeFacts,
    SaeRef,
    SaeScore,
    TopContexts,
)
from safe_sail.sites import Site, SiteKind

plain = st.characters(codec="utf-8", exclude_characters="\x00")
names = st.text(plain, min_size=1, max_size=20)
slugs = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
any_text = st.text(st.characters(exclude_categories=()), max_size=6)  # NUL and lone surrogates too
counts = st.integers(1, 2**63 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
shares = st.floats(0, 1)
sites = st.one_of(
    st.just(Site(SiteKind.EMBED)),
    st.builds(Site, st.sampled_from([kind for kind in SiteKind if kind is not SiteKind.EMBED]), st.integers(0, 200)),
)
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.one_of(st.just(UTC), zones))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def estimates(draw: st.DrawFn) -> Estimate:
    low, high = sorted((draw(numbers), draw(numbers)))
    level = draw(st.floats(0, 1, exclude_min=True, exclude_max=True))
    return Estimate(value=draw(numbers), low=low, high=high, n=draw(counts), level=level)


runs = st.builds(
    RunInfo,
    run_id=slugs,
    command=st.text(plain, max_size=10),
    seed=st.integers(-(2**63), 2**63 - 1),
    settings=st.dictionaries(st.text(max_size=8), json_values, max_size=4),
    git_commit=st.none() | names,
    versions=st.dictionaries(names, names, max_size=3),
    device=names,
    started=moments,
    finished=st.none() | moments,
)
models = st.builds(
    ModelRef,
    model_id=slugs,
    architecture=names,
    source=names,
    **dict.fromkeys(("n_layers", "n_heads", "d_head", "d_model", "d_mlp", "d_vocab"), counts),
)


def saes(model_id: st.SearchStrategy[str | None]) -> st.SearchStrategy[SaeRef]:
    return st.builds(
        SaeRef,
        slug=slugs,
        release=st.none() | names,
        sae_id=st.text(plain, max_size=20),
        model_id=model_id,
        site=sites,
        d_in=counts,
        width=st.integers(1, 2**31 - 1),
        architecture=names,
    )


def sae_facts(sae: SaeRef) -> st.SearchStrategy[SaeFacts]:
    return st.builds(
        SaeFacts, sae=st.just(sae.slug), l0=numbers, explained_variance=numbers, ce_recovered=numbers,
        dead_share=shares, n_tokens=counts,
    )  # fmt: skip


def features(sae: SaeRef) -> st.SearchStrategy[FeatureId]:
    return st.builds(FeatureId, sae=st.just(sae.slug), index=st.integers(0, sae.width - 1))


concepts = st.builds(
    Concept, name=names, category=st.text(plain, max_size=9), domain=st.text(plain, max_size=9), harmful=st.booleans()
)


def concept_scores(sae: SaeRef, concept: str) -> st.SearchStrategy[ConceptScore]:
    return st.builds(
        ConceptScore, feature=features(sae), concept=st.just(concept), auroc=estimates(), rate_positive=shares,
        rate_negative=shares, rate_gap=estimates(), n_positive=counts, n_negative=counts, q_value=shares,
    )  # fmt: skip


def sae_scores(sae: SaeRef, concept: str) -> st.SearchStrategy[SaeScore]:
    return st.builds(
        SaeScore, sae=st.just(sae.slug), concept=st.just(concept), best_feature=features(sae), auroc=estimates(),
        rate_gap=estimates(), f1=estimates(), control_rate_gap=estimates(), n_specific=st.integers(0, 2**63 - 1),
    )  # fmt: skip


@st.composite
def contexts(draw: st.DrawFn, source_id: str) -> Context:
    n = draw(st.integers(1, 5))
    some = {"min_size": n, "max_size": n}
    activations = draw(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), **some))
    return Context(
        tokens=tuple(draw(st.lists(any_text, **some))),
        token_ids=tuple(draw(st.lists(st.integers(-(2**31), 2**31 - 1), **some))),
        activations=tuple(activations),
        peak=int(np.argmax(activations)),
        source_id=source_id,
    )


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    edges = sorted(draw(st.sets(numbers, min_size=1, max_size=5)))
    n = len(edges) - 1
    counted = draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=n, max_size=n))
    return Histogram(edges=tuple(edges), counts=tuple(counted))


@st.composite
def top_contexts(draw: st.DrawFn, sae: SaeRef) -> TopContexts:
    sources = draw(st.lists(any_text, unique=True, max_size=4))
    found = [draw(contexts(source)) for source in sources]
    return TopContexts(
        feature=draw(features(sae)),
        contexts=tuple(sorted(found, key=lambda context: -context.peak_activation)),
        n_tokens_seen=draw(counts),
        density=draw(shares),
        max_activation=draw(numbers),
        histogram=draw(st.none() | histograms()),
    )


@st.composite
def context_samples(draw: st.DrawFn, sae: SaeRef) -> ContextSample:
    groups = []
    for is_silent in (False, False, True):
        found = [draw(contexts(source)) for source in draw(st.lists(any_text, unique=True, max_size=3))]
        groups.append(tuple(one for one in found if not is_silent or one.peak_activation <= 0))
    return ContextSample(
        feature=draw(features(sae)), spread=groups[0], random=groups[1], near_misses=groups[2],
        quantile_999=draw(st.floats(0, allow_infinity=False)),
    )  # fmt: skip


def explanations(sae: SaeRef) -> st.SearchStrategy[Explanation]:
    return st.builds(
        Explanation, feature=features(sae), text=st.text(plain, min_size=1).filter(str.strip), explainer=names,
        prompt_version=names,
    )  # fmt: skip


def explanation_scores(explanation: Explanation) -> st.SearchStrategy[ExplanationScore]:
    return st.builds(
        ExplanationScore, feature=st.just(explanation.feature), explainer=st.just(explanation.explainer),
        prompt_version=st.just(explanation.prompt_version), method=st.sampled_from(JudgeMethod), score=estimates(),
        control=estimates(), n_excluded=st.integers(0, 2**63 - 1),
    )  # fmt: skip


@st.composite
def intervention_scores(draw: st.DrawFn, sae: SaeRef) -> InterventionScore:
    kind = draw(st.sampled_from(Intervention))
    strength = draw(st.floats(0, exclude_min=True, allow_infinity=False)) if kind is Intervention.BOOST else 0.0
    return InterventionScore(
        feature=draw(features(sae)), intervention=kind, prompts=draw(names), strength=strength,
        active_share=draw(shares), refusal_change=draw(estimates()), refusal_control=draw(estimates()),
        kl=draw(estimates()), kl_control=draw(estimates()),
    )  # fmt: skip
