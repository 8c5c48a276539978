"""What does encoding a part of an SAE's features save, beside encoding all of them and taking the columns?

Two AMD EPYC cores shared with other work, one thread, process time; Python 3.11.7, torch 2.13.0+cpu, sae-lens 6.54.12;
2026-11-21. JumpReLU, random weights, float32; median of five interleaved repeats (largest - smallest in brackets).

| d_in | d_sae | features | tokens | SAELens, all + columns | ours, all + columns | ours, subset | SAELens / subset |
|---|---|---|---|---|---|---|---|
| 160 | 1,024 | 40 | 2,048 | 13.0 ms (12.0) | 14.7 ms (11.6) | 1.1 ms (0.2) | 12 |
| 1,024 | 16,384 | 256 | 64 | 36.0 ms (5.2) | 35.5 ms (1.8) | 6.2 ms (0.4) | 5.8 |
| 1,024 | 16,384 | 256 | 1,024 | 624 ms (110) | 669 ms (103) | 12.8 ms (1.1) | 49 |

Peak memory of the whole program 1.1 GB, of which SAELens' import is 0.5 GB. Encoding all features costs what SAELens
costs, within the spread, and its result is bit-equal. A subset approaches the ratio of the widths (64) as tokens grow;
at 64 tokens the gathering of the encoder's columns is most of its time.

Run: OMP_NUM_THREADS=1 python benchmarks/bench_encode.py
"""

import gc
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sae_lens
import torch
from torch import Tensor

from safe_sail.sae.handle import SAEHandle
from safe_sail.sae.load import load_sae

SIZES = (
    {"d_in": 160, "d_sae": 1024, "features": 40, "tokens": 2048},
    {"d_in": 1024, "d_sae": 16384, "features": 256, "tokens": 64},
    {"d_in": 1024, "d_sae": 16384, "features": 256, "tokens": 1024},
)
REPEATS = 5


def build(size: dict[str, int]) -> tuple[Any, SAEHandle, Tensor, Tensor]:
    """SAELens' JumpReLU SAE with random weights, the same one loaded by us, an input, and the features asked for."""
    generator = torch.Generator().manual_seed(0)
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name="blocks.0.hook_resid_post")
    theirs = sae_lens.JumpReLUSAE(
        sae_lens.JumpReLUSAEConfig(d_in=size["d_in"], d_sae=size["d_sae"], metadata=metadata)
    ).requires_grad_(False)
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / size["d_in"] ** 0.5)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_model(folder)
        ours = load_sae(Path(folder))
    x = torch.randn(size["tokens"], size["d_in"], generator=generator)
    features = torch.randperm(size["d_sae"], generator=generator)[: size["features"]]
    return theirs, ours, x, features


def process_time(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(size: dict[str, int]) -> dict[str, Any]:
    theirs, ours, x, features = build(size)
    calls: dict[str, Callable[[], Tensor]] = {
        "saelens_full_then_columns": lambda: theirs.encode(x)[:, features],
        "ours_full_then_columns": lambda: ours.encode(x)[:, features],
        "ours_subset": lambda: ours.encode(x, features),
    }
    columns = calls["saelens_full_then_columns"]()
    assert torch.equal(calls["ours_full_then_columns"](), columns)
    torch.testing.assert_close(calls["ours_subset"](), columns, rtol=1e-4, atol=1e-5)
    assert bool((columns > 0).any())
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.disable()
    for _ in range(REPEATS):
        # interleaved, so that what else the machine does falls on all three
        for name, call in calls.items():
            times[name].append(1000 * process_time(call))
    gc.enable()
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {
        **size,
        **{f"{name}_ms": round(median, 2) for name, median in medians.items()},
        **{f"{name}_spread_ms": round(max(times[name]) - min(times[name]), 2) for name in calls},
        "speedup": round(medians["saelens_full_then_columns"] / medians["ours_subset"], 1),
    }


def main() -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        found = [measure(size) for size in SIZES]
    print(
        json.dumps(
            {
                "benchmark": "bench_encode",
                "sizes": found,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "sae_lens": sae_lens.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
