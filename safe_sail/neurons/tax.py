"""Whether safety and helpfulness live in the same neurons, and what patching one does to the other.

1. One base model, one model aligned for safety, one for helpfulness; each pair with the base is contrasted on its own
   prompts.
2. The two rankings are compared: rank correlation over all neurons, overlap of the most changed ones, both beside
   chance.
3. The neurons that both contrasts have among their most changed ones are patched from either aligned model into the
   other, and both scores are read again, beside random neurons with as many in each layer.

Source: Chen et al. 2025, section 4.3 and table 3, arXiv:2406.14144.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safe_sail.errors import NeuronsMissing
from safe_sail.evaluation.bootstrap import resample_weights
from safe_sail.model.handle import HookedModel
from safe_sail.neurons.contrast import common_neurons, random_neurons, rank_correlation
from safe_sail.neurons.effect import mean_score
from safe_sail.neurons.find import contrast, ranked_neurons
from safe_sail.neurons.pair import ModelPair
from safe_sail.neurons.patching import patched_replies
from safe_sail.neurons.scorers import Scorer, score_all
from safe_sail.records import CrossPatch, Estimate, NeuronChange, NeuronTax, SetOverlap
from safe_sail.settings import NeuronSettings

Progress = Callable[[str], None]

OVERLAP_SHARES: Final = (0.01, 0.05, 0.1, 0.2)
"""Most changed neurons whose overlap is told, as shares of all; Chen et al. 2025 have 0.05."""
N_OVERLAP_DRAWS: Final = 20


class TaxModels(NamedTuple):
    """The three models."""

    base: HookedModel
    safety: HookedModel
    helpful: HookedModel


class Goal(NamedTuple):
    """One aim of alignment: prompts that rank its neurons, others that measure it, and what measures it."""

    contrast: Sequence[str]
    evaluation: Sequence[str]
    scorer: Scorer


class Tax(NamedTuple):
    """What the comparison brings."""

    changes: Mapping[str, NeuronChange]
    """By goal, `safety` and `helpfulness`."""
    record: NeuronTax


def silent(message: str) -> None:
    """No progress report."""


def measure_tax(
    models: TaxModels,
    safety: Goal,
    helpfulness: Goal,
    settings: NeuronSettings,
    *,
    slug: str,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Tax:
    """Overlap, rank correlation and cross-patching of a safety pair and a helpfulness pair.

    Raises:
        ModelsDiffer: the three models are not of one shape.
        ModelsEqual: two of them have the same weights.
        CompletionMissing: the writing model ends every reply at once.
        NeuronsMissing: the two contrasts have no neuron in common among their most changed ones.
    """
    goals = {"safety": safety, "helpfulness": helpfulness}
    pairs = {"safety": ModelPair(models.base, models.safety), "helpfulness": ModelPair(models.base, models.helpful)}
    changes = {
        goal: contrast(pairs[goal], goals[goal].contrast, settings, slug=f"{slug}.{goal}", progress=progress)
        for goal in goals
    }
    ranked = {goal: ranked_neurons(change) for goal, change in changes.items()}
    n_all, d_mlp = len(ranked["safety"]), models.base.dims.d_mlp
    width = max(1, round(settings.tax_share * n_all))
    common = common_neurons(ranked["safety"][:width], ranked["helpfulness"][:width])
    if not len(common):
        raise NeuronsMissing(
            f"the {width} most changed neurons of the safety pair and of the helpfulness pair have none in common, so "
            f"none can be cross-patched; set a larger `tax_share`."
        )
    draws = [random_neurons(common, d_mlp, generator) for _ in range(settings.n_random)]
    across = ModelPair(models.safety, models.helpful)
    crosses = []
    for pair in (across, across.swapped()):
        progress(f"patching {pair.second.model_id} into {pair.first.model_id}")
        crosses.append(_cross(pair, goals, common, draws, settings, generator))
    record = NeuronTax(
        slug=slug,
        base_model=models.base.model_id,
        safety_model=models.safety.model_id,
        helpful_model=models.helpful.model_id,
        spearman=_correlation(changes, settings, generator),
        overlaps=tuple(_overlap(ranked, share, d_mlp, generator) for share in OVERLAP_SHARES),
        n_common=len(common),
        crosses=tuple(crosses),
        notes=_notes(crosses),
    )
    return Tax(changes, record)


def _correlation(changes: Mapping[str, NeuronChange], settings: NeuronSettings, generator: torch.Generator) -> Estimate:
    scores = [
        torch.tensor([score for row in change.scores for score in row], dtype=torch.float64)
        for change in changes.values()
    ]
    value, resampled = rank_correlation(scores[0], scores[1], settings.n_bootstrap, generator)
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=len(scores[0]))


def _overlap(
    ranked: Mapping[str, Int[Tensor, "neurons 2"]], share: float, d_mlp: int, generator: torch.Generator
) -> SetOverlap:
    n_all = len(ranked["safety"])
    k = max(1, round(share * n_all))
    tops = [one[:k] for one in ranked.values()]
    drawn = [
        len(common_neurons(*(random_neurons(top, d_mlp, generator) for top in tops))) for _ in range(N_OVERLAP_DRAWS)
    ]
    return SetOverlap(
        n_neurons=k,
        share=len(common_neurons(*tops)) / k,
        chance=k / n_all,
        random_layers=sum(drawn) / len(drawn) / k,
    )


def _cross(
    pair: ModelPair,
    goals: Mapping[str, Goal],
    neurons: Int[Tensor, "neurons 2"],
    draws: Sequence[Int[Tensor, "neurons 2"]],
    settings: NeuronSettings,
    generator: torch.Generator,
) -> CrossPatch:
    nothing = torch.empty(0, 2, dtype=torch.long)
    found: dict[str, dict[str, Estimate]] = {"before": {}, "after": {}, "moved": {}, "random_moved": {}}
    for goal, (_, prompts, scorer) in goals.items():
        batch = pair.chat_batch(tuple(prompts), system=settings.system)
        replies = patched_replies(
            pair, batch, [nothing, neurons, *draws], settings.max_new_tokens, batch_rows=settings.batch_rows
        )
        scores: Float[Tensor, "conditions prompts"] = score_all(scorer, prompts, replies)
        weights = resample_weights(len(prompts), settings.n_bootstrap, generator)
        found["before"][goal] = mean_score(scores[0], weights)
        found["after"][goal] = mean_score(scores[1], weights)
        found["moved"][goal] = mean_score(scores[1] - scores[0], weights)
        found["random_moved"][goal] = mean_score(scores[2:].mean(dim=0) - scores[0], weights)
    return CrossPatch(
        first_model=pair.first.model_id, second_model=pair.second.model_id, n_neurons=len(neurons), **found
    )


def _notes(crosses: Sequence[CrossPatch]) -> tuple[str, ...]:
    notes = []
    for cross in crosses:
        signs = {goal: (one.low > 0) - (one.high < 0) for goal, one in cross.moved.items()}
        if signs["safety"] * signs["helpfulness"] != -1:
            notes.append(
                f"Patching {cross.second_model} into {cross.first_model} does not move safety and helpfulness in "
                f"opposite directions: safety {cross.moved['safety'].value:+.3f}, helpfulness "
                f"{cross.moved['helpfulness'].value:+.3f}."
            )
    return tuple(notes)
