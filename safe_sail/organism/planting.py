"""Planted units: which heads and neurons alone may train, and the mask that keeps every other weight as it was.

1. The heads are the planting's own; the neurons are drawn from the seed.
2. A gradient hook multiplies each weight's gradient by 1 in the units' rows and columns and by 0 elsewhere. Adam then
   moves masked entries by 0 / (0 + eps), so they keep their bits; a parameter without units takes no gradient at all.
"""

import copy
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from safe_sail.organism.recipes import OrganismShape, Planting, VariantRecipe
from safe_sail.records import HeadRef, NeuronRef, UnitRef


def draw_units(recipe: VariantRecipe, shape: OrganismShape, seed: int) -> tuple[UnitRef, ...]:
    """The units that alone train, heads first, each kind sorted; empty without a planting."""
    planting = recipe.planting
    if planting is None:
        return ()
    generator = random.Random(f"{recipe.name}/units/{seed}")
    neurons = [
        NeuronRef(layer, index)
        for layer, n_neurons in planting.neurons
        for index in generator.sample(range(shape.d_mlp), n_neurons)
    ]
    return (*sorted(planting.heads), *sorted(neurons))


def trained_entries(model: LlamaForCausalLM, units: Sequence[UnitRef], planting: Planting) -> dict[str, Tensor]:
    """Parameter name to a 0/1 tensor of its shape: 1 where the units' weights lie. Parameters without units are absent.

    Llama without grouped keys: as many key heads as query heads.
    """
    parameters = dict(model.named_parameters())
    d_head = model.config.hidden_size // model.config.num_attention_heads
    masks: dict[str, Tensor] = {}

    def mark(name: str, rows: slice | int, by_column: bool = False) -> None:
        mask = masks.setdefault(name, torch.zeros_like(parameters[name], requires_grad=False))
        if by_column:
            mask[:, rows] = 1
        else:
            mask[rows] = 1

    for unit in units:
        block = f"model.layers.{unit.layer}"
        if isinstance(unit, HeadRef):
            rows = slice(unit.index * d_head, (unit.index + 1) * d_head)
            for projection in ("q_proj", "k_proj", "v_proj"):
                mark(f"{block}.self_attn.{projection}.weight", rows)
            mark(f"{block}.self_attn.o_proj.weight", rows, by_column=True)
        else:
            mark(f"{block}.mlp.gate_proj.weight", unit.index)
            mark(f"{block}.mlp.up_proj.weight", unit.index)
            if planting.down:
                mark(f"{block}.mlp.down_proj.weight", unit.index, by_column=True)
    return masks


def train_only(model: LlamaForCausalLM, masks: Mapping[str, Tensor]) -> None:
    """Leaves gradients to the masked entries alone; every other parameter stops requiring grad."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in masks)
        if name in masks:
            mask = masks[name].to(parameter.device)
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)


def remove_units(model: LlamaForCausalLM, units: Sequence[UnitRef]) -> LlamaForCausalLM:
    """A copy of the model in which the units' outputs are zero: their columns of W_O and of the down projection are."""
    removed = copy.deepcopy(model)
    d_head = model.config.hidden_size // model.config.num_attention_heads
    with torch.no_grad():
        for unit in units:
            block = removed.model.layers[unit.layer]
            if isinstance(unit, HeadRef):
                block.self_attn.o_proj.weight[:, unit.index * d_head : (unit.index + 1) * d_head] = 0
            else:
                block.mlp.down_proj.weight[:, unit.index] = 0
    return removed
