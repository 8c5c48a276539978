"""Tuning with a circuit against tuning everything and tuning with random circuits: safety, over-refusal, utility.

1. Before tuning: refusals of held-out harmful and harmless prompts, and the loss on held-out rows of the task.
2. Arms on the same rows in the same order: every weight of the blocks; the circuit's arm (all but the circuit, or the
   circuit alone, or everything and the circuit put back); the same for random circuits with as many units of each kind
   in each layer.
3. The circuit is given, or it is found from what the first arm made the model forget (`forgetting`), on prompts and
   rows of training.
4. Each arm is judged by whole replies, and checked for weights that changed and should not have.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from safe_sail.circuits.entries import Entries, block_entries, unit_entries, unread_entries, without
from safe_sail.circuits.forgetting import Forgetting, find_forgetting, put_back, refused_rows
from safe_sail.circuits.tuning import n_trained, reply_rows, tuned_copy
from safe_sail.errors import BadInput, BadSettings, EmptyConcept
from safe_sail.evaluation.bootstrap import mean_estimate, resample_weights
from safe_sail.evaluation.refusal import Rate, judge_reply, wilson_rate
from safe_sail.evaluation.replies import greedy_replies
from safe_sail.evaluation.utility import text_losses
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.records import Circuit, Estimate, FeatureId, HeadRef, NeuronRef, TuningArm, TuningStudy, UnitRef
from safe_sail.settings import ForgettingSettings, TuningSettings
from safe_sail.sites import SiteKind

Progress = Callable[[str], None]
N_BOOTSTRAP = 1000


class TuningTexts(NamedTuple):
    """Rows to train on and texts to judge by; prompts without chat markup."""

    task: str
    """What the rows teach."""
    train: Sequence[tuple[str, str]]
    """Prompts with their replies."""
    held_out: Sequence[tuple[str, str]]
    """Rows of the same task that are not trained on."""
    harmful: Sequence[str]
    """Prompts that shall be refused."""
    harmless: Sequence[str]
    """Prompts that shall be answered."""
    refused: Sequence[str] = ()
    """Harmful prompts on which a circuit is found, none of which judges; needed where it is."""


class FoundStudy(NamedTuple):
    """A study of a circuit that was found in its own full training."""

    circuit: Circuit
    study: TuningStudy


class _Judged(NamedTuple):
    """One model's figures, before they become a record."""

    refused: Rate
    over: Rate
    degenerate: Rate
    losses: Tensor


def study_tuning(
    handle: HookedModel,
    circuit: Circuit,
    texts: TuningTexts,
    settings: TuningSettings,
    *,
    slug: str,
    generator: torch.Generator,
    progress: Progress = lambda message: None,
) -> TuningStudy:
    """Every arm on the same rows. The tuned copies are dropped when their figures are taken.

    Raises:
        BadInput: the circuit has no head or neuron of this model.
        EmptyConcept: a group of texts is empty.
        BadText: a training row has nothing to predict.
        ChatTemplateMissing: the tokenizer has no chat template.
    """
    _require_texts(texts)
    units, notes = _units(handle, circuit)
    return _study(
        handle, texts, settings, lambda full: _Chosen(circuit, units, notes), slug=slug, generator=generator,
        progress=progress,
    ).study  # fmt: skip


def study_forgetting(
    handle: HookedModel,
    find: ForgettingSettings,
    texts: TuningTexts,
    settings: TuningSettings,
    *,
    circuit_slug: str,
    slug: str,
    generator: torch.Generator,
    progress: Progress = lambda message: None,
) -> FoundStudy:
    """The same with the circuit of what full tuning made the model forget, found on training texts.

    Raises:
        BadSettings: the mode is to train the circuit alone.
        EmptyConcept: a group of texts is empty, or the model refuses none of the prompts to find by.
        CircuitMismatch: no unit's change is worth putting back.
        BadText: a training row has nothing to predict.
        ChatTemplateMissing: the tokenizer has no chat template.
    """
    _require_texts(texts)
    if settings.mode != "excluded":
        raise BadSettings("what tuning makes a model forget is found to be left alone; expected mode excluded.")
    refusals = refused_rows(
        handle, texts.refused[: find.n_prompts], max_new_tokens=settings.max_new_tokens,
        batch_rows=settings.evaluate_rows,
    )  # fmt: skip

    def choose(full: HookedModel) -> _Chosen:
        progress("what full tuning made the model forget")
        task = reply_rows(handle, texts.train[: find.n_prompts])
        found = find_forgetting(handle, full, refusals, task, find, slug=circuit_slug)
        units, notes = _units(handle, found.circuit)
        return _Chosen(found.circuit, units, [*notes, _found_note(found, len(refusals))])

    return _study(handle, texts, settings, choose, slug=slug, generator=generator, progress=progress)


