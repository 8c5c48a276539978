"""From two models and prompts to a verified set of safety neurons: ranked by change, tested by patching.

1. One model completes the contrast prompts; both read the texts; every neuron gets a change score.
2. On other prompts, the k most changed neurons are patched from the second model into the first, for every k of a
   curve, and windows of ranks alone; beside each, random neurons with as many in each layer, drawn several times.
   All of them run in the same batches.
3. A scorer reads the replies; the causal effect says how far they went from the first model's to the second's.
4. Where the neurons that carry the difference are known, the ranking is held against them.

Source: Chen et al. 2025, sections 3 and 4, arXiv:2406.14144.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safe_sail.errors import CompletionMissing, EmptyConcept
from safe_sail.evaluation.bootstrap import resample_weights
from safe_sail.evaluation.refusal import wilson_rate
from safe_sail.neurons.change import change_sums
from safe_sail.neurons.completions import complete
from safe_sail.neurons.contrast import layer_counts, random_neurons, rank_neurons
from safe_sail.neurons.effect import causal_effect, mean_score, paired_p_value
from safe_sail.neurons.pair import ModelPair
from safe_sail.neurons.patching import patched_tokens
from safe_sail.neurons.scorers import REFUSAL, Scorer, score_all
from safe_sail.records import Estimate, KnownNeurons, NeuronChange, NeuronRef, NeuronSearch, PatchEffect
from safe_sail.settings import NeuronSettings

Progress = Callable[[str], None]


class NeuronPrompts(NamedTuple):
    """Prompts of a search, without chat markup."""

    contrast: Sequence[str]
    """Whose completions rank the neurons."""
    evaluation: Sequence[str]
    """Others, whose replies say what patching does."""


class Found(NamedTuple):
    """What a search brings."""

    change: NeuronChange
    search: NeuronSearch


class Condition(NamedTuple):
    """One set of neurons that is patched, with the random sets beside it."""

    kind: str
    """top, window or known."""
    first_rank: int | None
    neurons: Int[Tensor, "neurons 2"]
    draws: tuple[Int[Tensor, "neurons 2"], ...]


class Replies(NamedTuple):
    """Replies of both models and under every patch, on the same prompts."""

    scores: Float[Tensor, "conditions prompts"]
    """The first model, the second, then every patch."""
    same: list[int]
    """By patch, how many replies are the second model's."""


def silent(message: str) -> None:
    """No progress report."""


def find_neurons(
    pair: ModelPair,
    prompts: NeuronPrompts,
    settings: NeuronSettings,
    *,
    slug: str,
    generator: torch.Generator,
    scorer: Scorer = REFUSAL,
    known: Sequence[NeuronRef] | None = None,
    progress: Progress = silent,
) -> Found:
    """Change scores of all neurons, and what patching the most changed does to the scorer's mean.

    Raises:
        ChatTemplateMissing: neither tokenizer has a chat template.
        EmptyConcept: there are no contrast prompts, or fewer than two to evaluate on.
        CompletionMissing: the writing model ends every reply at once.
        NeuronsMissing: the models have no neurons, or a known neuron does not exist.
        NoEffect: the scorer does not tell the two models apart on these prompts.
    """
    if not prompts.contrast or len(prompts.evaluation) < 2:
        raise EmptyConcept(
            f"expected at least 1 prompt to contrast on and 2 to evaluate on; got {len(prompts.contrast)} and "
            f"{len(prompts.evaluation)}."
        )
    change = contrast(pair, prompts.contrast, settings, slug=slug, progress=progress)
    ranked = ranked_neurons(change)
    conditions = _conditions(pair, ranked, known, settings, generator)
    replies = _replies(pair, prompts.evaluation, conditions, settings, scorer, progress)
    weights = resample_weights(len(prompts.evaluation), settings.n_bootstrap, generator)
    effects = _effects(pair, conditions, replies, weights, len(ranked))
    by_kind = {
        kind: tuple(effect for one, effect in zip(conditions, effects, strict=True) if one.kind == kind)
        for kind in ("top", "window")
    }
    curve = by_kind["top"]
    needed = next((one.n_neurons for one in curve if one.effect.value >= settings.effect_wanted), None)
    kept = change.top(max(1, round(settings.kept_share * len(ranked))))
    search = NeuronSearch(
        slug=slug,
        first_model=pair.first.model_id,
        second_model=pair.second.model_id,
        scorer=scorer.name,
        n_neurons=len(ranked),
        neurons=kept,
        change=tuple(change.scores[neuron.layer][neuron.index] for neuron in kept),
        first_score=mean_score(replies.scores[0], weights),
        second_score=mean_score(replies.scores[1], weights),
        curve=curve,
        windows=by_kind["window"],
        needed=needed,
        effect_wanted=settings.effect_wanted,
        known=None if known is None else _known(known, ranked, effects[-1]),
        n_failed=int(replies.scores.isnan().sum()),
        notes=_notes(pair, change, curve, needed, settings, prompts),
    )
    return Found(change, search)


