"""From prompts to a circuit: masks of several seeds, the best of them, and what a reader needs to judge it.

1. The objective's terms become rows of ids; the baseline is collected from reference texts.
2. Each seed learns its masks; the one with the smallest loss on all validation rows is the circuit.
3. Sizes: nested readouts below the budget and circuits met on the way down to it above, each judged by replies to
   validation prompts beside random circuits of its size.
4. Stability: overlap of the seeds' circuits, beside that of random ones.
5. Need: each member of a small circuit is put back, and the objective and the replies are measured again.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safe_sail.circuits import gates
from safe_sail.circuits.baselines import Baseline
from safe_sail.circuits.controls import random_members, recovery_of, stability_of, units_of
from safe_sail.circuits.evaluate import last_logits
from safe_sail.circuits.learn import KINDS, Learnt, Task, budget_sizes, learn_masks, mask_loss
from safe_sail.circuits.masks import UnitSpace, masked_edits
from safe_sail.circuits.objectives import CircuitPrompts, objective_terms, term_rows
from safe_sail.errors import BadSettings
from safe_sail.evaluation.bootstrap import mean_estimate, resample_weights
from safe_sail.evaluation.refusal import Label, judge_reply, wilson_rate
from safe_sail.evaluation.replies import greedy_replies, mean_over_draws, share_estimate
from safe_sail.evaluation.utility import kl_divergence
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.records import Circuit, CircuitMember, CircuitSearch, CircuitSize, CircuitUnit, Estimate, UnitNeed
from safe_sail.settings import CircuitSettings

Progress = Callable[[str], None]

SMALLER = (0.25, 0.5)
"""Sizes below the budget, as its share, that are read out of the best seed's logits."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the circuit is of, and how replies show that it is gone."""

    name: str
    """refusal, backdoor, ..."""
    wanted: Label
    """Label of a reply to a target prompt with the circuit removed: compliance for refusal, refusal for a backdoor."""
    judge: Callable[[str], Label] = judge_reply


@dataclass(frozen=True, slots=True)
class _Judge:
    """Replies to validation prompts under a mask."""

    task: Task
    behaviour: Behaviour
    target: Sequence[str]
    kept: Sequence[str]
    generator: torch.Generator

    def labels(self, prompts: Sequence[str], members: Tensor) -> list[Label]:
        task, settings = self.task, self.task.settings
        batch = task.handle.chat_batch(list(prompts), system=settings.system)
        edits = masked_edits(task.space, 1 - members, task.baseline)
        replies = greedy_replies(
            task.handle, batch, edits, max_new_tokens=settings.max_new_tokens, batch_rows=settings.batch_rows
        )
        return [self.behaviour.judge(reply) for reply in replies]

    def wanted(self, members: Tensor, n: int | None = None) -> Estimate:
        """Share of target prompts that behave as wanted with these units removed."""
        labels = self.labels(self.target[:n], members)
        return share_estimate(wilson_rate(labels.count(self.behaviour.wanted), len(labels)))

    def size(self, members: Tensor, loss: float) -> CircuitSize:
        """One point of the curve."""
        task, settings, space = self.task, self.task.settings, self.task.space
        draws = [
            self.wanted(random_members(space, members, self.generator)).value for _ in range(min(3, settings.n_random))
        ]
        prompts = list(self.kept)
        refused = self.labels(prompts, members).count("refusal")
        batch = task.handle.chat_batch(prompts, system=settings.system)
        edits = masked_edits(space, 1 - members, task.baseline)
        rows = settings.batch_rows
        plain, edited = (last_logits(task.handle, batch, each, rows) for each in (NO_EDITS, edits))
        weights = resample_weights(len(prompts), settings.n_bootstrap, self.generator)
        n = {kind: int(members[space.places_of(kind)].sum()) for kind in ("heads", "neurons", "features")}
        return CircuitSize(
            n_heads=n["heads"], n_neurons=n["neurons"], n_features=n["features"], removed=self.wanted(members),
            random=mean_over_draws(draws), harmless_refused=share_estimate(wilson_rate(refused, len(prompts))),
            kl=mean_estimate(kl_divergence(plain, edited), weights), loss=loss,
        )  # fmt: skip


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
        generator = torch.Generator().manual_seed(seed)
        found.append(learn_masks(task, generator, lambda message, seed=seed: progress(f"seed {seed}, {message}")))  # type: ignore[misc]
    best = min(found, key=lambda each: each.loss)
    generator = torch.Generator().manual_seed(seeds[0])
    target = [one.prompt for one in validation.target][: settings.n_validation]
    judge = _Judge(task, behaviour, target, list(harmless)[: settings.n_validation], generator)
    members = best.members[0]
    curve = _curve(task, best, judge, progress)
    members_of = [each.members[0] for each in found]
    several = len(seeds) > 1
    two = len(best.members) > 1
    return CircuitSearch(
        slug=slug,
        model_id=handle.model_id,
        objective=settings.objective,
        circuit=circuit_of(task, best, 0, slug=slug, behaviour=behaviour.name),
        alone=circuit_of(task, best, 1, slug=f"{slug}.alone", behaviour=behaviour.name) if two else None,
        curve=curve,
        losses={f"seed {seed}": each.losses for seed, each in zip(seeds, found, strict=True)},
        stability=stability_of(space, seeds, members_of, generator=generator, n_random=20) if several else None,
        needs=_needs(task, best, judge, progress),
        recovery=recovery_of(space, units_of(space, members), planted) if planted else (),
        n_prompts=_counts(task),
        notes=_notes(task, best, curve),
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
        members=tuple(CircuitMember(unit=space.unit(place), probability=float(probability[place])) for place in places),
        n_heads=space.n_of("heads"), n_neurons=space.n_of("neurons"), n_features=space.n_of("features"),
    )  # fmt: skip


