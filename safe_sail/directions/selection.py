"""Which candidate direction is chosen: the published rule, over a table of scores that any caller can feed.

1. A candidate falls out where a score is missing or not finite, its layer is too late, it does not induce refusal, or
   it changes harmless text too much; every reason that holds is named.
2. Of those left, the smallest bypass score wins (ties: the position furthest from the prompt's end, then the lowest
   layer, the order in which the published code visits them).
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from safe_sail.errors import BadSettings, NoDirection

Reason = Literal["not finite", "layer", "induce", "kl", "not scored"]


class ScoreRow(NamedTuple):
    """Scores of one candidate; in logits, KL in nats. None where an earlier filter made the score needless."""

    position: int
    """Counted back from the prompt's end: -1 is its last token."""
    layer: int
    """Layer whose input the direction was read from, counted from 0."""
    bypass: float | None
    """Mean refusal metric of harmful prompts with the direction ablated; lower is better."""
    induce: float | None
    """Mean refusal metric of harmless prompts with the direction added."""
    kl: float | None
    """Mean KL(plain || ablated) over harmless prompts, at the last position."""


class SelectionRule(NamedTuple):
    """What a candidate must keep to; the defaults are the paper's."""

    induce_above: float = 0.0
    kl_below: float = 0.1
    layer_share: float = 0.8
    """Layers from this share of the depth on are left out: late directions are the unembedding of refusal tokens."""
    boundaries: Literal["paper", "code"] = "paper"
    """paper: induce > 0, KL < 0.1, layer < 0.8 L. code: a score on its bound stays, and the layer's bound is rounded
    down, as the authors' repository has it."""

    def first_late_layer(self, n_layers: int) -> int:
        """The first layer that is too late."""
        bound = Fraction(str(self.layer_share)) * n_layers
        return math.floor(bound) if self.boundaries == "code" else math.ceil(bound)


class Selection(NamedTuple):
    """What the rule makes of a table."""

    winner: ScoreRow
    order: tuple[ScoreRow, ...]
    """Rows that the filters left, best first; the winner is the first."""
    reasons: dict[tuple[int, int], tuple[Reason, ...]]
    """(position, layer) to why the row fell out; rows that were left are absent."""


PUBLISHED_RULE = SelectionRule()


def filter_reasons(row: ScoreRow, n_layers: int, rule: SelectionRule = PUBLISHED_RULE) -> tuple[Reason, ...]:
    """Every reason for which a row falls out; empty if it stays."""
    reasons: list[Reason] = []
    if not all(math.isfinite(score) for score in (row.bypass, row.induce, row.kl) if score is not None):
        reasons.append("not finite")
    if row.layer >= rule.first_late_layer(n_layers):
        reasons.append("layer")
    inclusive = rule.boundaries == "code"
    if row.induce is not None and (
        row.induce < rule.induce_above or (row.induce == rule.induce_above and not inclusive)
    ):
        reasons.append("induce")
    if row.kl is not None and (row.kl > rule.kl_below or (row.kl == rule.kl_below and not inclusive)):
        reasons.append("kl")
    if not reasons and None in (row.bypass, row.induce, row.kl):
        reasons.append("not scored")
    return tuple(reasons)


def select(rows: Sequence[ScoreRow], n_layers: int, rule: SelectionRule = PUBLISHED_RULE) -> Selection:
    """The winner of a score table, the order behind it, and why the others fell out.

    Raises:
        NoDirection: the filters left no row; the message says how many each took, with the best values.
        BadSettings: the table is empty, or names a cell twice or a layer that the model lacks.
    Source: Arditi et al. 2024, appendix C.1, arXiv:2406.11717; tie rule from the authors' code.
    """
    _check(rows, n_layers)
    reasons = {(row.position, row.layer): filter_reasons(row, n_layers, rule) for row in rows}
    left = [row for row in rows if not reasons[row.position, row.layer]]
    if not left:
        raise NoDirection(explain_filters(rows, n_layers, rule))
    order = tuple(sorted(left, key=lambda row: (_score(row.bypass), row.position, row.layer)))
    return Selection(order[0], order, {cell: why for cell, why in reasons.items() if why})


def explain_filters(rows: Sequence[ScoreRow], n_layers: int, rule: SelectionRule = PUBLISHED_RULE) -> str:
    """One sentence: how many candidates each filter takes, and the best value that it saw."""
    counts = _count(rows, n_layers, rule)
    late = rule.first_late_layer(n_layers)
    early = [row for row in rows if row.layer < late]
    parts = [f"{counts['layer']} of {len(rows)} candidates lie at layer {late} or later"]
    if counts["not finite"]:
        parts.append(f"{counts['not finite']} have a score that is not finite")
    induce, kl, bypass = (
        [score for score in scores if score is not None and math.isfinite(score)]
        for scores in ([row.induce for row in early], [row.kl for row in early], [row.bypass for row in early])
    )
    if induce:
        parts.append(
            f"{counts['induce']} do not induce refusal above {rule.induce_above:g} (best before layer {late}: "
            f"{max(induce):.3g})"
        )
    if kl:
        parts.append(f"{counts['kl']} change harmless text by a KL of {rule.kl_below:g} or more (best: {min(kl):.3g})")
    if counts["not scored"]:
        parts.append(f"{counts['not scored']} lack a score")
    if bypass:
        parts.append(f"the lowest bypass score is {min(bypass):.3g}")
    left = sum(not filter_reasons(row, n_layers, rule) for row in rows)
    return f"{left} of {len(rows)} candidates pass every filter: " + "; ".join(parts) + "."


def _count(rows: Sequence[ScoreRow], n_layers: int, rule: SelectionRule) -> Mapping[Reason, int]:
    counts: dict[Reason, int] = {"not finite": 0, "layer": 0, "induce": 0, "kl": 0, "not scored": 0}
    for row in rows:
        for reason in filter_reasons(row, n_layers, rule):
            counts[reason] += 1
    return counts


def _score(score: float | None) -> float:
    assert score is not None  # rows without a score have a reason to be out
    return score


def _check(rows: Sequence[ScoreRow], n_layers: int) -> None:
    if not rows:
        raise BadSettings("a selection needs at least one candidate; the score table is empty.")
    cells = [(row.position, row.layer) for row in rows]
    if len(set(cells)) < len(cells):
        raise BadSettings("a score table names each position and layer once; a cell comes twice.")
    wrong = [cell for cell in cells if cell[0] >= 0 or not 0 <= cell[1] < n_layers]
    if wrong:
        raise BadSettings(
            f"position {wrong[0][0]}, layer {wrong[0][1]}: positions count back from -1, layers from 0 to "
            f"{n_layers - 1}."
        )
