"""Masks learnt from rows: one seed's optimisation of gates, with the best mask chosen on all validation rows.

1. Logits start at the settings' value, moved by the first-order effect of putting each unit into an empty circuit.
2. A step draws rows of every term, masks the model by the gates, and runs one forward and backward pass per view.
3. The gradient of the gates is collected at the mask itself, so the passes share no graph and the frozen model keeps
   nothing but what autograd needs; then the price of size and the overlap of two masks are added.
4. top_k gates shrink from a wide circuit to the budget over the first part of the search. Their gradient is taken with
   the circuit removed in part, to a depth drawn anew at each step: removed whole, units that do one thing together
   hide each other, since where the head is gone the neurons that read it have no effect left to lose. Averaged over
   depths the gradients are integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) of the current circuit.
5. At each check the circuit within the budget is read out and judged on every validation row; the best is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safe_sail.circuits import gates
from safe_sail.circuits.baselines import Baseline
from safe_sail.circuits.masked import masked
from safe_sail.circuits.masks import UnitKind, UnitSpace, View
from safe_sail.circuits.objectives import TermRows, aligned_batch, reply_logits, split_losses
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import pad_id_of
from safe_sail.settings import CircuitSettings

Parts = list[tuple[TermRows, list[int]]]
Progress = Callable[[str], None]

VIEWS: tuple[View, ...] = ("removed", "alone")
KINDS: tuple[UnitKind, ...] = ("heads", "neurons", "features")
SHRINK_SHARE = 0.6
"""top_k: share of the steps over which the circuit shrinks to its budget."""
WIDE = 10
"""top_k: the circuit begins this many times its budget, and at most a third of a kind's units."""
START_ROWS = 64
"""Rows of each term behind the first-order start."""
START_WEIGHT = 0.3
"""Of the start's first-order effects, each kind's scaled to root mean square 1."""
NOISE = 0.05
"""Of the seed, on every logit: it is what makes two seeds differ before they draw rows."""
OVERLAP_FACTOR = 100
"""Of the published code, whose AdamW makes little of a gradient's size; top_k's momentum would follow nothing else."""
CLOSED = -100.0
"""Logit of units that may not be members: no gradient reaches them, and no search moves others that far."""
MOMENTUM = 0.9
"""top_k: of the gradients, each kind's scaled to root mean square 1."""
FINAL_RATE = 0.1
"""Learning rate at the end of its linear decay, as a share of the peak."""

Sizes = list[tuple[slice, int]]


@dataclass(frozen=True, slots=True)
class Task:
    """What masks of one search share."""

    handle: HookedModel
    space: UnitSpace
    train: Sequence[TermRows]
    validation: Sequence[TermRows]
    baseline: Baseline
    settings: CircuitSettings

    @property
    def open(self) -> Bool[Tensor, " units"]:
        """Which units may be members: under a start baseline those alone that were trained since."""
        start = self.baseline.start
        return torch.ones(self.space.n_units, dtype=torch.bool) if start is None else start.differs


class Learnt(NamedTuple):
    """One seed's result."""

    logits: Float[Tensor, "masks units"]
    """Membership logits when the best mask was read out; a second row where the objective has a second mask."""
    members: Float[Tensor, "masks units"]
    """1 for each unit in the circuit."""
    losses: tuple[float, ...]
    """Objective on all validation rows at each check."""

    wider: tuple[tuple[Float[Tensor, " units"], float], ...]
    """top_k: circuits of the first mask met while it shrank, widest first, with their loss on validation rows."""
    kept: int
    """Check whose mask is kept."""

    @property
    def loss(self) -> float:
        """Of the kept mask."""
        return self.losses[self.kept]


