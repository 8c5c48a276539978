"""Baselines collected from reference texts, and a copy of a model whose weights hold a mask.

1. The texts pass through the model once per batch; head outputs, neuron activations and SAE features are read.
2. mean: summed in float64 over real tokens. resample: kept token by token.
3. Masked weights: a kept share scales the columns of W_O or W_out, a replaced mean moves into the bias after them; from
   a start baseline replaced units take their numbers.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from safe_sail.circuits.baselines import ZERO, Baseline, BaselineKind
from safe_sail.circuits.entries import unit_entries
from safe_sail.circuits.masks import UnitSpace, View, circuit_keep, circuit_space
from safe_sail.errors import BadSettings, BadText, EditRefused
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.records import Circuit, HeadRef, NeuronRef


@torch.no_grad()
def collect_baseline(
    handle: HookedModel, space: UnitSpace, batches: Sequence[TokenBatch], kind: BaselineKind
) -> Baseline:
    """The baseline of this kind over the real tokens of reference texts; for zero no text is read.

    Raises:
        BadText: there is no text.
        BadSettings: a start baseline is asked for, which no text gives.
    """
    if kind == "start":
        raise BadSettings("a start baseline comes from a start model, not from texts; see `masked.start_baseline`.")
    if kind == "zero":
        return ZERO
    if not batches:
        raise BadText(f"a {kind} baseline needs reference texts, got none.")
    found: dict[str, list[Tensor]] = {group.name: [] for group in space.groups}
    n_tokens = sum(int(batch.lengths.sum()) for batch in batches)
    width = max(int(batch.lengths.max()) for batch in batches)
    for batch in batches:
        captured = handle.capture(batch, sorted({group.site for group in space.groups}))
        for group in space.groups:
            values = captured[group.site]
            if group.sae is not None:
                values = group.sae.encode(values)
            if kind == "mean":
                found[group.name].append(values[batch.is_real.to(values.device)].double().sum(0))
            else:
                found[group.name] += _right_padded(values, batch, width)
    if kind == "mean":
        means = {name: (torch.stack(sums).sum(0) / n_tokens).float() for name, sums in found.items()}
        return Baseline("mean", means)
    lengths = torch.cat([batch.lengths for batch in batches])
    return Baseline("resample", {name: torch.stack(rows) for name, rows in found.items()}, lengths)


def _right_padded(values: Tensor, batch: TokenBatch, width: int) -> list[Tensor]:
    rows = []
    for row, real in zip(values, batch.is_real, strict=True):
        kept = row[real.to(row.device)]
        whole = kept.new_zeros(width, *kept.shape[1:])
        whole[: len(kept)] = kept
        rows.append(whole)
    return rows


@torch.no_grad()
def masked_model(handle: HookedModel, circuit: Circuit, view: View, baseline: Baseline = ZERO) -> HookedModel:
    """A copy of the model whose weights lack the circuit, or everything else that it was sought among.

    It is for evaluation in memory, and a second computation of what the edits do; nothing writes it to disk.

    Raises:
        CircuitMismatch: the circuit is of another model.
        EditRefused: the replacement depends on the text (resample), or SAE features are masked: no weight says that.
    """
    if baseline.kind == "resample" or circuit.n_features:
        raise EditRefused(
            f"circuit {circuit.slug}: weights can hold units replaced by zero or by a mean; resampled values and SAE "
            f"features depend on the text, so use `circuit_edits`."
        )
    space = circuit_space(handle, circuit)
    keep = circuit_keep(space, circuit, view)
    model = copy.deepcopy(handle.model)
    if baseline.start is not None:
        replaced = [space.unit(place) for place in (keep == 0).nonzero()[:, 0].tolist()]
        units = [unit for unit in replaced if isinstance(unit, HeadRef | NeuronRef)]
        for name, index in unit_entries(handle, units, shared="whole").items():
            if name in baseline.start.weights:
                model.get_parameter(name).view(-1)[index] = baseline.start.weights[name].view(-1)[index]
        return HookedModel(model, handle.tokenizer, handle.architecture, model_id=handle.model_id)
    masked = HookedModel(model, handle.tokenizer, handle.architecture, model_id=handle.model_id)
    row = handle.architecture
    for group in space.groups:
        assert group.site.layer is not None
        block = masked.blocks[group.site.layer]
        linear: Any = block.get_submodule(row.attn_proj if group.kind == "heads" else row.mlp_down)
        weight = linear.weight
        part = keep[group.places]
        if group.kind == "heads":
            part = part.repeat_interleave(handle.dims.d_head)
        part = part.to(weight)
        by_input = weight if row.conv1d else weight.T  # [in, out], a view
        if baseline.kind == "mean":
            value = baseline.values[group.name].flatten().to(weight)
            moved = ((1 - part) * value) @ by_input
            bias = moved if linear.bias is None else linear.bias + moved
            linear.bias = torch.nn.Parameter(bias, requires_grad=False)
        by_input *= part[:, None]
    return masked
