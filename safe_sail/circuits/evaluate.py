"""What a circuit does on prompts that neither made nor chose it: removed, alone, and beside random circuits.

1. Replies to every group of prompts: full model, circuit removed, circuit alone; to target groups also with random
   circuits of the same number of units of each kind in each layer, removed and alone.
2. Answers to harmless prompts, judged by the caller's rule; refusals of them are over-refusal.
3. KL to the full model on the first reply token, and cross-entropy on documents and reference answers.
4. The null mask: a mask that keeps everything, applied everywhere, must leave the logits as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from safe_sail.circuits.baselines import Baseline
from safe_sail.circuits.controls import random_members
from safe_sail.circuits.masked import Masked, masked
from safe_sail.circuits.masks import UnitSpace, circuit_keep
from safe_sail.errors import BadText, EmptyConcept
from safe_sail.evaluation.bootstrap import mean_estimate, resample_weights
from safe_sail.evaluation.refusal import Label, judge_reply, wilson_rate
from safe_sail.evaluation.replies import greedy_replies, mean_over_draws, share_estimate
from safe_sail.evaluation.utility import TokenRow, kl_divergence, last_logits, plain_rows, text_losses, token_rows
from safe_sail.model.chat import render_chat
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.records import Circuit, CircuitEvaluation, CircuitReplies, Estimate, UtilityCost
from safe_sail.settings import CircuitSettings

Progress = Callable[[str], None]
Answered = Callable[[str, int, str], bool]
"""Whether the reply to prompt `index` of a group is an answer; the caller knows what it asked."""

LABELS: tuple[Label, ...] = ("refusal", "compliance", "degenerate")
UTILITY_DRAWS = 3
"""Random circuits behind the cross-entropy control."""
ALONE_DRAWS = 2
"""Random circuits left alone: they speak no language, at the full length of a reply, and all alike."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out texts; prompts without chat markup."""

    groups: Mapping[str, Sequence[str]]
    """Prompts by the name of their group."""
    target: tuple[str, ...]
    """Groups on which the circuit decides: random circuits are tried there."""
    harmless: tuple[str, ...]
    """Groups that shall be answered."""
    documents: Sequence[str] = ()
    answered: Sequence[tuple[str, str]] = ()
    """Harmless prompts with reference answers."""


class Judged(NamedTuple):
    """How replies are judged."""

    judge: Callable[[str], Label] = judge_reply
    answered: Answered | None = None
    """None counts a harmless prompt as answered where its reply complies."""
    rule: str = "the reply complies"


@dataclass(frozen=True, slots=True)
class _Scene:
    """What every part of one evaluation needs."""

    handle: HookedModel
    space: UnitSpace
    circuit: Circuit
    baseline: Baseline
    settings: CircuitSettings
    generator: torch.Generator

    def masked(self, members: Tensor, view: str) -> Masked:
        return masked(self.handle, self.space, 1 - members if view == "removed" else members, self.baseline)

    def replies(self, batch: TokenBatch, model: Masked) -> list[str]:
        settings = self.settings
        return greedy_replies(
            model.handle, batch, model.edits, max_new_tokens=settings.max_new_tokens, batch_rows=settings.batch_rows
        )

    def chat(self, prompts: Sequence[str]) -> TokenBatch:
        return self.handle.chat_batch(list(prompts)[: self.settings.n_evaluate], system=self.settings.system)


def evaluate_circuit(
    handle: HookedModel,
    space: UnitSpace,
    circuit: Circuit,
    held_out: HeldOut,
    baseline: Baseline,
    settings: CircuitSettings,
    *,
    generator: torch.Generator,
    judged: Judged | None = None,
    progress: Progress = lambda message: None,
) -> CircuitEvaluation:
    """Replies, answers, KL, cross-entropy and the null mask of one circuit under one ablation.

    Raises:
        EmptyConcept: a group of prompts is empty, or a named group is not given.
        CircuitMismatch: the circuit is of another model, or of units that are not in the space.
    """
    for name in {*held_out.groups, *held_out.target, *held_out.harmless}:
        if not held_out.groups.get(name):
            raise EmptyConcept(f"group `{name}`: an evaluation needs prompts of it, got none.")
    judged = judged or Judged()
    members = circuit_keep(space, circuit, "alone")
    scene = _Scene(handle, space, circuit, baseline, settings, generator)
    fixed = {
        "none": Masked(handle, NO_EDITS), "removed": scene.masked(members, "removed"),
        "alone": scene.masked(members, "alone"),
    }  # fmt: skip
    replies: list[CircuitReplies] = []
    answers: dict[str, list[bool]] = {name: [] for name in fixed}
    for group, prompts in held_out.groups.items():
        batch = scene.chat(prompts)
        for name, model in fixed.items():
            progress(f"{name} on {group}")
            said = scene.replies(batch, model)
            labels = [judged.judge(reply) for reply in said]
            replies.append(_replies(scene, name, group, labels))
            if group in held_out.harmless:
                answers[name] += [
                    label == "compliance" if judged.answered is None else judged.answered(group, index, reply)
                    for index, (label, reply) in enumerate(zip(labels, said, strict=True))
                ]
        if group in held_out.target:
            replies += _random_replies(scene, members, group, batch, judged, progress)
    progress("utility")
    return CircuitEvaluation(
        circuit=circuit.slug,
        ablation=baseline.kind,
        replies=tuple(replies),
        answers={name: _share(hits) for name, hits in answers.items() if hits},
        answers_rule=judged.rule,
        utility=tuple(_utility(scene, members, held_out, fixed)),
        kl=_kls(scene, members, held_out, fixed),
        null_gap=null_gap(handle, space, baseline, next(iter(held_out.groups.values()))),
        n_random=settings.n_random,
    )


