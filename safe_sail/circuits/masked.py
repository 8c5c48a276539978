"""A model under a mask: its edits, or, where masked units take a start model's weights, a copy that holds these.

1. `start_baseline` compares a model with the one it was trained from: whose each number is, and which units differ.
2. Under such a baseline a unit is `keep` of its own weights and the rest of the start model's, number by number: its
   rows of W_in, W_gate and W_out, or of W_Q, W_K, W_V and W_O. All kept, the model has its own bits; none, the start
   model's, but for what belongs to no unit (embeddings, norms, biases after W_O and W_out).
3. A unit that was not trained does the same either way, so it is never a member of a circuit, however much the
   behaviour hangs on it; a mean or zero in its place would say otherwise.

The copy has modules of its own, and its weights hang on the mask: gradient checkpointing computes again under the mask
that the forward pass saw, and another thread sees nothing of it. A key-value head that serves several heads keeps as
much of itself as the one among them that keeps most.

Source: ours. Weights in place of activations, as parameters are interpolated by Ilharco et al. 2023 (arXiv:2212.04089)
for a whole model; from a model before training Prakash et al. 2024 (arXiv:2402.14811) patch activations.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safe_sail.circuits.baselines import ZERO, Baseline, StartWeights
from safe_sail.circuits.entries import NOBODY, unit_owners
from safe_sail.circuits.masks import UnitSpace, View, circuit_keep, circuit_space, masked_edits, shared_copy
from safe_sail.errors import BadSettings, CircuitMismatch
from safe_sail.model.edits import Edit
from safe_sail.model.handle import HookedModel
from safe_sail.records import Circuit
from safe_sail.sites import Site


class Masked(NamedTuple):
    """What to call, and with which edits."""

    handle: HookedModel
    """The model, or a copy of it that serves this mask alone."""
    edits: Mapping[Site, Edit]


def masked(
    handle: HookedModel,
    space: UnitSpace,
    keep: Float[Tensor, " units"],
    baseline: Baseline = ZERO,
    *,
    positions: Int[Tensor, "batch seq"] | None = None,
) -> Masked:
    """The model in which each unit is `keep` of itself and `1 - keep` of the baseline; `positions` as `masked_edits`.

    Raises:
        CircuitMismatch: the mask has another length than the space, or the baseline was made for another space.
    """
    if baseline.start is None:
        return Masked(handle, masked_edits(space, keep, baseline, positions=positions))
    if keep.shape != (space.n_units,) or keep.shape != baseline.start.differs.shape:
        raise CircuitMismatch(
            f"the mask has shape {tuple(keep.shape)}, {space.model_id} has {space.n_units} units to mask here and the "
            f"baseline was made for {len(baseline.start.differs)}; make it for the same kinds of units."
        )
    return Masked(_interpolated(handle, keep, baseline.start), {})


def masked_circuit(handle: HookedModel, circuit: Circuit, view: View, baseline: Baseline = ZERO) -> Masked:
    """The model that lacks the circuit, or keeps nothing else of the units it was sought among.

    Raises:
        CircuitMismatch: the circuit is of another model.
    """
    space = circuit_space(handle, circuit)
    return masked(handle, space, circuit_keep(space, circuit, view), baseline)


def start_baseline(handle: HookedModel, start: HookedModel, space: UnitSpace) -> Baseline:
    """The baseline in which masked units take the weights that they have in the start model.

    Raises:
        CircuitMismatch: the start model is of another architecture or of other sizes, or no unit of it differs.
        BadSettings: features of an SAE are masked: no weights of the model are theirs.
    """
    if space.n_of("features"):
        raise BadSettings(
            "a start baseline is of weights, and SAE features have none in the model; mask heads and neurons."
        )
    _require_same_form(handle, start)
    owners, shared = _owners(handle, space)
    weights: dict[str, Tensor] = {}
    changes = torch.zeros(space.n_units + len(shared) + 1, dtype=torch.long)
    for name, own in handle.model.named_parameters():
        before = start.model.get_parameter(name).detach().to(own)
        unlike = (before != own).cpu()
        if name not in owners:
            changes[-1] += unlike.sum()
            continue
        changed = torch.bincount(owners[name][unlike], minlength=len(changes))
        changes += changed
        if bool(changed[:-1].any()):
            weights[name] = before
    differs = changes[: space.n_units] > 0
    for index, places in enumerate(shared):
        differs[list(places)] |= changes[space.n_units + index] > 0
    if not bool(differs.any()):
        raise CircuitMismatch(
            f"{start.model_id} and {handle.model_id} have the same weights in every unit that is masked here, so none "
            f"carries a difference; give the model as it was before the training in question."
        )
    kept = {name: owners[name].to(before.device) for name, before in weights.items()}
    return Baseline("start", start=StartWeights(start.model_id, weights, kept, shared, differs, int(changes[-1])))


def _require_same_form(handle: HookedModel, start: HookedModel) -> None:
    theirs, ours = (
        {
            "class": one.architecture.class_name,
            **{name: tuple(each.shape) for name, each in one.model.named_parameters()},
        }
        for one in (start, handle)
    )
    unlike = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if unlike:
        name = unlike[0]
        raise CircuitMismatch(
            f"start model {start.model_id} does not fit {handle.model_id}: {name} is {theirs.get(name)}, expected "
            f"{ours.get(name)}. Give the model that this one was trained from."
        )


def _owners(handle: HookedModel, space: UnitSpace) -> tuple[dict[str, Tensor], tuple[tuple[int, ...], ...]]:
    """Owners by parameter as `StartWeights` has them, and the heads of shared key-value heads."""
    dims = handle.dims
    first = {(group.kind, group.site.layer): group.first for group in space.groups}
    shared: list[tuple[int, ...]] = []
    coded: dict[str, Tensor] = {}
    for layer in range(dims.n_layers):
        places = torch.full((dims.n_heads + dims.n_kv_heads + dims.d_mlp + 1,), NOBODY)
        heads = first.get(("heads", layer))
        if heads is not None:
            places[: dims.n_heads] = torch.arange(heads, heads + dims.n_heads)
            if dims.n_kv_heads < dims.n_heads:
                group = dims.n_heads // dims.n_kv_heads
                for head in range(dims.n_kv_heads):
                    places[dims.n_heads + head] = space.n_units + len(shared)
                    shared.append(tuple(range(heads + head * group, heads + (head + 1) * group)))
        neurons = first.get(("neurons", layer))
        if neurons is not None:
            places[dims.n_heads + dims.n_kv_heads : -1] = torch.arange(neurons, neurons + dims.d_mlp)
        for name, owner in unit_owners(handle, layer).items():
            coded[name] = places[owner]  # NOBODY is -1: the last place
    last = space.n_units + len(shared)
    return {name: torch.where(each == NOBODY, last, each).int() for name, each in coded.items()}, tuple(shared)


def _interpolated(handle: HookedModel, keep: Tensor, start: StartWeights) -> HookedModel:
    """The model with modules of its own, in whose weights each unit is `keep` of itself; bit-equal where keep is 1."""
    most = [keep[list(places)].amax().reshape(1) for places in start.shared]
    of_owner = torch.cat([keep, *most, keep.new_ones(1)])
    model = shared_copy(handle)
    for name, before in start.weights.items():
        path, _, last = name.rpartition(".")
        module: torch.nn.Module = model.model.get_submodule(path)
        own, owner = module.get_parameter(last).detach(), start.owners[name]
        part = of_owner.to(own.device).index_select(0, owner.reshape(-1)).reshape(own.shape)
        mixed = torch.lerp(before, own, part.to(own.dtype))
        # no parameter any more, but a plain tensor that a gradient passes through to the mask
        delattr(module, last)
        setattr(module, last, mixed)
    return model
