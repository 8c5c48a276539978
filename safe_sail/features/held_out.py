"""Which contexts explain a feature and which judge the explanation: by the text alone, so that none ever does both.

A hash of a context's text decides. So every explainer and judge divides alike, whatever else is kept, in whichever run
and for whichever feature: a text that has explained something, once, judges nothing, its repetitions in the corpus and
contexts that are collected again included. What is left of the two halves' sizes to chance is the price.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from safe_sail.records import Context, ContextSample, TopContexts


class Side(NamedTuple):
    """Contexts of one feature that may explain it, or of those that judge; each text once."""

    active: list[Context]
    """Top contexts, then the spread, then random ones on which it fires."""
    silent: list[Context]
    """Near misses, then random ones; empty where only top contexts were kept."""

    @property
    def all(self) -> list[Context]:
        """Active ones, then silent ones."""
        return [*self.active, *self.silent]


class Halves(NamedTuple):
    """Contexts of one feature: those its explainer may see, and those that judge the explanation."""

    explain: Side
    judge: Side


def judges(context: Context, judged_share: float) -> bool:
    """Whether the context judges; of many texts, `judged_share` do."""
    text = "".join(context.tokens).encode("utf-8", "surrogatepass")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return number < judged_share * 2**64


def divided(top: TopContexts, sample: ContextSample | None, *, judged_share: float) -> Halves:
    """The contexts of a feature, divided; a text that is kept several times comes once, where it comes first."""
    # a context without a positive activation, as an import may hold, shows where the feature is silent
    active = [context for context in top.contexts if context.peak_activation > 0]
    silent = [context for context in top.contexts if context.peak_activation <= 0]
    if sample is not None:
        active += sample.active
        silent = [*sample.silent, *silent]
    halves = Halves(Side([], []), Side([], []))
    seen: set[str] = set()
    for place, contexts in enumerate((active, silent)):
        for context in _new(contexts, seen):
            halves[judges(context, judged_share)][place].append(context)
    return halves


def _new(contexts: Iterable[Context], seen: set[str]) -> Iterable[Context]:
    for context in contexts:
        text = "".join(context.tokens)
        if text not in seen:
            seen.add(text)
            yield context
