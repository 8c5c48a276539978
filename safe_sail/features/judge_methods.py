"""What the ways of judging differ in: items, prompt, how an answer is read, what is true, how both agree."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import torch
from pydantic import BaseModel

from safe_sail.features.agreement import balanced_accuracy, pooled_correlation
from safe_sail.features.judge_items import Item, balanced, items_in_turn, marked_items
from safe_sail.features.judge_prompts import (
    FittingReply,
    JudgedFeature,
    Marked,
    SegmentReply,
    TokenReply,
    detection_prompt,
    fuzzing_prompt,
    read_fitting,
    read_segments,
    read_tokens,
    segments_of,
    segments_prompt,
    tokens_prompt,
    true_levels,
)
from safe_sail.features.prompts import Prompt, Window
from safe_sail.records import Context, Estimate, JudgeMethod

Values = list[float]


class Way(NamedTuple):
    """One way of judging."""

    items: Callable[[Sequence[Context], Window, torch.Generator], list[Item]]
    """Of a feature's judging contexts those that are shown, in the order in which calls take them."""
    prompt: Callable[[str, Sequence[Item]], Prompt]
    reply_type: type[BaseModel]
    read: Callable[..., list[Values]]
    """Reply and items to the predictions of each item; raises JudgeError where the answer does not fit the question."""
    truth: Callable[[Item, float], Values]
    """What is true of an item; the number is the activation of level 10."""
    agree: Callable[[Sequence[Values], Sequence[Values], torch.Generator, int], Estimate | None]
    """Truths, predictions, generator and number of resamples to the score; None where it is not defined."""
    widest: float
    """Width of its range: 2 for a correlation, 1 for a share."""


# simulation


def _judged(text: str, items: Sequence[Item]) -> JudgedFeature:
    return JudgedFeature(text, tuple(item.context for item in items))


def _read_levels(reply: BaseModel, items: Sequence[Item]) -> list[Values]:
    assert isinstance(reply, TokenReply)
    return [list(map(float, levels)) for levels in read_tokens(reply, [_judged("", items)])[0]]


def _read_active(reply: BaseModel, items: Sequence[Item]) -> list[Values]:
    assert isinstance(reply, SegmentReply)
    return [list(map(float, active)) for active in read_segments(reply, [_judged("", items)])[0]]


def _correlation(
    truth: Sequence[Values], predicted: Sequence[Values], generator: torch.Generator, n_resamples: int
) -> Estimate | None:
    return pooled_correlation(truth, predicted, generator=generator, n_resamples=n_resamples)


# whole texts


def _read_fitting(reply: BaseModel, items: Sequence[Item]) -> list[Values]:
    assert isinstance(reply, FittingReply)
    return [[float(fits)] for fits in read_fitting(reply, len(items))]


def _detected(contexts: Sequence[Context], window: Window, generator: torch.Generator) -> list[Item]:
    return balanced(items_in_turn(contexts, window, generator))


def _fits(item: Item, scale: float) -> Values:
    return [float(item.fits)]


def _accuracy(
    truth: Sequence[Values], predicted: Sequence[Values], generator: torch.Generator, n_resamples: int
) -> Estimate | None:
    sides = [[values[0] > 0 for values in side] for side in (truth, predicted)]
    return balanced_accuracy(sides[0], sides[1])


WAYS: Final[Mapping[JudgeMethod, Way]] = MappingProxyType(
    {
        JudgeMethod.SEGMENT_SIMULATION: Way(
            items=items_in_turn,
            prompt=lambda text, items: segments_prompt([_judged(text, items)]),
            reply_type=SegmentReply,
            read=_read_active,
            truth=lambda item, scale: [float(segment.active) for segment in segments_of(item.context)],
            agree=_correlation,
            widest=2.0,
        ),
        JudgeMethod.TOKEN_SIMULATION: Way(
            items=items_in_turn,
            prompt=lambda text, items: tokens_prompt([_judged(text, items)]),
            reply_type=TokenReply,
            read=_read_levels,
            truth=lambda item, scale: list(map(float, true_levels(item.context, scale))),
            agree=_correlation,
            widest=2.0,
        ),
        JudgeMethod.DETECTION: Way(
            items=_detected,
            prompt=lambda text, items: detection_prompt(text, [item.context for item in items]),
            reply_type=FittingReply,
            read=_read_fitting,
            truth=_fits,
            agree=_accuracy,
            widest=1.0,
        ),
        JudgeMethod.FUZZING: Way(
            items=marked_items,
            prompt=lambda text, items: fuzzing_prompt(text, [Marked(item.context, item.marked) for item in items]),
            reply_type=FittingReply,
            read=_read_fitting,
            truth=_fits,
            agree=_accuracy,
            widest=1.0,
        ),
    }
)
