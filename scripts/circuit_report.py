"""What `safe-sail find-circuit` prints, writes and draws."""

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from db.store.whole import to_json
from safe_sail.model.dims import ModelDims
from safe_sail.records import (
    Circuit,
    CircuitEvaluation,
    CircuitSearch,
    CircuitSize,
    Estimate,
    HeadRef,
    NeuronRef,
)

WIDTH = 8.0
"""Inches; at 150 dots each the plot reads at half a screen."""
NEURON_BINS = 120
"""Columns of the neurons' map: wider MLPs are drawn in bins, each with its strongest member."""


def print_report(
    search: CircuitSearch, evaluation: CircuitEvaluation, files: list[Path], *, database: str, as_json: bool
) -> None:
    """Prints what was found, as JSON or for people."""
    if as_json:
        plain = {"search": json.loads(to_json(search)), "evaluation": json.loads(to_json(evaluation))}
        print(json.dumps(plain | {"files": [str(path) for path in files]}))
        return
    circuit = search.circuit
    print(f"{circuit.slug}: {sizes_of(circuit)}, {circuit.share:.2%} of all units; objective {search.objective}")
    print("  " + ", ".join(str(unit) for unit in circuit.units[:40]) + (" ..." if len(circuit.units) > 40 else ""))
    print(
        f"\nheld-out replies, {evaluation.ablation} ablation{'':14}refused               complied              broken"
    )
    for one in evaluation.replies:
        shares = "  ".join(_text(each) for each in (one.refusal, one.compliance, one.degenerate))
        print(f"  {one.prompts:16} {one.intervention:16} n={one.n_prompts:<5} {shares}")
    for name, share in evaluation.answers.items():
        print(f"harmless prompts answered, {name}: {_text(share)} (n={share.n}; {evaluation.answers_rule})")
    for cost in evaluation.utility:
        if cost.intervention != "none":
            print(f"cross-entropy on {cost.texts}, {cost.intervention}: {cost.increase.value:+.4f} nats a token")
    for name, kl in evaluation.kl.items():
        print(f"KL {name}: {_text(kl)} nats")
    print(f"null mask: logits differ by {evaluation.null_gap:.1e}")
    _print_search(search)
    for path in files:
        print(f"written: {path}")
    print(f"kept in {database}")


def _print_search(search: CircuitSearch) -> None:
    print("\nsize-faithfulness on validation prompts: share as wanted with the circuit removed")
    for size in search.curve:
        print(
            f"  {size.n_heads:3} heads {size.n_neurons:5} neurons {size.n_features:4} features: {_text(size.removed)}; "
            f"random {size.random.value:.3f}; harmless refused {size.harmless_refused.value:.3f}; "
            f"KL {size.kl.value:.4f}"
        )
    if search.stability is not None:
        overlaps = ", ".join(f"{value:.2f}" for value in search.stability.jaccard)
        print(
            f"overlap of seeds {', '.join(map(str, search.stability.seeds))}: {overlaps} (random circuits "
            f"{search.stability.chance:.3f}); in all: {', '.join(map(str, search.stability.core)) or 'none'}"
        )
    if search.needs:
        idle = [str(one.unit) for one in search.needs if one.loss_increase <= 0]
        print(f"members whose return raises no loss: {', '.join(idle) or 'none'} (of {len(search.needs)})")
    for one in search.recovery:
        print(
            f"planted {one.kind}: precision {_text(one.precision)}, recall {_text(one.recall)} of {one.n_planted}; "
            f"random {one.random_precision:.3f}, {one.random_recall:.3f}"
        )
    for note in search.notes:
        print(note)


def sizes_of(circuit: Circuit) -> str:
    """Members of each kind among all of it."""
    parts = [f"{len(circuit.of_kind(HeadRef))} of {circuit.n_heads} heads"]
    parts.append(f"{len(circuit.of_kind(NeuronRef))} of {circuit.n_neurons} neurons")
    rest = len(circuit.members) - len(circuit.of_kind(HeadRef)) - len(circuit.of_kind(NeuronRef))
    return ", ".join([*parts, *([f"{rest} of {circuit.n_features} SAE features"] if circuit.n_features else [])])


def _text(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def write_files(search: CircuitSearch, evaluation: CircuitEvaluation, dims: ModelDims, folder: Path) -> list[Path]:
    """The files that were written: circuit.json with search and evaluation, the units' maps, the curve of sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "circuit.json"
    whole = {"search": json.loads(to_json(search)), "evaluation": json.loads(to_json(evaluation))}
    path.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    return [path, draw_units(search.circuit, dims, folder / "units.png"), draw_curve(search, folder / "sizes.png")]


def draw_units(circuit: Circuit, dims: ModelDims, path: Path) -> Path:
    """Heads and neurons of the circuit by layer, coloured by gate probability; units outside are left white."""
    figure = Figure(figsize=(WIDTH, 1.6 + 0.45 * dims.n_layers), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2), sharey=True)
    bins = min(NEURON_BINS, max(1, dims.d_mlp))
    _map(left, circuit, HeadRef, dims.n_layers, dims.n_heads, dims.n_heads)
    image = _map(right, circuit, NeuronRef, dims.n_layers, bins, max(1, dims.d_mlp))
    left.set_xlabel("head")
    left.set_ylabel("layer")
    right.set_xlabel("neuron" if bins == dims.d_mlp else f"neuron, drawn in {bins} bins")
    left.set_yticks(range(dims.n_layers))
    figure.colorbar(image, ax=right, label="gate probability")
    figure.suptitle(f"{circuit.slug}: {sizes_of(circuit)}")
    figure.savefig(path, dpi=150)
    return path


def _map(
    axes: Axes, circuit: Circuit, kind: type[HeadRef] | type[NeuronRef], n_rows: int, n_columns: int, n_units: int
) -> AxesImage:
    grid = [[float("nan")] * n_columns for _ in range(n_rows)]
    for member in circuit.of_kind(kind):
        assert isinstance(member.unit, HeadRef | NeuronRef)
        row, column = grid[member.unit.layer], member.unit.index * n_columns // n_units
        row[column] = max(member.probability, row[column] if row[column] == row[column] else 0.0)
    # the axis counts units, not bins
    extent = (-0.5, n_units - 0.5, n_rows - 0.5, -0.5)
    return axes.imshow(grid, extent=extent, aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")


def draw_curve(search: CircuitSearch, path: Path) -> Path:
    """Share as wanted with the circuit removed, by its number of units, beside random circuits and refused harmless."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    lines = {
        "as wanted, circuit removed": [size.removed for size in search.curve],
        "as wanted, random circuit removed": [size.random for size in search.curve],
        "harmless refused, circuit removed": [size.harmless_refused for size in search.curve],
    }
    x = [max(1, size.n_units) for size in search.curve]
    for name, values in lines.items():
        ends = [[each.value - each.low for each in values], [each.high - each.value for each in values]]
        axes.errorbar(x, [each.value for each in values], yerr=ends, marker="o", capsize=3, label=name)
    axes.set_xscale("log")
    axes.set_xticks(x, [_label(size) for size in search.curve], fontsize=7)
    axes.minorticks_off()
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("units removed: heads + neurons + SAE features")
    axes.set_ylabel("share of validation prompts")
    axes.set_title(f"{search.slug}, {search.circuit.ablation} ablation")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    return path


def _label(size: CircuitSize) -> str:
    return f"{size.n_heads}+{size.n_neurons}" + (f"+{size.n_features}" if size.n_features else "")
