"""Every architecture against SAELens' own object: loaded from its folder by us, encoded and decoded by both."""

import copy
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_sail.sae.load import load_sae
from safe_sail.sites import Site

D_IN, D_SAE, D_OUT, K = 12, 40, 9, 5
HOOK = "blocks.1.hook_resid_post"

# float32 sums of D_IN products in another order: a few eps of values of order 10
EPS = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="session")
def sae_lens() -> ModuleType:
    """SAELens; its import takes seconds."""
    import sae_lens

    return sae_lens


def randomise(sae: Any, generator: torch.Generator) -> None:
    """Random values for every parameter, biases and thresholds included, so that no term is zero by chance."""
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            if name == "threshold":
                parameter.abs_()


def build(sae_lens: ModuleType, architecture: str, **changes: Any) -> Any:
    metadata = {"model_name": "tiny", "hook_name": HOOK, "prepend_bos": True, "context_size": 64}
    metadata |= changes.pop("metadata", {})
    settings: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, **changes}
    if architecture in ("topk", "abstopk"):
        settings.setdefault("k", K)
    if "transcoder" in architecture:
        settings |= {"d_out": D_OUT, "apply_b_dec_to_input": False}
        metadata |= {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    sae_class, config_class = sae_lens.registry.SAE_CLASS_REGISTRY[architecture]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        sae = sae_class(config_class(**settings, metadata=sae_lens.saes.sae.SAEMetadata(**metadata)))
    randomise(sae, torch.Generator().manual_seed(3))
    return sae


def inputs(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.3


CASES: dict[str, dict[str, Any]] = {
    "standard": {},
    "standard_without_bias_at_input": {"apply_b_dec_to_input": False},
    "standard_layer_norm": {"normalize_activations": "layer_norm"},
    "standard_constant_norm": {"normalize_activations": "constant_norm_rescale"},
    "topk": {},
    "topk_rescaled": {"rescale_acts_by_decoder_norm": True},
    "topk_layer_norm": {"normalize_activations": "layer_norm"},
    "abstopk": {},
    "jumprelu": {},
    "jumprelu_layer_norm": {"normalize_activations": "layer_norm"},
    "gated": {},
    "gated_constant_norm": {"normalize_activations": "constant_norm_rescale"},
    "transcoder": {},
    "skip_transcoder": {},
    "jumprelu_transcoder": {},
    "jumprelu_skip_transcoder": {},
}
_ARCHITECTURES = ("jumprelu_skip_transcoder", "jumprelu_transcoder", "skip_transcoder", "transcoder", "abstopk", "topk")


def architecture_of(case: str) -> str:
    return next(name for name in (*_ARCHITECTURES, "jumprelu", "gated", "standard") if case.startswith(name))


@pytest.mark.parametrize("case", CASES)
def test_handle_encodes_like_saelens(case: str, sae_lens: ModuleType, tmp_path: Path) -> None:
    theirs = build(sae_lens, architecture_of(case), **CASES[case])
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path)
    x = inputs(2, 3, D_IN)

    expected = theirs.encode(x)

    torch.testing.assert_close(ours.encode(x), expected, rtol=0, atol=0)
    assert 0 < (expected != 0).float().mean() < 1
    assert (ours.ref.architecture, ours.d_in, ours.d_sae) == (architecture_of(case), D_IN, D_SAE)


@pytest.mark.parametrize("case", CASES)
def test_handle_reconstructs_like_saelens(case: str, sae_lens: ModuleType, tmp_path: Path) -> None:
    theirs = build(sae_lens, architecture_of(case), **CASES[case])
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path)
    x = inputs(2, 3, D_IN)

    torch.testing.assert_close(ours.reconstruct(x), theirs(x), **EPS)
    assert (ours.reconstruct(x + 1) - ours.reconstruct(x)).abs().max() > 0.1
    if not ours.decode_needs_input:
        torch.testing.assert_close(ours.decode(ours.encode(x)), theirs.decode(theirs.encode(x)), **EPS)


@pytest.mark.parametrize("case", CASES)
def test_subset_equals_columns_of_the_full_code(case: str, sae_lens: ModuleType, tmp_path: Path) -> None:
    theirs = build(sae_lens, architecture_of(case), **CASES[case])
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path)
    x, features = inputs(4, D_IN), torch.tensor([7, 0, 39, 7])

    columns = theirs.encode(x)[:, features]

    torch.testing.assert_close(ours.encode(x, features), columns, **EPS)
    assert ours.subset_is_cheap == ("topk" not in case)
    assert not torch.allclose(ours.encode(x, features + torch.tensor([1, 1, -1, 1])), columns)


@pytest.mark.parametrize("case", CASES)
def test_decoder_row_is_what_one_unit_of_activation_adds(case: str, sae_lens: ModuleType, tmp_path: Path) -> None:
    theirs = build(sae_lens, architecture_of(case), **{**CASES[case], "normalize_activations": "none"})
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path)
    one = torch.zeros(1, D_SAE)
    one[0, 11] = 1.0

    added = theirs.decode(one) - theirs.decode(torch.zeros(1, D_SAE))

    torch.testing.assert_close(ours.decoder_row(11), added[0], **EPS)
    torch.testing.assert_close(ours.decoder[11], added[0], **EPS)


