"""What goes over the wire where it differs from a record: lists, sites as text, records with the run that wrote them.

Every other answer is a record of `safe_sail.records` itself.
"""

import re
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from db.store import Explained, FeatureBundle, Kept, SaeListing
from safe_sail.records import (
    ConceptScore,
    Context,
    Explanation,
    ExplanationScore,
    FeatureId,
    Histogram,
    Job,
    SaeFacts,
    SaeRanking,
    SaeRef,
    SaeScore,
    SaeSpecificity,
    TopContexts,
)

T = TypeVar("T")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing(Generic[T]):
    """One page of a list."""

    items: list[T]
    next_cursor: str | None
    """Pass it as `cursor` to go on; null on the last page. The `Link` header has the whole address."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FromRun(Generic[T]):
    """A record and the run that wrote it."""

    record: T
    run_id: str
    """Settings, versions and times are at `/v1/runs/{run_id}`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeView:
    """One SAE: where it comes from and what it reads."""

    slug: str
    """Name of the SAE in every address."""
    release: str | None
    """SAELens release, or null for a folder or file."""
    sae_id: str
    """Id inside the release, or the folder's or file's name."""
    model_id: str | None
    """Model it was trained for; null where its metadata is silent."""
    site: str
    """Where it reads, as `resid_post.12`."""
    d_in: int
    """Width of what it reads."""
    width: int
    """Number of features, d_sae."""
    architecture: str
    """SAELens' name of it: standard, topk, jumprelu, gated, transcoder, ... or safe-sail-topk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeDetail:
    """One SAE with how well it reconstructs and how specifically it carries each concept."""

    sae: SaeView
    facts: FromRun[SaeFacts] | None
    """Null where it was not measured yet."""
    scores: list[FromRun[SaeScore]]
    """By descending rate gap; empty before scoring."""
    n_collected: int
    """Features whose contexts were collected."""
    n_explained: int
    """Features with an explanation."""
    run_id: str
    """Run that stored the SAE."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSummary:
    """One feature in a list; `/v1/saes/{sae}/features/{index}` has the rest, with intervals, n and controls."""

    index: int
    """Column of the encoder, counted from 0."""
    density: float | None
    """Share of content tokens on which the feature is positive; null, like the next two, before contexts are kept."""
    max_activation: float | None
    n_contexts: int | None
    concept: str | None
    """The concept asked for, or the one with the largest rate gap; null before scoring."""
    rate_gap: float | None
    """Of that concept: share of its texts on which the feature fires, minus share of the others."""
    auroc: float | None
    """Of that concept."""
    explanation: str | None
    """The one that judges score highest; null before explaining."""
    explainer: str | None
    """Who wrote it."""
    explanation_score: float | None
    """Its best score; null before judging."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureList:
    """One page of a list of features."""

    items: list[FeatureSummary]
    next_cursor: str | None
    """Pass it as `cursor` to go on, with the same filters and order; null on the last page."""
    total: int | None
    """Features that the filters let through, on all pages; null unless asked for with `include=total`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedExplanation:
    """An explanation and how it was judged."""

    explanation: FromRun[Explanation]
    scores: list[FromRun[ExplanationScore]]
    """By method; empty before judging."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureDetail:
    """Everything that is known of one feature."""

    feature: FeatureId
    sae: SaeView
    n_tokens_seen: int | None
    """Content tokens of the corpus; null, like all of the next five, where no contexts were collected yet."""
    density: float | None
    """Share of content tokens on which the feature is positive."""
    max_activation: float | None
    histogram: Histogram | None
    """Also null for a feature that never fired."""
    contexts_run_id: str | None
    contexts: list[Context]
    """Descending by peak activation; empty where none were collected yet, or the feature never fired."""
    concept_scores: list[FromRun[ConceptScore]]
    """By descending rate gap."""
    explanations: list[JudgedExplanation]
    """By explainer and prompt version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaxonomyConcept:
    """A concept and how many features know it."""

    name: str
    harmful: bool
    n_scored: int
    """Features that were scored on it."""
    n_specific: int
    """Of those, the ones with a rate gap above one half and q below 0.05."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaxonomyCategory:
    """A category with its concepts, by name."""

    name: str
    concepts: list[TaxonomyConcept]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaxonomyDomain:
    """A domain with its categories, by name."""

    name: str
    categories: list[TaxonomyCategory]


@dataclass(frozen=True, kw_only=True, slots=True)
class Taxonomy:
    """Domains, by name."""

    domains: list[TaxonomyDomain]


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """L0_t at one t, mean over concepts; the interval is 1.96 standard errors over concepts, null for one concept."""

    t: float
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedSae:
    """One SAE of a comparison."""

    sae: SaeDetail
    specificity: list[FromRun[SaeSpecificity]]
    """By concept: L0_t and I_CDF with their nulls; empty before it was scored on contrastive pairs."""
    curve: list[CurvePoint]
    """L0_t over the thresholds that all its concepts share."""
    curve_swapped: list[CurvePoint]
    """The same with the texts' roles swapped: what chance gives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRanking:
    """How one run ranked SAEs on the same texts."""

    run_id: str
    ranking: list[SaeRanking]
    """Best first, all SAEs of the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeComparison:
    """SAEs side by side."""

    saes: list[ComparedSae]
    """In the order asked for."""
    rankings: list[RunRanking]
    """Of the latest runs that ranked one of them, newest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobList:
    """One page of a list of jobs."""

    items: list[Job]
    next_cursor: str | None
    """Pass it as `cursor` to go on, with the same filters; null on the last page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportTally:
    """Records of one kind that were imported."""

    new: int
    replaced: int
    """There, but otherwise, or found by another run."""
    unchanged: int
    """There already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """What an import brought."""

    run_id: str
    """Run of the import; its settings hold the source and the hash. Records stay under the runs that found them."""
    sha256: str
    """Of the body."""
    n_lines: int
    """Lines that are not blank."""
    runs: ImportTally
    models: ImportTally
    concepts: ImportTally
    saes: ImportTally
    features: ImportTally
    """Features with anything known of them."""
    contexts: ImportTally
    """Features with collected contexts."""
    concept_scores: ImportTally
    explanations: ImportTally
    scores: ImportTally
    """Of explanations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """The service's state."""

    status: str
    """`ok`."""


