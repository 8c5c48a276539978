"""Which numbers of a model's parameters belong to which heads and neurons, for every family of the table.

1. A copy of one block holds in place of every number its own place, counted over the block's parameters.
2. The canonical views (`model/weights.py`) of that copy say where each unit's rows lie, however they are stored: fused,
   grouped, transposed, or copied by the view.
3. A neuron has its rows of W_in, W_gate and W_out and its biases; a head its rows of W_Q and W_O, its bias, and its
   part of W_K and W_V. Key-value heads may serve several heads: `shared="whole"` gives them to a set that holds all of
   these, `shared="touched"` to a set that holds one.
4. The other way round, `unit_owners` says of every number of a block whose it is.
"""

import copy
from collections import defaultdict
from collections.abc import Collection
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from safe_sail.errors import BadInput
from safe_sail.model import weights
from safe_sail.model.handle import HookedModel
from safe_sail.records import HeadRef, UnitRef
from safe_sail.sites import Site, SiteKind

Entries = dict[str, Int[Tensor, " entries"]]
"""By full parameter name: places in the flattened parameter, ascending."""

Shared = Literal["whole", "touched"]

NOBODY = -1
"""Owner of numbers that belong to no unit: norms, biases of what all units write, routers."""


def unit_entries(handle: HookedModel, units: Collection[UnitRef], *, shared: Shared) -> Entries:
    """Where the units' weights lie.

    Raises:
        BadInput: a unit is beyond the model.
        BadSite: a neuron is named in a mixture of experts.
    """
    by_layer: dict[int, list[UnitRef]] = defaultdict(list)
    for unit in units:
        handle.check_site(unit.site)
        n = handle.site_shape(unit.site)[0]
        if unit.index >= n:
            raise BadInput(f"{unit}: `{unit.site}` of {handle.model_id} has {n} units, counted from 0.")
        by_layer[unit.layer].append(unit)
    found: Entries = {}
    for layer, chosen in sorted(by_layer.items()):
        found |= _in_block(handle, layer, chosen, shared)
    return found


def unit_owners(handle: HookedModel, layer: int) -> dict[str, Int[Tensor, "*shape"]]:
    """By full parameter name of one block, whose each number is: head h is h, key-value head k is n_heads + k, neuron i
    is n_heads + n_kv_heads + i, and `NOBODY` is -1.

    Where every head has keys and values of its own these are the head's. A mixture of experts has no neurons.
    """
    places, dims = _own_places(handle, layer), handle.dims
    owner = torch.full((places.n,), NOBODY)
    views = weights.heads(places.handle, layer)
    alone = dims.n_kv_heads == dims.n_heads
    rows = [(views.W_Q, 0), (views.b_Q, 0), (weights.W_O(places.handle, layer), 0)]
    rows += [(view, 0 if alone else dims.n_heads) for view in (views.W_K, views.b_K, views.W_V, views.b_V)]
    if handle.has_site(Site(SiteKind.MLP_ACT, layer)):
        mlp = weights.mlp(places.handle, layer)
        first = dims.n_heads + dims.n_kv_heads
        rows += [(view, first) for view in (mlp.W_in, mlp.W_gate, mlp.W_out, mlp.b_in, mlp.b_gate)]
    for view, first in rows:
        if view is not None:
            flat = view.reshape(len(view), -1).long()
            owner[flat] = torch.arange(first, first + len(view))[:, None].expand_as(flat)
    parts = owner.split([handle.model.get_parameter(name).numel() for name in places.names])
    return {
        name: part.reshape(handle.model.get_parameter(name).shape)
        for name, part in zip(places.names, parts, strict=True)
    }


def block_entries(handle: HookedModel) -> Entries:
    """Every number of every block: what full tuning trains. Embeddings, the last norm and the head stay."""
    names = _block_names(handle)
    return {name: torch.arange(handle.model.get_parameter(name).numel()) for layer in names for name in layer}


