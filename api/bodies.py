"""Answers that are asked for most, from rows of the database to bytes without records in between.

The same fields as `api.schemas.FeatureDetail` and `FeatureList`, which describe them in the contract; the tests compare
both ways. Building and checking a record for each of a feature's contexts and scores would cost five times the reading.
"""

from collections.abc import Iterable
from typing import Any

import orjson

from db.packing import plain_json
from db.store import FeatureRows, PageRows

Json = dict[str, Any]


def feature_body(index: int, found: FeatureRows) -> bytes:
    """`FeatureDetail` of a feature as JSON."""
    sae, kept = found.sae, found.contexts
    feature = {"sae": sae.slug, "index": index}
    detail: Json = {
        "feature": feature,
        "sae": {
            "slug": sae.slug,
            "release": sae.release,
            "sae_id": sae.sae_id,
            "model_id": sae.model_id,
            "site": sae.site,
            "d_in": sae.d_in,
            "width": sae.width,
            "architecture": sae.architecture,
        },
        "n_tokens_seen": None if kept is None else kept.n_tokens_seen,
        "density": None if kept is None else kept.density,
        "max_activation": None if kept is None else kept.max_activation,
        "histogram": None if kept is None else _histogram(kept),
        "contexts_run_id": None if kept is None else kept.run_id,
        "contexts": [] if kept is None else orjson.Fragment(plain_json(kept.contexts)),
        "concept_scores": [_concept_score(row, feature) for row in found.concept_scores],
        "explanations": [_explanation(row, scores, feature) for row, scores in found.explanations],
    }
    return orjson.dumps(detail, option=orjson.OPT_SERIALIZE_NUMPY)


def page_body(page: PageRows) -> bytes:
    """`FeatureList` of a page as JSON."""
    items = [
        {
            "index": index,
            "density": density,
            "max_activation": max_activation,
            "n_contexts": n_contexts,
            "concept": concept,
            "rate_gap": rate_gap,
            "auroc": auroc,
            "explanation": text,
            "explainer": explainer,
            "explanation_score": score,
        }
        for (
            _, index, _, density, max_activation, n_contexts, concept, rate_gap, auroc, text, explainer, score,
        ) in page.rows
    ]  # fmt: skip
    return orjson.dumps({"items": items, "next_cursor": page.next_cursor, "total": page.total})


def _histogram(row: Any) -> Json | None:
    if row.histogram_edges is None or row.histogram_counts is None:
        return None
    return {"edges": row.histogram_edges, "counts": row.histogram_counts}


def _concept_score(row: Any, feature: Json) -> Json:
    record = {
        "feature": feature,
        "concept": row.concept,
        "auroc": _estimate(row.auroc, row.auroc_low, row.auroc_high, row.auroc_n, row.auroc_level),
        "rate_positive": row.rate_positive,
        "rate_negative": row.rate_negative,
        "rate_gap": _estimate(row.rate_gap, row.rate_gap_low, row.rate_gap_high, row.rate_gap_n, row.rate_gap_level),
        "n_positive": row.n_positive,
        "n_negative": row.n_negative,
        "q_value": row.q_value,
    }
    return {"record": record, "run_id": row.run_id}


def _explanation(row: Any, scores: Iterable[Any], feature: Json) -> Json:
    named = {"explainer": row.explainer, "prompt_version": row.prompt_version}
    judged = [
        {
            "record": {
                "feature": feature,
                **named,
                "method": one.method,
                "score": _estimate(one.score, one.score_low, one.score_high, one.score_n, one.score_level),
                "control": _estimate(one.control, one.control_low, one.control_high, one.control_n, one.control_level),
                "n_excluded": one.n_excluded,
            },
            "run_id": one.run_id,
        }
        for one in scores
    ]
    explanation = {"record": {"feature": feature, "text": row.text, **named}, "run_id": row.run_id}
    return {"explanation": explanation, "scores": judged}


def _estimate(value: float, low: float, high: float, n: int, level: float) -> Json:
    return {"value": value, "low": low, "high": high, "n": n, "level": level}