def budget_sizes(task: Task, wide: float = 1.0) -> Sizes:
    """Units of each kind in a circuit: the budget, or `wide` times that and at most a third of the open units."""
    sizes: Sizes = []
    space, settings, may = task.space, task.settings, task.open
    budgets = (settings.budget_heads, settings.budget_neurons, settings.budget_features)
    for kind, budget in zip(KINDS, budgets, strict=True):
        places = space.places_of(kind)
        n = int(may[places].sum())
        budget = min(budget, n)
        sizes.append((places, min(round(budget * wide), max(budget, n // 3))))
    return sizes


def learn_masks(task: Task, generator: torch.Generator, progress: Progress) -> Learnt:
    """The masks of one seed; the generator draws noise, rows and hard-concrete samples."""
    settings, space = task.settings, task.space
    n_masks = 2 if settings.objective == "backdoor" else 1
    scale = Scale(space) if settings.gate == "top_k" else None
    logits = _start(task, n_masks, generator, scale).requires_grad_()
    optimizer = _optimizer(logits, task)
    rows = RowSampler(task.train, settings.step_rows, generator)
    best: tuple[float, Tensor, Tensor] | None = None
    losses: list[float] = []
    wider: list[tuple[Tensor, float]] = []
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - (1 - FINAL_RATE) * step / settings.steps)
        optimizer.zero_grad()
        search_step(task, logits, rows.draw(), wide=_wide(step, settings), generator=generator, shift=step, scale=scale)
        optimizer.step()
        if (step + 1) % settings.check_every == 0 or step + 1 == settings.steps:
            members = read_out(task, logits)
            losses.append(mask_loss(task, members))
            if best is None or losses[-1] < best[0]:
                best = (losses[-1], logits.detach().clone(), members)
            if (wide := _wide(step, settings)) > 1 and settings.gate == "top_k":
                larger = read_out(task, logits, wide)
                wider.append((larger[0], mask_loss(task, larger)))
            progress(f"step {step + 1}: {losses[-1]:.3f}")
    assert best is not None
    return Learnt(best[1], best[2], tuple(losses), tuple(wider), losses.index(best[0]))


def _optimizer(logits: Tensor, task: Task) -> torch.optim.Optimizer:
    """AdamW, as published; for top_k plain momentum, since only there the order of the logits is the result.

    AdamW moves every logit by about the same step whatever its gradient, so that a thousand neurons of no weight climb
    as fast as the few that matter; a price of size holds them down, and top_k has none.
    """
    rate = task.settings.learning_rate
    if task.settings.gate == "top_k":
        return torch.optim.SGD([logits], lr=rate, momentum=MOMENTUM, dampening=MOMENTUM)
    return torch.optim.AdamW([logits], lr=rate, weight_decay=0.0)


def read_out(task: Task, logits: Float[Tensor, "masks units"], wide: float = 1.0) -> Float[Tensor, "masks units"]:
    """The circuit of the largest logits of each kind, within the budget or `wide` times it."""
    sizes = budget_sizes(task, wide)
    return torch.stack([gates.members(row, _gate(task.settings), sizes) for row in logits])


def _gate(settings: CircuitSettings) -> gates.GateKind:
    return settings.gate  # type: ignore[return-value]


def _wide(step: int, settings: CircuitSettings) -> float:
    done = min(1.0, step / max(1.0, SHRINK_SHARE * settings.steps))
    return float(WIDE ** (1 - done))


class Scale:
    """Gradients of each kind over the largest root mean square so far, so that heads and neurons move alike.

    The largest, not the current one: where a circuit does its work gradients vanish, and noise must not move it.
    """

    def __init__(self, space: UnitSpace) -> None:
        self._places = [space.places_of(kind) for kind in KINDS if space.n_of(kind)]
        self._largest = [0.0] * len(self._places)

    def scaled(self, gradient: Tensor) -> Tensor:
        """The gradient at its scale."""
        found = gradient.clone()
        for index, places in enumerate(self._places):
            size = float(gradient[:, places].square().mean().sqrt())
            self._largest[index] = max(self._largest[index], size)
            if self._largest[index] > 0:
                found[:, places] /= self._largest[index]
        return found


class RowSampler:
    """Rows of every term in shuffled order, each row once before any comes again."""

    def __init__(self, terms: Sequence[TermRows], n: int, generator: torch.Generator) -> None:
        self._terms, self._n, self._generator = terms, n, generator
        self._left: list[list[int]] = [[] for _ in terms]

    def draw(self) -> Parts:
        """The next rows of each term."""
        parts: Parts = []
        for place, term in enumerate(self._terms):
            left = self._left[place]
            n = min(self._n, len(term.rows))
            while len(left) < n:
                left += torch.randperm(len(term.rows), generator=self._generator).tolist()
            parts.append((term, left[:n]))
            self._left[place] = left[n:]
        return parts


def _start(task: Task, n_masks: int, generator: torch.Generator, scale: Scale | None) -> Tensor:
    """Logits at the settings' value, plus noise, plus how much each unit's removal lowers the loss to first order."""
    space, settings = task.space, task.settings
    logits = settings.initial_logit + NOISE * torch.randn(n_masks, space.n_units, generator=generator)
    logits[:, ~task.open] = CLOSED
    if scale is None:
        return logits
    parts: Parts = [(term, list(range(min(START_ROWS, len(term.rows))))) for term in task.train]
    # the whole model is where KL to itself is least: its gradient there is 0, and half-way it is not
    depth = 0.5 if settings.objective == "kl" else 0.0
    gradient = mask_gradients(task, torch.zeros(n_masks, space.n_units), parts, shift=0, depth=depth).gradient
    return logits - START_WEIGHT * scale.scaled(gradient)


def search_step(
    task: Task,
    logits: Tensor,
    parts: Parts,
    *,
    wide: float,
    generator: torch.Generator,
    shift: int,
    scale: "Scale | None" = None,
) -> None:
    """Adds one step's gradient to `logits.grad`."""
    settings = task.settings
    depth = 1.0
    if settings.gate == "top_k":
        sizes = budget_sizes(task, wide)
        circuit = torch.stack([gates.top_k(row, sizes) for row in logits])
        depth = float(torch.rand((), generator=generator))
    elif settings.gate == "straight_through":
        circuit = gates.straight_through(logits, settings.temperature)
    else:
        circuit = gates.hard_concrete(logits, generator)
    gradient = mask_gradients(task, circuit.detach(), parts, shift=shift, depth=depth).gradient
    circuit.backward(gradient if scale is None else scale.scaled(gradient))
    price = _price(task, logits)
    if price is not None:
        price.backward()


class MaskGradient(NamedTuple):
    """What one pass over rows says of a mask."""

    gradient: Float[Tensor, "masks units"]
    """Of the objective by the membership values."""
    loss: Float[Tensor, ""]
    """The objective on these rows, without price, in nats."""


def mask_gradients(task: Task, circuit: Tensor, parts: Parts, *, shift: int, depth: float = 1.0) -> MaskGradient:
    """The objective and its gradient by the circuit's membership; one forward and backward pass for each view.

    `depth` is how far units are replaced: at 0 the model is whole, at 1 the view's units are replaced altogether.
    """
    leaf = circuit.clone().requires_grad_()
    total = torch.zeros(())
    with torch.enable_grad():
        for view in VIEWS:
            seen = [(term, rows) for term, rows in parts if term.term.view == view]
            if not seen:
                continue
            chosen = [term.rows[row] for term, rows in seen for row in rows]
            aligned = aligned_batch(chosen, pad_id_of(task.handle.tokenizer))
            inside = leaf[0] if view == "removed" else leaf[-1]
            kept = 1 - inside if view == "removed" else inside
            # the value is 1 - depth * (1 - kept), the gradient that of the view at its full depth
            keep = kept + (1 - depth) * (1 - kept.detach())
            positions = aligned.batch.position_ids
            # The edits stay in force until backward is done: checkpointed blocks run again then.
            model, edits = masked(task.handle, task.space, keep, task.baseline.shifted(shift), positions=positions)
            with model.editing(edits):
                logits = reply_logits(model, aligned)
                found = split_losses(logits, aligned, seen, margin=task.settings.margin)
                loss = sum(term.term.weight * each for (term, _), each in zip(seen, found, strict=True))
                assert isinstance(loss, Tensor)
                loss.backward()
                total = total.to(loss) + loss.detach()
    return MaskGradient(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, total)


def _price(task: Task, logits: Tensor) -> Tensor | None:
    """Price of size and of overlap; None where neither applies.

    Source: the sums over modules of mean gate probabilities and the overlap term of the published code.
    """
    settings, space = task.settings, task.space
    total: Tensor | None = None
    probability = gates.probabilities(logits, _gate(settings), settings.temperature)
    if settings.gate != "top_k":
        prices = {"heads": settings.price_heads, "neurons": settings.price_neurons, "features": settings.price_neurons}
        total = sum(
            (prices[group.kind] * row[group.places].mean() for row in probability for group in space.groups),
            start=torch.zeros(()),
        )
    if len(logits) > 1 and settings.overlap_weight > 0:
        kept, carried = 1 - probability[0], probability[1]
        shares = [
            (kept[group.places] * carried[group.places]).sum() / (kept[group.places].sum() + 1e-8)
            for group in space.groups
        ]
        factor = 1 if settings.gate == "top_k" else OVERLAP_FACTOR
        overlap = settings.overlap_weight * factor * torch.stack(shares).mean()
        total = overlap if total is None else total + overlap
    return total


@torch.no_grad()
def mask_loss(task: Task, members: Float[Tensor, "masks units"]) -> float:
    """The objective on all validation rows under these masks, without price, in nats."""
    settings, total = task.settings, 0.0
    for term in task.validation:
        inside = members[0] if term.term.view == "removed" else members[-1]
        keep = 1 - inside if term.term.view == "removed" else inside
        nats = 0.0
        for first in range(0, len(term.rows), settings.batch_rows):
            rows = list(range(first, min(len(term.rows), first + settings.batch_rows)))
            aligned = aligned_batch([term.rows[row] for row in rows], pad_id_of(task.handle.tokenizer))
            model, edits = masked(task.handle, task.space, keep, task.baseline, positions=aligned.batch.position_ids)
            with model.editing(edits):
                logits = reply_logits(model, aligned)
            nats += float(split_losses(logits, aligned, [(term, rows)], margin=settings.margin)[0]) * len(rows)
        total += term.term.weight * nats / len(term.rows)
    return total
