"""What a run will need, from sizes alone: memory by what it is for, and the arithmetic below which no run gets.

Weights, SAEs and buffers are exact. What a forward pass holds at once is an upper estimate: a block's stream, attention
and MLP values side by side, and every captured site. Time is a floor: multiplications of weights, two operations each,
at a speed that a plain product reaches on the same device.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from safe_sail.features.firings import CPU_ENTRIES, GPU_ENTRIES
from safe_sail.features.histogram import N_FINE_BINS
from safe_sail.model.dims import ModelDims
from safe_sail.model.size import ModelSize
from safe_sail.sae.size import SaeSize
from safe_sail.settings import ContextSettings, SaeRecipe, SaeTrainingSettings

_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Bytes by what they are for, and operations a token."""

    weights: int
    """Of the model, on its device."""
    saes: int
    """Float32, on the same device."""
    activations: int
    """Upper estimate of what one forward pass and one encoding hold at once, on the same device."""
    buffers: int
    """What is kept of the texts, in the memory of the CPU."""
    operations: int
    """Multiplications and additions for one token: blocks up to the deepest site, and encoders."""

    @property
    def on_device(self) -> int:
        """Bytes on the model's device."""
        return self.weights + self.saes + self.activations


def context_forecast(
    model: ModelSize,
    saes: Sequence[SaeSize],
    n_features: Sequence[int],
    *,
    settings: ContextSettings,
    dtype: torch.dtype,
    on_cpu: bool,
) -> Forecast:
    """Forecast of collecting contexts of so many features of each SAE."""
    kept = settings.n_contexts + settings.n_spread
    # a count in 8 bytes, a value and a source in 12, an activation in 4
    per_feature = N_FINE_BINS * 8 + kept * (12 + settings.window * 4)
    n_tokens = settings.batch_size * settings.window
    return Forecast(
        weights=model.n_parameters * dtype.itemsize,
        saes=sum(sae.n_numbers for sae in saes) * _FLOAT32,
        activations=_pass_bytes(model.dims, saes, n_tokens, dtype)
        + _encoding_bytes(saes, n_tokens, CPU_ENTRIES if on_cpu else GPU_ENTRIES),
        buffers=sum(n_features) * per_feature,
        operations=_operations(model, saes, settings.window),
    )


def score_forecast(
    model: ModelSize,
    saes: Sequence[SaeSize],
    *,
    n_texts: int,
    longest: int,
    batch_size: int,
    max_bytes: int,
    dtype: torch.dtype,
) -> Forecast:
    """Forecast of scoring SAEs on so many texts of at most `longest` tokens, in blocks of at most `max_bytes`."""
    n_tokens = batch_size * longest
    kept = n_texts * sum(sae.d_sae for sae in saes) * _FLOAT32
    return Forecast(
        weights=model.n_parameters * dtype.itemsize,
        saes=sum(sae.n_numbers for sae in saes) * _FLOAT32,
        activations=_pass_bytes(model.dims, saes, n_tokens, dtype) + _encoding_bytes(saes, n_tokens, None),
        buffers=min(kept, max_bytes),
        operations=_operations(model, saes, longest),
    )


def training_forecast(
    model: ModelSize,
    recipes: Sequence[tuple[SaeSize, SaeRecipe]],
    *,
    settings: SaeTrainingSettings,
    dtype: torch.dtype,
    at_once: int,
) -> Forecast:
    """Forecast of training SAEs, the largest `at_once` of them together: each weight with its gradient and moments."""
    saes = [size for size, _ in recipes]
    together = sorted((size.n_numbers for size in saes), reverse=True)[:at_once]
    rows = settings.buffer_rows * sum({size.site: size.d_in for size in saes}.values())
    batch = max(3 * recipe.batch_rows * recipe.d_sae for _, recipe in recipes)
    window = min(settings.window, model.dims.max_positions)
    forward = _operations(model, [size._replace(d_sae=0) for size in saes], window)
    return Forecast(
        weights=model.n_parameters * dtype.itemsize,
        saes=4 * sum(together) * _FLOAT32,
        activations=_pass_bytes(model.dims, saes, settings.batch_size * window, dtype) + (3 * rows + batch) * _FLOAT32,
        buffers=0,
        # two products forward, and twice as much to train them
        operations=forward + 12 * sum(size.d_in * size.d_sae for size in saes),
    )


def _pass_bytes(dims: ModelDims, saes: Sequence[SaeSize], n_tokens: int, dtype: torch.dtype) -> int:
    """A block's stream before and after a norm, its queries, keys and values, its gate, input and product, the
    float32 copies, squares and products of one norm, and every captured site."""
    heads = (2 * dims.n_heads + 2 * dims.n_kv_heads) * dims.d_head
    mlp = 3 * max(dims.d_mlp, dims.d_expert)
    inside = (4 * dims.d_model + heads + mlp) * dtype.itemsize + 4 * dims.d_model * _FLOAT32
    captured = sum({(sae.site, sae.d_in): sae.d_in for sae in saes}.values()) * dtype.itemsize
    return n_tokens * (inside + captured)


def _encoding_bytes(saes: Sequence[SaeSize], n_tokens: int, at_once: int | None) -> int:
    """Pre-activations and activations of the widest SAE, in pieces of so many entries, beside its float32 input."""
    widest = max(saes, key=lambda sae: sae.d_sae)
    entries = n_tokens * widest.d_sae
    if at_once is not None:
        entries = min(entries, max(at_once, widest.d_sae))
    return (3 * entries + n_tokens * widest.d_in) * _FLOAT32


def _operations(model: ModelSize, saes: Sequence[SaeSize], window: int) -> int:
    """Two for each weight that a token meets, and attention's over a window of so many tokens."""
    sites = [sae.site for sae in saes if sae.site is not None]
    known = len(sites) == len(saes)
    n_layers = 1 + max((site.layer or 0 for site in sites), default=0) if known else model.dims.n_layers
    weights = sum(model.n_block_active[:n_layers])
    attention = n_layers * 2 * (window // 2) * model.dims.n_heads * model.dims.d_head
    return 2 * (weights + attention + sum(sae.d_in * sae.d_sae for sae in saes))


def reached_speed(device: torch.device | str, dtype: torch.dtype, *, size: int = 1024) -> float:
    """Operations a second that a square product reaches on the device, the best of three, after one to warm up."""
    place = torch.device(device)
    one = torch.ones(size, size, device=place, dtype=dtype)
    best = 0.0
    for attempt in range(4):
        start = time.perf_counter()
        product = one @ one
        # reading a number waits for the device
        float(product[0, 0])
        if attempt:
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
