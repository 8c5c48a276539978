"""Local search around a learnt circuit: members give way to other units as long as the objective falls.

Gates rank units one at a time; which units do a thing *together* within a budget is settled by trying.

1. The objective is measured on training rows, the same ones throughout.
2. Units outside are ranked by what adding each would change to first order, at the circuit and half-way to it.
3. A round adds each of the first `refine_candidates` in turn and keeps the best addition, then drops each member in
   turn and keeps the best drop: forward selection with backward elimination at a constant size.
4. Kinds take turns; the search ends after `refine_rounds`, or when no kind's round lowers the objective.

Source: sequential floating selection (Pudil et al. 1994, https://doi.org/10.1016/0167-8655(94)90127-9), candidates by
gradient as in Zou et al. 2023, section 2.2 (arXiv:2307.15043).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.circuits.learn import KINDS, VIEWS, Parts, Task, mask_gradients
from safe_sail.circuits.masked import masked
from safe_sail.circuits.masks import UnitKind, View
from safe_sail.circuits.objectives import AlignedBatch, TermRows, aligned_batch, reply_logits, split_losses
from safe_sail.model.tokens import pad_id_of

Progress = Callable[[str], None]
DEPTHS = (0.5, 1.0)
"""How far the circuit is removed where the gradients are taken; see `learn`."""
LEAST_GAIN = 1e-4
"""Nats by which a round must lower the objective, above float32's noise over rows."""


class _Pass(NamedTuple):
    """Rows of one view that share a pass, and which rows of which term they are."""

    view: View
    aligned: AlignedBatch
    parts: Parts


class _Measure:
    """The objective of one mask on fixed rows, whose batches are made once."""

    def __init__(self, task: Task, terms: Sequence[TermRows], n_rows: int) -> None:
        self.task = task
        self.parts: Parts = [(term, list(range(min(n_rows, len(term.rows))))) for term in terms]
        self._passes: list[_Pass] = []
        pad, at_once = pad_id_of(task.handle.tokenizer), task.settings.batch_rows
        for view in VIEWS:
            seen = [(term, row) for term, rows in self.parts if term.term.view == view for row in rows]
            for first in range(0, len(seen), at_once):
                here = seen[first : first + at_once]
                aligned = aligned_batch([term.rows[row] for term, row in here], pad)
                aligned = AlignedBatch(aligned.batch.to(task.handle.device), aligned.targets)
                # rows of one term stand together, so the groups come in the order of the rows
                groups = [list(group) for _, group in itertools.groupby(here, key=lambda each: each[0].term.name)]
                parts = [(group[0][0], [row for _, row in group]) for group in groups]
                self._passes.append(_Pass(view, aligned, parts))

    @torch.no_grad()
    def loss(self, members: Float[Tensor, " units"]) -> float:
        """The objective without price, in nats."""
        task, total = self.task, 0.0
        n_rows = {term.term.name: len(rows) for term, rows in self.parts}
        for view, aligned, parts in self._passes:
            keep = 1 - members if view == "removed" else members
            model, edits = masked(task.handle, task.space, keep, task.baseline, positions=aligned.batch.position_ids)
            with model.editing(edits):
                logits = reply_logits(model, aligned)
            nats = split_losses(logits, aligned, parts, margin=task.settings.margin)
            for (term, rows), each in zip(parts, nats, strict=True):
                total += term.term.weight * float(each) * len(rows) / n_rows[term.term.name]
        return total

    def gradient(self, members: Float[Tensor, " units"]) -> Float[Tensor, " units"]:
        """Of the objective by membership, averaged over depths and over passes as large as a step's."""
        n_passes = -(-max(len(rows) for _, rows in self.parts) // self.task.settings.step_rows)
        found = torch.zeros_like(members)
        for first in range(n_passes):
            # every pass holds its share of each term, so the mean over passes is the mean over rows; a term with fewer
            # rows than passes counts less, which touches nothing but the order of candidates
            parts: Parts = [(term, rows[first::n_passes]) for term, rows in self.parts if len(rows) > first]
            for depth in DEPTHS:
                taken = mask_gradients(self.task, members[None], parts, shift=0, depth=depth)
                found += taken.gradient[0] / (len(DEPTHS) * n_passes)
        return found


def refine_circuit(
    task: Task, members: Float[Tensor, " units"], progress: Progress
) -> tuple[Float[Tensor, " units"], tuple[float, ...]]:
    """A circuit of the same sizes whose objective on training rows is not larger, and the objective after each round.

    Of two masks the first is refined, by the terms with the circuit removed.
    """
    settings = task.settings
    two = settings.objective == "backdoor"
    terms = [each for each in task.train if not two or each.term.view == "removed"]
    measure = _Measure(task, terms, settings.refine_rows)
    losses = [measure.loss(members)]
    idle: set[UnitKind] = set()
    places = {kind: task.space.places_of(kind) for kind in KINDS}
    kinds = [kind for kind in KINDS if 0 < int(members[places[kind]].sum()) < int(task.open[places[kind]].sum())]
    for turn in range(settings.refine_rounds * len(kinds)):
        kind = kinds[turn % len(kinds)]
        if kind in idle:
            continue
        changed, loss = _exchange(measure, members, kind)
        if loss < losses[-1] - LEAST_GAIN:
            members, idle = changed, set()
            losses.append(loss)
            progress(f"refined {kind}: {loss:.3f}")
        else:
            idle.add(kind)
        if len(idle) == len(kinds):
            break
    return members, tuple(losses)


def _exchange(measure: _Measure, members: Tensor, kind: UnitKind) -> tuple[Tensor, float]:
    """The circuit with one unit of a kind added and one dropped, and its objective."""
    places = measure.task.space.places_of(kind)
    gradient = measure.gradient(members)[places]
    outside = torch.where((members[places] > 0) | ~measure.task.open[places], torch.inf, gradient)
    order = torch.argsort(outside, stable=True)[: measure.task.settings.refine_candidates].tolist()
    added = [_with(members, places.start + index, 1.0) for index in order if float(outside[index]) < torch.inf]
    wider = min(added, key=measure.loss)
    inside = (places.start + wider[places].nonzero()[:, 0]).tolist()
    dropped = [(measure.loss(each), each) for each in (_with(wider, place, 0.0) for place in inside)]
    loss, changed = min(dropped, key=lambda pair: pair[0])
    return changed, loss


def _with(members: Tensor, place: int, value: float) -> Tensor:
    changed = members.clone()
    changed[place] = value
    return changed
