"""Bad input of every kind is refused by name; good metadata becomes a site, a formula and a record."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from safe_sail.errors import (
    BadInput,
    DamagedWeights,
    DeviceUnavailable,
    FileMissing,
    SaeLoadError,
    SaeMetadataUnsupported,
    SaeModelMismatch,
    SaeWidthMismatch,
    UnsafeWeights,
)
from safe_sail.sae.load import find_in_registry, load_sae
from safe_sail.sites import Site

D_IN, D_SAE = 6, 10


def write_folder(
    folder: Path,
    *,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
    **config: Any,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    described = {"model_name": "org/Tiny-Model", "hook_name": "blocks.1.hook_resid_post", "sae_lens_version": "6.54.12"}
    described |= metadata or {}
    generator = torch.Generator().manual_seed(1)
    weights = {
        "W_enc": torch.randn(D_IN, D_SAE, generator=generator),
        "W_dec": torch.randn(D_SAE, D_IN, generator=generator),
        "b_enc": torch.randn(D_SAE, generator=generator),
        "b_dec": torch.randn(D_IN, generator=generator),
    } | (tensors or {})
    save_file(weights, folder / "sae_weights.safetensors")
    whole = {
        "architecture": "standard",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {key: value for key, value in described.items() if value is not None},
    }
    (folder / "cfg.json").write_text(json.dumps(whole | config))
    return folder


def test_record_says_where_the_sae_comes_from(tmp_path: Path) -> None:
    handle = load_sae(write_folder(tmp_path / "my sae", metadata={"prepend_bos": False, "context_size": 128}))

    assert handle.ref.slug == "my-sae"
    assert (handle.ref.release, handle.ref.sae_id, handle.ref.model_id) == (None, "my sae", "org/Tiny-Model")
    assert (handle.ref.site, handle.ref.d_in, handle.ref.width) == (Site.parse("resid_post.1"), D_IN, D_SAE)
    assert (handle.prepend_bos, handle.context_size, handle.notes) == (False, 128, ())
    assert load_sae(tmp_path / "my sae", slug="other").ref.slug == "other"


@pytest.mark.parametrize(
    ("hook_name", "site"),
    [
        ("blocks.1.hook_resid_pre", "resid_pre.1"),
        ("blocks.1.hook_mlp_out", "mlp_out.1"),
        ("blocks.1.hook_out", "resid_post.1"),
        ("blocks.1.attn.hook_out", "attn_out.1"),
        ("model.layers.1", "resid_post.1"),
        ("transformer.h.1", "resid_post.1"),
        ("mlp_act.1", "mlp_act.1"),
    ],
)
def test_every_hook_name_style_becomes_a_site(hook_name: str, site: str, tmp_path: Path) -> None:
    assert load_sae(write_folder(tmp_path, metadata={"hook_name": hook_name})).site == Site.parse(site)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match=r"nowhere.*does not exist; expected a folder"):
        load_sae(tmp_path / "nowhere")


@pytest.mark.parametrize("missing", ["cfg.json", "sae_weights.safetensors"])
def test_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / missing).unlink()

    with pytest.raises(FileMissing, match=f"has no {missing}"):
        load_sae(tmp_path)


@pytest.mark.parametrize("name", ["sae_weights.pt", "pytorch_model.bin", "ae.pkl"])
def test_pickled_weights_are_refused_unread(name: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "sae_weights.safetensors").rename(tmp_path / name)

    with pytest.raises(UnsafeWeights, match=f"{name}.*can run code"):
        load_sae(tmp_path)


@pytest.mark.parametrize("kept", [0, 7, 200, -1])
def test_truncated_safetensors_are_damaged(kept: int, tmp_path: Path) -> None:
    file = write_folder(tmp_path) / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:kept])

    with pytest.raises(DamagedWeights, match="not a whole safetensors file"):
        load_sae(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_damaged(bad: float, tmp_path: Path) -> None:
    bias = torch.zeros(D_SAE)
    bias[4] = bad

    with pytest.raises(DamagedWeights, match="1 of 10 numbers of b_enc are NaN or infinite"):
        load_sae(write_folder(tmp_path, tensors={"b_enc": bias}))


def test_tensors_of_another_shape_are_damaged(tmp_path: Path) -> None:
    with pytest.raises(DamagedWeights, match=r"do not fit its cfg\.json"):
        load_sae(write_folder(tmp_path, tensors={"W_enc": torch.zeros(D_IN + 1, D_SAE)}))


def test_tensor_that_the_architecture_lacks_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(DamagedWeights, match="threshold"):
        load_sae(write_folder(tmp_path, tensors={"threshold": torch.zeros(D_SAE)}))


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"d_in": 6}', "\udcff"])
def test_configuration_that_is_no_configuration_is_refused(text: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "cfg.json").write_bytes(text.encode("utf-8", "surrogateescape"))

    with pytest.raises(SaeMetadataUnsupported, match=r"cfg\.json"):
        load_sae(tmp_path)


def test_wrong_width_names_both_widths(tmp_path: Path) -> None:
    write_folder(tmp_path)

    with pytest.raises(SaeWidthMismatch, match=r"`resid_post.1` of .* is 8 wide, SAE .* expects 6"):
        load_sae(tmp_path, d_site=8, expect_model_id="tiny-model")
    assert load_sae(tmp_path, d_site=6).d_in == D_IN


def test_wrong_model_names_both_models(tmp_path: Path) -> None:
    write_folder(tmp_path)

    with pytest.raises(SaeModelMismatch, match=r"trained for `org/Tiny-Model`, the model is `org/tiny-model-instruct`"):
        load_sae(tmp_path, expect_model_id="org/tiny-model-instruct")


@pytest.mark.parametrize(
    ("trained_for", "expected"),
    [("org/Tiny-Model", "tiny-model"), ("Tiny-Model", "/models/tiny-model/"), ("gpt2-small", "openai-community/gpt2")],
)
def test_one_model_under_two_names_is_accepted(trained_for: str, expected: str, tmp_path: Path) -> None:
    write_folder(tmp_path, metadata={"model_name": trained_for})

    assert load_sae(tmp_path, expect_model_id=expected).ref.model_id == trained_for


def test_silent_metadata_is_no_mismatch(tmp_path: Path) -> None:
    handle = load_sae(write_folder(tmp_path, metadata={"model_name": None}), expect_model_id="any")

    assert handle.ref.model_id is None
    assert handle.prepend_bos is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metadata": {"hook_name": "blocks.1.hook_unheard_of"}}, "hook_unheard_of"),
        ({"metadata": {"hook_name": None}}, "does not say its hook_name; give `site`"),
        ({"metadata": {"hook_name": "blocks.1.ln2.hook_normalized"}}, "before the norm's gain"),
        ({"metadata": {"hook_name": "blocks.1.hook_mlp_in"}}, "residual stream before the norm"),
        ({"metadata": {"hook_head_index": 3}}, "reads heads"),
        ({"metadata": {"hook_head_index_out": 3}}, "writes to one head"),
        ({"metadata": {"model_from_pretrained_kwargs": {"revision": "step1000"}}}, "revision='step1000'"),
        ({"metadata": {"model_from_pretrained_kwargs": {"unheard_of": 1}}}, "unheard_of=1"),
        ({"normalize_activations": "expected_average_only_in"}, "the factor was not folded"),
        ({"normalize_activations": "covariance_whitening"}, "the whitening was not folded"),
        ({"normalize_activations": "unheard_of"}, "SAELens refuses"),
        ({"architecture": "unheard_of"}, "`unheard_of` SAE; SAELens knows"),
        ({"architecture": "matching_pursuit"}, "matching_pursuit"),
        ({"activation_fn_str": "tanh-relu"}, "tanh-relu"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
        ({"reshape_activations": "hook_z"}, "SAELens refuses"),
        ({"reshape_activations": 5}, "reshape_activations `5` is not known"),
        ({"metadata": {"hook_name": 5}}, "`hook_name` must be of type str, got 5"),
        ({"metadata": {"hook_head_index": True}}, "`hook_head_index` must be of type int, got True"),
        ({"metadata": {"hook_name": "blocks.1.attn.hook_z", "hook_head_index": -1}}, "heads count from 0"),
        ({"metadata": {"model_from_pretrained_kwargs": "x"}}, "must be of type dict"),
        ({"metadata": {"seqpos_slice": 5}}, "must be of type list"),
        ({"d_in": 6.5}, "`d_in` must be of type int"),
        ({"d_sae": 0}, "`d_sae` must be positive"),
        ({"architecture": ["standard"]}, "`architecture` must be of type str"),
        ({"architecture": "topk", "k": None}, "`k` must be of type int"),
        ({"sae_lens_version": "x"}, "SAELens refuses"),
    ],
)
def test_metadata_that_cannot_be_honoured_says_what_and_why(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    tensors = {}
    if changes.get("architecture") == "matching_pursuit":
        write_folder(tmp_path, **changes)
        save_file({"W_dec": torch.ones(D_SAE, D_IN), "b_dec": torch.ones(D_IN)}, tmp_path / "sae_weights.safetensors")
    else:
        write_folder(tmp_path, tensors=tensors, **changes)

    with pytest.raises(SaeMetadataUnsupported, match=says):
        load_sae(tmp_path)


def test_metadata_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    for odd in (None, 5, "x", []):
        config = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps({**config, "metadata": odd}))
        with pytest.raises(SaeMetadataUnsupported, match="`metadata` must be of type dict"):
            load_sae(folder)


@pytest.mark.parametrize("key", ["fold_ln", "fold_value_biases", "center_unembed", "dtype"])
def test_model_settings_that_leave_the_site_alone_are_accepted(key: str, tmp_path: Path) -> None:
    kwargs = {key: "bfloat16" if key == "dtype" else True, "center_writing_weights": False}

    handle = load_sae(write_folder(tmp_path, metadata={"model_from_pretrained_kwargs": kwargs}))

    assert not handle.form.centre_input


def test_folded_norm_is_refused_where_it_changes_the_site(tmp_path: Path) -> None:
    metadata = {"hook_name": "blocks.1.mlp.hook_in", "model_from_pretrained_kwargs": {"fold_ln": True}}

    with pytest.raises(SaeMetadataUnsupported, match=r"fold_ln=True, which changes `mlp_in\.1`"):
        load_sae(write_folder(tmp_path, metadata=metadata))
    metadata["model_from_pretrained_kwargs"] = {"fold_ln": False}
    assert load_sae(write_folder(tmp_path, metadata=metadata)).site == Site.parse("mlp_in.1")


def test_centring_is_only_for_sites_in_the_stream(tmp_path: Path) -> None:
    kwargs = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    inside = load_sae(write_folder(tmp_path / "a", metadata=kwargs))
    outside = load_sae(write_folder(tmp_path / "b", metadata={**kwargs, "hook_name": "blocks.1.mlp.hook_post"}))

    assert (inside.form.centre_input, outside.form.centre_input) == (True, False)


def test_named_site_stands_in_for_an_ambiguous_hook_and_is_noted(tmp_path: Path) -> None:
    write_folder(tmp_path, metadata={"hook_name": "blocks.1.ln2.hook_normalized"})

    handle = load_sae(tmp_path, site=Site.parse("mlp_in.1"))

    assert handle.site == Site.parse("mlp_in.1")
    assert "blocks.1.ln2.hook_normalized" in handle.notes[0]


def test_named_site_may_not_contradict_the_metadata(tmp_path: Path) -> None:
    with pytest.raises(SaeMetadataUnsupported, match=r"means `resid_post.1`, the caller says `resid_post.2`"):
        load_sae(write_folder(tmp_path), site=Site.parse("resid_post.2"))


def test_training_positions_are_noted(tmp_path: Path) -> None:
    assert (
        "positions (1, None, None)"
        in load_sae(write_folder(tmp_path, metadata={"seqpos_slice": [1, None, None]})).notes[0]
    )


def test_registry_name_is_found_without_a_network() -> None:
    assert find_in_registry("gpt2-small-res-jb/blocks.8.hook_resid_pre") == (
        "gpt2-small-res-jb",
        "blocks.8.hook_resid_pre",
    )


def test_registry_id_may_hold_slashes() -> None:
    assert find_in_registry("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71")[1].count("/") == 2


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("gpt2-small-res-jp/blocks.8.hook_resid_pre", "gpt2-small-res-jb"),
        ("gpt2-small-res-jb/blocks.8.hook_resid_prae", "blocks.8.hook_resid_pre"),
    ],
)
def test_unknown_registry_name_lists_close_ones(name: str, close: str) -> None:
    with pytest.raises(SaeLoadError, match=f"Close names: .*{close}"):
        load_sae(name)


def test_name_unlike_any_release_says_so() -> None:
    with pytest.raises(SaeLoadError, match="No name is close to it"):
        load_sae("qqqqqqqqqq/zzz")


def test_registry_without_a_network_says_what_to_do() -> None:
    with pytest.raises(SaeLoadError, match=r"could not be fetched .* give the folder of a copy"):
        load_sae("gpt2-small-res-jb/blocks.8.hook_resid_pre")


def test_feature_outside_the_sae_is_refused(tmp_path: Path) -> None:
    handle = load_sae(write_folder(tmp_path))

    for bad in ([0, D_SAE], [-1]):
        with pytest.raises(BadInput, match=r"features of SAE .* are 0 to 9"):
            handle.encode(torch.zeros(2, D_IN), torch.tensor(bad))
    with pytest.raises(BadInput):
        handle.decoder_row(D_SAE)
    assert handle.encode(torch.zeros(2, D_IN), torch.tensor([], dtype=torch.long)).shape == (2, 0)


def test_input_and_activations_of_another_width_are_refused(tmp_path: Path) -> None:
    handle = load_sae(write_folder(tmp_path))

    with pytest.raises(SaeWidthMismatch, match="6 wide, got 7"):
        handle.encode(torch.zeros(2, D_IN + 1))
    with pytest.raises(SaeWidthMismatch, match="decodes 10 activations"):
        handle.decode(torch.zeros(2, D_SAE - 1))


def test_other_precision_leaves_the_first_handle_as_it_was(tmp_path: Path) -> None:
    handle = load_sae(write_folder(tmp_path))

    half = handle.to(dtype=torch.float16)

    assert (handle.dtype, half.dtype) == (torch.float32, torch.float16)
    assert half.encode(torch.ones(1, D_IN)).dtype is torch.float16
    assert half.ref == handle.ref


def test_weights_take_no_part_in_gradients_and_inputs_do(tmp_path: Path) -> None:
    handle = load_sae(write_folder(tmp_path))
    x = torch.ones(1, D_IN, requires_grad=True)

    handle.reconstruct(x).sum().backward()

    assert not handle.decoder.requires_grad
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_sparse_code_needs_a_fixed_number_of_features(tmp_path: Path) -> None:
    with pytest.raises(SaeMetadataUnsupported, match="keeps no fixed number"):
        load_sae(write_folder(tmp_path)).encode_topk(torch.zeros(1, D_IN))


def test_k_beyond_the_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaeMetadataUnsupported, match="k must be 1 to 10, got 11"):
        load_sae(write_folder(tmp_path, architecture="topk", k=11))


def write_transcoder(folder: Path, **metadata: Any) -> Path:
    described = {"hook_name": "blocks.1.mlp.hook_in", **metadata}
    return write_folder(folder, metadata=described, architecture="transcoder", apply_b_dec_to_input=False, d_out=D_IN)


def test_transcoder_writes_where_its_metadata_says(tmp_path: Path) -> None:
    handle = load_sae(write_transcoder(tmp_path, hook_name_out="blocks.1.hook_mlp_out"))

    assert (handle.site, handle.out_site) == (Site.parse("mlp_in.1"), Site.parse("mlp_out.1"))
    assert handle.is_transcoder


def test_transcoder_that_does_not_say_where_it_writes_is_refused(tmp_path: Path) -> None:
    write_transcoder(tmp_path)

    with pytest.raises(SaeMetadataUnsupported, match="does not say its hook_name_out; give `out_site`"):
        load_sae(tmp_path)
    assert load_sae(tmp_path, out_site=Site.parse("mlp_out.1")).is_transcoder


def test_device_that_is_not_there_and_type_without_fractions_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)

    with pytest.raises(DeviceUnavailable):
        load_sae(tmp_path, device="cuda:99")
    with pytest.raises(BadInput, match="floating point"):
        load_sae(tmp_path, dtype=torch.int64)


def test_module_name_settles_what_an_ambiguous_hook_means(tmp_path: Path) -> None:
    names = {"hook_name": "blocks.7.hook_mlp_in", "hook_name_out": "blocks.7.hook_mlp_out"}
    write_transcoder(tmp_path, **names, hf_hook_name="model.layers.7.pre_feedforward_layernorm.output")

    assert load_sae(tmp_path).site == Site.parse("mlp_in.7")
    with pytest.raises(SaeMetadataUnsupported, match="the caller says"):
        load_sae(tmp_path, site=Site.parse("resid_mid.7"))
    write_transcoder(tmp_path, **names, hf_hook_name="model.layers.8.pre_feedforward_layernorm.output")
    with pytest.raises(SaeMetadataUnsupported, match="residual stream before the norm"):
        load_sae(tmp_path)


BEFORE_GAIN = {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out"}


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder"])
def test_gain_of_the_norm_is_folded_into_a_transcoder_that_reads_before_it(architecture: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    before, gain, bias = (torch.randn(*shape, generator=generator) for shape in ((5, D_IN), (D_IN,), (D_IN,)))
    tensors = {"W_skip": torch.randn(D_IN, D_IN, generator=generator)} if architecture == "skip_transcoder" else {}
    folder = write_folder(
        tmp_path,
        metadata=BEFORE_GAIN,
        architecture=architecture,
        tensors=tensors,
        apply_b_dec_to_input=False,
        d_out=D_IN,
    )
    unfolded = load_sae(folder, site=Site.parse("mlp_in.1"))

    folded = load_sae(folder, norm_gain=gain, norm_bias=bias)

    # division by gains as small as 0.1 multiplies the rounding by as much
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(folded.encode(before * gain + bias), unfolded.encode(before), **close)
    torch.testing.assert_close(folded.reconstruct(before * gain + bias), unfolded.reconstruct(before), **close)
    assert folded.site == Site.parse("mlp_in.1")
    assert any("gain" in note for note in folded.notes)


def test_gain_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_transcoder(tmp_path / "a", **BEFORE_GAIN)
    for gain in (torch.ones(D_IN + 1), torch.zeros(D_IN)):
        with pytest.raises(BadInput, match="are 6 numbers, no gain 0"):
            load_sae(tmp_path / "a", norm_gain=gain)
    with pytest.raises(SaeMetadataUnsupported, match="takes no norm_gain"):
        load_sae(write_folder(tmp_path / "b"), norm_gain=torch.ones(D_IN))