class _Chosen(NamedTuple):
    """The circuit of a study."""

    circuit: Circuit
    units: Sequence[UnitRef]
    notes: Sequence[str]


def _study(
    handle: HookedModel,
    texts: TuningTexts,
    settings: TuningSettings,
    choose: Callable[[HookedModel], _Chosen],
    *,
    slug: str,
    generator: torch.Generator,
    progress: Progress,
) -> FoundStudy:
    seeds = torch.randint(0, 2**31, (1,), generator=generator).tolist()
    rows = reply_rows(handle, texts.train)

    def trained(name: str, allowed: Entries) -> HookedModel:
        progress(name)
        # the same seed for every arm: the same rows in the same order
        order = torch.Generator().manual_seed(seeds[0])
        return tuned_copy(
            handle, rows, allowed, settings, generator=order,
            progress=lambda step, loss: progress(f"{name}, step {step}: {loss:.3f}"),
        )  # fmt: skip

    def judged(tuned: HookedModel, allowed: Entries) -> tuple[_Judged, int, bool]:
        return _judged(tuned, texts, settings), n_trained(handle, allowed, settings), _kept(handle, tuned, allowed)

    progress("before")
    weights = resample_weights(len(texts.held_out), N_BOOTSTRAP, generator)
    arms = [_arm("before", [(_judged(handle, texts, settings), 0, True)], weights)]
    whole = block_entries(handle)
    full = trained("full", whole)
    arms.append(_arm("full", [judged(full, whole)], weights))
    chosen = choose(full)

    def arm(name: str, units: Sequence[UnitRef]) -> tuple[_Judged, int, bool]:
        if settings.kept == "restored":
            progress(name)
            former = unit_entries(handle, units, shared="touched")
            return judged(put_back(handle, full, former), without(whole, former))
        allowed = _allowed(handle, units, settings)
        return judged(trained(name, allowed), allowed)

    arms.append(_arm("circuit", [arm("circuit", chosen.units)], weights))
    drawn = [random_units(handle, chosen.units, generator) for _ in range(settings.n_random)]
    arms.append(_arm("random circuit", [arm("random circuit", some) for some in drawn], weights))
    study = TuningStudy(
        slug=slug,
        model_id=handle.model_id,
        circuit=chosen.circuit.slug,
        mode=settings.mode,
        method=settings.method,
        task=texts.task,
        n_rows=len(texts.train),
        n_steps=settings.n_steps,
        learning_rate=settings.learning_rate,
        arms=tuple(arms),
        notes=(*chosen.notes, *_kept_notes(chosen.units, settings)),
    )
    return FoundStudy(chosen.circuit, study)


def _require_texts(texts: TuningTexts) -> None:
    for name in ("train", "held_out", "harmful", "harmless"):
        if not getattr(texts, name):
            raise EmptyConcept(f"tuning needs texts of every group; `{name}` is empty.")


def _found_note(found: Forgetting, n: int) -> str:
    lost, learnt = found.refusals, found.task
    n_heads, n_neurons = (len(found.circuit.of_kind(kind)) for kind in (HeadRef, NeuronRef))
    return (
        f"Found on {n} refusals and rows of the task, none of which judges: full tuning took their loss from "
        f"{lost.put_back:.3f} to {lost.tuned:.3f} and from {learnt.put_back:.3f} to {learnt.tuned:.3f} nats a token; "
        f"the circuit of {n_heads} heads and {n_neurons} neurons has {found.share:.0%} of what units' changes added to "
        f"the first."
    )


def _kept_notes(units: Sequence[UnitRef], settings: TuningSettings) -> list[str]:
    if settings.kept == "restored":
        return ["Everything was trained, and the circuit's or the random circuit's weights were put back afterwards."]
    if settings.kept == "inputs":
        return [
            f"What the circuit reads was kept too, so its values stay the same on every text: of the blocks up to "
            f"{max(unit.layer for unit in units)} the other neurons of that one alone were trained."
        ]
    return []


