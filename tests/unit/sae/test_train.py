import json

import pytest
import torch
from safetensors.torch import load_file

from safe_sail.sae.train import shuffled_batches, train_saes
from safe_sail.settings import SaeRecipe

D_IN = 12
RECIPES = (
    SaeRecipe(slug="topk", architecture="topk", d_sae=32, k=3, steps=150, batch_rows=128),
    SaeRecipe(slug="batchtopk", architecture="batchtopk", d_sae=32, k=3, steps=500, batch_rows=128),
    SaeRecipe(slug="relu", architecture="standard", d_sae=32, sparsity=0.5, steps=150, batch_rows=128),
    SaeRecipe(slug="jumprelu", architecture="jumprelu", d_sae=32, sparsity=0.5, steps=150, batch_rows=128),
)


def sparse_activations(n: int, seed: int) -> torch.Tensor:
    """Sums of two of sixteen fixed directions, far from unit norm."""
    directions = torch.randn(16, D_IN, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, 16, generator=generator).topk(2, dim=1).indices
    strengths = torch.zeros(n, 16).scatter(1, chosen, 5 + 5 * torch.rand(n, 2, generator=generator))
    return strengths @ directions


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saes")
    found = train_saes(
        sparse_activations(4000, 1),
        sparse_activations(500, 2),
        RECIPES,
        folder,
        model_name="organism-aligned",
        hook_name="blocks.3.hook_resid_post",
        seed=0,
    )
    return folder, {each.recipe.slug: each.facts for each in found}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.slug)
def test_every_architecture_learns_and_is_stored_in_half_precision(trained, recipe):
    folder, facts = trained
    assert facts[recipe.slug].explained_variance > 0.6
    weights = load_file(folder / recipe.slug / "sae_weights.safetensors")
    assert all(value.dtype == torch.float16 for value in weights.values())
    config = json.loads((folder / recipe.slug / "cfg.json").read_text())
    assert config["dtype"] == "float16"
    assert config["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    assert config["metadata"]["model_name"] == "organism-aligned"


def test_topk_keeps_at_most_k_features(trained):
    _, facts = trained
    assert facts["topk"].l0 <= 3
    # Its threshold is a running mean of rate .01, so 500 steps leave half a percent of the start.
    assert facts["batchtopk"].l0 == pytest.approx(3, abs=1)


def test_facts_agree_with_a_plain_computation_from_the_stored_weights(trained):
    folder, facts = trained
    weights = load_file(folder / "topk" / "sae_weights.safetensors")
    x = sparse_activations(500, 2).double()
    w_enc, w_dec = weights["W_enc"].double(), weights["W_dec"].double()
    pre = (x - weights["b_dec"].double()) @ w_enc + weights["b_enc"].double()
    kept = torch.zeros_like(pre)
    top = pre.clamp(min=0).topk(3, dim=1)
    kept.scatter_(1, top.indices, top.values)
    residual = (kept @ w_dec + weights["b_dec"].double() - x).pow(2).sum()
    expected = 1 - residual / (x - x.mean(0)).pow(2).sum()
    # float32 against float64; a tie near the third place may move one token
    assert facts["topk"].explained_variance == pytest.approx(expected.item(), abs=1e-3)
    assert facts["topk"].dead_share == pytest.approx(1 - (kept > 0).any(0).double().mean().item(), abs=0.04)


def test_the_same_seed_gives_the_same_sae(trained, tmp_path):
    folder, _ = trained
    again = train_saes(
        sparse_activations(4000, 1),
        sparse_activations(500, 2),
        RECIPES[:1],
        tmp_path,
        model_name="organism-aligned",
        hook_name="blocks.3.hook_resid_post",
        seed=0,
    )
    list(again)
    first = load_file(folder / "topk" / "sae_weights.safetensors")
    second = load_file(tmp_path / "topk" / "sae_weights.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_pass_of_batches_holds_every_row_once():
    rows = torch.arange(12.0)[:, None]
    batches = shuffled_batches(rows, 4, seed=0)
    first_pass = torch.cat([next(batches) for _ in range(3)])
    assert sorted(first_pass.flatten().tolist()) == list(range(12))
    assert not torch.equal(torch.cat([next(batches) for _ in range(3)]), first_pass)
