"""Adapter folders load as plain models with PEFT's own logits, and IA3 shows where neurons are read."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from safe_sail.errors import BadSettings, DamagedWeights, FileMissing, UnsafeWeights
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model
from safe_sail.neurons.pair import ModelPair
from safe_sail.neurons.patching import patched_tokens
from safe_sail.sites import Site
from tests.neuron_pairs import every_neuron
from tests.tiny import TEXTS, TinyModels

DOWN = {"llama": "down_proj", "phi3": "down_proj", "gpt2": "mlp.c_proj"}


def adapter(tiny_models: TinyModels, family: str, config: Any, folder: Path) -> Any:
    """A random adapter on a family, saved as PEFT saves it; the wrapped model."""
    base = tiny_models.fresh(family)
    base.model.name_or_path = str(tiny_models.folder(family))
    wrapped = get_peft_model(base.model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora" in name or "ia3" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return wrapped.eval()


def ia3(family: str) -> IA3Config:
    target = DOWN[family]
    conv = family == "gpt2"
    return IA3Config(
        task_type="CAUSAL_LM", target_modules=[target], feedforward_modules=[target], fan_in_fan_out=conv
    )  # fmt: skip


def load(folder: Path, **more: Any) -> HookedModel:
    return load_model(folder, device="cpu", dtype=torch.float32, **more)


def assert_same_logits(found: HookedModel, wrapped: Any, base: HookedModel) -> None:
    batch = base.batch(TEXTS)
    with torch.no_grad():
        theirs = wrapped(
            input_ids=batch.token_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids
        ).logits
    real = batch.is_real
    # the same function in another order of products, float32
    torch.testing.assert_close(found.logits(batch)[real], theirs[real], rtol=1e-4, atol=1e-4)
    assert (base.logits(batch)[real] - theirs[real]).abs().max() > 1e-2


def test_lora_is_merged(tiny_models: TinyModels, tmp_path: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"], use_rslora=True)
    wrapped = adapter(tiny_models, "llama", config, tmp_path / "lora")
    found = load(tmp_path / "lora")
    assert found.model_id == "lora"
    assert type(found.model).__name__ == "LlamaForCausalLM"
    assert_same_logits(found, wrapped, tiny_models.handle("llama"))


@pytest.mark.parametrize("family", list(DOWN))
def test_ia3_keeps_its_logits_and_scales_the_neurons_of_a_gated_mlp(
    family: str, tiny_models: TinyModels, tmp_path: Path
) -> None:
    wrapped = adapter(tiny_models, family, ia3(family), tmp_path / "ia3")
    found, base = load(tmp_path / "ia3"), tiny_models.handle(family)
    assert_same_logits(found, wrapped, base)
    site, batch = Site.parse("mlp_act.0"), base.batch(TEXTS)
    scale = next(
        value for name, value in load_file(tmp_path / "ia3" / "adapter_model.safetensors").items() if "0.mlp" in name
    )
    plain, came = (model.capture(batch, [site])[site][batch.is_real] for model in (base, found))
    expected = plain if family == "gpt2" else plain * scale.flatten()
    torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-5)


def test_patching_every_neuron_of_an_ia3_model_is_that_model(tiny_models: TinyModels, tmp_path: Path) -> None:
    adapter(tiny_models, "llama", ia3("llama"), tmp_path / "ia3")
    pair = ModelPair(tiny_models.handle("llama"), load(tmp_path / "ia3"))
    batch = pair.first.batch(TEXTS)
    found = patched_tokens(pair, batch, [every_neuron(pair)], 6, batch_rows=8)[0]
    expected = pair.second.generate(batch, 6)
    assert torch.equal(found[:, : expected.shape[1]], expected)
    assert pair.can_double


def test_folders_that_cannot_be_used_are_named(tiny_models: TinyModels, tmp_path: Path) -> None:
    adapter(tiny_models, "llama", ia3("llama"), tmp_path / "a")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    with pytest.raises(DamagedWeights, match=r"does not fit its base|are not those"):
        load(tmp_path / "a", base=tiny_models.folder("gpt2"))
    tensors = load_file(weights)
    save_file(dict(list(tensors.items())[1:]), weights)
    with pytest.raises(DamagedWeights, match=r"are not those of adapter_config\.json"):
        load(tmp_path / "a")
    weights.write_bytes(b"12345678")
    with pytest.raises(DamagedWeights, match="is damaged"):
        load(tmp_path / "a")
    weights.unlink()
    with pytest.raises(FileMissing, match="expected adapter_model"):
        load(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UnsafeWeights, match=r"adapter_model\.bin"):
        load(tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    with pytest.raises(DamagedWeights, match="base_model_name_or_path"):
        load(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    adapter(tiny_models, "llama", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), tmp_path / "a")
    with pytest.raises(BadSettings, match="no weights to merge"):
        load(tmp_path / "a")
