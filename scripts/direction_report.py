"""What `safe-sail find-refusal-direction` prints and draws."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # figures go to files; no window system is needed

from matplotlib import pyplot

from safe_sail.records import (
    DirectionEvaluation,
    DirectionReading,
    DirectionSearch,
    DirectionSelection,
    Estimate,
)


class Section(NamedTuple):
    """A part of the report that an option asked for."""

    plain: Any
    """For programs."""
    lines: Sequence[str]
    """For people."""


def print_report(
    search: DirectionSearch,
    evaluation: DirectionEvaluation | None,
    reading: DirectionReading | None,
    figures: list[Path],
    more: Mapping[str, Section],
    *,
    database: str,
    as_json: bool,
) -> None:
    """Prints what was found, as JSON or for people; `more` are sections by their key in the JSON."""
    if as_json:
        sections = {name: section.plain for name, section in more.items()}
        print(json.dumps(_plain(search, evaluation, reading, figures) | sections))
        return
    _print_search(search)
    if evaluation is not None:
        _print_evaluation(evaluation)
    if reading is not None:
        for sae in reading.saes:
            best = ", ".join(
                f"{one.feature.index} ({one.cosine:+.2f}, p {one.p_value:.3f})" for one in sae.features[:4]
            )
            print(
                f"{sae.sae}: cosine with features {best}; rebuilt from {len(sae.rebuilt)}: {sae.rebuilt[-1]:.2f}, "
                f"random direction {sae.rebuilt_control[-1]:.2f}"
            )
    for section in more.values():
        print("\n".join(section.lines))
    for path in figures:
        print(f"figure  {path}")
    print(f"kept as `{search.slug}` in {database}")


def _print_search(search: DirectionSearch) -> None:
    found = search.direction
    if found is None:
        print(f"{search.model_id}: no single direction, and no subspace")
    else:
        kind = "one direction" if search.outcome == "single" else f"a subspace of rank {found.rank}"
        print(f"{search.model_id}: {kind}, {found.estimator}, read at {found.site}, position {found.position}")
    for reason in search.reasons:
        print(f"  why not  {reason}")
    for note in search.notes:
        print(f"  note     {note}")
    tokens = ", ".join(f"{one.text!r} {one.p_harmful:.2f}/{one.p_harmless:.2f}" for one in search.refusal_tokens)
    print(f"refusal tokens (harmful/harmless): {tokens}")
    for one in search.selections:
        print(
            f"{one.estimator}: winner {one.winner}, confirmed {one.confirmed}, {one.n_launches} passes "
            f"(published loop {one.n_launches_naive})"
        )


def _print_evaluation(evaluation: DirectionEvaluation) -> None:
    for shares in evaluation.replies:
        print(
            f"{shares.prompts:18} {shares.intervention:16} refusal {_interval(shares.refusal)}  "
            f"broken {shares.degenerate.value:.3f}  n={shares.n_prompts}"
            + (f" x {shares.n_draws} draws" if shares.n_draws > 1 else "")
        )
    for cost in evaluation.utility:
        if cost.intervention != "none":
            print(
                f"{cost.texts:18} {cost.intervention:16} cross-entropy {cost.cross_entropy:.3f}, "
                f"{_signed(cost.increase)}"
            )
    print(f"{'harmless held out':18} {'ablation':16} KL {_interval(evaluation.kl)} nats")
    gap = evaluation.weights_note if evaluation.weights_gap is None else f"off by {evaluation.weights_gap:.1e} logits"
    print(f"edited weights against hooks: {gap}")


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"


def _plain(
    search: DirectionSearch,
    evaluation: DirectionEvaluation | None,
    reading: DirectionReading | None,
    figures: list[Path],
) -> dict[str, Any]:
    def site_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: (f"{value['kind']}.{value['layer']}" if name == "site" else value) for name, value in pairs}

    return {
        "search": asdict(search, dict_factory=site_names),
        "evaluation": None if evaluation is None else asdict(evaluation),
        "reading": None if reading is None else asdict(reading),
        "figures": [str(path) for path in figures],
    }


def draw_figures(
    search: DirectionSearch, evaluation: DirectionEvaluation | None, reading: DirectionReading | None, out: Path
) -> list[Path]:
    """Selection heat maps, cosine curves, rank-effect curves and replies, as PNG files in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [_heat_map(selection, search, out) for selection in search.selections]
    if reading is not None:
        paths.append(_cosine_curves(reading, out))
    paths += [_rank_curve(name, search, out) for name, effects in search.curves.items() if effects]
    return paths


