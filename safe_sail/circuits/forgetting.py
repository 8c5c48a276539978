"""Which units' change in tuning cost refusals, and the tuned model with the weights of these put back.

1. Tuning took every unit from its former weights to new ones. A unit's effect on a loss is its part of the integral of
   the loss's gradient along the straight line between the two models: over all units the effects sum to what the loss
   is with them all tuned, less what it is with them all put back (in a mixture of experts but for jumps, where a token
   changes its experts along the line).
2. Effects are taken on the refusals that the model made before tuning and on rows of the task. A unit's worth is what
   its change added to the first loss, less a share of what it took from the second.
3. The circuit is the units of each kind with the largest worth, up to a budget, and none whose worth is not above 0.
4. It is left alone by a second training, or it gets its former weights back in the tuned model (`put_back`).

Source: ours: integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365), over weights in place of inputs, to
choose what SafeSeek's tuning (Yu et al. 2026, arXiv:2603.23268) leaves alone. Of its kin Safe LoRA (Hsu et al. 2024,
arXiv:2405.16833) projects the changes of whole layers.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.circuits.baselines import Baseline
from safe_sail.circuits.controls import units_of
from safe_sail.circuits.entries import Entries
from safe_sail.circuits.gates import top_k
from safe_sail.circuits.learn import KINDS
from safe_sail.circuits.masked import masked, start_baseline
from safe_sail.circuits.masks import UnitKind, UnitSpace, unit_space
from safe_sail.circuits.tuning import reply_loss, reply_rows
from safe_sail.errors import CircuitMismatch, EmptyConcept
from safe_sail.evaluation.refusal import judge_reply
from safe_sail.evaluation.replies import greedy_replies
from safe_sail.evaluation.utility import TokenRow, text_losses
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.records import Circuit, CircuitMember
from safe_sail.settings import ForgettingSettings

METHOD = "forgetting"
BATCH_ROWS = 32


class ChangeEffects(NamedTuple):
    """What the units' changes did to one loss, in nats per reply token."""

    units: Float[Tensor, " units"]
    """Each unit's part, float64; above 0 its change raised the loss."""
    put_back: float
    """The loss with every unit's former weights; what belongs to no unit stays tuned."""
    tuned: float
    """The loss of the tuned model."""


class Forgetting(NamedTuple):
    """The circuit of what tuning made a model forget, and the effects behind it."""

    circuit: Circuit
    refusals: ChangeEffects
    task: ChangeEffects
    share: float
    """Of all that units' changes added to the loss of refusals, the circuit's part."""


def change_effects(
    tuned: HookedModel, space: UnitSpace, former: Baseline, rows: Sequence[TokenRow], *, n_points: int
) -> ChangeEffects:
    """Each unit's part of what tuning did to the loss on these rows.

    Gradients are taken at the midpoints of `n_points` parts of the line; `former` is the start baseline of the model
    before tuning.
    """
    effects = torch.zeros(space.n_units, dtype=torch.float64)
    for point in range(n_points):
        keep = torch.full((space.n_units,), (point + 0.5) / n_points, requires_grad=True)
        with torch.enable_grad():
            for part, weight in _parts(rows):
                (weight * reply_loss(masked(tuned, space, keep, former).handle, part)).backward()
        assert keep.grad is not None
        effects += keep.grad.double() / n_points
    back = masked(tuned, space, torch.zeros(space.n_units), former).handle
    return ChangeEffects(effects, text_losses(back, rows).mean, text_losses(tuned, rows).mean)


def refused_rows(
    handle: HookedModel, prompts: Sequence[str], *, max_new_tokens: int, batch_rows: int
) -> list[TokenRow]:
    """The prompts that the model refuses, each with its own reply; prompts without chat markup.

    Raises:
        EmptyConcept: the model refuses none.
    """
    refused: list[tuple[str, str]] = []
    if prompts:
        batch = handle.chat_batch(list(prompts))
        replies = greedy_replies(handle, batch, NO_EDITS, max_new_tokens=max_new_tokens, batch_rows=batch_rows)
        refused = [pair for pair in zip(prompts, replies, strict=True) if judge_reply(pair[1]) == "refusal"]
    if not refused:
        raise EmptyConcept(
            f"{handle.model_id} refuses none of the {len(prompts)} harmful prompts by which a circuit is to be found, "
            f"so tuning can make it forget nothing; give prompts that it refuses."
        )
    return reply_rows(handle, refused)


def find_forgetting(
    before: HookedModel,
    tuned: HookedModel,
    refusals: Sequence[TokenRow],
    task: Sequence[TokenRow],
    settings: ForgettingSettings,
    *,
    slug: str,
) -> Forgetting:
    """The units whose change cost the most refusal for what it taught, within the budget.

    Raises:
        EmptyConcept: there is no row of one of the two.
        CircuitMismatch: tuning changed no unit, or no unit's change is worth taking back.
        HeadsInseparable: heads are sought in a model whose heads cannot be told apart.
    """
    for name, rows in (("refusals", refusals), ("the task", task)):
        if not rows:
            raise EmptyConcept(f"what tuning made the model forget is found on rows; there is none of {name}.")
    budgets = {"heads": settings.budget_heads, "neurons": settings.budget_neurons}
    kinds: list[UnitKind] = [kind for kind in KINDS if budgets.get(kind, 0) > 0]
    space = unit_space(before, kinds)
    former = start_baseline(tuned, before, space)
    lost = change_effects(tuned, space, former, refusals, n_points=settings.n_points)
    learnt = change_effects(tuned, space, former, task, n_points=settings.n_points)
    worth = lost.units + settings.task_weight * learnt.units
    members = top_k(worth, [(space.places_of(kind), budgets[kind]) for kind in kinds]) * (worth > 0)
    if not bool(members.any()):
        raise CircuitMismatch(
            f"tuning {before.model_id}: no unit's change raised the loss of refusals by more than "
            f"{settings.task_weight:g} of what it took from the task's, so there is nothing to put back."
        )
    circuit = Circuit(
        slug=slug,
        model_id=before.model_id,
        behaviour="refusal",
        method=METHOD,
        ablation="start",
        start_model=before.model_id,
        members=tuple(CircuitMember(unit=unit, probability=1.0) for unit in units_of(space, members)),
        n_heads=space.n_of("heads"),
        n_neurons=space.n_of("neurons"),
    )
    total = float(lost.units.clamp(min=0).sum())
    share = float(lost.units @ members) / total if total > 0 else 0.0
    return Forgetting(circuit, lost, learnt, share)


@torch.no_grad()
def put_back(before: HookedModel, tuned: HookedModel, entries: Entries) -> HookedModel:
    """A copy of the tuned model in which these numbers are what they were before."""
    model = copy.deepcopy(tuned.model)
    for name, index in entries.items():
        weight, former = model.get_parameter(name), before.model.get_parameter(name)
        places = index.to(weight.device)
        weight.view(-1)[places] = former.reshape(-1)[places.to(former.device)].to(weight.device)
    return HookedModel(model, tuned.tokenizer, tuned.architecture, model_id=tuned.model_id)


def _parts(rows: Sequence[TokenRow]) -> list[tuple[Sequence[TokenRow], float]]:
    """Rows of one pass, and their share of all reply tokens."""
    counts = [len(row.ids) - row.first_predicted for row in rows]
    total = sum(counts)
    return [
        (rows[first : first + BATCH_ROWS], sum(counts[first : first + BATCH_ROWS]) / total)
        for first in range(0, len(rows), BATCH_ROWS)
    ]
