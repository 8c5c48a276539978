"""Explains and judges features without a language model: the embedded default, and what an LLM has to beat.

1. Every second top context and the first half of the random ones explain; the others judge, so no context does both.
2. The explanation predicts an activation for every token of the judging contexts, silent ones included.
3. The score is one correlation over all their tokens. Beside it stands the control: what the explanations of other
   features reach on the same contexts.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from safe_sail.features import lexical
from safe_sail.features.agreement import pooled_correlation
from safe_sail.features.contexts import Collected
from safe_sail.features.lexical import LexicalExplanation
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


class _Split(NamedTuple):
    """Contexts of one feature."""

    explain: list[Context]
    judge: list[Context]


def explain_lexically(
    collected: Sequence[Collected], *, settings: LexicalSettings, generator: torch.Generator
) -> Iterator[Explained]:
    """Explanation and held-out score of every feature, in the order given."""
    splits = [_split(one, settings.judged_share) for one in collected]
    written = [_write(split, settings.n_words) for split in splits]
    for place, (one, split, words) in enumerate(zip(collected, splits, written, strict=True)):
        feature = one.top.feature
        if words is None:
            yield Explained(feature, None, None, "it is silent on every context that may explain it")
            continue
        explanation = Explanation(
            feature=feature, text=words.text, explainer=lexical.EXPLAINER, prompt_version=lexical.VERSION
        )
        others = [other for p, other in enumerate(written) if p != place and other is not None]
        score = _judge(feature, words, others, split.judge, generator)
        yield Explained(
            feature, explanation, score, "" if score else "truth or prediction is constant where it is judged"
        )


def _split(one: Collected, judged_share: float) -> _Split:
    """Contexts by turns, so that both halves have strong and weak ones."""
    split = _Split([], [])
    for contexts in (one.top.contexts, one.random):
        due = 0.0
        for context in contexts:
            due += judged_share
            if due >= 1:
                due -= 1
                split.judge.append(context)
            else:
                split.explain.append(context)
    return split


def _write(split: _Split, n_words: int) -> LexicalExplanation | None:
    contexts = [lexical.words_of(context.tokens, context.activations) for context in split.explain]
    if not any(word.activation > 0 for words in contexts for word in words):
        return None
    return lexical.explain(contexts, n_words=n_words)


def _judge(
    feature: FeatureId,
    words: LexicalExplanation,
    others: Sequence[LexicalExplanation],
    contexts: Sequence[Context],
    generator: torch.Generator,
) -> ExplanationScore | None:
    score = _agreement(words, contexts, generator, n_resamples=1000)
    if score is None:
        return None
    chosen = torch.randperm(len(others), generator=generator)[:N_CONTROLS].tolist()
    # An explanation that predicts nothing here has no correlation: as a prediction it is worth nothing, so it counts 0.
    reached = [_agreement(others[place], contexts, generator, n_resamples=2) for place in chosen]
    values = torch.tensor([0.0 if one is None else one.value for one in reached], dtype=torch.float64)
    if values.numel() == 0:
        return None
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    mean = float(values.mean())
    return ExplanationScore(
        feature=feature,
        explainer=lexical.EXPLAINER,
        prompt_version=lexical.VERSION,
        method=JudgeMethod.TOKEN_SIMULATION,
        score=score,
        control=Estimate(value=mean, low=min(low, mean), high=max(high, mean), n=len(reached)),
        n_excluded=0,
    )


def _agreement(
    words: LexicalExplanation, contexts: Sequence[Context], generator: torch.Generator, n_resamples: int
) -> Estimate | None:
    if not contexts:
        return None
    truth = [context.activations for context in contexts]
    predicted = [lexical.predict_tokens(words, context.tokens) for context in contexts]
    return pooled_correlation(truth, predicted, generator=generator, n_resamples=n_resamples)