def contrast(
    pair: ModelPair, prompts: Sequence[str], settings: NeuronSettings, *, slug: str, progress: Progress = silent
) -> NeuronChange:
    """Change scores of all neurons over completions of these prompts.

    Raises:
        ChatTemplateMissing: neither tokenizer has a chat template.
        CompletionMissing: the writing model ends every reply at once.
        NeuronsMissing: the models have no neurons.
    """
    progress("completing")
    writer = pair.first if settings.text_source == "first" else pair.second
    batch = pair.chat_batch(tuple(prompts), system=settings.system)
    texts = complete(pair, writer, batch, settings.max_new_tokens, settings.batch_rows)
    whole = [one for one in texts if one.completion]
    if not whole:
        raise CompletionMissing(
            f"{writer.model_id} ends its reply at once on each of {len(texts)} prompts, so there is nothing to "
            f"contrast the models on; give prompts that it completes, or the other model as text source."
        )
    sums = change_sums(pair, whole, positions=settings.positions, batch_rows=settings.batch_rows, progress=progress)
    scores = sums.scores().cpu()
    return NeuronChange(
        slug=slug,
        first_model=pair.first.model_id,
        second_model=pair.second.model_id,
        positions=settings.positions,
        text_source=settings.text_source,
        n_texts=len(whole),
        n_empty=len(texts) - len(whole),
        n_positions=sums.n_positions,
        scores=tuple(tuple(row.tolist()) if layer in pair.layers else () for layer, row in enumerate(scores)),
    )


def ranked_neurons(change: NeuronChange) -> Int[Tensor, "neurons 2"]:
    """All neurons of a contrast, the most changed first (ties: layer, then index)."""
    layers = [layer for layer, row in enumerate(change.scores) if row]
    table = torch.zeros(len(change.scores), len(change.scores[layers[0]]), dtype=torch.float64)
    for layer in layers:
        table[layer] = torch.tensor(change.scores[layer], dtype=torch.float64)
    return rank_neurons(table, layers)


def as_rows(neurons: Sequence[NeuronRef]) -> Int[Tensor, "neurons 2"]:
    """Layers and indices of neurons."""
    return torch.tensor([[one.layer, one.index] for one in neurons], dtype=torch.long).reshape(-1, 2)


def _conditions(
    pair: ModelPair,
    ranked: Int[Tensor, "neurons 2"],
    known: Sequence[NeuronRef] | None,
    settings: NeuronSettings,
    generator: torch.Generator,
) -> list[Condition]:
    n_all, width = len(ranked), max(1, round(settings.window_share * len(ranked)))
    counts = settings.counts or tuple(max(1, round(share * n_all)) for share in settings.shares)
    sets: list[tuple[str, int | None, Tensor]] = [
        ("top", 0, ranked[:count]) for count in sorted({min(count, n_all) for count in counts})
    ]
    for first in range(0, min(settings.n_windows * width, n_all), width):
        sets.append(("window", first, ranked[first : first + width]))
    if known is not None:
        sets.append(("known", None, as_rows(known)))
    d_mlp = pair.first.dims.d_mlp
    return [
        Condition(
            kind,
            first,
            neurons,
            # of all neurons there is no other set with as many in each layer
            () if len(neurons) == n_all
            else tuple(random_neurons(neurons, d_mlp, generator) for _ in range(settings.n_random)),
        )
        for kind, first, neurons in sets
    ]  # fmt: skip


