"""What the page of a neuron search shows: causal curves beside random neurons, and where the neurons lie."""

from collections.abc import Sequence

from api.pages.charts import Point, Series, line_chart
from api.pages.directing import Curve
from safe_sail.records import Estimate, NeuronSearch, PatchEffect


def causal_curve(search: NeuronSearch) -> Curve:
    """Effect of patching the most changed neurons, against as many random ones in the same layers."""
    places = list(range(len(search.curve)))
    return _curve("What does patching the most changed neurons do?", search.curve, places, [
        f"{point.n_neurons:,}".replace(",", "\u202f") for point in search.curve
    ], "neurons patched")  # fmt: skip


def window_curve(search: NeuronSearch) -> list[Curve]:
    """Effect of windows of ranks alone; none where no window was patched."""
    if not search.windows:
        return []
    ranks = [f"{point.first_rank or 0:,}".replace(",", "\u202f") for point in search.windows]
    places = list(range(len(search.windows)))
    return [_curve("And windows of ranks alone?", search.windows, places, ranks, "first rank of the window")]


def _curve(name: str, points: Sequence[PatchEffect], places: list[int], labels: list[str], x_label: str) -> Curve:
    def series(said: str, found: Sequence[Estimate | None], is_control: bool = False) -> Series:
        drawn = [
            Point(place, one.value, one.low, one.high)
            for place, one in zip(places, found, strict=True)
            if one is not None
        ]
        return Series(said, drawn, is_control)

    shown = [
        series("these neurons", [point.effect for point in points]),
        series("random neurons of the same layers", [point.random_effect for point in points], is_control=True),
    ]
    chart = line_chart(shown, x_label=x_label, y_label="effect", x_ticks=places, width=760.0, height=260.0)
    ticks = [tick._replace(label=label) for tick, label in zip(chart.x_ticks, labels, strict=True)]
    return Curve(name, chart._replace(x_ticks=ticks), shown)


def layer_table(search: NeuronSearch) -> list[tuple[int, int, int]]:
    """By layer: its number, how many of the kept neurons lie there, and that count's share of the largest, 0 to 10."""
    counts: dict[int, int] = {}
    for neuron in search.neurons:
        counts[neuron.layer] = counts.get(neuron.layer, 0) + 1
    n_layers = max([*counts, *(len(point.layer_counts) - 1 for point in search.curve)], default=0) + 1
    most = max(counts.values(), default=1)
    return [(layer, counts.get(layer, 0), round(10 * counts.get(layer, 0) / most)) for layer in range(n_layers)]
