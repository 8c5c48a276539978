r"""What do a capture at one site and an edit at one site cost, beside the bare passes they ride on?

Machine: two cores of an AMD EPYC, otherwise idle, one thread, float32; processor time, not wall time.
torch 2.13.0 (CPU), transformers 5.23.0, 2026-11-21. Medians of interleaved pairs; in brackets the quartiles.

| model            | pass                  | bare ms | ours ms | ratio                | pairs |
|------------------|-----------------------|---------|---------|----------------------|-------|
| d256 x 6, 16x128 | capture resid_post.0  |    43.8 |    44.2 | 1.010 (1.003, 1.020) |   146 |
|                  | capture resid_post.3  |   173.2 |   173.1 | 1.002 (0.995, 1.015) |    41 |
|                  | capture resid_post.5  |   261.9 |   263.4 | 1.000 (0.993, 1.011) |    24 |
|                  | edit mlp_out.3        |   304.5 |   303.5 | 0.994 (0.989, 1.009) |    22 |
| d768 x 12, 4x128 | capture resid_post.0  |    82.5 |    82.8 | 1.008 (0.999, 1.017) |    85 |
|                  | capture resid_post.6  |   565.4 |   566.4 | 1.004 (0.991, 1.017) |    11 |
|                  | capture resid_post.11 |   978.1 |   967.7 | 0.988 (0.986, 1.003) |     7 |
|                  | edit mlp_out.6        |   999.2 |  1013.7 | 1.014 (1.000, 1.022) |     7 |

Captures stay below 1.03, edits below 1.02. On the same machine under load the edit at d768 gave 1.024 and 1.026. A
call's own cost, on a model of width 64, is 0.07 to 0.15 ms; the edit itself multiplies 512 x 768 numbers. Two
controls: a result is held until the next call, and malloc keeps its pages; without them one side pays page faults
for the other's frees, and the capture at resid_post.0 of d256 gave 1.09 and 1.15.
Peak memory 804 MB.

Run: MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_THRESHOLD_=4294967296 OMP_NUM_THREADS=1 \
     python -m benchmarks.bench_capture
"""

import argparse
import gc
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import create_causal_mask

from safe_sail.model.architectures import ARCHITECTURES
from safe_sail.model.edits import scale
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.sites import Site

SIZES = {
    "d256 x 6, 16 x 128": {"hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 688, "batch": 16},
    "d768 x 12, 4 x 128": {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 2048, "batch": 4},
}
SEQ = 128
VOCAB = 4096


def build(size: dict[str, int]) -> tuple[HookedModel, TokenBatch]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=size["hidden_size"],
        intermediate_size=size["intermediate_size"],
        num_hidden_layers=size["num_hidden_layers"],
        num_attention_heads=size["hidden_size"] // 64,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    handle = HookedModel(model, None, ARCHITECTURES["LlamaForCausalLM"], model_id="bench")
    ids = torch.randint(0, VOCAB, (size["batch"], SEQ))
    return handle, TokenBatch(ids, torch.ones_like(ids), tuple(map(str, range(size["batch"]))))


def bare_truncated(model: Any, batch: TokenBatch, n_blocks: int) -> Tensor:
    """The model's own blocks in a plain loop, without a hook and without what comes after the last one."""
    inner = model.model
    embeds = inner.embed_tokens(batch.token_ids)
    positions = batch.position_ids
    mask = create_causal_mask(
        config=model.config,
        inputs_embeds=embeds,
        attention_mask=batch.attention_mask,
        past_key_values=None,
        position_ids=positions,
    )
    rotary = inner.rotary_emb(embeds, position_ids=positions)
    hidden = embeds
    for block in inner.layers[:n_blocks]:
        hidden = block(hidden, attention_mask=mask, position_embeddings=rotary, position_ids=positions, use_cache=False)
    return hidden


def bare_logits(model: Any, batch: TokenBatch) -> Tensor:
    return model(
        input_ids=batch.token_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).logits


def bare_edited(model: Any, batch: TokenBatch, layer: int, factor: float) -> Tensor:
    """The bare pass with the arithmetic of the edit and the most plain hook that can do it."""
    handle = model.model.layers[layer].mlp.register_forward_hook(lambda module, args, output: output * factor)
    logits = bare_logits(model, batch)
    handle.remove()
    return logits


def process_time(call: Callable[[], Any], held: list[Any]) -> float:
    """Processor seconds of one call; its result lives until the next one, as in a loop that uses it."""
    start = time.process_time()
    held[:] = [call()]
    return time.process_time() - start


def compare(bare: Callable[[], Any], ours: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Median ratio of interleaved pairs, so that what else the machine does falls on both; seven pairs at least."""
    held: list[Any] = []
    for call in (bare, ours, bare):
        process_time(call, held)
    repeats = max(7, int(seconds / (2 * process_time(ours, held))))
    pairs = []
    gc.disable()
    for index in range(repeats):
        if index % 2:
            mine = process_time(ours, held)
            theirs = process_time(bare, held)
        else:
            theirs = process_time(bare, held)
            mine = process_time(ours, held)
        pairs.append((theirs, mine))
    gc.enable()
    ratios = sorted(mine / theirs for theirs, mine in pairs)
    return {
        "bare_ms": round(1000 * statistics.median(theirs for theirs, _ in pairs), 2),
        "ours_ms": round(1000 * statistics.median(mine for _, mine in pairs), 2),
        "ratio": round(statistics.median(ratios), 4),
        "quartiles": [round(ratios[len(ratios) // 4], 4), round(ratios[3 * len(ratios) // 4], 4)],
        "ratio_of_fastest": round(min(mine for _, mine in pairs) / min(theirs for theirs, _ in pairs), 4),
        "pairs": repeats,
    }


def measure(size: dict[str, int], seconds: float) -> dict[str, Any]:
    handle, batch = build(size)
    n_layers = handle.dims.n_layers
    found: dict[str, Any] = {}
    with torch.no_grad():
        for layer in (0, n_layers // 2, n_layers - 1):
            site = Site.parse(f"resid_post.{layer}")
            blocks = layer + 1
            assert torch.equal(handle.capture(batch, [site])[site], bare_truncated(handle.model, batch, blocks))
            found[f"capture {site}"] = compare(
                lambda blocks=blocks: bare_truncated(handle.model, batch, blocks),
                lambda site=site: handle.capture(batch, [site]),
                seconds,
            )
        layer = n_layers // 2
        edits = {Site.parse(f"mlp_out.{layer}"): scale(0.5)}
        assert torch.equal(handle.logits(batch, edits), bare_edited(handle.model, batch, layer, 0.5))
        assert not torch.equal(handle.logits(batch, edits), bare_logits(handle.model, batch))
        found[f"edit mlp_out.{layer}"] = compare(
            lambda: bare_logits(handle.model, batch), lambda: handle.logits(batch, edits), seconds
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0, help="processor time per comparison")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "sizes": {name: measure(size, seconds) for name, size in SIZES.items()},
    }
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main()
