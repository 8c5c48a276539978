"""Which score of an SAE, known before anything is explained, predicts how many safety features end well explained?

**The number of specific features predicts the yield: Spearman 0.90 [0.64, 0.98] over 14 SAEs, 0.90 [0.59, 1.00] over
the eight new ones; the rate gap predicts how many concepts are covered: 0.91 [0.66, 0.98] and 0.97 [0.79, 1.00]. The
share `specific` does not: 0.22 [-0.31, 0.70].** Seed 0, 12 concepts; one CPU thread, 5 minutes with
training; 2026-11-27.
Every SAE, and what is left open, in docs/methods/scoring_saes.md.

Three parts of the organism's texts never meet: those that rank (choosing and judging texts of one seed), those that say
which concept an explained feature marks (another seed, what the first had left out), and the documents whose contexts
explain and judge.

1. All SAEs are scored in one pass: rate gap of the best features, `specific`, I_CDF, specific features.
2. Of each SAE 40 features are explained by their words: the best of every concept on choosing texts, then the next.
3. A feature is a concept's where its rate gap on the new texts is largest, and at least one half. It is well explained
   where its explanation scores at least one half on held-out contexts, with an interval above the control's.
4. The yield is the number of such features; a concept is covered where it has one. Spearman over SAEs, with intervals
   from SAEs drawn again and from concepts drawn again, and the share of shuffled yields that correlate as much.

Sweep: safe-sail train-saes --out saes --held-out 64 --buffer-rows 32768, with
  --site resid_post.1 --site resid_post.2 --site mlp_out.3 --architecture topk --k 8 --width 512 --steps 150
  --site resid_post.3 --architecture topk --k 2 --k 16 --width 512 --steps 150
  --site resid_post.2 --architecture relu --architecture jumprelu --sparsity 1 --width 512 --steps 150
  --site resid_post.3 --architecture topk --k 32 --width 256 --steps 40

Run: python -m benchmarks.bench_yield --sae saes/ONE --sae saes/OTHER ...
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from safe_sail.data.concepts import ConceptDataset
from safe_sail.features.baseline import explain_lexically
from safe_sail.features.contexts import collect_contexts
from safe_sail.features.score import ConceptSplits, SaeConceptResult, score_saes, text_maxima
from safe_sail.features.separability import firing_rates
from safe_sail.model.handle import HookedModel
from safe_sail.organism.concept_data import concept_dataset, organism_concepts
from safe_sail.organism.grammar import documents
from safe_sail.organism.load import organism_sae_paths
from safe_sail.records import ExplanationScore
from safe_sail.sae.facts import measure_facts
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import ContextSettings, LexicalSettings, ScoreSettings
from scripts.subjects import load_handle, load_saes

LEAST_SCORE = LEAST_GAP = 0.5
N_FEATURES = 40
N_DRAWS = 1000
SCORE = ScoreSettings(n_bootstrap=20, n_shuffles=2)
"""Intervals of single scores are not used here."""
CONTEXTS = ContextSettings()
BEFORE = ("rate gap", "specific", "specific x width", "I_CDF", "n_specific", "explained variance", "L0")
AFTER = ("yield", "covered")
Table = dict[str, np.ndarray]
"""By name an array [SAE, concept]."""


def passes(score: ExplanationScore) -> bool:
    return score.score.value >= LEAST_SCORE and score.score.low > score.control.high


def new_texts(concept: str, used: set[str], seed: int) -> ConceptDataset:
    """Texts of the judging split that no score has seen."""
    drawn = concept_dataset(concept, "held_out", n=SCORE.n_judge, seed=seed + 1000)
    rows = tuple(row for row in drawn.rows if row.text not in used)
    return ConceptDataset(concept=concept, domain=drawn.domain, category=drawn.category, rows=rows, source="new")


def chosen_features(results: Sequence[SaeConceptResult]) -> list[int]:
    """The best of every concept, then every concept's second, by choosing texts."""
    by_place = [one.features[place].feature.index for place in range(20) for one in results]
    return list(dict.fromkeys(by_place))[:N_FEATURES]


def marked_concepts(
    model: HookedModel, saes: Sequence[SAEHandle], chosen: dict[str, list[int]], texts: Sequence[ConceptDataset]
) -> dict[tuple[str, int], int]:
    """Of each chosen feature, the concept that it marks on these texts, if any."""
    every = list(dict.fromkeys(text for one in texts for text in one.texts))
    row_of = {text: row for row, text in enumerate(every)}
    maxima = text_maxima(model, saes, every, batch_size=SCORE.batch_size)
    found = {}
    for slug, features in chosen.items():
        gaps = [
            firing_rates(
                maxima[slug][[row_of[text] for text in one.texts]][:, features], torch.tensor(one.is_positive)
            ).gap
            for one in texts
        ]
        best = torch.stack(gaps).max(dim=0)
        for feature, gap, concept in zip(features, best.values.tolist(), best.indices.tolist(), strict=True):
            if gap >= LEAST_GAP:
                found[slug, feature] = concept
    return found