@pytest.mark.parametrize("architecture", ["standard", "topk_rescaled", "jumprelu", "gated", "transcoder"])
def test_encoder_row_is_the_gradient_of_an_active_feature(
    architecture: str, sae_lens: ModuleType, tmp_path: Path
) -> None:
    theirs = build(sae_lens, architecture_of(architecture), **CASES[architecture])
    if architecture == "gated":
        with torch.no_grad():
            theirs.r_mag.zero_()  # the magnitude path then has the gate's slope
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path)
    x = inputs(1, D_IN).requires_grad_()
    code = theirs.encode(x)
    feature = int(code[0].argmax())

    (gradient,) = torch.autograd.grad(code[0, feature], x)

    torch.testing.assert_close(ours.encoder_row(feature), gradient[0], **EPS)


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_sparse_code_scattered_equals_the_dense_one(architecture: str, sae_lens: ModuleType, tmp_path: Path) -> None:
    theirs = build(sae_lens, architecture)
    theirs.save_model(tmp_path)
    x = inputs(3, 2, D_IN)

    code = load_sae(tmp_path).encode_topk(x)

    assert code.indices.shape == (3, 2, K)
    assert torch.equal(torch.zeros(3, 2, D_SAE).scatter(-1, code.indices, code.values), theirs.encode(x))


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_batch_topk_comes_back_as_thresholds(architecture: str, sae_lens: ModuleType, tmp_path: Path) -> None:
    sae_class, config_class = sae_lens.registry.SAE_TRAINING_CLASS_REGISTRY[architecture]
    extra = {"matryoshka_widths": [10, D_SAE]} if architecture.startswith("matryoshka") else {}
    metadata = sae_lens.saes.sae.SAEMetadata(model_name="tiny", hook_name=HOOK)
    trained = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, k=float(K), metadata=metadata, **extra))
    randomise(trained, torch.Generator().manual_seed(3))
    trained.topk_threshold.fill_(0.8)
    trained.save_inference_model(tmp_path)
    x = inputs(6, D_IN)

    ours = load_sae(tmp_path)

    hidden = (x - trained.b_dec) @ trained.W_enc + trained.b_enc
    hidden = hidden * trained.W_dec.norm(dim=-1)
    by_hand = torch.where(hidden > 0.8, hidden, 0)
    torch.testing.assert_close(ours.encode(x), by_hand, rtol=1e-4, atol=1e-4)
    assert ours.ref.architecture == "jumprelu"
    assert ours.subset_is_cheap


def test_centred_sae_sees_centred_input(sae_lens: ModuleType, tmp_path: Path) -> None:
    metadata = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    theirs = build(sae_lens, "standard", metadata=metadata)
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path)
    x = inputs(3, D_IN)
    mean = x.mean(-1, keepdim=True)

    torch.testing.assert_close(ours.encode(x), theirs.encode(x - mean), rtol=0, atol=0)
    torch.testing.assert_close(ours.reconstruct(x), theirs(x - mean) + mean, **EPS)
    assert not torch.allclose(ours.encode(x), theirs.encode(x))
    assert any("centred" in note for note in ours.notes)
    assert ours.decode_needs_input


def test_heads_are_read_side_by_side_and_written_back(sae_lens: ModuleType, tmp_path: Path) -> None:
    metadata = {"hook_name": "blocks.0.attn.hook_z"}
    theirs = build(sae_lens, "jumprelu", reshape_activations="hook_z", metadata=metadata)
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path)
    z = inputs(2, 3, 4, D_IN // 4)

    assert torch.equal(ours.encode(z), theirs.encode(z))
    torch.testing.assert_close(ours.reconstruct(z), theirs(z), **EPS)
    assert ours.site == Site.parse("head_out.0")
    assert not torch.equal(ours.encode(z.flip(-2)), theirs.encode(z))


def test_one_head_is_picked_and_only_that_head_is_replaced(sae_lens: ModuleType, tmp_path: Path) -> None:
    metadata = {"hook_name": "blocks.0.attn.hook_z", "hook_head_index": 2}
    theirs = build(sae_lens, "standard", metadata=metadata)
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path)
    z = inputs(2, 3, 4, D_IN)
    before = z.clone()

    assert torch.equal(ours.encode(z), theirs.encode(z[..., 2, :]))
    rebuilt = ours.reconstruct(z)
    torch.testing.assert_close(rebuilt[..., 2, :], theirs(z[..., 2, :]), **EPS)
    assert torch.equal(rebuilt[..., [0, 1, 3], :], z[..., [0, 1, 3], :])
    assert torch.equal(z, before)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_weights_compute_in_the_asked_precision(
    stored: torch.dtype, sae_lens: ModuleType, tmp_path: Path
) -> None:
    theirs = build(sae_lens, "jumprelu").to(stored)
    theirs.save_model(tmp_path)
    x = inputs(3, D_IN)

    ours = load_sae(tmp_path, dtype=torch.float32)

    assert ours.dtype is torch.float32
    assert torch.equal(ours.encode(x), copy.deepcopy(theirs).to(torch.float32).encode(x))
    assert not torch.equal(ours.encode(x), theirs.encode(x).float())


def test_folder_written_before_version_six_is_read(sae_lens: ModuleType, tmp_path: Path) -> None:
    theirs = build(sae_lens, "topk")
    theirs.save_model(tmp_path)
    (tmp_path / "cfg.json").write_text(
        f'{{"d_in": {D_IN}, "d_sae": {D_SAE}, "dtype": "float32", "hook_point": "{HOOK}", "model_name": "tiny", '
        f'"activation_fn_str": "topk", "activation_fn_kwargs": {{"k": {K}}}, "normalize_activations": false}}'
    )
    x = inputs(3, D_IN)

    ours = load_sae(tmp_path)

    assert torch.equal(ours.encode(x), theirs.encode(x))
    assert (ours.site, ours.ref.model_id) == (Site.parse("resid_post.1"), "tiny")
