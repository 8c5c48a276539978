"""Which score of an SAE, known before anything is explained, predicts how many safety features end well explained?

Seed 0, the organism's six SAEs, 12 concepts, 40 explained features of each SAE by the lexical explainer; 2026-11-27.

| SAE | rate gap | specific, per thousand | specific x width | yield of explained |
|---|---|---|---|---|
| topk32-1024 | 0.68 | 8.37 | 8.57 | 22 of 23 |
| relu-1024 | 0.95 | 3.14 | 3.22 | 18 of 19 |
| topk8-1024 | 0.93 | 2.98 | 3.05 | 17 of 17 |
| batchtopk8-1024 | 0.83 | 2.78 | 2.85 | 14 of 15 |
| topk4-1024 | 0.97 | 1.78 | 1.82 | 11 of 12 |
| topk8-256 | 0.69 | 10.64 | 2.72 | 11 of 11 |

Spearman over SAEs, 95 % with concepts drawn again: rate gap -0.32 [-0.70, 0.32], specific 0.29 [-0.06, 0.81], I_CDF
0.29 [-0.03, 0.83], specific features 0.38 [-0.03, 0.71]. Specific times the width, a number of features as the yield
is: 0.99 [0.53, 1.00]. That product was looked at after the others had failed, on the same six SAEs.

Run: safe-sail demo --database sqlite:///found.db && python benchmarks/bench_yield.py sqlite:///found.db
"""

import argparse
import json

import numpy as np
from scipy.stats import spearmanr

from db import store
from db.engine import make_engine, reading
from safe_sail.records import ExplanationScore, FeatureId

LEAST_SCORE = 0.5
"""An explanation passes where its score is at least this and its interval lies above the control's."""
LEAST_GAP = 0.5
"""A feature belongs to the concept on whose judging texts its rate gap is largest, if that is at least this."""
N_BOOTSTRAP = 2000
BEFORE = ("rate gap", "specific", "specific x width", "I_CDF", "n_specific")


def passes(score: ExplanationScore) -> bool:
    return score.score.value >= LEAST_SCORE and score.score.low > score.control.high


def table(url: str, method: str) -> tuple[list[str], list[str], dict[str, np.ndarray]]:
    """SAEs, concepts, and by name an array [SAE, concept]: what is known before, and what came of explaining."""
    with reading(make_engine(url, read_only=True)) as session:
        saes = store.list_saes(session)
        concepts = sorted({kept.record.concept for one in saes for kept in one.scores})
        names = (*BEFORE, "yield", "explained")
        found = {name: np.zeros((len(saes), len(concepts))) for name in names}
        for row, one in enumerate(saes):
            for kept in one.scores:
                found["rate gap"][row, concepts.index(kept.record.concept)] = kept.record.rate_gap.value
                found["n_specific"][row, concepts.index(kept.record.concept)] = kept.record.n_specific
            for whole in store.load_sae_specificity(session, one.sae.slug):
                column = concepts.index(whole.record.concept)
                found["specific"][row, column] = whole.record.specific.value
                found["specific x width"][row, column] = whole.record.specific.value * whole.record.n_features
                found["I_CDF"][row, column] = whole.record.i_cdf.value
            for index in store.features_done(session, one.sae.slug, store.FeatureKind.EXPLANATIONS):
                feature = FeatureId(sae=one.sae.slug, index=index)
                scored = store.load_concept_scores(session, feature)
                if not scored or scored[0].record.rate_gap.value < LEAST_GAP:
                    continue
                column = concepts.index(scored[0].record.concept)
                found["explained"][row, column] += 1
                judged = [k.record for k in store.load_explanation_scores(session, feature)]
                found["yield"][row, column] += any(passes(s) for s in judged if str(s.method) == method)
    return [one.sae.slug for one in saes], concepts, found


def correlations(found: dict[str, np.ndarray], seed: int = 0) -> dict[str, dict[str, float]]:
    """Spearman over SAEs of each earlier score with the yield; concepts drawn again for the interval."""
    rng = np.random.default_rng(seed)
    n = found["yield"].shape[1]
    result = {}
    draws = rng.integers(n, size=(N_BOOTSTRAP, n))
    for name in BEFORE:
        values = [spearmanr(found[name][:, d].mean(1), found["yield"][:, d].sum(1)).statistic for d in draws]
        low, high = np.nanquantile(values, [0.025, 0.975])
        whole = spearmanr(found[name].mean(1), found["yield"].sum(1)).statistic
        result[name] = {"value": float(whole), "low": float(low), "high": float(high)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("database")
    parser.add_argument("--method", default="token_simulation")
    given = parser.parse_args()
    saes, concepts, found = table(given.database, given.method)
    rows = {
        slug: {name: round(float(values[row].sum() if name in ("yield", "explained") else values[row].mean()), 5)
               for name, values in found.items()}
        for row, slug in enumerate(saes)
    }  # fmt: skip
    print(json.dumps({"n_saes": len(saes), "n_concepts": len(concepts), "saes": rows, "rank": correlations(found)}))


if __name__ == "__main__":
    main()
