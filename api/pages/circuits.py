"""What the page of a circuit shows: its heads on a grid of layers, its neurons by layer, what it does, its curve.

1. The grid has a cell for every head of the model; a cell of the circuit carries its gate probability.
2. Neurons are too many for a grid: each layer has a count and the neurons themselves by name.
3. Shares with their random control stand side by side, as they were measured.
"""

from typing import NamedTuple

from api.pages.charts import Series, estimates, line_chart
from api.pages.directing import Curve
from safe_sail.records import (
    Circuit,
    CircuitEvaluation,
    CircuitMember,
    CircuitReplies,
    CircuitSearch,
    Estimate,
    FeatureId,
    HeadRef,
    ModelRef,
    NeuronRef,
    UnitNeed,
)


class HeadCell(NamedTuple):
    """One head of the grid."""

    head: HeadRef
    member: CircuitMember | None


class NeuronLayer(NamedTuple):
    """The circuit's neurons of one layer, most probable first (ties: index)."""

    layer: int
    members: list[CircuitMember]
    share: float
    """Of the circuit's neurons."""


class ReplyLine(NamedTuple):
    """What the circuit does under one intervention, with the same of random circuits where there is one."""

    replies: CircuitReplies
    control: CircuitReplies | None


def head_grid(circuit: Circuit, model: ModelRef) -> list[tuple[int, list[HeadCell]]]:
    """Rows of the grid by layer, from the first; each has a cell for every head."""
    members = {one.unit: one for one in circuit.members}
    return [
        (layer, [HeadCell(HeadRef(layer, head), members.get(HeadRef(layer, head))) for head in range(model.n_heads)])
        for layer in range(model.n_layers)
    ]


def neuron_layers(circuit: Circuit, model: ModelRef) -> list[NeuronLayer]:
    """Neurons by layer, layers without any included."""
    neurons = [one for one in circuit.members if isinstance(one.unit, NeuronRef)]
    found = []
    for layer in range(model.n_layers):
        here = [one for one in neurons if isinstance(one.unit, NeuronRef) and one.unit.layer == layer]
        here.sort(key=lambda one: (-one.probability, one.unit.index))
        found.append(NeuronLayer(layer, here, len(here) / max(1, len(neurons))))
    return found


def feature_members(circuit: Circuit) -> list[tuple[FeatureId, float]]:
    """SAE features of the circuit with their probability."""
    return [(one.unit, one.probability) for one in circuit.members if isinstance(one.unit, FeatureId)]


def reply_lines(evaluation: CircuitEvaluation) -> list[ReplyLine]:
    """Replies by prompts and intervention, each with its random control."""
    controls = {
        (one.intervention.removeprefix("random "), one.prompts): one
        for one in evaluation.replies
        if one.intervention.startswith("random ")
    }
    return [
        ReplyLine(one, controls.get((one.intervention, one.prompts)))
        for one in sorted(evaluation.replies, key=lambda one: one.prompts)
        if not one.intervention.startswith("random ")
    ]


def kl_table(evaluation: CircuitEvaluation) -> tuple[list[str], list[tuple[str, list[Estimate | None]]]]:
    """KL as a table: its columns are views of the circuit, its rows groups of prompts; both in the record's order."""
    cells = {tuple(name.partition(" on ")[::2]): kl for name, kl in evaluation.kl.items()}
    views, groups = (list(dict.fromkeys(each)) for each in zip(*cells, strict=True)) if cells else ([], [])
    return views, [(group, [cells.get((view, group)) for view in views]) for group in groups]


def needs_by_unit(search: CircuitSearch | None) -> dict[object, UnitNeed]:
    """What each member is needed for, where it was measured."""
    return {} if search is None else {one.unit: one for one in search.needs}


def size_curve(search: CircuitSearch) -> list[Curve]:
    """Removal by size, beside random circuits; none where fewer than two sizes were searched."""
    if len(search.curve) < 2:
        return []
    places = list(range(len(search.curve)))
    shown = [
        Series("circuit removed", estimates([one.removed for one in search.curve])),
        Series("random circuits removed", estimates([one.random for one in search.curve]), is_control=True),
        Series("harmless prompts refused", estimates([one.harmless_refused for one in search.curve])),
    ]
    chart = line_chart(
        shown, x_label="units", y_label="share", y_range=(0.0, 1.0), x_ticks=places, width=760.0, height=260.0
    )
    ticks = [tick._replace(label=str(one.n_units)) for tick, one in zip(chart.x_ticks, search.curve, strict=True)]
    return [Curve("How small can it be?", chart._replace(x_ticks=ticks), shown)]
