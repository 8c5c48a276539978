"""What SAELens' metadata says of the model, against TransformerLens' own processing of a model's weights."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_sail.errors import SaeMetadataUnsupported
from safe_sail.sae.metadata import read_metadata

HOOKS = (
    "hook_embed",
    "blocks.1.hook_resid_pre",
    "blocks.1.attn.hook_z",
    "blocks.1.hook_attn_out",
    "blocks.1.hook_resid_mid",
    "blocks.1.ln2.hook_normalized",
    "blocks.1.mlp.hook_post",
    "blocks.1.hook_mlp_out",
    "blocks.1.hook_resid_post",
)

# float32 through two blocks whose weights were folded and centred: a few hundred eps of values of order 1
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def transformer_lens() -> ModuleType:
    """TransformerLens; its import takes seconds."""
    import transformer_lens

    return transformer_lens


def activations(transformer_lens: ModuleType, norm: str, **processing: bool) -> dict[str, Tensor]:
    """Values at all hooks of a random model whose weights were processed as asked."""
    config = transformer_lens.HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=8, n_heads=4, d_head=4, d_mlp=24, d_vocab=50, act_fn="gelu", seed=0,
        normalization_type=norm,
    )  # fmt: skip
    model = transformer_lens.HookedTransformer(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.2)
    settings = dict.fromkeys(
        ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases", "refactor_factored_attn_matrices"),
        False,
    )
    model.load_and_process_state_dict(model.state_dict(), **{**settings, **processing})
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor([[3, 14, 15, 9, 2, 6]]))
    return {hook: cache[hook] for hook in HOOKS}


def translated(hook: str, **processing: bool) -> Any:
    config = {
        "architecture": "standard", "d_in": 16, "d_sae": 4, "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"hook_name": hook, "model_from_pretrained_kwargs": processing},
    }  # fmt: skip
    return read_metadata(config, slug="test", release=None, sae_id="test", site=None, out_site=None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hook", HOOKS)
def test_centred_writing_weights_take_the_mean_out_of_the_stream_and_nothing_else(
    hook: str, transformer_lens: ModuleType
) -> None:
    raw = activations(transformer_lens, "LN")[hook]
    processed = activations(transformer_lens, "LN", center_writing_weights=True)[hook]
    if hook == "blocks.1.ln2.hook_normalized":
        torch.testing.assert_close(processed, raw, **CLOSE)
        return

    if translated(hook, center_writing_weights=True).form.centre_input:
        torch.testing.assert_close(processed, raw - raw.mean(-1, keepdim=True), **CLOSE)
        assert not torch.allclose(processed, raw, **CLOSE)
    else:
        torch.testing.assert_close(processed, raw, **CLOSE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", ["LN", "RMS"])
@pytest.mark.parametrize("setting", ["fold_ln", "fold_value_biases", "refactor_factored_attn_matrices"])
@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook != "blocks.1.ln2.hook_normalized"])
def test_other_processing_is_accepted_exactly_where_it_changes_nothing(
    hook: str, setting: str, norm: str, transformer_lens: ModuleType
) -> None:
    raw = activations(transformer_lens, norm)[hook]
    processed = activations(transformer_lens, norm, **{setting: True})[hook]
    try:
        translated(hook, **{setting: True})
    except SaeMetadataUnsupported:
        assert not torch.allclose(processed, raw, **CLOSE)
    else:
        torch.testing.assert_close(processed, raw, **CLOSE)


@pytest.mark.filterwarnings("ignore")
def test_normalized_hook_is_before_the_gain_and_therefore_refused(transformer_lens: ModuleType) -> None:
    hook = "blocks.1.ln2.hook_normalized"
    stream = activations(transformer_lens, "RMS")["blocks.1.hook_resid_mid"]
    before_gain = stream / (stream.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    torch.testing.assert_close(activations(transformer_lens, "RMS")[hook], before_gain, **CLOSE)
    with pytest.raises(SaeMetadataUnsupported, match="before the norm's gain"):
        translated(hook)
