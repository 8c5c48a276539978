"""A safety pair against a helpfulness pair, as `safe-sail find-safety-neurons --helpful` measures it."""

from collections.abc import Callable, Sequence

import torch

from safe_sail.evaluation.llm_judge import Said
from safe_sail.evaluation.refusal import judge_reply
from safe_sail.model.handle import HookedModel
from safe_sail.neurons.find import NeuronPrompts
from safe_sail.neurons.pair import ModelPair
from safe_sail.neurons.scorers import Scorer
from safe_sail.neurons.tax import Goal, Tax, TaxModels, measure_tax
from safe_sail.organism.behaviour import is_helpful
from safe_sail.organism.grammar import prompts
from safe_sail.settings import NeuronSettings

ANSWERED = Scorer("answered, phrases", lambda said: [float(judge_reply(one.reply) == "compliance") for one in said])
"""What helpfulness is where no better measure of the user's prompts is known: an answer that is no refusal."""


def tax_of(
    pair: ModelPair,
    helpful: HookedModel,
    safety: NeuronPrompts,
    safety_scorer: Scorer,
    helpful_lines: Sequence[str] | None,
    settings: NeuronSettings,
    seed: int,
    progress: Callable[[str], None],
) -> Tax:
    """Overlap and cross-patching of the pair and of its first model with the helpful one.

    Without lines the organism's safe prompts are taken, and helpful is a reply that is on topic and offers more; of
    lines the first half ranks, the second half measures.
    """
    if helpful_lines is None:
        ranks = [text.text for text in prompts("safe", "train", settings.n_contrast, seed)]
        measured = {text.text: text for text in prompts("safe", "held_out", settings.n_evaluate, seed)}

        def score(said: Sequence[Said]) -> list[float]:
            return [float(is_helpful(measured[one.prompt], one.reply)) for one in said]

        goal = Goal(ranks, list(measured), Scorer("on topic with an offer", score))
    else:
        half = len(helpful_lines) // 2
        goal = Goal(helpful_lines[:half][: settings.n_contrast], helpful_lines[half:][: settings.n_evaluate], ANSWERED)
    models = TaxModels(pair.first, pair.second, helpful)
    return measure_tax(
        models, Goal(safety.contrast, safety.evaluation, safety_scorer), goal, settings,
        slug=f"{pair.first.model_id}.{pair.second.model_id}.{helpful.model_id}",
        generator=torch.Generator().manual_seed(seed), progress=progress,
    )  # fmt: skip
