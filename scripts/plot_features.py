"""Plots of what a database holds of an SAE: histograms of activations, and scores of explanations by two methods.

safe-sail plot-features --sae organism.resid_post.3.topk8-1024 --out figures
"""

import json
from collections.abc import Sequence
from itertools import combinations
from math import ceil
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sqlalchemy import Engine

from db import store
from db.engine import reading
from safe_sail.neurons.contrast import rank_correlation
from safe_sail.records import Estimate, ExplanationScore, FeatureId, Histogram, JudgeMethod
from scripts import llm_runs
from scripts.options import DEFAULT_DATABASE, AsJson, DatabaseUrl, KeptSae, OutFolder, Seed

LEAST = 3
"""Features that two methods have to share before their scores are compared."""
COLUMNS = 4


class Shown(NamedTuple):
    """One feature's histogram and what it is of."""

    feature: FeatureId
    title: str
    histogram: Histogram


class Compared(NamedTuple):
    """Scores of the same explanations by two methods."""

    methods: tuple[JudgeMethod, JudgeMethod]
    scores: tuple[list[ExplanationScore], list[ExplanationScore]]
    rank: Estimate
    """Spearman's correlation; the interval is over features drawn again."""


def plot_features(
    out: OutFolder,
    sae: KeptSae = None,
    n_features: Annotated[int, typer.Option(min=1, help="Features with a histogram: the best ones first.")] = 12,
    database: DatabaseUrl = DEFAULT_DATABASE,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Draw activation histograms of an SAE's best features, and scores by two methods against each other."""
    engine = llm_runs.open_kept(database, read_only=True)
    slug = llm_runs.choose_sae(engine, sae)
    shown = _histograms(engine, slug, n_features)
    compared = _compared(_scores(engine, slug), torch.Generator().manual_seed(seed))
    engine.dispose()
    out.mkdir(parents=True, exist_ok=True)
    figures = [draw_histograms(slug, shown, out / f"{slug}.histograms.png")] if shown else []
    figures += [draw_compared(slug, one, out / f"{slug}.{one.methods[0]}.{one.methods[1]}.png") for one in compared]
    ranks = [
        {"methods": [str(method) for method in one.methods], "rank": one.rank.value, "low": one.rank.low,
         "high": one.rank.high, "n": one.rank.n}
        for one in compared
    ]  # fmt: skip
    if as_json:
        print(json.dumps({"sae": slug, "figures": [str(path) for path in figures], "ranks": ranks}))
        return
    for path in figures:
        print(f"drawn: {path}")
    for one in compared:
        print(f"{one.methods[0]} and {one.methods[1]} rank {one.rank.n} features alike: {_shown(one.rank)}")
    if not compared:
        print(f"no two methods have judged the same {LEAST} explanations, so no scores are compared")


def _histograms(engine: Engine, slug: str, n: int) -> list[Shown]:
    found = []
    listed = llm_runs.best_features(engine, slug, n)
    with reading(engine) as session:
        for row in listed:
            top = store.load_top_contexts(session, row.feature)
            if top is not None and top.record.histogram is not None:
                name = f"#{row.index}" if row.concept is None else f"#{row.index} {row.concept}"
                title = f"{name}, on {top.record.density:.2%} of tokens"
                found.append(Shown(row.feature, title, top.record.histogram))
    return found


def _scores(engine: Engine, slug: str) -> dict[JudgeMethod, dict[tuple[FeatureId, str, str], ExplanationScore]]:
    """Scores by method and explanation."""
    found: dict[JudgeMethod, dict[tuple[FeatureId, str, str], ExplanationScore]] = {}
    with reading(engine) as session:
        for index in sorted(store.features_done(session, slug, store.FeatureKind.EXPLANATIONS)):
            for kept in store.load_explanation_scores(session, FeatureId(sae=slug, index=index)):
                one = kept.record
                found.setdefault(one.method, {})[one.feature, one.explainer, one.prompt_version] = one
    return found


def _compared(
    scores: dict[JudgeMethod, dict[tuple[FeatureId, str, str], ExplanationScore]], generator: torch.Generator
) -> list[Compared]:
    found = []
    for first, second in combinations([method for method in JudgeMethod if method in scores], 2):
        both = [key for key in scores[first] if key in scores[second]]
        pair = [scores[first][key] for key in both], [scores[second][key] for key in both]
        columns = [torch.tensor([one.score.value for one in of_one], dtype=torch.float64) for of_one in pair]
        if len(both) < LEAST or any(len(column.unique()) < 2 for column in columns):
            continue
        value, drawn = rank_correlation(columns[0], columns[1], 1000, generator)
        low, high = drawn[drawn.isfinite()].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        rank = Estimate(value=value, low=min(low, value), high=max(high, value), n=len(both))
        found.append(Compared((first, second), pair, rank))
    return found


def draw_histograms(slug: str, shown: Sequence[Shown], path: Path) -> Path:
    """One small histogram a feature; counts on a logarithmic scale, since most activations are small."""
    rows = ceil(len(shown) / COLUMNS)
    figure = Figure(figsize=(2.6 * COLUMNS, 1.9 * rows + 0.5), layout="constrained")
    for place, one in enumerate(shown):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        axes.stairs(one.histogram.counts, one.histogram.edges, fill=True)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_title(one.title, fontsize=7)
        axes.tick_params(labelsize=6)
    figure.suptitle(f"{slug}: tokens by activation", fontsize=10)
    figure.savefig(path, dpi=150)
    return path


def draw_compared(slug: str, compared: Compared, path: Path) -> Path:
    """One point a feature with both intervals; what explanations of other features reach, as dotted lines."""
    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    axes: Axes = figure.add_subplot()
    across, up = ([one.score for one in of_one] for of_one in compared.scores)
    axes.errorbar(
        [one.value for one in across], [one.value for one in up], xerr=_reach(across), yerr=_reach(up), fmt="o",
        markersize=3, elinewidth=0.4, alpha=0.7,
    )  # fmt: skip
    for line, of_one in zip((axes.axvline, axes.axhline), compared.scores, strict=True):
        line(sum(one.control.value for one in of_one) / len(of_one), color="0.5", linestyle=":", linewidth=0.8)
    axes.set_xlabel(f"{compared.methods[0]}; dotted: other features' explanations".replace("_", " "))
    axes.set_ylabel(str(compared.methods[1]).replace("_", " "))
    axes.set_title(f"{slug}\nrank correlation {_shown(compared.rank)}, n={compared.rank.n}", fontsize=9)
    figure.savefig(path, dpi=150)
    return path


def _reach(estimates: Sequence[Estimate]) -> list[list[float]]:
    return [[one.value - one.low for one in estimates], [one.high - one.value for one in estimates]]


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