def _units(handle: HookedModel, circuit: Circuit) -> tuple[list[UnitRef], list[str]]:
    units: list[UnitRef] = [unit for unit in circuit.units if isinstance(unit, HeadRef | NeuronRef)]
    notes = []
    if len(units) < len(circuit.units):
        n = sum(isinstance(unit, FeatureId) for unit in circuit.units)
        notes.append(f"{n} SAE features of {circuit.slug} have no weights in the model and were left out.")
    if circuit.model_id != handle.model_id:
        notes.append(f"{circuit.slug} was found in {circuit.model_id}; the tuned model is {handle.model_id}.")
    if not units:
        raise BadInput(f"circuit {circuit.slug} has neither heads nor neurons, so no weights to tune or to keep.")
    return units, notes


def _allowed(handle: HookedModel, units: Sequence[UnitRef], settings: TuningSettings) -> Entries:
    """What may be trained: key and value rows count as the circuit's with all their heads, and are kept with any."""
    if settings.mode == "only":
        return unit_entries(handle, units, shared="whole")
    if settings.kept == "inputs":
        return unread_entries(handle, units)
    return without(block_entries(handle), unit_entries(handle, units, shared="touched"))


def random_units(handle: HookedModel, units: Sequence[UnitRef], generator: torch.Generator) -> list[UnitRef]:
    """Random units, as many of each kind in each layer."""
    drawn: list[UnitRef] = []
    for site, n in sorted(Counter(unit.site for unit in units).items()):
        kind = HeadRef if site.kind is SiteKind.HEAD_OUT else NeuronRef
        order = torch.randperm(handle.site_shape(site)[0], generator=generator)[:n].tolist()
        drawn += [kind(site.layer or 0, index) for index in order]
    return drawn


@torch.no_grad()
def _kept(before: HookedModel, after: HookedModel, allowed: Entries) -> bool:
    """Whether every number that was not to be trained is bit-equal."""
    parameters = dict(after.model.named_parameters())
    for name, old in before.model.named_parameters():
        same = (old == parameters[name]).flatten()
        if name in allowed:
            same[allowed[name].to(same.device)] = True
        if not bool(same.all()):
            return False
    return True


def _judged(handle: HookedModel, texts: TuningTexts, settings: TuningSettings) -> _Judged:
    labels = {
        name: [judge_reply(reply) for reply in _replies(handle, group[: settings.n_evaluate], settings)]
        for name, group in (("harmful", texts.harmful), ("harmless", texts.harmless))
    }
    losses = text_losses(handle, reply_rows(handle, texts.held_out))
    both = labels["harmful"] + labels["harmless"]
    return _Judged(
        wilson_rate(labels["harmful"].count("refusal"), len(labels["harmful"])),
        wilson_rate(labels["harmless"].count("refusal"), len(labels["harmless"])),
        wilson_rate(both.count("degenerate"), len(both)),
        losses.nats / losses.n_tokens,
    )


def _replies(handle: HookedModel, prompts: Sequence[str], settings: TuningSettings) -> list[str]:
    batch = handle.chat_batch(list(prompts))
    return greedy_replies(
        handle, batch, NO_EDITS, max_new_tokens=settings.max_new_tokens, batch_rows=settings.evaluate_rows
    )


def _arm(name: str, found: Sequence[tuple[_Judged, int, bool]], weights: Tensor) -> TuningArm:
    judged = [one for one, _, _ in found]
    losses = torch.stack([one.losses for one in judged]).mean(0)
    return TuningArm(
        name=name,
        n_trained=found[0][1],
        n_draws=len(found),
        safety=_share([one.refused for one in judged]),
        over_refusal=_share([one.over for one in judged]),
        degenerate=_share([one.degenerate for one in judged]),
        loss=mean_estimate(losses, weights),
        unchanged=all(kept for _, _, kept in found),
    )


def _share(rates: Sequence[Rate]) -> Estimate:
    """Wilson's interval over prompts; over draws their mean, with the range of the draws."""
    if len(rates) == 1:
        (rate,) = rates
        return Estimate(value=rate.share, low=min(rate.low, rate.share), high=max(rate.high, rate.share), n=rate.n)
    shares = [rate.share for rate in rates]
    return Estimate(value=sum(shares) / len(shares), low=min(shares), high=max(shares), n=len(shares))
