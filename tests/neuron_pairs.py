"""Pairs of tiny models for the tests of neurons: a second model whose MLPs, or whose every weight, was moved."""

import torch

from safe_sail.model import weights
from safe_sail.model.dims import block_is_sparse
from safe_sail.model.handle import HookedModel
from safe_sail.neurons.pair import ModelPair
from tests.tiny import FAMILIES, TinyModels

WITH_NEURONS = tuple(family for family in FAMILIES if family != "mixtral")
"""Families with a dense MLP; in `qwen2_moe` and `qwen3_moe` one layer of three is dense."""


def dense_layers(handle: HookedModel) -> list[int]:
    return [layer for layer, block in enumerate(handle.blocks) if not block_is_sparse(handle.architecture, block)]


def moved_mlp(tiny_models: TinyModels, family: str, size: float = 0.7) -> HookedModel:
    """The family's model with W_in of every dense MLP moved: nothing but neuron activations tells them apart."""
    moved = tiny_models.fresh(family)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in dense_layers(moved):
            W_in = weights.mlp(moved, layer).W_in
            W_in += size * W_in.std() * torch.randn(W_in.shape, generator=generator)
    return moved


def moved_blocks(tiny_models: TinyModels, family: str, layers: list[int], size: float = 0.3) -> HookedModel:
    """The family's model with every weight of these blocks moved."""
    moved = tiny_models.fresh(family)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in layers:
            for parameter in moved.blocks[layer].parameters():
                parameter += size * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return moved


def moved_all(tiny_models: TinyModels, family: str, size: float = 0.3) -> HookedModel:
    """The family's model with every weight moved, as by a full fine-tune."""
    moved = tiny_models.fresh(family)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in moved.model.parameters():
            parameter += size * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return moved


def mlp_pair(tiny_models: TinyModels, family: str, dtype: torch.dtype = torch.float32) -> ModelPair:
    first, second = tiny_models.handle(family), moved_mlp(tiny_models, family)
    if dtype == torch.float32:
        return ModelPair(first, second)
    first = tiny_models.fresh(family)
    for one in (first, second):
        one.model.to(dtype)
    return ModelPair(first, second)


def every_neuron(pair: ModelPair) -> torch.Tensor:
    d_mlp = pair.first.dims.d_mlp
    return torch.cartesian_prod(torch.tensor(pair.layers), torch.arange(d_mlp))
