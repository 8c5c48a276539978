"""What `safe-sail find-safety-neurons` prints and draws."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safe_sail.records import Estimate, NeuronChange, NeuronSearch, NeuronTax, PatchEffect

WIDTH, HEIGHT = 7.0, 4.2
"""Inches; at 150 dots each the plot reads at half a screen."""


def print_search(
    search: NeuronSearch, tax: NeuronTax | None, figures: Sequence[Path], *, database: str, as_json: bool
) -> None:
    """Prints what was found, as JSON or for people."""
    if as_json:
        compared = {} if tax is None else {"tax": asdict(tax)}
        print(json.dumps({"search": asdict(search), **compared, "figures": [str(path) for path in figures]}))
        return
    print(f"{search.first_model} with the activations of {search.second_model}; score: {search.scorer}")
    print(f"  {search.first_model:32} {shown(search.first_score)}  n={search.first_score.n}")
    print(f"  {search.second_model:32} {shown(search.second_score)}  n={search.second_score.n}")
    most = ", ".join(f"{neuron} ({change:.3g})" for neuron, change in list(zip(search.neurons, search.change))[:6])  # noqa: B905
    print(f"most changed of {search.n_neurons} neurons: {most}")
    print(_HEAD)
    for point in search.curve:
        print(_line(f"top {point.n_neurons}", point))
    for window in search.windows:
        print(_line(f"ranks {window.first_rank}+", window))
    if search.known is not None:
        known = search.known
        print(_line(f"known {known.n_known}", known.patched))
        print(
            f"of the {known.n_known} known neurons {shown(known.found)} are among as many most changed; "
            f"chance {known.chance:.3f}"
        )
    wanted = f"an effect of {search.effect_wanted:g}"
    print(f"no point of the curve has {wanted}" if search.needed is None else f"{wanted} needs {search.needed} neurons")
    for note in search.notes:
        print(f"note: {note}")
    if search.n_failed:
        print(f"{search.n_failed} replies got no score")
    if tax is not None:
        print_tax(tax)
    for path in figures:
        print(f"drawn: {path}")
    print(f"kept in {database} as {search.slug}")


_HEAD = f"{'patched':14}{'share':>7}  {'causal effect':22}{'random, same layers':22}{'p':>9}  same replies"


def _line(name: str, point: PatchEffect) -> str:
    random = "-" if point.random_effect is None else shown(point.random_effect)
    p_value = "-" if point.p_value is None else f"{point.p_value:.2g}"
    same = point.same_replies.value
    return f"{name:14}{point.share:7.1%}  {shown(point.effect):22}{random:22}{p_value:>9}  {same:.3f}"


def print_tax(tax: NeuronTax) -> None:
    """Prints the comparison for people."""
    print(f"{tax.safety_model} and {tax.helpful_model}, each against {tax.base_model}:")
    print(f"rank correlation of change over all neurons {shown(tax.spearman)}")
    for one in tax.overlaps:
        print(
            f"  of the {one.n_neurons} most changed {one.share:.2f} are common; chance {one.chance:.2f}, random with "
            f"their layers {one.random_layers:.2f}"
        )
    for cross in tax.crosses:
        print(f"{cross.n_neurons} common neurons of {cross.second_model} into {cross.first_model}:")
        for goal, moved in cross.moved.items():
            print(
                f"  {goal:12} {shown(cross.before[goal])} -> {shown(cross.after[goal])}, moved {shown(moved)}; random "
                f"{shown(cross.random_moved[goal])}"
            )
    for note in tax.notes:
        print(f"note: {note}")


def shown(estimate: Estimate) -> str:
    """A value with its interval."""
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def draw_search(search: NeuronSearch, change: NeuronChange, out: Path) -> list[Path]:
    """The curve over k beside random neurons, and where the most changed neurons lie, as PNG files in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    return [
        drawn(out / f"{search.slug}.curve.png", lambda axes: _curve(axes, search)),
        drawn(out / f"{search.slug}.layers.png", lambda axes: _layers(axes, search, change)),
    ]