def _heat_map(selection: DirectionSelection, search: DirectionSearch, out: Path) -> Path:
    layers = sorted({cell.layer for cell in selection.candidates})
    positions = sorted({cell.position for cell in selection.candidates})
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 0.5 * len(positions) + 2), constrained_layout=True)
    for axis, score, unit in zip(axes, ("bypass", "induce", "kl"), ("logits", "logits", "nats"), strict=True):
        grid = [[float("nan")] * len(layers) for _ in positions]
        for cell in selection.candidates:
            estimate: Estimate | None = getattr(cell, score)
            if estimate is not None:
                grid[positions.index(cell.position)][layers.index(cell.layer)] = estimate.value
        drawn = axis.imshow(grid, aspect="auto", cmap="cividis")
        axis.set_facecolor("0.85")  # grey: a filter made the score needless
        axis.set_xticks(range(len(layers)), [str(layer) for layer in layers])
        names = search.post_instruction or ("last token",)
        axis.set_yticks(range(len(positions)), [f"{p} {names[p]!r}" for p in positions])
        axis.set_title(f"{score} ({unit})")
        axis.set_xlabel("layer")
        for cell_of, marker in ((selection.winner, "o"), (selection.confirmed, "*")):
            if cell_of is not None:
                axis.plot(
                    layers.index(cell_of[1]), positions.index(cell_of[0]), marker, color="white", mec="black", ms=12
                )
        figure.colorbar(drawn, ax=axis)
    figure.suptitle(f"{search.slug}: {selection.estimator} candidates (o winner of the rule, * confirmed by replies)")
    return _saved(figure, out / f"{search.slug}.selection.{selection.estimator}.png")


def _cosine_curves(reading: DirectionReading, out: Path) -> Path:
    styles = {name: "--" if "harmless" in name else "-" for name in reading.cosines}
    return draw_curves(reading.cosines, reading.direction, out / f"{reading.direction}.cosines.png", styles)


def draw_curves(curves: Mapping[str, Sequence[Estimate]], title: str, path: Path, styles: Mapping[str, str]) -> Path:
    """Cosine with a direction by layer, one line with its interval for each curve, as a PNG file."""
    figure, axis = pyplot.subplots(figsize=(7, 4), constrained_layout=True)
    for name, curve in curves.items():
        axis.plot(range(len(curve)), [one.value for one in curve], label=name, ls=styles[name])
        axis.fill_between(range(len(curve)), [one.low for one in curve], [one.high for one in curve], alpha=0.2)
    axis.axhline(0, color="0.5", lw=0.5)
    axis.set_xlabel("layer (stream before it, last token)")
    axis.set_ylabel("cosine with the direction")
    axis.set_title(title)
    axis.legend()
    return _saved(figure, path)


def _rank_curve(name: str, search: DirectionSearch, out: Path) -> Path:
    figure, axis = pyplot.subplots(figsize=(7, 4), constrained_layout=True)
    effects = search.curves[name]
    ranks = [effect.rank for effect in effects]
    axis.plot(ranks, [effect.shares.refusal.value for effect in effects], "o-", label="refusals left")
    axis.plot(ranks, [effect.control.refusal.value for effect in effects], "o--", label="random subspace")
    axis.plot(ranks, [effect.kl.value for effect in effects], "s:", label="KL on harmless prompts (nats)")
    axis.set_xlabel("rank ablated")
    axis.set_ylim(bottom=0)
    axis.set_title(f"{search.slug}: {name}")
    axis.legend()
    return _saved(figure, out / f"{search.slug}.rank.{name}.png")


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