def unread_entries(handle: HookedModel, units: Collection[UnitRef]) -> Entries:
    """Every number of the blocks that no value of these units depends on: trained alone, it leaves these values their
    bits on every text.

    These are the blocks after the last unit's, and in its own block the other neurons. Heads of that block are left
    out: neurons read them, and in some families one norm spans the queries of all heads.
    """
    if not units:
        return block_entries(handle)
    last = max(unit.layer for unit in units)
    names = [name for block in _block_names(handle)[last + 1 :] for name in block]
    found = {name: torch.arange(handle.model.get_parameter(name).numel()) for name in names}
    first_neuron = handle.dims.n_heads + handle.dims.n_kv_heads
    for name, owner in unit_owners(handle, last).items():
        index = (owner.flatten() >= first_neuron).nonzero()[:, 0]
        if len(index):
            found[name] = index
    return without(found, unit_entries(handle, units, shared="touched"))


def without(entries: Entries, taken: Entries) -> Entries:
    """The entries that are not taken."""
    left = {name: index[~torch.isin(index, taken[name])] if name in taken else index for name, index in entries.items()}
    return {name: index for name, index in left.items() if len(index)}


def n_entries(entries: Entries) -> int:
    """How many numbers they are."""
    return sum(len(index) for index in entries.values())


def _block_names(handle: HookedModel) -> list[list[str]]:
    prefix = handle.architecture.blocks
    return [
        [f"{prefix}.{layer}.{name}" for name, _ in block.named_parameters()]
        for layer, block in enumerate(handle.blocks)
    ]


class _Places(NamedTuple):
    """A block in which every number is its own place, counted over the block's parameters."""

    handle: HookedModel
    names: list[str]
    """Full names of the parameters."""
    starts: list[int]
    """Place of each parameter's first number."""
    n: int
    """Numbers of the block."""


def _own_places(handle: HookedModel, layer: int) -> _Places:
    block = copy.deepcopy(handle.blocks[layer])
    names, starts, n = [], [], 0
    for name, parameter in block.named_parameters():
        names.append(f"{handle.architecture.blocks}.{layer}.{name}")
        starts.append(n)
        # float64 counts exactly up to 2**53, and views of a float parameter stay views
        parameter.data = torch.arange(n, n + parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
        n += parameter.numel()
    places = copy.copy(handle)
    places.blocks = (*handle.blocks[:layer], block, *handle.blocks[layer + 1 :])
    return _Places(places, names, starts, n)


def _in_block(handle: HookedModel, layer: int, units: list[UnitRef], shared: Shared) -> Entries:
    places, names, starts, _ = _own_places(handle, layer)
    heads = {unit.index for unit in units if isinstance(unit, HeadRef)}
    neurons = sorted({unit.index for unit in units if not isinstance(unit, HeadRef)})
    rows = _head_rows(places, layer, heads, shared) if heads else []
    rows += _neuron_rows(places, layer, neurons) if neurons else []
    flat = torch.cat([row.reshape(-1) for row in rows]).long().unique()
    owner = torch.bucketize(flat, torch.tensor(starts), right=True) - 1
    return {names[place]: flat[owner == place] - starts[place] for place in owner.unique().tolist()}


def _head_rows(places: HookedModel, layer: int, heads: set[int], shared: Shared) -> list[Tensor]:
    views, group = weights.heads(places, layer), places.dims.n_heads // places.dims.n_kv_heads
    served = {kv: set(range(kv * group, (kv + 1) * group)) for kv in range(places.dims.n_kv_heads)}
    some = [kv for kv, own in served.items() if (own <= heads if shared == "whole" else own & heads)]
    chosen = sorted(heads)
    pairs = [
        (views.W_Q, chosen), (views.b_Q, chosen), (weights.W_O(places, layer), chosen),
        (views.W_K, some), (views.b_K, some), (views.W_V, some), (views.b_V, some),
    ]  # fmt: skip
    return [view[index] for view, index in pairs if view is not None and index]


def _neuron_rows(places: HookedModel, layer: int, neurons: list[int]) -> list[Tensor]:
    mlp = weights.mlp(places, layer)
    views = (mlp.W_in, mlp.W_gate, mlp.W_out, mlp.b_in, mlp.b_gate)
    return [view[neurons] for view in views if view is not None]
