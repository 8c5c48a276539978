"""Registry names to the end: the files lie where the hub's cache keeps them, so nothing is fetched."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from safe_sail.errors import SaeLoadError, SaeModelMismatch
from safe_sail.sae.load import load_sae
from safe_sail.sites import Site

D_IN, D_SAE = 6, 10


def cached_sae(cache: Path, repository: str, folder: str, **config: Any) -> dict[str, Tensor]:
    """Writes an SAE as the hub's cache holds it, in the form of SAELens before version 6; its tensors."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    snapshot = root / "snapshots" / ("0" * 40) / folder
    snapshot.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "W_enc": torch.randn(D_IN, D_SAE, generator=generator),
        "W_dec": torch.randn(D_SAE, D_IN, generator=generator),
        "b_enc": torch.randn(D_SAE, generator=generator),
        "b_dec": torch.randn(D_IN, generator=generator),
    }
    save_file(tensors, snapshot / "sae_weights.safetensors")
    save_file({"sparsity": torch.zeros(D_SAE)}, snapshot / "sparsity.safetensors")
    whole = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "model_name": "gpt2-small", **config}
    (snapshot / "cfg.json").write_text(json.dumps(whole))
    return tensors


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def inputs() -> Tensor:
    return torch.randn(5, D_IN, generator=torch.Generator().manual_seed(2)) + 0.7


def test_registered_sae_is_centred_as_the_registry_says(cache: Path) -> None:
    hook = "blocks.8.hook_resid_pre"
    tensors = cached_sae(cache, "jbloom/GPT2-Small-SAEs-Reformatted", hook, hook_point=hook)
    x = inputs()

    handle = load_sae(f"gpt2-small-res-jb/{hook}", expect_model_id="openai-community/gpt2", d_site=D_IN)

    centred = x - x.mean(-1, keepdim=True) - tensors["b_dec"]
    torch.testing.assert_close(handle.encode(x), (centred @ tensors["W_enc"] + tensors["b_enc"]).relu())
    assert (handle.ref.release, handle.ref.sae_id) == ("gpt2-small-res-jb", hook)
    assert handle.ref.slug == "gpt2-small-res-jb.blocks.8.hook_resid_pre"
    assert handle.site == Site.parse("resid_pre.8")
    assert "centred" in handle.notes[0]
    with pytest.raises(SaeModelMismatch):
        load_sae(f"gpt2-small-res-jb/{hook}", expect_model_id="openai-community/gpt2-large")


def test_norm_factor_of_the_registry_is_folded_in(cache: Path) -> None:
    hook = "blocks.1.hook_mlp_out"
    folder = "sae_group_gpt2_blocks.1.hook_mlp_out_24576:v0"
    tensors = cached_sae(
        cache, "tommmcgrath/gpt2-small-mlp-out-saes", folder, hook_point=hook, normalize_activations=True
    )
    x = inputs()

    handle = load_sae(f"gpt2-small-mlp-tm/{hook}")

    scaled = (x - x.mean(-1, keepdim=True)) * 2.3693984005104283 - tensors["b_dec"]
    torch.testing.assert_close(
        handle.encode(x), (scaled @ tensors["W_enc"] + tensors["b_enc"]).relu(), rtol=1e-5, atol=1e-5
    )


def test_registered_sae_that_was_not_fetched_says_what_to_do(cache: Path) -> None:
    assert not list(cache.iterdir())

    with pytest.raises(SaeLoadError, match=r"could not be fetched .* give the folder of a copy"):
        load_sae("gpt2-small-res-jb/blocks.8.hook_resid_pre")
