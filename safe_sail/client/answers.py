"""What the client gives where it is no record of `safe_sail.records`: SAEs, features, and what an import brought."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from safe_sail.records import (
    ConceptScore,
    Context,
    Explanation,
    ExplanationScore,
    FeatureId,
    Histogram,
    SaeFacts,
    SaeScore,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeInfo:
    """One SAE, its facts and scores."""

    slug: str
    site: str
    width: int
    d_in: int
    architecture: str
    model_id: str | None
    facts: SaeFacts | None
    """None before it was measured."""
    scores: tuple[SaeScore, ...]
    """By descending rate gap; empty before scoring."""
    n_collected: int
    n_explained: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSummary:
    """One feature in a list; None where nothing was measured."""

    index: int
    density: float | None
    max_activation: float | None
    n_contexts: int | None
    concept: str | None
    """The concept asked for, or the one with the largest rate gap."""
    rate_gap: float | None
    auroc: float | None
    explanation: str | None
    explainer: str | None
    explanation_score: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureInfo:
    """Everything that is known of one feature."""

    feature: FeatureId
    n_tokens_seen: int | None
    density: float | None
    max_activation: float | None
    histogram: Histogram | None
    contexts: tuple[Context, ...]
    """Descending by peak activation."""
    concept_scores: tuple[ConceptScore, ...]
    """By descending rate gap."""
    explanations: tuple[Explanation, ...]
    explanation_scores: tuple[ExplanationScore, ...]
    """Of all explanations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportCount:
    """Records of one kind that were sent to a service."""

    new: int = 0
    replaced: int = 0
    """There, but otherwise."""
    unchanged: int = 0
    """There already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportSummary:
    """What an import brought, over all its parts."""

    n_lines: int
    """Lines that are not blank."""
    run_ids: tuple[str, ...]
    """Runs of the import, one for each part that was sent."""
    counts: Mapping[str, ImportCount]
    """By kind, as `features`, `contexts` and `explanations`."""


def import_summary(reports: Sequence[Mapping[str, Any]]) -> ImportSummary:
    """The sum of what `/v1/imports` answered for each part."""
    kinds = [name for name, value in reports[0].items() if isinstance(value, dict)] if reports else []
    return ImportSummary(
        n_lines=sum(one["n_lines"] for one in reports),
        run_ids=tuple(one["run_id"] for one in reports),
        counts={
            kind: ImportCount(
                new=sum(one[kind]["new"] for one in reports),
                replaced=sum(one[kind]["replaced"] for one in reports),
                unchanged=sum(one[kind]["unchanged"] for one in reports),
            )
            for kind in kinds
        },
    )


def read(kind: Any, value: Any) -> Any:
    """The value as this type; unknown fields are left out, since a newer service may send them."""
    return TypeAdapter(kind).validate_python(value)


def sae_info(found: Mapping[str, Any]) -> SaeInfo:
    """An SAE as `/v1/saes` answers it."""
    facts = found["facts"]
    return read(  # type: ignore[no-any-return]
        SaeInfo,
        {name: found["sae"][name] for name in ("slug", "site", "width", "d_in", "architecture", "model_id")}
        | {"facts": None if facts is None else facts["record"], "scores": [one["record"] for one in found["scores"]]}
        | {name: found[name] for name in ("n_collected", "n_explained")},
    )
