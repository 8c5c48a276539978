"""From prompts to a circuit: masks of several seeds, the best of them, and what a reader needs to judge it.

1. The objective's terms become rows of ids; the baseline is collected from reference texts.
2. Each seed learns its masks, and exchanges members by `refine` where the settings ask for it.
3. The seed whose circuit does best on replies to all validation prompts is the circuit: the share that behaves as
   wanted with it removed, less the share of harmless prompts that is refused (ties: the smaller loss).
4. Sizes: nested readouts below the budget and circuits met on the way down to it above, each judged by replies to
   validation prompts beside random circuits of its size.
5. Stability: overlap of the seeds' circuits, beside that of random ones.
6. Need: each member of a small circuit is put back, and the objective and the replies are measured again.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch

from safe_sail.circuits import gates
from safe_sail.circuits.baselines import Baseline
from safe_sail.circuits.controls import recovery_of, stability_of, units_of
from safe_sail.circuits.judging import Behaviour, Removed, ReplyJudge, reply_judge, unit_needs
from safe_sail.circuits.learn import KINDS, Learnt, Task, budget_sizes, learn_masks, mask_loss
from safe_sail.circuits.masks import UnitSpace
from safe_sail.circuits.objectives import CircuitPrompts, objective_terms, term_rows
from safe_sail.circuits.refine import refine_circuit
from safe_sail.errors import BadSettings
from safe_sail.model.handle import HookedModel
from safe_sail.records import Circuit, CircuitMember, CircuitSearch, CircuitSize, CircuitUnit
from safe_sail.settings import CircuitSettings

Progress = Callable[[str], None]

SMALLER = (0.25, 0.5)
"""Sizes below the budget, as its share, that are read out of the best seed's logits."""


def find_circuit(
    handle: HookedModel,
    space: UnitSpace,
    train: CircuitPrompts,
    validation: CircuitPrompts,
    baseline: Baseline,
    settings: CircuitSettings,
    behaviour: Behaviour,
    *,
    slug: str,
    harmless: Sequence[str],
    seeds: Sequence[int] = (0,),
    planted: Collection[CircuitUnit] = (),
    progress: Progress = lambda message: None,
) -> CircuitSearch:
    """The circuit of a behaviour, with its curve of sizes, stability over seeds, needs and recovery.

    `harmless` are validation prompts that the model answers: refusals of them are counted along the curve.

    Raises:
        BadSettings: there is no seed, or the baseline is of another kind than the settings name.
        BadText: prompts lack a completion or a group that the objective needs.
    """
    if not seeds or not harmless:
        raise BadSettings(f"a search needs a seed and harmless prompts; got {len(seeds)} and {len(harmless)}.")
    if baseline.kind != settings.ablation:
        raise BadSettings(f"the settings name {settings.ablation} ablation, the baseline is {baseline.kind}.")
    terms = objective_terms(settings)
    task = Task(
        handle, space, term_rows(handle, terms, _first(train, settings.n_train), settings),
        term_rows(handle, terms, _first(validation, settings.n_validation), settings), baseline, settings,
    )  # fmt: skip
    found: list[Learnt] = []
    for seed in seeds:
        found.append(_learn(task, seed, lambda message, seed=seed: progress(f"seed {seed}, {message}")))  # type: ignore[misc]
    generator = torch.Generator().manual_seed(seeds[0])
    judge = reply_judge(task, behaviour, [one.prompt for one in validation.target], harmless, generator)
    chosen, judged, why = _best_seed(found, seeds, judge, progress)
    best = found[chosen]
    curve = _curve(task, best, judged, judge, progress)
    two = len(best.members) > 1
    return CircuitSearch(
        slug=slug,
        model_id=handle.model_id,
        objective=settings.objective,
        circuit=circuit_of(task, best, 0, slug=slug, behaviour=behaviour.name),
        alone=circuit_of(task, best, 1, slug=f"{slug}.alone", behaviour=behaviour.name) if two else None,
        curve=curve,
        losses={f"seed {seed}": each.losses for seed, each in zip(seeds, found, strict=True)},
        stability=(
            stability_of(space, seeds, [each.members[0] for each in found], generator=generator, n_random=20)
            if len(seeds) > 1
            else None
        ),
        needs=unit_needs(best.members, judge, progress),
        recovery=recovery_of(space, units_of(space, best.members[0]), planted) if planted else (),
        n_prompts=_counts(task),
        notes=(*why, *_notes(task, best, curve)),
    )


def _learn(task: Task, seed: int, progress: Progress) -> Learnt:
    """One seed's masks, with members exchanged where the settings ask for it."""
    learnt = learn_masks(task, torch.Generator().manual_seed(seed), progress)
    if not task.settings.refine_rounds:
        return learnt
    members, logits = learnt.members.clone(), learnt.logits.clone()
    members[0], _ = refine_circuit(task, members[0], progress)
    for kind in KINDS:
        # a unit that came in takes the logit of the one that left, so that the largest logits stay the members
        among = task.space.places_of(kind)
        change = members[0][among] - learnt.members[0][among]
        came, left = (among.start + (change == sign).nonzero()[:, 0] for sign in (1, -1))
        logits[0, came], logits[0, left] = learnt.logits[0, left], learnt.logits[0, came]
    loss = mask_loss(task, members)
    return learnt._replace(logits=logits, members=members, losses=(*learnt.losses, loss), kept=len(learnt.losses))


