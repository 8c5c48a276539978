"""Stacked checkpoints: the release's formula, its two file formats, and what is refused."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from safe_sail.errors import DamagedWeights, SaeMetadataUnsupported, UnsafeWeights
from safe_sail.sae.checkpoint import CheckpointForm
from safe_sail.sae.handle import SAEHandle
from safe_sail.sae.load import load_sae
from safe_sail.sites import Site

N_SAES, D_IN, D_SAE, K = 3, 6, 20, 4
SITE = Site.parse("mlp_out.17")


def stacked(*names: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = {
        "pre_encoder_bias._bias_reference": (N_SAES, D_IN),
        "encoder.weight": (N_SAES, D_SAE, D_IN),
        "encoder.bias": (N_SAES, D_SAE),
        "encoder.theta": (N_SAES, D_SAE),
        "decoder.weight": (N_SAES, D_IN, D_SAE),
        "post_decoder_bias._bias_reference": (N_SAES, D_IN),
    }
    everything = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    kept = (*list(shapes)[:3], *names)
    return {name: tensor for name, tensor in everything.items() if name in kept}


def load(path: Path, **form: object) -> SAEHandle:
    return load_sae(path, site=SITE, checkpoint=CheckpointForm(**{"k": K, **form}))  # type: ignore[arg-type]


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def code_as_released(tensors: dict[str, Tensor], x: Tensor, activation: str, index: int) -> Tensor:
    """Token by token and feature by feature, as the method's description says."""
    W, b = tensors["encoder.weight"][index], tensors["encoder.bias"][index]
    shifted = x - tensors["pre_encoder_bias._bias_reference"][index]
    code = torch.zeros(len(x), D_SAE)
    for token in range(len(x)):
        hidden = [float(W[feature] @ shifted[token] + b[feature]) for feature in range(D_SAE)]
        cut = sorted(hidden)[-K]
        for feature, h in enumerate(hidden):
            if activation == "topk":
                kept = h >= cut and h > 0
            elif activation == "relu":
                kept = h > 0
            else:
                kept = h > float(tensors["encoder.theta"][index, feature])
            code[token, feature] = h if kept else 0.0
    return code


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
def test_checkpoint_encodes_by_the_released_formula(activation: str, suffix: str, tmp_path: Path) -> None:
    tensors = stacked("encoder.theta")
    x = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(4))

    handle = load(write(tmp_path / f"layer17{suffix}", tensors), activation=activation, model_index=1)

    torch.testing.assert_close(handle.encode(x), code_as_released(tensors, x, activation, 1), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(handle.encode(x), code_as_released(tensors, x, activation, 0))
    assert handle.ref.architecture == f"safe-sail-{activation}"
    assert (handle.site, handle.ref.slug, handle.ref.sae_id) == (SITE, "layer17.mlp_out.17", f"layer17{suffix}")


def test_ties_at_the_cut_are_all_kept(tmp_path: Path) -> None:
    tensors = stacked()
    tensors["encoder.weight"] = tensors["encoder.weight"][:, :1].expand(-1, D_SAE, -1).contiguous()
    tensors["encoder.bias"] = torch.full((N_SAES, D_SAE), 100.0)

    handle = load(write(tmp_path / "a.safetensors", tensors))

    assert int((handle.encode(torch.zeros(1, D_IN)) > 0).sum()) == D_SAE


def test_released_form_has_no_decoder_and_says_so(tmp_path: Path) -> None:
    handle = load(write(tmp_path / "a.pt", stacked()))

    assert not handle.has_decoder
    for use in (lambda: handle.decoder_row(0), lambda: handle.reconstruct(torch.zeros(1, D_IN))):
        with pytest.raises(SaeMetadataUnsupported, match="without a decoder"):
            use()


def test_decoder_shares_the_first_bias_unless_it_has_its_own(tmp_path: Path) -> None:
    x = torch.randn(4, D_IN, generator=torch.Generator().manual_seed(4))
    own = stacked("decoder.weight", "post_decoder_bias._bias_reference")
    tied = {name: tensor for name, tensor in own.items() if not name.startswith("post")}
    code = code_as_released(own, x, "topk", 0)
    written = code @ own["decoder.weight"][0].T

    for tensors, bias in ((tied, "pre_encoder_bias"), (own, "post_decoder_bias")):
        handle = load(write(tmp_path / f"{bias}.safetensors", tensors))
        torch.testing.assert_close(handle.encode(x), code, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            handle.reconstruct(x), written + tensors[f"{bias}._bias_reference"][0], rtol=1e-5, atol=1e-5
        )


class Payload:
    """Unpickling it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_file_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "code_ran"
    torch.save({**stacked(), "extra": Payload(trap)}, tmp_path / "a.pt")

    with pytest.raises(UnsafeWeights, match="something else than tensors"):
        load(tmp_path / "a.pt")
    assert not trap.exists()


@pytest.mark.parametrize("content", [[1, 2], {"encoder.weight": "text"}])
def test_file_of_other_things_than_tensors_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")

    with pytest.raises(UnsafeWeights, match="expected a mapping from names to tensors"):
        load(tmp_path / "a.pt")


def test_old_torch_format_and_truncated_file_are_refused(tmp_path: Path) -> None:
    torch.save(stacked(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    write(tmp_path / "cut.pt", stacked())
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-100])

    for name in ("old.pt", "cut.pt"):
        with pytest.raises(UnsafeWeights, match="neither safetensors nor a whole zipped torch file"):
            load(tmp_path / name)


def test_truncated_safetensors_are_damaged(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", stacked())
    file.write_bytes(file.read_bytes()[:-8])

    with pytest.raises(DamagedWeights, match="not a whole safetensors file"):
        load(file)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_missing_tensor_axis_or_model_is_named(suffix: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"a{suffix}", stacked())

    with pytest.raises(DamagedWeights, match=r"lacks encoder\.theta"):
        load(file, activation="jumprelu")
    with pytest.raises(SaeMetadataUnsupported, match="stacks 3 SAEs; model_index must be 0 to 2, got 3"):
        load(file, model_index=3)
    flat = {name: tensor[0] for name, tensor in stacked().items()}
    with pytest.raises(DamagedWeights, match="the model axis first"):
        load(write(tmp_path / f"flat{suffix}", flat))


def test_tensors_that_do_not_fit_each_other_are_damaged(tmp_path: Path) -> None:
    tensors = stacked() | {"encoder.bias": torch.zeros(N_SAES, D_SAE + 1)}

    with pytest.raises(DamagedWeights, match=r"b_enc must be \[20\], got \[21\]"):
        load(write(tmp_path / "a.pt", tensors))


def test_checkpoint_without_its_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaeMetadataUnsupported, match="give `site` and `checkpoint` and no `norm_gain`"):
        load_sae(write(tmp_path / "a.pt", stacked()))
