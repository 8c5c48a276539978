"""Plots of scored SAEs, as PNG files; figures are made without pyplot, so nothing is kept between them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safe_sail.features.score import SaeConceptResult
from safe_sail.records import Estimate, SaeFacts, SaeRanking, SaeSpecificity

WIDTH, HEIGHT = 7.0, 4.2
"""Inches; at 150 dots each the plot reads at half a screen."""


def draw_scores(
    results: Sequence[SaeConceptResult], ranking: Sequence[SaeRanking], facts: Sequence[SaeFacts], folder: Path
) -> list[Path]:
    """The files that were drawn: L0_t curves, I_CDF with intervals, sparsity against specificity and reconstruction.

    Curves and I_CDF need pairs, the last plot needs facts; what is missing is not drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saes = [one.sae for one in ranking]
    found = [one.specificity for one in results if one.specificity is not None]
    by_sae = {slug: [one for one in found if one.sae == slug] for slug in saes}
    drawn = []
    if found:
        drawn.append(_drawn(folder / "l0_curves.png", lambda axes: _curves(axes, by_sae)))
        drawn.append(_drawn(folder / "i_cdf.png", lambda axes: _i_cdf(axes, by_sae, ranking)))
    if facts:
        drawn.append(_drawn(folder / "sparsity.png", lambda axes: _sparsity(axes, ranking, facts)))
    return drawn


def _drawn(path: Path, draw: Callable[[Axes], None]) -> Path:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    draw(figure.add_subplot())
    figure.savefig(path, dpi=150)
    return path


def _curves(axes: Axes, by_sae: dict[str, list[SaeSpecificity]]) -> None:
    for place, (slug, found) in enumerate(by_sae.items()):
        for name, style in (("l0", "-"), ("l0_null", ":")):
            counts = [getattr(one, name) for one in found]
            mean = [sum(column) / len(counts) for column in zip(*counts, strict=True)]
            label = slug if name == "l0" else None
            axes.plot(found[0].thresholds, mean, style, color=f"C{place}", marker=".", label=label)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_xlabel("t: share of a concept's pairs that a feature tells apart")
    axes.set_ylabel("L0_t: features, mean over concepts")
    axes.set_title("Features that tell pairs apart; dotted: with the texts' roles swapped")
    axes.legend(fontsize=7)


def _i_cdf(axes: Axes, by_sae: dict[str, list[SaeSpecificity]], ranking: Sequence[SaeRanking]) -> None:
    rows = [one for one in reversed(ranking) if one.specific is not None]
    for y, one in enumerate(rows):
        assert one.specific is not None
        found = by_sae[one.sae]
        _with_interval(axes, one.specific, y)
        axes.plot(sum(s.i_cdf.value for s in found) / len(found), y, "^", color="C1", label="I_CDF" if y == 0 else None)
        null = sum(s.i_cdf_null.value for s in found) / len(found)
        axes.plot(null, y, "x", color="0.4", label="its null" if y == 0 else None)
    axes.axvline(0, color="0.7", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [one.sae for one in rows], fontsize=7)
    axes.set_xlabel("share of features; bars: 95 % over concepts and pairs")
    axes.set_title("How much of each SAE tells the concepts apart")
    axes.legend(fontsize=7)


def _with_interval(axes: Axes, estimate: Estimate, y: float) -> None:
    ends = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
    label = "null removed" if y == 0 else None
    axes.errorbar([estimate.value], [y], xerr=ends, fmt="o", color="C0", capsize=3, label=label)


def _sparsity(axes: Axes, ranking: Sequence[SaeRanking], facts: Sequence[SaeFacts]) -> None:
    fact_of = {one.sae: one for one in facts}
    shown = [(one, fact_of[one.sae]) for one in ranking if one.sae in fact_of]
    x = [fact.l0 for _, fact in shown]
    axes.plot(x, [fact.explained_variance for _, fact in shown], "s", color="0.5", label="explained variance")
    gaps = [one.rate_gap for one, _ in shown]
    ends = [[g.value - g.low for g in gaps], [g.high - g.value for g in gaps]]
    axes.errorbar(x, [g.value for g in gaps], yerr=ends, fmt="o", color="C0", capsize=3, label="rate gap")
    paired = [(fact.l0, one.specific.value) for one, fact in shown if one.specific is not None]
    if paired and max(value for _, value in paired) > 0:
        best = max(value for _, value in paired)
        heights = [value / best for _, value in paired]
        axes.plot([l0 for l0, _ in paired], heights, "^", color="C1", label="I_CDF, null removed / best")
    for one, fact in shown:
        axes.annotate(str(one.place), (fact.l0, one.rate_gap.value), xytext=(4, 4), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xlabel("L0: active features per token")
    axes.set_title("Sparsity against specificity and reconstruction; numbers are places")
    axes.legend(fontsize=7)
