"""One record to the columns of its row, and one row to its record; no database is asked here."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from db.packing import is_plain_text, pack_contexts, to_array, unpack_contexts
from db.tables import (
    ConceptRow,
    ConceptScoreRow,
    ContextSampleRow,
    ContextsRow,
    ExplanationRow,
    ExplanationScoreRow,
    FeatureRow,
    ModelRow,
    RunRow,
    SaeFactsRow,
    SaeRow,
    SaeScoreRow,
)
from safe_sail.errors import BadRecord
from safe_sail.records import (
    Concept,
    ConceptScore,
    Context,
    Estimate,
    Explanation,
    ExplanationScore,
    FeatureId,
    Histogram,
    JudgeMethod,
    ModelRef,
    RunInfo,
    SaeFacts,
    SaeRef,
    SaeScore,
    TopContexts,
)
from safe_sail.sites import Site

Columns = dict[str, Any]

MAX_KEY_LENGTH = 300
"""Characters of a text that is part of a key: two of them at 4 bytes each fit one row of a PostgreSQL index (2,704)."""

# ------------------------------------------------------------------------------------------------- what can be kept


def keepable(columns: Mapping[str, Any], key: tuple[str, ...]) -> Columns:
    """The columns with numpy scalars as Python numbers.

    Raises:
        BadRecord: a value cannot be kept on both databases: a text with NUL or half a character, an integer beyond
            64 bits, a float that is not finite, a key longer than MAX_KEY_LENGTH.
    """
    return {name: _keepable(name, value, name in key) for name, value in columns.items()}


def _keepable(name: str, value: Any, in_key: bool) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        if not is_plain_text(value):
            raise BadRecord(f"`{name}` holds NUL or half a character, which no text column can keep; got {value!r}.")
        if in_key and len(value) > MAX_KEY_LENGTH:
            raise BadRecord(f"`{name}` is part of a key and may have {MAX_KEY_LENGTH} characters; got {len(value)}.")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise BadRecord(f"`{name}` must fit 64 bits; got {value}.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadRecord(f"`{name}` must be finite; got {value}. Leave an undefined result out.")
    return value


# --------------------------------------------------------------------------------------------- estimates and arrays


def _estimate_columns(name: str, estimate: Estimate) -> Columns:
    return {
        name: estimate.value,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
        f"{name}_n": estimate.n,
        f"{name}_level": estimate.level,
    }


def _estimate(row: SaeScoreRow | ConceptScoreRow | ExplanationScoreRow, name: str) -> Estimate:
    return Estimate(
        value=getattr(row, name),
        low=getattr(row, f"{name}_low"),
        high=getattr(row, f"{name}_high"),
        n=getattr(row, f"{name}_n"),
        level=getattr(row, f"{name}_level"),
    )


# ------------------------------------------------------------------------------------------- runs, models, SAEs


def run_columns(run: RunInfo) -> Columns:
    """Columns of `run`."""
    return {
        "run_id": run.run_id,
        "command": run.command,
        "seed": run.seed,
        "settings": dict(run.settings),
        "git_commit": run.git_commit,
        "versions": dict(run.versions),
        "device": run.device,
        "started": run.started,
        "finished": run.finished,
    }


def run_of(row: RunRow) -> RunInfo:
    """Record of a row of `run`."""
    return RunInfo(**{name: getattr(row, name) for name in RunInfo.__dataclass_fields__})


def model_columns(model: ModelRef) -> Columns:
    """Columns of `model`, without the run."""
    return {name: getattr(model, name) for name in ModelRef.__dataclass_fields__}


def model_of(row: ModelRow) -> ModelRef:
    """Record of a row of `model`."""
    return ModelRef(**{name: getattr(row, name) for name in ModelRef.__dataclass_fields__})


def sae_columns(sae: SaeRef) -> Columns:
    """Columns of `sae`, without its number and the run."""
    return {name: getattr(sae, name) for name in SaeRef.__dataclass_fields__} | {"site": str(sae.site)}


def sae_of(row: SaeRow) -> SaeRef:
    """Record of a row of `sae`."""
    columns = {name: getattr(row, name) for name in SaeRef.__dataclass_fields__}
    return SaeRef(**columns | {"site": Site.parse(row.site)})


_FACTS = ("l0", "explained_variance", "ce_recovered", "dead_share", "n_tokens")


def facts_columns(facts: SaeFacts) -> Columns:
    """Columns of `sae_facts`, without the SAE and the run."""
    return {name: getattr(facts, name) for name in _FACTS}


def facts_of(row: SaeFactsRow, sae: str) -> SaeFacts:
    """Record of a row of `sae_facts`."""
    return SaeFacts(sae=sae, **{name: getattr(row, name) for name in _FACTS})


def sae_score_columns(score: SaeScore) -> Columns:
    """Columns of `sae_score`, without the SAE and the run."""
    if score.best_feature.sae != score.sae:
        raise BadRecord(f"score of {score.sae}: its best feature {score.best_feature} belongs to another SAE.")
    return {
        "concept": score.concept,
        "best_feature": score.best_feature.index,
        **_estimate_columns("auroc", score.auroc),
        **_estimate_columns("rate_gap", score.rate_gap),
        **_estimate_columns("f1", score.f1),
        **_estimate_columns("control_rate_gap", score.control_rate_gap),
        "n_specific": score.n_specific,
    }


def sae_score_of(row: SaeScoreRow, sae: str) -> SaeScore:
    """Record of a row of `sae_score`."""
    return SaeScore(
        sae=sae,
        concept=row.concept,
        best_feature=FeatureId(sae=sae, index=row.best_feature),
        auroc=_estimate(row, "auroc"),
        rate_gap=_estimate(row, "rate_gap"),
        f1=_estimate(row, "f1"),
        control_rate_gap=_estimate(row, "control_rate_gap"),
        n_specific=row.n_specific,
    )


# ------------------------------------------------------------------------------------------- concepts


def concept_columns(concept: Concept) -> Columns:
    """Columns of `concept`, without the run."""
    return {name: getattr(concept, name) for name in Concept.__dataclass_fields__}


def concept_of(row: ConceptRow) -> Concept:
    """Record of a row of `concept`."""
    return Concept(**{name: getattr(row, name) for name in Concept.__dataclass_fields__})


_SCORE_NUMBERS = ("rate_positive", "rate_negative", "n_positive", "n_negative", "q_value")


def concept_score_columns(score: ConceptScore) -> Columns:
    """Columns of `concept_score`, without the feature and the run."""
    return {
        "concept": score.concept,
        **_estimate_columns("auroc", score.auroc),
        **_estimate_columns("rate_gap", score.rate_gap),
        **{name: getattr(score, name) for name in _SCORE_NUMBERS},
    }


def concept_score_of(row: ConceptScoreRow, sae: str) -> ConceptScore:
    """Record of a row of `concept_score`."""
    return ConceptScore(
        feature=FeatureId(sae=sae, index=row.feature_index),
        concept=row.concept,
        auroc=_estimate(row, "auroc"),
        rate_gap=_estimate(row, "rate_gap"),
        **{name: getattr(row, name) for name in _SCORE_NUMBERS},
    )


# ------------------------------------------------------------------------------------------- contexts


def feature_columns(found: TopContexts) -> Columns:
    """Columns of `feature`: the light half, without the feature and the run."""
    return {
        "n_tokens_seen": found.n_tokens_seen,
        "density": found.density,
        "max_activation": found.max_activation,
        "n_contexts": len(found.contexts),
    }


def contexts_columns(found: TopContexts) -> Columns:
    """Columns of `contexts`: the heavy half, without the feature and the run; activations as float32."""
    histogram = found.histogram
    return {
        "contexts": pack_contexts(found.contexts),
        "histogram_edges": None if histogram is None else to_array(histogram.edges, "<f8"),
        "histogram_counts": None if histogram is None else to_array(histogram.counts, "<i8"),
    }


def packed_contexts(contexts: Sequence[Context]) -> Columns:
    """Columns that hold contexts one after another."""
    return {
        "lengths": to_array([len(context.tokens) for context in contexts], "<i4"),
        "peaks": to_array([context.peak for context in contexts], "<i4"),
        "token_ids": to_array([token for context in contexts for token in context.token_ids], "<i4"),
        "activations": to_array([a for context in contexts for a in context.activations], "<f4"),
        "tokens": [token for context in contexts for token in context.tokens],
        "source_ids": [context.source_id for context in contexts],
    }


def top_contexts_of(light: FeatureRow, heavy: ContextsRow, sae: str) -> TopContexts:
    """Record of the two rows of a feature whose contexts were collected."""
    assert light.n_tokens_seen is not None
    assert light.density is not None
    assert light.max_activation is not None
    return TopContexts(
        feature=FeatureId(sae=sae, index=light.feature_index),
        contexts=unpack_contexts(heavy.contexts),
        n_tokens_seen=light.n_tokens_seen,
        density=light.density,
        max_activation=light.max_activation,
        histogram=_histogram(heavy),
    )


def unpacked_contexts(row: ContextSampleRow) -> tuple[Context, ...]:
    """The contexts that `packed_contexts` packed."""
    token_ids, activations = row.token_ids.tolist(), row.activations.tolist()
    contexts = []
    start = 0
    for length, peak, source_id in zip(row.lengths.tolist(), row.peaks.tolist(), row.source_ids, strict=True):
        part = slice(start, start + length)
        start += length
        contexts.append(
            Context(
                tokens=tuple(row.tokens[part]),
                token_ids=tuple(token_ids[part]),
                activations=tuple(activations[part]),
                peak=peak,
                source_id=source_id,
            )
        )
    return tuple(contexts)


def _histogram(row: ContextsRow) -> Histogram | None:
    if row.histogram_edges is None or row.histogram_counts is None:
        return None
    return Histogram(edges=tuple(row.histogram_edges.tolist()), counts=tuple(row.histogram_counts.tolist()))


# ------------------------------------------------------------------------------------------- explanations


def explanation_columns(explanation: Explanation) -> Columns:
    """Columns of `explanation`, without the feature and the run."""
    return {name: getattr(explanation, name) for name in ("explainer", "prompt_version", "text")}


def explanation_of(row: ExplanationRow, sae: str) -> Explanation:
    """Record of a row of `explanation`."""
    return Explanation(
        feature=FeatureId(sae=sae, index=row.feature_index),
        text=row.text,
        explainer=row.explainer,
        prompt_version=row.prompt_version,
    )


def explanation_score_columns(score: ExplanationScore) -> Columns:
    """Columns of `explanation_score`, without the explanation and the run."""
    return {
        "method": str(score.method),
        **_estimate_columns("score", score.score),
        **_estimate_columns("control", score.control),
        "n_excluded": score.n_excluded,
    }


def explanation_score_of(row: ExplanationScoreRow, explanation: Explanation) -> ExplanationScore:
    """Record of a row of `explanation_score`."""
    return ExplanationScore(
        feature=explanation.feature,
        explainer=explanation.explainer,
        prompt_version=explanation.prompt_version,
        method=JudgeMethod(row.method),
        score=_estimate(row, "score"),
        control=_estimate(row, "control"),
        n_excluded=row.n_excluded,
    )