def draw_tax(tax: NeuronTax, out: Path) -> Path:
    """Overlap of the two rankings beside chance, and what patching across moves, as a PNG file in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(1.6 * WIDTH, HEIGHT), layout="constrained")
    left, right = figure.subplots(1, 2)
    _overlaps(left, tax)
    _crosses(right, tax)
    figure.suptitle(f"{tax.safety_model} and {tax.helpful_model}, each against {tax.base_model}", fontsize=10)
    path = out / f"{tax.slug}.tax.png"
    figure.savefig(path, dpi=150)
    return path


def _overlaps(axes: Axes, tax: NeuronTax) -> None:
    shares = [one.chance for one in tax.overlaps]  # k as a share of all neurons is chance itself
    axes.plot(shares, [one.share for one in tax.overlaps], "o-", label="most changed for both")
    axes.plot(shares, [one.random_layers for one in tax.overlaps], "o-", color="0.5", label="random, same layers")
    axes.plot(shares, shares, ":", color="0.7", label="chance")
    axes.set_ylim(0, 1)
    axes.set_xlabel("most changed neurons, share of all")
    axes.set_ylabel("share of them in common")
    axes.set_title(f"rank correlation {shown(tax.spearman)}", fontsize=10)
    axes.legend(fontsize=8)


def _crosses(axes: Axes, tax: NeuronTax) -> None:
    bars = [(f"{goal}\n{cross.second_model}\ninto {cross.first_model}", cross, goal)
            for cross in tax.crosses for goal in cross.moved]  # fmt: skip
    for shift, color, label, pick in (
        (-0.2, "C0", f"{tax.n_common} common neurons", "moved"),
        (0.2, "0.5", "random, same layers", "random_moved"),
    ):
        found: list[Estimate] = [getattr(cross, pick)[goal] for _, cross, goal in bars]
        values = [one.value for one in found]
        reach = [[one.value - one.low for one in found], [one.high - one.value for one in found]]
        places = [place + shift for place in range(len(bars))]
        axes.bar(places, values, 0.38, yerr=reach, color=color, capsize=3, label=label)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_xticks(range(len(bars)), [name for name, _, _ in bars], fontsize=7)
    axes.set_ylabel("change of the score")
    axes.legend(fontsize=8)


def drawn(path: Path, draw: Callable[[Axes], None]) -> Path:
    """The file with one plot; made without pyplot, so nothing is kept between figures."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    draw(figure.add_subplot())
    figure.savefig(path, dpi=150)
    return path


def _curve(axes: Axes, search: NeuronSearch) -> None:
    shares = [point.share for point in search.curve]
    with_interval(axes, shares, [point.effect for point in search.curve], "C0", "most changed neurons")
    drawn_points = [point for point in search.curve if point.random_effect is not None]
    randoms = [point.random_effect for point in drawn_points if point.random_effect is not None]
    with_interval(axes, [point.share for point in drawn_points], randoms, "0.5", "random, same layers")
    if search.known is not None:
        patched = search.known.patched
        axes.plot([patched.share], [patched.effect.value], "*", color="C1", markersize=12, label="known neurons")
    axes.axhline(search.effect_wanted, color="0.7", linestyle=":", linewidth=0.8)
    axes.set_xlabel("share of all neurons that is patched")
    axes.set_ylabel(f"causal effect ({search.scorer})")
    axes.set_title(f"{search.second_model} into {search.first_model}")
    axes.legend(fontsize=8)


def with_interval(axes: Axes, x: Sequence[float], y: Sequence[Estimate], color: str, label: str) -> None:
    """A line with the interval of each point."""
    axes.plot(x, [one.value for one in y], "o-", color=color, label=label)
    axes.fill_between(x, [one.low for one in y], [one.high for one in y], color=color, alpha=0.2)


def _layers(axes: Axes, search: NeuronSearch, change: NeuronChange) -> None:
    layers = range(len(change.scores))
    for point in search.curve:
        if point.share < 1:
            counts = [
                count / len(row) if row else 0.0 for count, row in zip(point.layer_counts, change.scores, strict=True)
            ]
            axes.plot(layers, counts, "o-", label=f"top {point.share:.0%}")
    axes.set_xlabel("layer")
    axes.set_ylabel("share of the layer's neurons")
    axes.set_title(f"Where the most changed neurons lie: {search.slug}")
    axes.legend(fontsize=8)