def batches(model: HookedModel, n: int, seed: int) -> list[Any]:
    texts = sorted(enumerate(documents(n, seed)), key=lambda one: len(one[1].text))
    return [
        model.batch([one.text for _, one in part], source_ids=[str(place) for place, _ in part])
        for part in (texts[first : first + 64] for first in range(0, n, 64))
    ]


def measured(saes: Sequence[SAEHandle], model: HookedModel, seed: int) -> tuple[list[str], list[str], Table]:
    concepts = [one.name for one in organism_concepts()]
    splits = [
        ConceptSplits(
            concept_dataset(name, "train", n=SCORE.n_choose, seed=seed),
            concept_dataset(name, "held_out", n=SCORE.n_judge, seed=seed),
        )
        for name in concepts
    ]
    used = {text for one in splits for part in one for text in part.texts}
    scored: dict[str, list[SaeConceptResult]] = defaultdict(list)
    generator = torch.Generator().manual_seed(seed)
    for one in score_saes(model, saes, splits, settings=SCORE, generator=generator):
        scored[one.score.sae].append(one)
    facts = measure_facts(model, saes, batches(model, 128, seed + 1))
    found = {name: np.zeros((len(saes), len(concepts))) for name in (*BEFORE, *AFTER, "explained")}
    for row, (slug, fact) in enumerate(zip(scored, facts, strict=True)):
        for column, one in enumerate(scored[slug]):
            assert one.specificity is not None
            whole = one.specificity
            values = (one.score.rate_gap.value, whole.specific.value, whole.specific.value * whole.n_features,
                      whole.i_cdf.value, whole.n_specific, fact.explained_variance, fact.l0)  # fmt: skip
            for name, value in zip(BEFORE, values, strict=True):
                found[name][row, column] = value
    chosen = {slug: chosen_features(results) for slug, results in scored.items()}
    marks = marked_concepts(model, saes, chosen, [new_texts(name, used, seed) for name in concepts])
    collected = list(
        collect_contexts(
            model, saes, batches(model, CONTEXTS.n_documents, seed), features=chosen, settings=CONTEXTS,
            generator=torch.Generator().manual_seed(seed),
        )
    )  # fmt: skip
    for row, slug in enumerate(scored):
        of_sae = [one for one in collected if one.top.feature.sae == slug]
        others = {one.top.feature for one in of_sae if (slug, one.top.feature.index) not in marks}
        for explained in explain_lexically(of_sae, settings=LexicalSettings(), seed=seed, without=others):
            concept = marks[slug, explained.feature.index]
            found["explained"][row, concept] += 1
            found["yield"][row, concept] += explained.score is not None and passes(explained.score)
    found["covered"] = (found["yield"] > 0).astype(float)
    return list(scored), concepts, found


def correlations(found: Table, rows: Sequence[int], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Spearman over these SAEs of each earlier score with what came of explaining."""
    rng = np.random.default_rng(seed)
    n, n_concepts = len(rows), found["yield"].shape[1]
    result = {}
    for after in AFTER:
        whole = found[after][rows].sum(1)
        for before in BEFORE:
            known = found[before][rows]
            value = spearmanr(known.mean(1), whole).statistic
            by_sae = [spearmanr(known.mean(1)[d], whole[d]).statistic for d in rng.integers(n, size=(N_DRAWS, n))]
            draws = rng.integers(n_concepts, size=(N_DRAWS, n_concepts))
            by_concept = [spearmanr(known[:, d].mean(1), found[after][rows][:, d].sum(1)).statistic for d in draws]
            shuffled = [spearmanr(known.mean(1), rng.permutation(whole)).statistic for _ in range(N_DRAWS)]
            result[f"{before} -> {after}"] = {
                "value": round(float(value), 2),
                "by_sae": np.nanquantile(by_sae, [0.025, 0.975]).round(2).tolist(),
                "by_concept": np.nanquantile(by_concept, [0.025, 0.975]).round(2).tolist(),
                "p": (1 + int(np.sum(np.abs(shuffled) >= abs(value) - 1e-12))) / (1 + N_DRAWS),
            }
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sae", action="append", default=[], help="folders of SAEs beside the shipped ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="what is measured, kept as JSON, or read where it is there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.keep is not None and given.keep.exists():
        saes, concepts, arrays = json.loads(given.keep.read_text())
        found = {name: np.array(values) for name, values in arrays.items()}
    else:
        model = load_handle(None, None, device="cpu", dtype="float32")
        shipped = list(map(str, organism_sae_paths().values()))
        saes, concepts, found = measured(load_saes([*shipped, *given.sae], model, device="cpu"), model, given.seed)
        if given.keep is not None:
            arrays = {name: values.tolist() for name, values in found.items()}
            given.keep.write_text(json.dumps([saes, concepts, arrays]))
    counted = (*AFTER, "explained")
    table = {
        slug: {
            name: round(float(all_[row].sum() if name in counted else all_[row].mean()), 5)
            for name, all_ in found.items()
        }
        for row, slug in enumerate(saes)
    }
    n_shipped = len(organism_sae_paths())
    print(json.dumps({
        "n_concepts": len(concepts),
        "saes": table,
        "all": correlations(found, range(len(saes))),
        "new": correlations(found, range(n_shipped, len(saes))) if len(saes) > n_shipped + 2 else None,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