class _Best(NamedTuple):
    """The seed whose circuit is kept."""

    place: int
    judged: Removed
    why: tuple[str, ...]
    """How it was told, as sentences."""


def _best_seed(found: Sequence[Learnt], seeds: Sequence[int], judge: ReplyJudge, progress: Progress) -> _Best:
    scores, told, judged = [], [], []
    for seed, each in zip(seeds, found, strict=True):
        progress(f"seed {seed}, replies")
        judged.append(judge.removed(each.members[0]))
        wanted, refused = (one.value for one in judged[-1])
        scores.append((wanted - refused, -each.loss))
        told.append(f"seed {seed} {wanted:.3f} and {refused:.3f}")
    best = scores.index(max(scores))
    if len(found) == 1:
        return _Best(best, judged[best], ())
    return _Best(
        best,
        judged[best],
        (
            f"Seed {seeds[best]} was chosen by validation replies, as wanted with the circuit removed and harmless "
            f"prompts refused: {', '.join(told)}.",
        ),
    )


def _first(prompts: CircuitPrompts, n: int) -> CircuitPrompts:
    return CircuitPrompts(list(prompts.target)[:n], list(prompts.kept)[:n])


def circuit_of(task: Task, learnt: Learnt, mask: int, *, slug: str, behaviour: str) -> Circuit:
    """The record of a learnt mask."""
    settings, space = task.settings, task.space
    logits = learnt.logits[mask].clone()
    if settings.gate == "top_k":
        # Only the order counts there: zero is put half-way between a kind's last member and its first other unit.
        for kind in KINDS:
            among = space.places_of(kind)
            inside, values = learnt.members[mask][among] > 0, logits[among]
            if bool(inside.any()) and not bool(inside.all()):
                logits[among] = values - (values[inside].min() + values[~inside].max()) / 2
    probability = gates.probabilities(logits, settings.gate, settings.temperature)  # type: ignore[arg-type]
    places = learnt.members[mask].nonzero()[:, 0].tolist()
    return Circuit(
        slug=slug, model_id=space.model_id, behaviour=behaviour, method="masks", ablation=task.baseline.kind,
        start_model=None if task.baseline.start is None else task.baseline.start.model_id,
        members=tuple(CircuitMember(unit=space.unit(place), probability=float(probability[place])) for place in places),
        n_heads=space.n_of("heads"), n_neurons=space.n_of("neurons"), n_features=space.n_of("features"),
    )  # fmt: skip


def _curve(task: Task, best: Learnt, judged: Removed, judge: ReplyJudge, progress: Progress) -> tuple[CircuitSize, ...]:
    points: list[tuple[torch.Tensor, float]] = []
    for share in SMALLER:
        sizes = [(places, round(n * share)) for places, n in budget_sizes(task)]
        members = torch.stack([gates.members(row, "top_k", sizes) for row in best.logits])
        if int(members[0].sum()):
            points.append((members[0], mask_loss(task, members)))
    points.append((best.members[0], best.loss))
    points += best.wider
    seen: dict[tuple[int, ...], CircuitSize] = {}
    for members, loss in points:
        progress(f"curve, {int(members.sum())} units")
        size = judge.size(members, loss, judged if torch.equal(members, best.members[0]) else None)
        seen.setdefault((size.n_units, size.n_heads), size)
    return tuple(seen[key] for key in sorted(seen))


def _counts(task: Task) -> dict[str, int]:
    rows = {f"{each.term.name} train": len(each.rows) for each in task.train}
    return rows | {f"{each.term.name} validation": len(each.rows) for each in task.validation}


def _notes(task: Task, best: Learnt, curve: Sequence[CircuitSize]) -> tuple[str, ...]:
    notes = [f"The mask stood at check {best.kept + 1} of {len(best.losses)}, judged on all validation rows."]
    if task.settings.refine_rounds:
        notes[0] = "The mask's members were exchanged on training rows after the gates' search, then judged once more."
    start = task.baseline.start
    if start is not None:
        notes.append(
            f"Removed units take the weights of {start.model_id}, where {int(start.differs.sum())} of "
            f"{task.space.n_units} units have others; only these were sought among. {start.n_elsewhere} numbers "
            f"outside units differ too and stay."
        )
    elif task.baseline.kind != "zero":
        notes.append(f"Removed units take their {task.baseline.kind} over reference texts, not zero as published.")
    if curve and max(one.removed.value for one in curve) < 0.5:
        notes.append("No size reached the wanted behaviour on half of the target prompts.")
    return tuple(notes)