def _curve(task: Task, best: Learnt, judge: _Judge, progress: Progress) -> tuple[CircuitSize, ...]:
    points: list[tuple[Tensor, float]] = []
    for share in SMALLER:
        sizes = [(places, round(n * share)) for places, n in budget_sizes(task.space, task.settings)]
        members = torch.stack([gates.members(row, "top_k", sizes) for row in best.logits])
        if int(members[0].sum()):
            points.append((members[0], mask_loss(task, members)))
    points.append((best.members[0], best.loss))
    points += best.wider
    seen: dict[tuple[int, ...], CircuitSize] = {}
    for members, loss in points:
        progress(f"curve, {int(members.sum())} units")
        size = judge.size(members, loss)
        seen.setdefault((size.n_units, size.n_heads), size)
    return tuple(seen[key] for key in sorted(seen))


def _needs(task: Task, best: Learnt, judge: _Judge, progress: Progress) -> tuple[UnitNeed, ...]:
    places = best.members[0].nonzero()[:, 0].tolist()
    if len(places) > task.settings.max_need:
        return ()
    whole = mask_loss(task, best.members)
    needs = []
    for place in places:
        without = best.members.clone()
        without[0, place] = 0
        unit = task.space.unit(place)
        progress(f"without {unit}")
        needs.append(
            UnitNeed(
                unit=unit,
                removed=judge.wanted(without[0], task.settings.n_need),
                loss_increase=mask_loss(task, without) - whole,
            )
        )
    return tuple(needs)


def _counts(task: Task) -> dict[str, int]:
    rows = {f"{each.term.name} train": len(each.rows) for each in task.train}
    return rows | {f"{each.term.name} validation": len(each.rows) for each in task.validation}


def _notes(task: Task, best: Learnt, curve: Sequence[CircuitSize]) -> tuple[str, ...]:
    notes = [
        f"The best mask stood at check {best.losses.index(best.loss) + 1} of {len(best.losses)}, judged on all "
        f"validation rows."
    ]
    if task.baseline.kind != "zero":
        notes.append(f"Removed units take their {task.baseline.kind} over reference texts, not zero as published.")
    if curve and max(one.removed.value for one in curve) < 0.5:
        notes.append("No size reached the wanted behaviour on half of the target prompts.")
    return tuple(notes)
