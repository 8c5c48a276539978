"""`verify` finds a row that does not describe the model."""

import dataclasses
from typing import Any

import pytest
import torch
import transformers

from safe_sail.errors import ArchitectureMismatch
from safe_sail.model.handle import HookedModel
from safe_sail.model.verify import verify_model
from tests.tiny import FAMILIES, TinyModels


def with_row(handle: HookedModel, **fields: Any) -> HookedModel:
    row = dataclasses.replace(handle.architecture, **fields)
    return HookedModel(handle.model, handle.tokenizer, row, model_id=handle.model_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_true_row_passes(family: str, tiny_models: TinyModels) -> None:
    verify_model(tiny_models.handle(family))


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gemma2", {"attn_out": "self_attn.o_proj"}),
        ("gemma2", {"mlp_out": "mlp"}),
        ("olmo2", {"mlp_out": "mlp"}),
        ("llama", {"attn_out": "mlp"}),
        ("llama", {"mlp_out": "input_layernorm"}),
        ("gpt2", {"conv1d": False}),
        ("falcon", {"mlp_out_is_overwritten": False}),
        ("falcon_grouped", {"mlp_out_is_overwritten": False}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_row_is_found(family: str, fields: dict[str, Any], dtype: torch.dtype, tiny_models: TinyModels) -> None:
    handle = tiny_models.fresh(family)
    handle.model.to(dtype)
    verify_model(handle)
    with pytest.raises(ArchitectureMismatch, match=transformers.__version__):
        verify_model(with_row(handle, **fields))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_ignores_position_ids_is_found(dtype: torch.dtype, tiny_models: TinyModels) -> None:
    handle = tiny_models.fresh("gpt2")
    handle.model.to(dtype)
    inner = handle.model.transformer.forward
    handle.model.transformer.forward = lambda *args, **kwargs: inner(*args, **{**kwargs, "position_ids": None})
    with pytest.raises(ArchitectureMismatch, match="padding"):
        verify_model(handle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_projection_that_does_more_than_its_weights_is_found(dtype: torch.dtype, tiny_models: TinyModels) -> None:
    handle = tiny_models.fresh("llama")
    handle.model.to(dtype)
    module = handle.blocks[1].get_submodule("self_attn.o_proj")
    inner = module.forward
    module.forward = lambda x: inner(x) * 1.3
    with pytest.raises(ArchitectureMismatch, match=r"projection\.1"):
        verify_model(handle)


def test_weights_that_are_not_numbers_are_found(tiny_models: TinyModels) -> None:
    handle = tiny_models.fresh("llama")
    handle.model.model.layers[1].mlp.down_proj.weight[3, 3] = float("nan")
    with pytest.raises(ArchitectureMismatch, match="nan"):
        verify_model(handle)
