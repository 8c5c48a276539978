"""Links of a feature as lines of a table: an arrow, an address, and drawings on one axis for each measure."""

from collections.abc import Sequence
from typing import NamedTuple

from api.pages.figures import IntervalFigure, interval_figure
from api.pages.views import address
from db.store import KeptLink
from safe_sail.records import Estimate, FeatureLink, LinkFlow, LinkKind, LinkMeasure

ARROWS = {LinkFlow.INTO_FEATURE: "reads", LinkFlow.OUT_OF_FEATURE: "writes"}
_WIDTH = 84.0


class LinkLine(NamedTuple):
    """One link."""

    link: FeatureLink
    study: str
    arrow: str
    address: str | None
    """Page of the other end, where it has one."""
    cause: IntervalFigure | None
    weights: IntervalFigure | None


def link_lines(kept: Sequence[KeptLink], pages: dict[tuple[LinkKind, str], str]) -> list[LinkLine]:
    """Lines in the given order; `pages` has addresses of directions and circuits by kind and target.

    A head or a neuron leads to the circuits that hold it; a set of neurons to its search.
    """
    links = [one.link for one in kept]
    causes, weights = [one.cause for one in links], [one.weights for one in links]
    return [
        LinkLine(
            one.link,
            one.study,
            ARROWS[one.link.flow],
            pages.get((one.link.kind, one.link.target)) or _address(one),
            _figure(one.link.cause, causes),
            _figure(one.link.weights, weights),
        )
        for one in kept
    ]


def _address(kept: KeptLink) -> str | None:
    link = kept.link
    if link.kind in (LinkKind.HEAD, LinkKind.NEURON):
        return address("/circuits", {"unit": link.target, "model": kept.model_id})
    return f"/neurons/{link.target}" if link.kind is LinkKind.NEURON_SET else None


def _figure(measure: LinkMeasure | None, measures: Sequence[LinkMeasure | None]) -> IntervalFigure | None:
    """The measure on the axis of all, 0 in its middle; the band is where 95 % of the controls lie."""
    if measure is None:
        return None
    ends = [abs(x) for one in measures if one is not None for x in (one.value.low, one.value.high, one.control_high)]
    end = max(ends) or 1.0
    band = Estimate(value=0.0, low=-measure.control_high, high=measure.control_high, n=measure.control.n)
    return interval_figure(measure.value, band, start=-end, end=end, width=_WIDTH)
