"""Guards of one model by several kinds of features: trained, given a threshold, and judged once on held-out prompts.

1. The model answers every prompt; a scorer says which answers to harmful prompts are unsafe. That is the label.
2. Each kind of features is read at the prompt's last token, before any answer, and gets a probe.
3. The threshold is chosen on validation prompts; so is the guard that is kept.
4. On test prompts: AUROC beside random neurons of the same layers, calibration, unsafe answers caught, and refusals of
   harmless prompts, borderline ones too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safe_sail.errors import GuardUnfit
from safe_sail.evaluation.bootstrap import resample_weights
from safe_sail.evaluation.refusal import judge_reply, wilson_rate
from safe_sail.evaluation.replies import greedy_replies
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.neurons.contrast import random_neurons
from safe_sail.neurons.guard import Guard
from safe_sail.neurons.probe import (
    Probe,
    auroc,
    brier,
    calibration_error,
    estimate,
    fit_probe,
    mean_over_draws,
    require_both,
    roc,
    threshold_for,
)
from safe_sail.neurons.readers import NeuronReader, Reader, read_all
from safe_sail.neurons.scorers import Scorer, score_all
from safe_sail.records import Estimate, GuardEvaluation, GuardScore
from safe_sail.settings import GuardSettings
from safe_sail.sites import Site, SiteKind

Progress = Callable[[str], None]

COMPLIANCE: Final = Scorer(
    "compliance phrases", lambda said: [float(judge_reply(one.reply) == "compliance") for one in said]
)
"""Above 0 where a reply neither refuses nor is broken text."""


class GuardPrompts(NamedTuple):
    """Prompts of one split."""

    texts: Sequence[str]
    kinds: Sequence[str]
    """Of each text: `harmful`, or the name of a harmless kind such as `safe` or `borderline`."""


class Labelled(NamedTuple):
    """Prompts of one split, what was read of them, and what the model's answers were."""

    features: list[Float[Tensor, "prompts features"]]
    """By reader."""
    unsafe: Bool[Tensor, " prompts"]
    kinds: list[str]


class Trained(NamedTuple):
    """The guard that was kept, and what all of them do."""

    guard: Guard
    evaluation: GuardEvaluation


def silent(message: str) -> None:
    """No progress report."""


def train_guards(
    handle: HookedModel,
    readers: Mapping[str, Reader],
    prompts: Mapping[str, GuardPrompts],
    settings: GuardSettings,
    *,
    slug: str,
    change: str,
    generator: torch.Generator,
    scorer: Scorer = COMPLIANCE,
    progress: Progress = silent,
) -> Trained:
    """Evaluation of one guard for each reader, and the one with the best AUROC on validation prompts (ties: the first).

    `prompts` has the splits train, validation and test; an answer to a harmful prompt is unsafe where the scorer gives
    it more than 0.

    Raises:
        GuardUnfit: a split lacks unsafe or safe answers, or a probe cannot be fitted.
        ChatTemplateMissing: the tokenizer has no chat template.
        BadSite: the model lacks a site that a reader needs.
    """
    names, all_readers, control_of = list(readers), list(readers.values()), []
    for reader in readers.values():
        drawn = [_random_reader(handle, reader, generator) for _ in range(settings.n_random)]
        control_of.append(range(len(all_readers), len(all_readers) + len(drawn)))
        all_readers += drawn
    notes: list[str] = []
    splits = {
        split: _labelled(handle, split, given, all_readers, settings, scorer, notes, progress)
        for split, given in prompts.items()
    }
    train, validation, test = (splits[split] for split in ("train", "validation", "test"))
    weights = resample_weights(len(test.unsafe), settings.n_bootstrap, generator)
    scores, guards, lead = [], [], []
    for place, name in enumerate(names):
        progress(f"training the guard on {name}")
        probe = fit_probe(train.features[place], train.unsafe, inverse_penalty=settings.inverse_penalty)
        chances = probe.probabilities(validation.features[place])
        threshold = threshold_for(chances, validation.unsafe, settings.max_false_refusals)
        lead.append(_point(auroc, chances, validation.unsafe))
        controls = [
            fit_probe(train.features[draw], train.unsafe, inverse_penalty=settings.inverse_penalty).probabilities(
                test.features[draw]
            )
            for draw in control_of[place]
        ]
        scores.append(_score(name, all_readers[place], probe, threshold, test, place, controls, weights, generator))
        guards.append(
            Guard(
                model_id=handle.model_id, features=name, reader=all_readers[place], probe=probe, threshold=threshold,
                system=settings.system,
            )
        )  # fmt: skip
    best = max(range(len(names)), key=lambda place: (lead[place], -place))
    notes += [
        f"The guard on {one.features} does not exceed random neurons of the same layers: AUROC {one.auroc.value:.3f} "
        f"against {one.random_auroc.value:.3f}, gain {one.gain.value:+.3f} [{one.gain.low:+.3f}, {one.gain.high:+.3f}];"
        f" {sum(draw < one.auroc.value for draw in one.random_draws)} of {len(one.random_draws)} draws lie below it."
        for one in scores
        if not one.exceeds_random
    ]
    evaluation = GuardEvaluation(
        slug=slug,
        model_id=handle.model_id,
        change=change,
        scorer=scorer.name,
        n_train=len(train.unsafe),
        n_validation=len(validation.unsafe),
        n_test=len(test.unsafe),
        n_unsafe={split: int(one.unsafe.sum()) for split, one in splits.items()},
        scores=tuple(scores),
        kept=names[best],
        notes=tuple(notes),
    )
    return Trained(guards[best], evaluation)


