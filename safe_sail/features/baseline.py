"""Explains and judges features without a language model: the embedded default, and what an LLM has to beat.

1. Half of the contexts explain, the others judge, by the rule that every explainer and judge keeps (`held_out`).
2. The explanation predicts an activation for every token of the judging contexts, silent ones included.
3. The score is one correlation over all their tokens or segments, or the balanced accuracy of detection or fuzzing.
   Beside it stands the control: what the explanations of other features reach on the same contexts.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch

from safe_sail.evaluation.draws import named_generator
from safe_sail.features import lexical
from safe_sail.features.agreement import balanced_accuracy, pooled_correlation
from safe_sail.features.contexts import Collected
from safe_sail.features.held_out import divided
from safe_sail.features.judge_items import Item
from safe_sail.features.judge_methods import WAYS
from safe_sail.features.lexical import LexicalExplanation, Word
from safe_sail.features.prompts import Window
from safe_sail.records import Context, Estimate, Explanation, ExplanationScore, FeatureId, JudgeMethod
from safe_sail.settings import LexicalSettings

N_CONTROLS = 20
"""Other features' explanations in a control; more of them cost time and move its mean by less than a hundredth."""


class Explained(NamedTuple):
    """A feature with its explanation and score, or the reason why one is missing."""

    feature: FeatureId
    explanation: Explanation | None
    score: ExplanationScore | None
    reason: str
    """Why there is no explanation or no score; empty where both are there."""


def explain_lexically(
    collected: Sequence[Collected],
    *,
    settings: LexicalSettings,
    seed: int,
    without: Collection[FeatureId] = (),
) -> Iterator[Explained]:
    """Explanation and held-out score of every feature, in the order given.

    Features in `without` are left out, and still serve as controls: the others' scores do not depend on them.
    """
    splits = [divided(one.top, one.sample, judged_share=settings.judged_share) for one in collected]
    written = [write_lexically(split.explain.all, n_words=settings.n_words) for split in splits]
    for place, (one, split, words) in enumerate(zip(collected, splits, written, strict=True)):
        feature = one.top.feature
        if feature in without:
            continue
        if words is None:
            yield Explained(feature, None, None, "it is silent on every context that may explain it")
            continue
        others = [other for p, other in enumerate(written) if p != place and other is not None]
        generator = named_generator(seed, str(feature))
        score = judge_lexically(feature, words, others, split.judge.all, generator=generator)
        yield Explained(
            feature,
            lexical_explanation(feature, words),
            score,
            "" if score else "truth or prediction is constant where it is judged",
        )


def write_lexically(contexts: Sequence[Context], *, n_words: int) -> LexicalExplanation | None:
    """What the words of these contexts say of the feature; None where it is silent on all of them."""
    words = [lexical.words_of(context.tokens, context.activations) for context in contexts]
    if not any(word.activation > 0 for context in words for word in context):
        return None
    return lexical.explain(words, n_words=n_words)


def lexical_explanation(feature: FeatureId, words: LexicalExplanation) -> Explanation:
    """The words as a record, labelled as made without a language model."""
    return Explanation(feature=feature, text=words.text, explainer=lexical.EXPLAINER, prompt_version=lexical.VERSION)


def judge_lexically(
    feature: FeatureId,
    words: LexicalExplanation,
    others: Sequence[LexicalExplanation],
    contexts: Sequence[Context],
    *,
    generator: torch.Generator,
    method: JudgeMethod = JudgeMethod.TOKEN_SIMULATION,
) -> ExplanationScore | None:
    """Score of the words beside that of other features' words; None where one of the two cannot be had."""
    texts = _texts(contexts, method, generator)
    score = _agreement(words, texts, generator, method, n_resamples=1000)
    if score is None:
        return None
    chosen = torch.randperm(len(others), generator=generator)[:N_CONTROLS].tolist()
    # An explanation that predicts nothing here has no correlation: as a prediction it is worth nothing, so it counts 0.
    reached = [_agreement(others[place], texts, generator, method, n_resamples=2) for place in chosen]
    values = torch.tensor([0.0 if one is None else one.value for one in reached], dtype=torch.float64)
    if values.numel() == 0:
        return None
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    mean = float(values.mean())
    return ExplanationScore(
        feature=feature,
        explainer=lexical.EXPLAINER,
        prompt_version=lexical.VERSION,
        method=method,
        score=score,
        control=Estimate(value=mean, low=min(low, mean), high=max(high, mean), n=len(reached)),
        n_excluded=0,
    )


class _Text(NamedTuple):
    """A judging context with its words, which every explanation that is judged on it shares."""

    item: Item
    words: list[Word]


def _texts(contexts: Sequence[Context], method: JudgeMethod, generator: torch.Generator) -> list[_Text]:
    """What is predicted: whole contexts in simulation, which asks nobody; the items of the method in the others."""
    if method in (JudgeMethod.TOKEN_SIMULATION, JudgeMethod.SEGMENT_SIMULATION):
        items = [Item(context, context.peak_activation > 0) for context in contexts]
    else:
        items = WAYS[method].items(contexts, Window(), generator)
    return [_Text(item, lexical.words_of(item.context.tokens)) for item in items]


def _agreement(
    words: LexicalExplanation,
    texts: Sequence[_Text],
    generator: torch.Generator,
    method: JudgeMethod,
    n_resamples: int,
) -> Estimate | None:
    if not texts:
        return None
    contexts = [text.item.context for text in texts]
    if method is JudgeMethod.SEGMENT_SIMULATION:
        truth = [list(map(float, lexical.true_segments(one.tokens, one.activations))) for one in contexts]
        predicted = [list(map(float, lexical.predict_segments(words, one.tokens))) for one in contexts]
        return pooled_correlation(truth, predicted, generator=generator, n_resamples=n_resamples)
    levels = [lexical.predict_on(words, text.words, len(one.tokens)) for text, one in zip(texts, contexts, strict=True)]
    if method is JudgeMethod.TOKEN_SIMULATION:
        return pooled_correlation(
            [one.activations for one in contexts], levels, generator=generator, n_resamples=n_resamples
        )
    if method is JudgeMethod.DETECTION:
        said = [max(of_text) > 0 for of_text in levels]
    else:
        said = [
            all(of_text[place] > 0 for place in text.item.marked) for of_text, text in zip(levels, texts, strict=True)
        ]
    return balanced_accuracy([text.item.fits for text in texts], said)
