"""What the page of a direction shows: the map of candidates, replies beside their controls, curves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from api.pages.charts import Chart, Point, Series, estimates, line_chart
from api.pages.numbers import number
from safe_sail.records import (
    DirectionEvaluation,
    DirectionReading,
    DirectionSearch,
    DirectionSelection,
    RankEffect,
    ReplyShares,
    UtilityCost,
)

OUTCOMES = {"single": "one direction", "subspace": "a subspace of directions", "none": "no direction"}


class Metric(NamedTuple):
    """One of the three numbers of a candidate."""

    name: str
    field: str
    unit: str
    says: str


METRICS = {
    "bypass": Metric("bypass", "bypass", "logits", "Refusal metric of harmful prompts without it: low is good."),
    "induce": Metric("induce", "induce", "logits", "Refusal metric of harmless prompts with it added: high is good."),
    "kl": Metric("KL", "kl", "nats", "How much its ablation changes harmless prompts: low is good."),
}


class Cell(NamedTuple):
    """One candidate of the map."""

    layer: int
    text: str
    css: str
    """`d0` to `d10` from the map's lowest value to its highest; empty where it was not scored."""
    title: str
    reasons: tuple[str, ...]


class SelectionMap(NamedTuple):
    """Candidates by position and layer."""

    layers: list[int]
    rows: list[tuple[int, list[Cell | None]]]
    """By position from the far end; None where no candidate lies."""
    low: float
    high: float
    scale: list[str]


def selection_map(selection: DirectionSelection, field: str) -> SelectionMap:
    """The candidates of one estimator with one of their numbers."""
    values = [one.value for c in selection.candidates if (one := getattr(c, field)) is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    by_place: dict[int, dict[int, Cell]] = {}
    for one in selection.candidates:
        estimate = getattr(one, field)
        step = 0 if estimate is None or high == low else round(10 * (estimate.value - low) / (high - low))
        said = "not scored" if estimate is None else (
            f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}], n = {estimate.n}"
        )  # fmt: skip
        by_place.setdefault(one.position, {})[one.layer] = Cell(
            layer=one.layer,
            text="–" if estimate is None else number(estimate.value),
            css="" if estimate is None else f"d{step}",
            title="; ".join((said, *one.reasons)),
            reasons=one.reasons,
        )
    layers = sorted({one.layer for one in selection.candidates})
    rows = [(position, [cells.get(layer) for layer in layers]) for position, cells in sorted(by_place.items())]
    return SelectionMap(layers, rows, low, high, [f"d{step}" for step in range(11)])


def replies_with_controls(evaluation: DirectionEvaluation) -> list[tuple[ReplyShares, ReplyShares | None]]:
    """Each intervention on each class of prompts, with the random one that stands against it."""
    drawn = {(one.prompts, one.intervention): one for one in evaluation.replies if _is_drawn(one)}

    def control(one: ReplyShares) -> ReplyShares | None:
        against = "addition" if one.intervention == "addition" else "ablation"
        if one.intervention not in ("ablation", "addition"):
            return None
        wanted = [f"random {against}", "random subspace"] if against == "ablation" else [f"random {against}"]
        return next((drawn[one.prompts, name] for name in wanted if (one.prompts, name) in drawn), None)

    plain = [one for one in evaluation.replies if not _is_drawn(one)]
    shown = [(one, control(one)) for one in plain]
    used = {id(against) for _, against in shown if against is not None}
    return shown + [(one, None) for one in drawn.values() if id(one) not in used]


def _is_drawn(one: ReplyShares) -> bool:
    return one.intervention.startswith("random")


class Utility(NamedTuple):
    """Costs by text set and intervention."""

    interventions: list[str]
    rows: dict[str, dict[str, UtilityCost]]


def utility_table(evaluation: DirectionEvaluation) -> Utility:
    """Costs in the order of the record."""
    rows: dict[str, dict[str, UtilityCost]] = {}
    for one in evaluation.utility:
        rows.setdefault(one.texts, {})[one.intervention] = one
    return Utility(list(dict.fromkeys(one.intervention for one in evaluation.utility)), rows)


class Curve(NamedTuple):
    """One chart of the page."""

    name: str
    chart: Chart
    series: list[Series]


def direction_curves(search: DirectionSearch, reading: DirectionReading | None) -> Iterator[Curve]:
    """Cosines layer by layer, and rank-effect curves where a subspace was tried."""
    if reading is not None and reading.cosines:
        series = [Series(name, estimates(values)) for name, values in reading.cosines.items()]
        chart = line_chart(series, x_label="layer", y_label="cosine", width=760.0, height=260.0)
        yield Curve("Where do prompts stand along it, layer by layer? Cosine of the last token", chart, series)
    for built, effects in search.curves.items():
        yield _rank_curve(built, effects)


def _rank_curve(built: str, effects: Sequence[RankEffect]) -> Curve:
    def points(shares: Mapping[int, ReplyShares]) -> list[Point]:
        return [Point(rank, one.refusal.value, one.refusal.low, one.refusal.high) for rank, one in shares.items()]

    series = [
        Series(f"subspace by {built}", points({one.rank: one.shares for one in effects})),
        Series("random subspaces", points({one.rank: one.control for one in effects}), is_control=True),
    ]
    chart = line_chart(series, x_label="directions ablated", y_label="refusals", y_range=(0.0, 1.0), width=760.0)
    return Curve(f"Refusals as the subspace by {built} grows", chart, series)
