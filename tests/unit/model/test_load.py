"""Loading: what is refused, by which error, and that the message says what to do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safe_sail.errors import (
    BadSettings,
    DamagedWeights,
    DeviceUnavailable,
    FileMissing,
    ModelLoadError,
    UnknownArchitecture,
    UnsafeWeights,
)
from safe_sail.model import weights
from safe_sail.model.architectures import ARCHITECTURES
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model, load_tokenizer
from safe_sail.sites import Site
from tests.tiny import FAMILIES, TEXTS, TinyModels, tiny_model


def load(folder: str | Path, **more: Any) -> HookedModel:
    return load_model(folder, **{"device": "cpu", "dtype": torch.float32, **more})


@pytest.fixture
def folder(tiny_models: TinyModels, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models.folder("llama"), tmp_path / "some-llama"))


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_fixture_is_small_and_loads_in_evaluation_without_grad(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    parameters = list(handle.model.parameters())
    assert sum(parameter.numel() for parameter in parameters) < 50_000
    assert not handle.model.training
    assert not any(parameter.requires_grad for parameter in parameters)
    assert handle.model_id == family
    assert str(handle.device) == "cpu"
    assert handle.dtype == torch.float32
    assert repr(handle).startswith(f"HookedModel({family}, {handle.architecture.class_name}")


def test_every_row_has_a_fixture(tiny_models: TinyModels) -> None:
    assert {tiny_models.handle(family).architecture for family in FAMILIES} == set(ARCHITECTURES.values())
    assert {row.family for row in ARCHITECTURES.values()} <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_come_back_from_disk_bit_equal(family: str, tiny_models: TinyModels) -> None:
    written, read = tiny_model(family).state_dict(), tiny_models.handle(family).model.state_dict()
    assert set(written) == set(read)
    assert all(torch.equal(written[name], read[name]) for name in written)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_keeps_its_identities_and_stays_near_float32(
    family: str, dtype: torch.dtype, tiny_models: TinyModels
) -> None:
    half = load(tiny_models.folder(family), dtype=dtype)  # verify() runs
    assert half.dtype == dtype
    batch = half.batch(TEXTS)
    sites = half.sites()
    found = half.capture(batch, sites)
    assert {value.dtype for value in found.values()} == {dtype}
    exact = tiny_models.handle(family).capture(batch, sites[:8])
    real = batch.is_real
    # block 0 sees a few roundings of the dtype; later ones amplify them, and a mixture's router may switch
    for site in sites[:4]:
        error = (found[site].float() - exact[site])[real].norm() / exact[site][real].norm()
        assert error < 8 * torch.finfo(dtype).eps, site


def test_eager_attention_gives_the_same_captures(tiny_models: TinyModels) -> None:
    for family in ("llama", "gpt2", "falcon"):
        eager = load(tiny_models.folder(family), attn_implementation="eager")
        batch = eager.batch(TEXTS)
        site = Site.parse("resid_post.1")
        ours, theirs = tiny_models.handle(family).capture(batch, [site])[site], eager.capture(batch, [site])[site]
        # float32 sums in another order through two blocks
        torch.testing.assert_close(ours[batch.is_real], theirs[batch.is_real], atol=1e-5, rtol=1e-5)


def test_alibi_with_eager_attention_is_refused(tiny_models: TinyModels) -> None:
    with pytest.raises(UnknownArchitecture, match=r"twice.*sdpa"):
        load(tiny_models.folder("falcon_sequential"), attn_implementation="eager")


def test_a_device_map_places_blocks(tiny_models: TinyModels) -> None:
    placed = load(tiny_models.folder("llama"), device=None, device_map={"": "cpu"})
    batch = placed.batch(TEXTS)
    assert torch.equal(placed.logits(batch), tiny_models.handle("llama").logits(batch))
    assert torch.equal(placed.generate(batch, 3), tiny_models.handle("llama").generate(batch, 3))


def test_offloaded_weights_are_refused(tiny_models: TinyModels, tmp_path: Path) -> None:
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
              "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    with pytest.raises(DeviceUnavailable, match="offload"):
        load(tiny_models.folder("llama"), device=None, device_map=places)


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps", "tpu9", "gpu"])
def test_a_device_that_is_absent_is_refused(device: str, folder: Path) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(DeviceUnavailable, match=device):
        load(folder, device=device)
    with pytest.raises(DeviceUnavailable, match=device):
        load(folder, device=None, device_map={"": device})


def test_device_and_dtype_are_asked_for_plainly(folder: Path) -> None:
    with pytest.raises(BadSettings, match="float64"):
        load(folder, dtype=torch.float64)
    with pytest.raises(BadSettings, match="either a device or a device map"):
        load(folder, device=None)
    with pytest.raises(BadSettings, match="either a device or a device map"):
        load(folder, device="cpu", device_map="auto")


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", Path("nowhere")])
def test_a_missing_folder_is_named(path: str | Path) -> None:
    with pytest.raises(FileMissing, match="nowhere"):
        load(path)


def test_a_hub_name_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(FileMissing, match="some-org/no-such-model"):
        load("some-org/no-such-model")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(FileMissing, match=name.replace(".", r"\.")):
        load(folder)


def test_pickle_weights_are_refused_and_never_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UnsafeWeights, match=r"pytorch_model\.bin"):
        load(folder)


def test_pickle_weights_beside_safetensors_are_not_read(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    assert load(folder).dims.n_layers == 2


@pytest.mark.parametrize("keep", [0, 4, 100, -1, -4000])
def test_a_truncated_file_is_damaged(keep: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedWeights, match=r"model\.safetensors"):
        load(folder)


def test_a_garbled_header_is_damaged(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:20] = b"\xff" * 12
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedWeights):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00"])
def test_a_malformed_configuration_or_tokenizer_is_damaged(text: str, name: str, folder: Path) -> None:
    (folder / name).write_text(text)
    with pytest.raises(DamagedWeights, match=name.replace(".", r"\.")):
        load(folder)


@pytest.mark.parametrize("fields", [{"hidden_size": "wide"}, {"num_attention_heads": 5}, {"num_hidden_layers": None}])
def test_a_configuration_that_does_not_hold_together_is_damaged(fields: dict[str, Any], folder: Path) -> None:
    edit_config(folder, **fields)
    with pytest.raises(DamagedWeights):
        load(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_hidden_layers": 3}, r"no file holds.*layers\.2"),
        ({"num_hidden_layers": 1}, r"no place for.*layers\.1"),
        ({"intermediate_size": 44}, "shape|size"),
        ({"vocab_size": 170}, "shape|size"),
        ({"attention_bias": False}, "no place for.*bias"),
    ],
)
def test_weights_of_another_configuration_are_damaged(fields: dict[str, Any], words: str, folder: Path) -> None:
    edit_config(folder, **fields)
    with pytest.raises(DamagedWeights, match=words):
        load(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DamagedWeights, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_shards_load_and_a_missing_or_strange_shard_is_named(folder: Path) -> None:
    whole = load(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    placed = {name: file for file, part in parts.items() for name in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    assert torch.equal(weights.W_O(load(folder), 1), weights.W_O(whole, 1))
    (folder / "model-00002-of-00002.safetensors").rename(folder.parent / "stolen.safetensors")
    with pytest.raises(FileMissing, match="00002-of-00002"):
        load(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../stolen.safetensors"}}))
    with pytest.raises(DamagedWeights, match="stolen"):
        load(folder)
    index.write_text("{}")
    with pytest.raises(DamagedWeights, match="weight_map"):
        load(folder)


def test_an_unknown_class_is_refused_by_name(folder: Path) -> None:
    edit_config(folder, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UnknownArchitecture, match=r"`LlamaForSequenceClassification`.*GPT2LMHeadModel.*adding_an_arch"):
        load(folder)


def test_a_class_that_transformers_would_not_build_is_refused(folder: Path) -> None:
    edit_config(folder, architectures=["MistralForCausalLM"])
    with pytest.raises(UnknownArchitecture, match=r"`MistralForCausalLM`.*`LlamaForCausalLM`"):
        load(folder)


def test_an_unknown_model_type_and_remote_code_are_refused(folder: Path) -> None:
    edit_config(folder, model_type="brand-new", architectures=["BrandNewForCausalLM"])
    with pytest.raises(UnknownArchitecture):
        load(folder)
    edit_config(folder, auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UnknownArchitecture, match="code"):
        load(folder)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gemma", {"use_bidirectional_attention": True}),
        ("gemma3", {"use_bidirectional_attention": True}),
        ("gpt2", {"add_cross_attention": True}),
        ("falcon", {"num_ln_in_parallel_attn": 2}),
        ("falcon_grouped", {"parallel_attn": False}),
    ],
)
def test_configurations_that_a_row_does_not_cover_are_refused(
    family: str, fields: dict[str, Any], tiny_models: TinyModels, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_models.folder(family), tmp_path / family))
    edit_config(folder, **fields)
    with pytest.raises(UnknownArchitecture, match="refused"):
        load(folder)


def test_a_tokenizer_without_padding_pads_with_end_of_text(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    del fields["pad_token"]
    path.write_text(json.dumps(fields))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    handle = load(folder)
    batch = handle.batch(TEXTS)
    assert batch.token_ids[0, 0] == 2
    assert not batch.is_real[0, 0]


def test_every_refusal_is_a_model_load_error() -> None:
    for error in (FileMissing, UnsafeWeights, DamagedWeights, UnknownArchitecture, DeviceUnavailable):
        assert issubclass(error, ModelLoadError)
