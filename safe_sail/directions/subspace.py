"""Several directions where one is not enough: built two ways, ablated rank by rank.

1. Concepts: one difference in means per harmful concept, at one cell; the right singular vectors of their stack,
   largest first.
2. Repeated: find a direction, ablate it, find the next one in the ablated model, and so on.
3. At each rank the first rows are ablated and the harmful validation prompts answered; random subspaces of that rank
   stand beside it.
4. The smallest rank that passes ends the search; a curve without such a rank is a finding too.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.directions.candidates import Prepared
from safe_sail.directions.interventions import ablation
from safe_sail.directions.means import class_sums, concept_differences, differences
from safe_sail.directions.projection import MIN_NORM, orthonormal_basis, random_directions
from safe_sail.directions.replies import Generation, random_shares, reply_shares
from safe_sail.directions.scoring import Candidate, CandidateScorer
from safe_sail.directions.selection import SelectionRule
from safe_sail.evaluation.bootstrap import mean_estimate, resample_weights
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import rows_of
from safe_sail.records import RankEffect
from safe_sail.settings import DirectionSettings

MIN_PER_CONCEPT = 4
"""Prompts below which a concept's mean is left out; of fewer the difference is mostly noise."""
CURVE_DRAWS = 3
"""Random subspaces at each rank of a curve; the evaluation of the chosen one draws more."""


class Cell(NamedTuple):
    """A position, counted back from -1, and a layer."""

    position: int
    layer: int


@torch.no_grad()
def concept_basis(
    handle: HookedModel, prepared: Prepared, cell: Cell, settings: DirectionSettings
) -> Float[Tensor, "rank d_model"] | None:
    """Orthonormal rows that span the concepts' differences at one cell, by descending singular value; None where
    prompts carry no concepts or fewer than two concepts have enough prompts.

    The harmless mean's direction is taken out of every difference first, as in the projected estimator.
    """
    if prepared.concepts is None:
        return None
    counts = Counter(prepared.concepts)
    names = sorted(name for name, count in counts.items() if count >= MIN_PER_CONCEPT)
    if len(names) < 2:
        return None
    batches = [
        rows_of(prepared.harmful_train, [row for row, concept in enumerate(prepared.concepts) if concept == name])
        for name in names
    ]
    n_positions, batch_rows = prepared.template.n_positions, settings.batch_rows
    by_concept = concept_differences(
        handle, batches, prepared.harmless_train, n_positions=n_positions, batch_rows=batch_rows
    )[:, cell.position, cell.layer]
    mean = class_sums(handle, prepared.harmless_train, n_positions=n_positions, batch_rows=batch_rows).mean
    along = mean[cell.position, cell.layer] / mean[cell.position, cell.layer].norm()
    rows = by_concept - (by_concept @ along)[:, None] * along
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    kept: Tensor = basis[sizes > 1e-6 * sizes[0]][: settings.max_rank]
    return kept


def repeated_basis(
    handle: HookedModel, prepared: Prepared, settings: DirectionSettings, rule: SelectionRule
) -> Iterator[tuple[Cell, Float[Tensor, "rank d_model"]]]:
    """Bases of growing rank: each adds the candidate that lowers the bypass score most in the model without the former.

    Candidates are projected differences of layers that the rule allows; one whose KL is too large is taken only where
    all are. A basis without a further candidate ends the row.
    """
    late = rule.first_late_layer(handle.dims.n_layers)
    scorer = CandidateScorer(
        handle,
        prepared.harmful_validation,
        prepared.harmless_validation,
        layers=(),
        refusal_ids=[token.token_id for token in prepared.refusal_tokens],
        batch_rows=settings.pack_rows,
    )
    n_positions = prepared.template.n_positions
    basis: Tensor | None = None
    for _ in range(settings.max_rank):
        found = differences(
            handle,
            prepared.harmful_train,
            prepared.harmless_train,
            n_positions=n_positions,
            batch_rows=settings.batch_rows,
            estimator="projected",
            winsor_quantile=settings.winsor_quantile,
            edits={} if basis is None else ablation(handle, basis),
        ).vectors
        cells = [Cell(place - n_positions, layer) for place in range(n_positions) for layer in range(1, late)]
        candidates = [Candidate(*cell, found[cell.position, cell.layer]) for cell in cells]
        candidates = [each for each in candidates if float(each.vector.norm()) > 1e3 * MIN_NORM]
        if not candidates:
            return
        scores = scorer.ablate(candidates, basis)
        _, best = min(
            enumerate(candidates),
            key=lambda pair: (
                float(scores[pair[0]].kl.mean()) >= rule.kl_below,
                float(scores[pair[0]].bypass.mean()),
                pair[0],
            ),
        )
        basis = orthonormal_basis(torch.cat([*([] if basis is None else [basis]), best.vector[None]]))
        yield Cell(best.position, best.layer), basis


@torch.no_grad()
def rank_effect(
    handle: HookedModel,
    prepared: Prepared,
    basis: Float[Tensor, "rank d_model"],
    settings: DirectionSettings,
    generator: torch.Generator,
) -> RankEffect:
    """What ablating these orthonormal rows does on validation prompts, beside random subspaces of their rank."""
    rank, d_model = basis.shape
    generation = Generation(settings.max_new_tokens, settings.batch_rows)
    scorer = CandidateScorer(
        handle,
        prepared.harmful_validation,
        prepared.harmless_validation,
        layers=(),
        refusal_ids=[token.token_id for token in prepared.refusal_tokens],
        batch_rows=settings.pack_rows,
    )
    last = Candidate(-1, 0, basis[-1])
    scores = scorer.ablate([last], basis[:-1] if rank > 1 else None)[0]
    weights = resample_weights(len(scores.kl), settings.n_bootstrap, generator)
    shares = reply_shares(
        handle,
        prepared.harmful_validation,
        ablation(handle, basis),
        generation,
        intervention="ablation",
        prompts="harmful validation",
        rank=rank,
    )
    control = random_shares(
        handle,
        prepared.harmful_validation,
        lambda: ablation(handle, orthonormal_basis(random_directions(rank, d_model, 1.0, generator))),
        generation,
        n_draws=min(CURVE_DRAWS, settings.n_random),
        intervention="random ablation",
        prompts="harmful validation",
        rank=rank,
    )
    return RankEffect(
        rank=rank,
        shares=shares,
        control=control,
        bypass=float(scores.bypass.mean()),
        kl=mean_estimate(scores.kl, weights),
    )


def passes(effect: RankEffect, settings: DirectionSettings) -> bool:
    """Whether a subspace leaves few refusals, little broken text and harmless prompts as they were."""
    return (
        effect.shares.refusal.value <= settings.max_refusal_left
        and effect.shares.degenerate.value <= settings.max_degenerate
        and effect.kl.value < settings.kl_below
    )
