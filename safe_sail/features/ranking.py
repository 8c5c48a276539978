"""Candidate SAEs of one model in order, and which of them the texts cannot tell apart.

1. Per SAE the mean over concepts of what its features tell apart beyond their null, and of its best features' rate gap.
2. Bootstrap: concepts are drawn again, and within each the pairs, the positive and the negative texts; all SAEs see
   the same draws, so that what a hard concept does to every SAE cancels in their differences.
3. Two SAEs whose difference's 95 % interval holds 0 are tied. Each interval stands for itself: among twenty pairs of
   equal SAEs about one is told apart by chance.

A concept that is drawn twice brings the same drawn texts twice: intervals are a little too wide, never too narrow.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from safe_sail.errors import BadInput
from safe_sail.records import Estimate, SaeRanking

_TAILS = (0.025, 0.975)


class ConceptEvidence(NamedTuple):
    """What judging one SAE on one concept left behind for comparisons: one number per pair and text."""

    sae: str
    concept: str
    per_pair: Float64[Tensor, " pairs"] | None
    """Share of features, beyond the null, that tells each pair apart; None where the texts are not paired."""
    fires_positive: Float64[Tensor, " texts"]
    """1 where the best feature fires, on positive texts."""
    fires_negative: Float64[Tensor, " texts"]
    """The same on negative texts."""
    n_specific: int | None
    """Specific features; None where the texts are not paired."""


class _Draws(NamedTuple):
    """A statistic of every SAE: as measured, and in each resample."""

    value: Float64[Tensor, " sae"]
    resampled: Float64[Tensor, "resample sae"]


def rank_saes(evidence: Sequence[ConceptEvidence], *, n_bootstrap: int, generator: torch.Generator) -> list[SaeRanking]:
    """SAEs best first: by specificity over the concepts that have pairs, by rate gap where none has (ties: slug).

    Raises:
        BadInput: there is no evidence, or two SAEs were not judged on the same texts.
    """
    saes, by_concept = _table(evidence)
    paired = [row for row in by_concept if row[0].per_pair is not None]
    gap = _rate_gap(by_concept, n_bootstrap, generator)
    specific = _specific(paired, n_bootstrap, generator) if paired else None
    primary = gap if specific is None else specific
    order = sorted(range(len(saes)), key=lambda place: (-float(primary.value[place]), saes[place]))
    tied = [_holds_zero(primary.resampled[:, [one]] - primary.resampled) for one in range(len(saes))]
    return [
        SaeRanking(
            sae=saes[one],
            place=place,
            specific=None if specific is None else _estimate(specific, one, len(paired)),
            rate_gap=_estimate(gap, one, len(by_concept)),
            n_specific=sum(row[one].n_specific or 0 for row in paired) / len(paired) if paired else None,
            tied_with=tuple(saes[other] for other in order if other != one and tied[one][other]),
        )
        for place, one in enumerate(order, start=1)
    ]


def _table(evidence: Sequence[ConceptEvidence]) -> tuple[list[str], list[list[ConceptEvidence]]]:
    """SAEs, and per concept the evidence in their order; all of one concept on the same texts."""
    saes, concepts = (list(dict.fromkeys(getattr(one, name) for one in evidence)) for name in ("sae", "concept"))
    by_key = {(one.sae, one.concept): one for one in evidence}
    if not evidence or len(evidence) != len(by_key) or len(by_key) != len(saes) * len(concepts):
        raise BadInput(
            f"a ranking needs every SAE on every concept once: expected {len(saes)} x {len(concepts)} results, got "
            f"{len(evidence)} of {len(by_key)} kinds."
        )
    rows = [[by_key[sae, concept] for sae in saes] for concept in concepts]
    for row in rows:
        sizes = {
            (None if one.per_pair is None else len(one.per_pair), len(one.fires_positive), len(one.fires_negative))
            for one in row
        }
        if len(sizes) > 1:
            raise BadInput(
                f"concept `{row[0].concept}`: SAEs are compared on the same texts; got pairs, positive and negative "
                f"texts {sorted(sizes, key=str)}."
            )
    return saes, rows


def _specific(paired: Sequence[Sequence[ConceptEvidence]], n: int, generator: torch.Generator) -> _Draws:
    parts = []
    for row in paired:
        parts.append(_resampled_mean([one.per_pair for one in row if one.per_pair is not None], n, generator))
    return _over_concepts(parts, n, generator)


def _rate_gap(by_concept: Sequence[Sequence[ConceptEvidence]], n: int, generator: torch.Generator) -> _Draws:
    parts = []
    for row in by_concept:
        positive = _resampled_mean([one.fires_positive for one in row], n, generator)
        negative = _resampled_mean([one.fires_negative for one in row], n, generator)
        parts.append(_Draws(positive.value - negative.value, positive.resampled - negative.resampled))
    return _over_concepts(parts, n, generator)


def _resampled_mean(columns: Sequence[Tensor], n: int, generator: torch.Generator) -> _Draws:
    """Means of each SAE's numbers, all SAEs over the same rows."""
    values = torch.stack([column.double() for column in columns], dim=1)
    return _Draws(values.mean(dim=0), _weights(values.shape[0], n, generator) @ values)


def _over_concepts(parts: Sequence[_Draws], n: int, generator: torch.Generator) -> _Draws:
    weights = _weights(len(parts), n, generator)
    resampled = torch.einsum("rc,crs->rs", weights, torch.stack([part.resampled for part in parts]))
    return _Draws(torch.stack([part.value for part in parts]).mean(dim=0), resampled)


def _weights(size: int, n: int, generator: torch.Generator) -> Float64[Tensor, "resample row"]:
    """How often each row was drawn in each resample, divided by the number of draws."""
    rows = torch.randint(size, (n, size), generator=generator)
    return (
        torch.zeros(n, size, dtype=torch.float64).scatter_add_(1, rows, torch.ones(n, size, dtype=torch.float64)) / size
    )


def _interval(draws: Tensor) -> tuple[Tensor, Tensor]:
    low, high = draws.quantile(torch.tensor(_TAILS, dtype=torch.float64), dim=0)
    return low, high


def _holds_zero(differences: Float64[Tensor, "resample sae"]) -> list[bool]:
    low, high = _interval(differences)
    return [bool(one) for one in (low <= 0) & (high >= 0)]


def _estimate(draws: _Draws, place: int, n: int) -> Estimate:
    value = float(draws.value[place])
    low, high = (float(end) for end in _interval(draws.resampled[:, place]))
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=n)