def from_run(kept: Kept[T]) -> FromRun[T]:
    """The wire form of a kept record."""
    return FromRun(record=kept.record, run_id=kept.run_id)


def sae_view(sae: SaeRef) -> SaeView:
    """The wire form of an SAE."""
    return SaeView(
        slug=sae.slug,
        release=sae.release,
        sae_id=sae.sae_id,
        model_id=sae.model_id,
        site=str(sae.site),
        d_in=sae.d_in,
        width=sae.width,
        architecture=sae.architecture,
    )


def sae_detail(listing: SaeListing, concept: str | None = None) -> SaeDetail:
    """The wire form of an SAE and what is known of it, of all concepts or of one."""
    return SaeDetail(
        sae=sae_view(listing.sae),
        facts=None if listing.facts is None else from_run(listing.facts),
        scores=[from_run(kept) for kept in listing.scores if concept in (None, kept.record.concept)],
        n_collected=listing.n_collected,
        n_explained=listing.n_explained,
        run_id=listing.run_id,
    )


def feature_detail(bundle: FeatureBundle) -> FeatureDetail:
    """The wire form of a feature."""
    kept = bundle.top_contexts
    found: TopContexts | None = None if kept is None else kept.record
    return FeatureDetail(
        feature=bundle.feature,
        sae=sae_view(bundle.sae),
        n_tokens_seen=None if found is None else found.n_tokens_seen,
        density=None if found is None else found.density,
        max_activation=None if found is None else found.max_activation,
        histogram=None if found is None else found.histogram,
        contexts_run_id=None if kept is None else kept.run_id,
        contexts=[] if found is None else [encodable(context) for context in found.contexts],
        concept_scores=[from_run(score) for score in bundle.concept_scores],
        explanations=[_judged(one) for one in bundle.explanations],
    )


def _judged(one: Explained) -> JudgedExplanation:
    return JudgedExplanation(explanation=from_run(one.explanation), scores=[from_run(score) for score in one.scores])


def encodable(context: Context) -> Context:
    """The context with half characters (lone surrogates, which UTF-8 cannot hold) replaced by U+FFFD."""
    *tokens, source_id = (
        _HALF_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", t) for t in (*context.tokens, context.source_id)
    )
    same = (context.tokens, context.source_id) == (tuple(tokens), source_id)
    return context if same else replace(context, tokens=tuple(tokens), source_id=source_id)
