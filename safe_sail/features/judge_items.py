"""What a judge is shown of a feature: as many contexts that fit as that do not, cut so that no place tells. [pure]

1. Windows are cut so that the feature's peak stands anywhere in their last two thirds. A silent context has no peak: it
   is cut around a place that stands as far into its text as an active context's peak does into its own.
2. Simulation and detection: active and silent contexts in turn, near misses before random ones.
3. Fuzzing: in half of the items the marks stand where the feature is active. In the others they stand where it is
   silent, in contexts that are active elsewhere and in silent ones by turns, and each takes the places of its marks
   from an item with right ones: number and place of the marks are the same on both sides.

Every context is in one item at most.
"""

import re
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Final, NamedTuple, TypeVar

import torch

from safe_sail.features.prompts import Window
from safe_sail.records import Context

T = TypeVar("T")

MARKED_SHARE: Final = 0.3
"""Right marks stand on tokens with at least this share of the context's peak; delphi marks above 0.3 of the maximum."""

_TRIES: Final = 16
"""Places looked at for the wrong marks of one context; where the feature fires at all of them, it is left out."""
_SPECIAL: Final = re.compile(r"\s*(<\|[^|>]*\|>|</?[A-Za-z_]+>)\s*")
"""Tokens on which no feature is kept, so that a mark there would be known to be wrong."""


class Item(NamedTuple):
    """One text for a judge."""

    context: Context
    """As the judge sees it."""
    fits: bool
    """Whether the feature is active in it; in fuzzing, whether its marks are right."""
    marked: frozenset[int] = frozenset()
    """Token positions in fuzzing, counted from 0."""


# 1. windows


def judging_window(context: Context, centre: int, window: Window, generator: torch.Generator) -> Context:
    """A whole window that holds the centre, at a place drawn anew; short contexts stay whole."""
    length = window.before + 1 + window.after
    ahead = int(torch.randint(length // 3, length, (1,), generator=generator))
    start = max(0, min(centre - ahead, len(context.tokens) - length))
    part = slice(start, start + length)
    activations = context.activations[part]
    return Context(
        tokens=context.tokens[part],
        token_ids=context.token_ids[part],
        activations=activations,
        peak=activations.index(max(activations)),
        source_id=context.source_id,
    )


def _place_like(context: Context, others: Sequence[Context], generator: torch.Generator) -> int:
    """A place as far into this text as some other context's peak is into its own; anywhere where there is none."""
    if not others:
        return int(torch.randint(len(context.tokens), (1,), generator=generator))
    other = others[int(torch.randint(len(others), (1,), generator=generator))]
    return round(other.peak / max(1, len(other.tokens) - 1) * (len(context.tokens) - 1))


# 2. whole texts


def items_in_turn(contexts: Sequence[Context], window: Window, generator: torch.Generator) -> list[Item]:
    """Active and silent contexts in turn, then the rest of the larger kind.

    Active ones in an order drawn anew; silent ones in the order given, so that near misses come before random ones.
    """
    active = _shuffled([c for c in contexts if c.peak_activation > 0], generator)
    silent = [c for c in contexts if c.peak_activation <= 0]
    shown = [Item(judging_window(c, c.peak, window, generator), True) for c in active]
    quiet = [Item(judging_window(c, _place_like(c, active, generator), window, generator), False) for c in silent]
    return _in_turn(shown, quiet)


def balanced(items: Sequence[Item]) -> list[Item]:
    """The longest beginning of items in turn that holds as many that fit as that do not."""
    n = min(sum(item.fits for item in items), sum(not item.fits for item in items))
    return list(items[: 2 * n])


# 3. marks


def marked_items(contexts: Sequence[Context], window: Window, generator: torch.Generator) -> list[Item]:
    """Items with right and wrong marks in turn, as many of each."""
    active = _shuffled([c for c in contexts if c.peak_activation > 0], generator)
    silent = [c for c in contexts if c.peak_activation <= 0]
    n_right = min((len(active) + len(silent)) // 2, len(active))
    right = [_rightly(judging_window(c, c.peak, window, generator)) for c in active[:n_right]]
    if not right:
        return []
    wrong = []
    for context in _in_turn(active[n_right:], silent):
        item = _wrongly(context, right, active, window, generator)
        if item is not None:
            wrong.append(item)
    return balanced(_in_turn(right, wrong))


def _rightly(context: Context) -> Item:
    least = MARKED_SHARE * context.peak_activation
    marks = frozenset(place for place, value in enumerate(context.activations) if value > 0 and value >= least)
    return Item(context, True, marks)


def _wrongly(
    context: Context, right: Sequence[Item], active: Sequence[Context], window: Window, generator: torch.Generator
) -> Item | None:
    """The context with the marks of a right item, all of them on silent tokens; None where none was found."""
    for _ in range(_TRIES):
        donor = right[int(torch.randint(len(right), (1,), generator=generator))]
        centre = context.peak if context.peak_activation > 0 else _place_like(context, active, generator)
        shown = judging_window(context, centre, window, generator)
        if max(donor.marked) < len(shown.tokens) and all(_may_be_wrong(shown, place) for place in donor.marked):
            return Item(shown, False, donor.marked)
    return None


def _may_be_wrong(context: Context, place: int) -> bool:
    return context.activations[place] <= 0 and not _SPECIAL.fullmatch(context.tokens[place])


def _shuffled(contexts: Sequence[Context], generator: torch.Generator) -> list[Context]:
    return [contexts[place] for place in torch.randperm(len(contexts), generator=generator).tolist()]


def _in_turn(first: Sequence[T], second: Sequence[T]) -> list[T]:
    both = chain.from_iterable(zip_longest(first, second))
    return [one for one in both if one is not None]