def _share(hits: Sequence[bool]) -> Estimate:
    return share_estimate(wilson_rate(sum(hits), len(hits)))


def _replies(scene: _Scene, intervention: str, group: str, labels: Sequence[Label]) -> CircuitReplies:
    shares: dict[str, Estimate] = {label: _share([one == label for one in labels]) for label in LABELS}
    return _record(scene, intervention, group, shares, len(labels), 1)


def _record(
    scene: _Scene, intervention: str, group: str, shares: Mapping[str, Estimate], n_prompts: int, n_draws: int
) -> CircuitReplies:
    n = len(scene.circuit.members)
    replaced = {"none": 0, "removed": n}.get(intervention.removeprefix("random "), scene.space.n_units - n)
    return CircuitReplies(
        intervention=intervention, prompts=group, ablation=scene.baseline.kind, n_units=replaced,
        n_prompts=n_prompts, n_draws=n_draws, **shares,
    )  # fmt: skip


def _random_replies(
    scene: _Scene, members: Tensor, group: str, batch: TokenBatch, judged: Judged, progress: Progress
) -> list[CircuitReplies]:
    found = []
    for view, n_draws in (("removed", scene.settings.n_random), ("alone", min(ALONE_DRAWS, scene.settings.n_random))):
        draws: dict[Label, list[float]] = {label: [] for label in LABELS}
        for draw in range(n_draws):
            progress(f"random {view} {draw + 1} on {group}")
            drawn = scene.masked(random_members(scene.space, members, scene.generator), view)
            labels = [judged.judge(reply) for reply in scene.replies(batch, drawn)]
            for label in LABELS:
                draws[label].append(labels.count(label) / len(labels))
        shares: dict[str, Estimate] = {label: mean_over_draws(values) for label, values in draws.items()}
        found.append(_record(scene, f"random {view}", group, shares, len(batch), n_draws))
    return found


def _kls(scene: _Scene, members: Tensor, held_out: HeldOut, fixed: Mapping[str, Masked]) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    rows = scene.settings.batch_rows
    for group, prompts in held_out.groups.items():
        batch = scene.chat(prompts)
        plain = last_logits(scene.handle, batch, NO_EDITS, rows)
        weights = resample_weights(len(batch), scene.settings.n_bootstrap, scene.generator)
        drawn = scene.masked(random_members(scene.space, members, scene.generator), "removed")
        for name, model in (("removed", fixed["removed"]), ("alone", fixed["alone"]), ("random removed", drawn)):
            edited = last_logits(model.handle, batch, model.edits, rows)
            found[f"{name} on {group}"] = mean_estimate(kl_divergence(plain, edited), weights)
    return found


def _utility(scene: _Scene, members: Tensor, held_out: HeldOut, fixed: Mapping[str, Masked]) -> list[UtilityCost]:
    handle, settings = scene.handle, scene.settings
    sets: dict[str, list[TokenRow]] = {}
    if held_out.documents:
        sets["documents"] = plain_rows(handle.tokenizer, list(held_out.documents)[: settings.n_evaluate])
    if held_out.answered:
        given = list(held_out.answered)[: settings.n_evaluate]
        rendered = render_chat(handle.tokenizer, [prompt for prompt, _ in given], system=settings.system)
        sets["reference answers"] = token_rows(handle.tokenizer, rendered, [answer for _, answer in given])
    costs: list[UtilityCost] = []
    for texts, rows in sets.items():
        plain = text_losses(handle, rows, batch_rows=settings.batch_rows)
        weights = resample_weights(len(rows), settings.n_bootstrap, scene.generator)
        total = float(plain.n_tokens.sum())
        zero = Estimate(value=0.0, low=0.0, high=0.0, n=len(rows))
        costs.append(UtilityCost(intervention="none", texts=texts, cross_entropy=plain.mean, increase=zero))
        drawn = [
            scene.masked(random_members(scene.space, members, scene.generator), "removed")
            for _ in range(min(UTILITY_DRAWS, settings.n_random))
        ]
        for name, several in (("removed", [fixed["removed"]]), ("random removed", drawn)):
            losses = [
                text_losses(model.handle, rows, model.edits, batch_rows=settings.batch_rows).nats for model in several
            ]
            nats = torch.stack(losses).mean(0)
            increase = mean_estimate((nats - plain.nats) * len(rows) / total, weights)
            costs.append(
                UtilityCost(intervention=name, texts=texts, cross_entropy=float(nats.sum()) / total, increase=increase)
            )
    return costs


@torch.no_grad()
def null_gap(handle: HookedModel, space: UnitSpace, baseline: Baseline, prompts: Sequence[str]) -> float:
    """Largest difference of logits between no mask and a mask that keeps everything, applied at every site.

    Raises:
        BadText: there is no prompt.
    """
    if not prompts:
        raise BadText("the null mask is tried on prompts, got none.")
    batch = handle.chat_batch(list(prompts)[:8])
    with torch.enable_grad():  # a mask that requires grad is applied also where it keeps everything
        model, edits = masked(handle, space, torch.ones(space.n_units, requires_grad=True), baseline)
    real = batch.is_real.to(handle.device)
    gap = (model.logits(batch, edits) - handle.logits(batch))[real]
    return float(gap.abs().max())