def _replies(
    pair: ModelPair,
    prompts: Sequence[str],
    conditions: Sequence[Condition],
    settings: NeuronSettings,
    scorer: Scorer,
    progress: Progress,
) -> Replies:
    batch = pair.chat_batch(tuple(prompts), system=settings.system)
    patches = [patch for one in conditions for patch in (one.neurons, *one.draws)]
    nothing = torch.empty(0, 2, dtype=torch.long)
    new, rows = settings.max_new_tokens, settings.batch_rows
    # one call for each model too: their replies are those of the same loop, end-of-text tokens and all
    first = patched_tokens(pair, batch, [nothing], new, batch_rows=rows, doubled=False)
    second = patched_tokens(pair.swapped(), batch, [nothing], new, batch_rows=rows, doubled=False)
    found = patched_tokens(pair, batch, patches, new, batch_rows=rows, progress=progress)
    ids = torch.cat([first, second, found])
    texts = [pair.first.tokenizer.batch_decode(one, skip_special_tokens=True) for one in ids]
    progress("scoring replies")
    same = [int((one == second[0]).all(dim=1).sum()) for one in found]
    return Replies(score_all(scorer, prompts, texts), same)


def _effects(
    pair: ModelPair,
    conditions: Sequence[Condition],
    replies: Replies,
    weights: Float[Tensor, "resamples prompts"],
    n_all: int,
) -> list[PatchEffect]:
    first, second = replies.scores[0], replies.scores[1]
    effects, place = [], 0
    for one in conditions:
        patched = replies.scores[2 + place]
        draws = replies.scores[3 + place : 3 + place + len(one.draws)]
        rate = wilson_rate(replies.same[place], len(first))
        mean_draw = draws.mean(dim=0) if len(draws) else None
        effects.append(
            PatchEffect(
                n_neurons=len(one.neurons),
                share=len(one.neurons) / n_all,
                first_rank=one.first_rank,
                layer_counts=layer_counts(one.neurons, pair.first.dims.n_layers),
                score=mean_score(patched, weights),
                effect=causal_effect(first, second, patched, weights),
                same_replies=Estimate(
                    value=rate.share, low=min(rate.low, rate.share), high=max(rate.high, rate.share), n=rate.n
                ),
                random_effect=None if mean_draw is None else causal_effect(first, second, mean_draw, weights),
                random_draws=tuple(causal_effect(first, second, draw, weights).value for draw in draws),
                p_value=None if mean_draw is None else paired_p_value(patched, mean_draw),
            )
        )
        place += 1 + len(one.draws)
    return effects


def _known(known: Sequence[NeuronRef], ranked: Int[Tensor, "neurons 2"], patched: PatchEffect) -> KnownNeurons:
    top = {tuple(row) for row in ranked[: len(known)].tolist()}
    rate = wilson_rate(sum((one.layer, one.index) in top for one in known), len(known))
    return KnownNeurons(
        n_known=len(known),
        found=Estimate(value=rate.share, low=min(rate.low, rate.share), high=max(rate.high, rate.share), n=rate.n),
        chance=len(known) / len(ranked),
        patched=patched,
    )


def _notes(
    pair: ModelPair,
    change: NeuronChange,
    curve: Sequence[PatchEffect],
    needed: int | None,
    settings: NeuronSettings,
    prompts: NeuronPrompts,
) -> tuple[str, ...]:
    notes = []
    if set(prompts.contrast) & set(prompts.evaluation):
        notes.append("Some prompts both ranked the neurons and measured the patch: the effects flatter the ranking.")
    if change.n_empty:
        notes.append(f"{change.n_empty} of {change.n_empty + change.n_texts} contrast prompts got an empty reply.")
    row = pair.first.architecture
    outside = [name for name in pair.modules_apart if not name.endswith((row.mlp_up, row.mlp_gate or row.mlp_up))]
    if outside:
        notes.append(
            f"{len(outside)} modules besides those that make neuron activations differ (first {outside[0]}), so "
            f"patching all neurons need not give the second model."
        )
    if needed is None:
        best = max(curve, key=lambda point: point.effect.value)
        notes.append(
            f"No point of the curve reaches an effect of {settings.effect_wanted:g}; the best is "
            f"{best.effect.value:.2f} at {best.share:.0%} of the neurons."
        )
    return tuple(notes)
