"""What a run will need, by sizes alone, against what tensors and operations measure."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from safe_sail.errors import DamagedWeights, FileMissing, SaeLoadError
from safe_sail.features.context_buffers import ContextBuffers
from safe_sail.features.firings import CPU_ENTRIES
from safe_sail.features.forecast import context_forecast, reached_speed, score_forecast, training_forecast
from safe_sail.model.size import model_size
from safe_sail.sae.checkpoint import CheckpointForm
from safe_sail.sae.load import load_sae
from safe_sail.sae.size import SaeSize, sae_size
from safe_sail.sae.train import Training
from safe_sail.settings import ContextSettings, SaeRecipe, SaeTrainingSettings
from safe_sail.sites import Site
from tests.tiny import FAMILIES, TinyModels
from tests.unit.sae.test_load import write_folder

SITE = Site.parse("resid_post.1")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_as_large_as_its_configuration_says(family: str, tiny_models: TinyModels):
    found = model_size(tiny_models.folder(family))
    handle = tiny_models.handle(family)
    # `parameters` gives a tied weight once
    assert found.n_parameters == sum(parameter.numel() for parameter in handle.model.parameters())
    assert found.dims == handle.dims
    assert len(found.n_block) == handle.dims.n_layers
    dense = handle.dims.n_experts == 0
    assert (found.n_block_active == found.n_block) is dense


def test_a_token_of_a_mixture_passes_its_share_of_experts(tiny_models: TinyModels):
    found = model_size(tiny_models.folder("mixtral"))
    block = tiny_models.handle("mixtral").model.model.layers[0]
    experts = sum(p.numel() for name, p in block.named_parameters() if ".experts." in f".{name}")
    assert experts > 0
    # two of four experts
    assert found.n_block_active[0] == found.n_block[0] - experts // 2


def test_saes_are_as_large_as_their_tensors(tmp_path: Path):
    folder = write_folder(tmp_path / "sae")
    loaded = load_sae(folder)
    numbers = sum(tensor.numel() for tensor in load_file(folder / "sae_weights.safetensors").values())
    assert sae_size(folder) == SaeSize(loaded.d_in, loaded.d_sae, numbers, loaded.site)
    stack = {
        "pre_encoder_bias._bias_reference": torch.zeros(2, 6),
        "encoder.weight": torch.ones(2, 10, 6),
        "encoder.bias": torch.zeros(2, 10),
    }
    save_file(stack, tmp_path / "stack.safetensors")
    torch.save(stack, tmp_path / "stack.pt")
    site = Site.parse("mlp_out.1")
    for suffix in ("safetensors", "pt"):
        path = tmp_path / f"stack.{suffix}"
        # one of the two SAEs: a matrix, its bias, and the bias before
        assert sae_size(path, site=site) == SaeSize(6, 10, 10 * 6 + 10 + 6, site)
        assert load_sae(path, site=site, checkpoint=CheckpointForm(k=2)).d_sae == 10


def test_sizes_of_what_is_not_there_are_refused(tmp_path: Path):
    folder = write_folder(tmp_path / "sae")
    (folder / "sae_weights.safetensors").write_bytes(b"short")
    with pytest.raises(DamagedWeights, match="no whole SAELens folder"):
        sae_size(folder)
    with pytest.raises(FileMissing, match=r"cfg\.json"):
        sae_size(tmp_path)
    with pytest.raises(SaeLoadError, match="neither a folder here nor a SAELens release"):
        sae_size("no-release/no-id")
    save_file({"encoder.bias": torch.zeros(1, 3)}, tmp_path / "half.safetensors")
    with pytest.raises(DamagedWeights, match=r"lacks encoder\.weight"):
        sae_size(tmp_path / "half.safetensors")


def test_registry_sizes_need_no_weights():
    found = sae_size("gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical")
    # JumpReLU: two matrices, a bias and a threshold a feature, a bias of the output
    assert found == SaeSize(2304, 16384, 2 * 2304 * 16384 + 2 * 16384 + 2304, Site.parse("resid_post.12"))


def test_buffers_take_what_their_tensors_take(tiny_models: TinyModels):
    settings = ContextSettings(n_contexts=7, n_spread=3, window=24, batch_size=4)
    buffers = ContextBuffers({"a": range(11), "b": range(5)}, settings=settings, seed=0)
    measured = 0
    for one in buffers.saes.values():
        tensors = [one.counts]
        for kept in (one.top, one.spread):
            assert kept is not None
            tensors += [kept.best.values, kept.best.sources, kept.activations]
        measured += sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    saes = [SaeSize(24, 11, 1, SITE), SaeSize(24, 5, 1, SITE)]
    size = model_size(tiny_models.folder("llama"))
    found = context_forecast(size, saes, [11, 5], settings=settings, dtype=torch.float32, on_cpu=True)
    assert found.buffers == measured
    weights = sum(p.numel() * p.itemsize for p in tiny_models.handle("llama").model.parameters())
    assert found.weights == weights


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that operations have made and that are still there, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                key = storage._cdata
                if key not in self.known:
                    self.known.add(key)
                    size = storage.nbytes()
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, key, size)
        return found

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_a_pass_stays_below_its_forecast_and_near_it(family: str, tiny_models: TinyModels, tmp_path: Path):
    model = tiny_models.handle(family)
    size = model_size(tiny_models.folder(family))
    settings = ContextSettings(window=16, batch_size=64)
    batch = model.batch(["the quick brown fox jumps over it"] * 64)
    assert batch.token_ids.shape[1] <= settings.window
    saes = [SaeSize(model.dims.d_model, 1, 1, SITE)]
    found = context_forecast(size, saes, [1], settings=settings, dtype=torch.float32, on_cpu=True)
    # what encoding adds is known exactly and is taken off
    encoding = (3 * min(64 * 16, CPU_ENTRIES) + 64 * 16 * model.dims.d_model) * 4
    expected = (found.activations - encoding) * batch.token_ids.shape[1] / settings.window
    with LiveBytes() as live, torch.no_grad():
        kept = model.capture(batch, [SITE])
    assert kept
    assert live.peak <= expected
    assert live.peak > expected / 8, "an upper estimate, and not just any large number"


def test_operations_are_a_floor_of_what_a_pass_does(tiny_models: TinyModels, tmp_path: Path):
    model = tiny_models.handle("llama")
    folder = write_folder(
        tmp_path / "sae",
        tensors={
            "W_enc": torch.randn(model.dims.d_model, 40),
            "W_dec": torch.randn(40, model.dims.d_model),
            "b_enc": torch.zeros(40),
            "b_dec": torch.zeros(model.dims.d_model),
        },
        d_in=model.dims.d_model,
        d_sae=40,
    )
    sae = load_sae(folder)
    batch = model.batch(["the quick brown fox jumps over it"] * 4)
    width = batch.token_ids.shape[1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        captured = model.capture(batch, [SITE])
        sae.encode(captured[SITE].flatten(0, 1))
    size = model_size(tiny_models.folder("llama"))
    settings = ContextSettings(window=width, batch_size=4)
    found = context_forecast(size, [sae_size(folder)], [40], settings=settings, dtype=torch.float32, on_cpu=True)
    measured = counter.get_total_flops() / (4 * width)
    # norms' and biases' weights are counted as if they were of products; attention's upper half is not computed by all
    assert 0.75 * measured < found.operations < 1.1 * measured


def test_scoring_keeps_no_more_than_it_is_allowed(tiny_models: TinyModels):
    size = model_size(tiny_models.folder("llama"))
    saes = [SaeSize(24, 100, 1, SITE), SaeSize(24, 50, 1, SITE)]
    words: dict[str, Any] = {"longest": 20, "batch_size": 8, "dtype": torch.float32}
    assert score_forecast(size, saes, n_texts=30, max_bytes=2**30, **words).buffers == 30 * 150 * 4
    assert score_forecast(size, saes, n_texts=30, max_bytes=1000, **words).buffers == 1000


def test_training_takes_what_its_weights_gradients_and_moments_take(tiny_models: TinyModels):
    size = model_size(tiny_models.folder("llama"))
    recipe = SaeRecipe(slug="s", architecture="topk", d_sae=40, k=4, batch_rows=32)
    training = Training(recipe, d_in=24, scale=1.0, metadata={}, seed=0)
    training.step(torch.randn(32, 24, generator=torch.Generator().manual_seed(0)))
    numbers = [parameter.numel() for parameter in training.sae.parameters()]
    moments = [
        moment.numel()
        for state in training._trainer.optimizer.state.values()
        for name, moment in state.items()
        if name.startswith("exp_avg")
    ]
    # gradients are gone after a step; while it lasts there is one for every weight
    gradients = [parameter.numel() for parameter in training.sae.parameters() if parameter.requires_grad]
    one = SaeSize(24, 40, sum(numbers), SITE)
    settings = SaeTrainingSettings(buffer_rows=64)
    words: dict[str, Any] = {"settings": settings, "dtype": torch.float32}
    found = training_forecast(size, [(one, recipe), (one, recipe)], at_once=1, **words)
    assert found.saes == 4 * (sum(numbers) + sum(gradients) + sum(moments))
    assert training_forecast(size, [(one, recipe), (one, recipe)], at_once=2, **words).saes == 2 * found.saes


def test_the_measured_speed_is_that_of_a_machine():
    assert 1e8 < reached_speed("cpu", torch.float32, size=256) < 1e15