def _labelled(
    handle: HookedModel,
    split: str,
    prompts: GuardPrompts,
    readers: Sequence[Reader],
    settings: GuardSettings,
    scorer: Scorer,
    notes: list[str],
    progress: Progress,
) -> Labelled:
    progress(f"answering {split} prompts")
    batch = handle.chat_batch(list(prompts.texts), system=settings.system).left_padded()
    replies = greedy_replies(
        handle, batch, NO_EDITS, max_new_tokens=settings.max_new_tokens, batch_rows=settings.batch_rows
    )
    found = score_all(scorer, prompts.texts, [replies])[0]
    told = (~found.isnan()).nonzero()[:, 0]
    if len(told) < len(found):
        notes.append(
            f"{len(found) - len(told)} of {len(found)} {split} prompts were left out: their answer got no score."
        )
    harmful = torch.tensor([kind == "harmful" for kind in prompts.kinds])
    unsafe = (harmful & (found > 0))[told]
    require_both(unsafe, split)
    features = read_all(handle, batch, readers, settings.batch_rows)
    return Labelled([one[told] for one in features], unsafe, [prompts.kinds[row] for row in told.tolist()])


def _random_reader(handle: HookedModel, like: Reader, generator: torch.Generator) -> NeuronReader:
    """As many random neurons in the same layers; of a reader of the stream, in the layer of its site."""
    d_mlp = handle.dims.d_mlp
    if isinstance(like, NeuronReader):
        return NeuronReader(random_neurons(like.neurons, d_mlp, generator))
    layers = [layer for layer in range(handle.dims.n_layers) if handle.has_site(Site(SiteKind.MLP_ACT, layer))]
    if not layers:
        raise GuardUnfit(f"{handle.model_id} has no layer with neurons, which a guard is compared with.")
    wanted = like.sites[0].layer or 0
    layer = min(layers, key=lambda one: (abs(one - wanted), one))
    count = min(like.n_features, d_mlp)
    rows = torch.stack([torch.full((count,), layer), torch.arange(count)], dim=1)
    return NeuronReader(random_neurons(rows, d_mlp, generator))


def _score(
    name: str,
    reader: Reader,
    probe: Probe,
    threshold: float,
    test: Labelled,
    place: int,
    controls: Sequence[Float[Tensor, " prompts"]],
    weights: Float[Tensor, "resamples prompts"],
    generator: torch.Generator,
) -> GuardScore:
    chances, unsafe, n = probe.probabilities(test.features[place]), test.unsafe, len(test.unsafe)
    ours, ours_r = _point(auroc, chances, unsafe), auroc(chances, unsafe, weights)
    draws = [_point(auroc, one, unsafe) for one in controls]
    random = sum(draws) / len(draws)
    random_r = mean_over_draws(torch.stack([auroc(one, unsafe, weights) for one in controls], dim=1), generator)
    refused = chances >= threshold
    kinds = sorted({kind for kind in test.kinds if kind != "harmful"})
    of_kind = {kind: torch.tensor([one == kind for one in test.kinds]) for kind in kinds}
    return GuardScore(
        features=name,
        n_features=reader.n_features,
        layers=tuple(sorted({site.layer or 0 for site in reader.sites})),
        auroc=estimate(ours, ours_r, n),
        random_auroc=estimate(random, random_r, n),
        random_draws=tuple(draws),
        gain=estimate(ours - random, ours_r - random_r, n),
        brier=estimate(_point(brier, chances, unsafe), brier(chances, unsafe, weights), n),
        calibration_error=estimate(
            _point(calibration_error, chances, unsafe), calibration_error(chances, unsafe, weights), n
        ),
        threshold=threshold,
        caught=_rate(refused[unsafe]),
        false_refusals={kind: _rate(refused[mask]) for kind, mask in of_kind.items()},
        roc=tuple(roc(chances, unsafe)),
    )


def _point(
    measure: Callable[[Tensor, Tensor, Tensor], Tensor], chances: Float[Tensor, " n"], unsafe: Bool[Tensor, " n"]
) -> float:
    return float(measure(chances, unsafe, torch.ones(1, len(unsafe), dtype=torch.float64)))


def _rate(hits: Bool[Tensor, " n"]) -> Estimate:
    rate = wilson_rate(int(hits.sum()), len(hits))
    return Estimate(value=rate.share, low=min(rate.low, rate.share), high=max(rate.high, rate.share), n=rate.n)
