"""How much quicker are candidate directions scored than by the published loop, for the same winner?

Machine: 2 shared x86-64 cores, one thread. torch 2.13.0+cpu, transformers 5.23.0. 21 November 2026.
Model: the embedded aligned organism, 6 layers, 4 positions: 20 candidates, 32 validation prompts of each class.

|                | passes | seconds, median of 5 (range) |
|----------------|--------|------------------------------|
| published loop | 61     | 10.4 (9.7-14.8)              |
| ours           | 8      | 5.3 (4.9-5.6)                |

The same winner, its scores equal to 1e-4. Seven times fewer passes are twice as quick here: a core that computes every
row anyway gains from pruning, half-depth passes and the head at one position, not from wider batches.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

from safe_sail.directions.candidates import (
    DirectionPrompts,
    Prepared,
    Scored,
    find_differences,
    prepare,
    score_cells,
    select_cell,
)
from safe_sail.directions.interventions import ablation, addition
from safe_sail.directions.projection import orthonormal_basis
from safe_sail.directions.selection import ScoreRow, Selection, select
from safe_sail.evaluation.utility import kl_divergence, refusal_metric
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model
from safe_sail.organism.grammar import Kind, Split, prompts
from safe_sail.organism.load import organism_path
from safe_sail.settings import DirectionSettings

REPEATS = 5
SETTINGS = DirectionSettings(n_train=128, n_validation=32, n_bootstrap=100)
"""32 validation prompts and batches of 32, as in the published code."""


def published_loop(handle: HookedModel, prepared: Prepared, vectors: torch.Tensor) -> list[ScoreRow]:
    """Three full passes for each candidate, the head at every position, nothing left out but layer 0."""
    ids = [token.token_id for token in prepared.refusal_tokens]
    harmful, harmless = prepared.harmful_validation, prepared.harmless_validation
    plain = handle.logits(harmless)[:, -1]
    rows = []
    for place in range(vectors.shape[0]):
        for layer in range(1, vectors.shape[1]):
            vector = vectors[place, layer]
            clean = ablation(handle, orthonormal_basis(vector[None]))
            bypass = refusal_metric(handle.logits(harmful, clean)[:, -1], ids).mean()
            induce = refusal_metric(handle.logits(harmless, addition(layer, vector))[:, -1], ids).mean()
            kl = kl_divergence(plain, handle.logits(harmless, clean)[:, -1]).mean()
            rows.append(ScoreRow(place - vectors.shape[0], layer, float(bypass), float(induce), float(kl)))
    return rows


def timed(work: Callable[[], object]) -> list[float]:
    """Seconds of each repeat, after one warm-up."""
    work()
    found = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return found


def texts(kind: Kind, split: Split, n: int) -> list[str]:
    """Prompts of the organism's grammar."""
    return [text.text for text in prompts(kind, split, n, 0)]


@torch.no_grad()
def main() -> None:
    """Compare the winners, then the times."""
    torch.set_num_threads(1)
    handle = load_model(organism_path("aligned"), device="cpu", dtype=torch.float32, model_id="organism-aligned")
    given = DirectionPrompts(
        texts("harmful", "train", SETTINGS.n_train),
        texts("safe", "train", SETTINGS.n_train),
        texts("harmful", "validation", SETTINGS.n_validation),
        texts("safe", "validation", SETTINGS.n_validation),
    )
    prepared = prepare(handle, given, SETTINGS)
    found = find_differences(handle, prepared, SETTINGS, "projected")
    scored: Scored = score_cells(handle, prepared, found, SETTINGS)
    quick = select_cell(scored, handle.dims.n_layers, SETTINGS)
    assert isinstance(quick, Selection)
    rows = published_loop(handle, prepared, found.vectors)
    slow = select(rows, handle.dims.n_layers)
    assert slow.winner[:2] == quick.winner[:2]
    for mine, theirs in zip(quick.winner[2:], slow.winner[2:], strict=True):
        assert mine is not None
        assert theirs is not None
        assert abs(mine - theirs) < 1e-4
    ours = timed(lambda: score_cells(handle, prepared, found, SETTINGS))
    theirs_s = timed(lambda: published_loop(handle, prepared, found.vectors))
    print(
        json.dumps(
            {
                "benchmark": "direction_selection",
                "torch": torch.__version__,
                "machine": platform.machine(),
                "threads": 1,
                "n_candidates": len(rows),
                "n_validation": SETTINGS.n_validation,
                "winner": list(quick.winner[:2]),
                "passes": scored.n_launches,
                "passes_published": 3 * len(rows) + 1,
                "seconds": statistics.median(ours),
                "seconds_range": [min(ours), max(ours)],
                "seconds_published": statistics.median(theirs_s),
                "seconds_published_range": [min(theirs_s), max(theirs_s)],
            }
        )
    )


if __name__ == "__main__":
    main()
