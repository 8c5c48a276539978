"""Edited weights against ablation by hooks, family by family, and the edits that are refused or would not be exact."""

import pytest
import torch

from safe_sail.directions import orthogonalise
from safe_sail.directions.interventions import ablation
from safe_sail.directions.projection import orthonormal_basis, random_directions
from safe_sail.errors import OrthogonaliseRefused
from safe_sail.model import weights
from safe_sail.model.handle import HookedModel
from tests.tiny import FAMILIES, TEXTS, TinyModels

POST_NORM = ("gemma2", "gemma3", "olmo2")
EXACT = [family for family in FAMILIES if family not in POST_NORM]


def basis_of(rank: int) -> torch.Tensor:
    return orthonormal_basis(random_directions(rank, 32, 1.0, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("family", EXACT)
def test_edited_weights_equal_ablation_by_hooks(family: str, rank: int, tiny_models: TinyModels):
    handle, basis = tiny_models.handle(family), basis_of(rank)
    batch = handle.batch(TEXTS)
    before = handle.logits(batch)
    gap = orthogonalise.weights_gap(handle, batch, basis)
    assert gap < 2e-5  # float32 rounding of size 1e-7 through two or three blocks
    assert (handle.logits(batch, ablation(handle, basis)) - before).abs().max() > 0.05
    assert torch.equal(handle.logits(batch), before)  # the model itself is as it was


@pytest.mark.parametrize("family", POST_NORM)
def test_a_post_norm_is_refused_with_the_reason(family: str, tiny_models: TinyModels):
    handle = tiny_models.handle(family)
    with pytest.raises(OrthogonaliseRefused, match="norm between its writing matrices and the stream"):
        orthogonalise.orthogonalised(handle, basis_of(1))


def test_the_edited_copy_is_untied_and_the_model_stays_tied(tiny_models: TinyModels):
    handle = tiny_models.handle("llama_tied")
    edited = orthogonalise.orthogonalised(handle, basis_of(1))
    assert weights.is_tied(handle)
    assert not weights.is_tied(edited)
    assert torch.equal(weights.W_U(edited), weights.W_U(handle))
    assert not torch.equal(weights.W_E(edited), weights.W_E(handle))


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gpt_neox", "qwen2_moe"])
def test_leaving_out_a_writer_is_found_by_the_self_check(
    family: str, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
):
    """Each family loses the writer that published edits forget: tied head, positions, a bias, the shared expert."""
    handle = tiny_models.handle(family)
    whole = orthogonalise._writers

    def without(model: HookedModel) -> list[torch.Tensor]:
        lost = {
            "llama_tied": weights.W_E(model),
            "gpt2": weights.W_pos(model),
            "gpt_neox": weights.b_O(model, 0),
            "qwen2_moe": getattr(weights.shared_expert(model, 0), "W_out", None),
        }[family]
        assert lost is not None
        return [writer for writer in whole(model) if writer.data_ptr() != lost.data_ptr()]

    monkeypatch.setattr(orthogonalise, "_writers", without)
    with pytest.raises(OrthogonaliseRefused, match="something writes into the stream"):
        orthogonalise.weights_gap(handle, handle.batch(TEXTS), basis_of(1))


def test_a_half_precision_model_is_compared_in_float32(tiny_models: TinyModels):
    handle = tiny_models.fresh("llama")
    handle.model.to(torch.bfloat16)
    assert orthogonalise.weights_gap(handle, handle.batch(TEXTS), basis_of(1)) < 2e-5
    assert handle.dtype == torch.bfloat16
