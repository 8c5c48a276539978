"""How much quicker is patching while generating as one doubled pass than as the published loop over two models?

Machine: 2 shared x86-64 cores, one thread, other work beside it. torch 2.13.0+cpu, transformers 5.23.0, 27 Nov 2026.
Model: the embedded organism, 6 layers; the 144 planted neurons of its last two layers patched, replies of up to 40
tokens. Second models: `planted-neurons` (0.89 of the weights shared, equal up to layer 4), `aligned` (0.27, embeddings
alone), and the base with the rows of every W_in scaled as IA3 does (0.83, different from the first layer on).

How many times less each way costs than the published loop. Processor time: median of 11 interleaved repeats
(quartiles), two runs. Calls of torch's operations and floating-point operations are counted: the machine, however
busy, does not matter to them.

| second model    | rows | way     | time, first run  | time, second run | calls | flops |
|-----------------|------|---------|------------------|------------------|-------|-------|
| planted-neurons |    1 | doubled | 1.73 (1.67-1.82) | 1.81 (1.70-1.92) |  1.80 |  1.63 |
| planted-neurons |    1 | beside  | 1.05 (1.03-1.16) | 1.11 (1.01-1.19) |  1.03 |  1.05 |
| aligned         |    1 | doubled | 1.17 (1.15-1.20) | 1.22 (1.14-1.28) |  1.07 |  1.06 |
| aligned         |    1 | beside  | 0.95 (0.91-1.21) | 1.12 (1.04-1.29) |  1.03 |  1.06 |
| scaled          |    1 | doubled | 1.51 (1.33-1.54) | 1.62 (1.55-1.69) |  1.76 |  1.09 |
| scaled          |    1 | beside  | 1.01 (0.93-1.05) | 1.06 (1.02-1.12) |  1.03 |  1.06 |
| planted-neurons |    8 | doubled | 1.65 (1.49-1.79) | 1.64 (1.52-1.95) |  1.81 |  1.63 |
| planted-neurons |    8 | beside  | 1.00 (0.89-1.11) | 1.14 (0.93-1.23) |  1.02 |  1.06 |
| aligned         |    8 | doubled | 1.14 (0.99-1.28) | 1.13 (1.07-1.15) |  1.11 |  1.06 |
| aligned         |    8 | beside  | 1.12 (0.97-1.25) | 1.05 (0.99-1.17) |  1.02 |  1.06 |
| scaled          |    8 | doubled | 1.49 (1.37-1.57) | 1.54 (1.41-1.66) |  1.77 |  1.09 |
| scaled          |    8 | beside  | 1.03 (0.95-1.12) | 1.03 (0.92-1.05) |  1.02 |  1.06 |

The same tokens each way. Where the models are equal up to a layer, one doubled pass takes 1.64 to 1.81 times less
time; it saves more than 1.6 times of both calls, which bound small passes, and arithmetic, which bounds large ones
(at 32 rows 1.80 and 1.63 too). Where every layer differs though most weights are shared it takes 1.49 to 1.62 times
less at these sizes; as arithmetic there is hardly less, that shrinks with rows: 1.27 at 32 (7 repeats). Where nearly
all weights differ it takes 1.13 to 1.22 times less. Two models beside each other, for those that one pass cannot run,
make fewer calls and do less arithmetic than the loop always; medians of their time lie between 0.95 and 1.14.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from safe_sail.model import weights
from safe_sail.model.edits import Edit
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model
from safe_sail.model.tokens import TokenBatch, pad_id_of
from safe_sail.neurons.pair import ModelPair
from safe_sail.neurons.patching import patched_tokens
from safe_sail.organism.grammar import prompts
from safe_sail.organism.load import organism_path, planted_units
from safe_sail.sites import Site, SiteKind

REPEATS = 11
NEW = 40


def published_loop(pair: ModelPair, batch: TokenBatch, neurons: Tensor) -> Tensor:
    """Each step: a cached pass of the second model that keeps every neuron of every layer, then one of the first."""
    layers = range(pair.first.dims.n_layers)
    held: dict[int, Tensor] = {}

    def keeper(layer: int) -> Edit:
        def keep(x: Tensor) -> Tensor:
            held[layer] = x.clone()
            return x

        return keep

    def putter(layer: int, index: Tensor) -> Edit:
        def put(x: Tensor) -> Tensor:
            y = x.clone()
            y[..., index] = held[layer][..., index]
            return y

        return put

    keeps = {Site(SiteKind.MLP_ACT, layer): keeper(layer) for layer in layers}
    puts = {
        Site(SiteKind.MLP_ACT, layer): putter(layer, neurons[neurons[:, 0] == layer, 1])
        for layer in neurons[:, 0].unique().tolist()
    }
    pad = pad_id_of(pair.first.tokenizer)
    ends = torch.tensor(pair.first.end_ids())
    running, new = torch.ones(len(batch), dtype=torch.bool), []
    with pair.second.decoding(batch, NEW, keeps) as theirs, pair.first.decoding(batch, NEW, puts) as mine:
        theirs.read_prompt()
        logits = mine.read_prompt()
        while True:
            assert logits is not None
            new.append(torch.where(running, logits.argmax(dim=-1), pad))
            running = running & ~torch.isin(new[-1], ends)
            if len(new) == NEW or not bool(running.any()):
                return torch.nn.functional.pad(torch.stack(new, dim=1), (0, NEW - len(new)), value=pad)
            theirs.read_token(new[-1], running)
            logits = mine.read_token(new[-1], running)


def seconds(works: dict[str, Callable[[], Tensor]]) -> dict[str, list[float]]:
    """Processor seconds of each repeat, the ways taking turns so that a busy machine slows them alike."""
    for work in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, work in works.items():
            begin = time.process_time()
            work()
            found[name].append(time.process_time() - begin)
    return found


class Counted(TorchDispatchMode):
    """Scope that counts calls of torch's operations: a cost of small passes that no busy machine blurs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation's own result."""
        self.calls += 1
        return func(*args, **(kwargs or {}))


def counts(work: Callable[[], object]) -> tuple[int, int]:
    """Calls of operations, and floating-point operations of products and attention."""
    with Counted() as counted:
        work()
    with FlopCounterMode(display=False) as flops:
        work()
    return counted.calls, flops.get_total_flops()


def times_less(found: dict[str, list[float]], way: str) -> dict[str, float]:
    """Ratios of the published loop to this way, repeat by repeat: median, quartiles, smallest and largest."""
    ratios = sorted(theirs / ours for theirs, ours in zip(found["published"], found[way], strict=True))
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": median, "quartile_1": low, "quartile_3": high, "least": ratios[0], "most": ratios[-1]}


def organism(variant: str) -> HookedModel:
    """A variant of the shipped organism."""
    return load_model(organism_path(variant), device="cpu", dtype=torch.float32, model_id=f"organism-{variant}")


def scaled(base: HookedModel) -> HookedModel:
    """The base with every row of W_in scaled by its own factor: what IA3, the paper's tuning, comes to."""
    model, generator = organism("base"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in range(base.dims.n_layers):
            W_in = weights.mlp(model, layer).W_in
            W_in *= 1 + 0.3 * torch.randn(W_in.shape[0], 1, generator=generator)
    return model


def ways_of(pair: ModelPair, batch: TokenBatch, neurons: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Each way, after all gave the same tokens."""
    ways: dict[str, Callable[[], Tensor]] = {
        "published": lambda: published_loop(pair, batch, neurons),
        "doubled": lambda: patched_tokens(pair, batch, [neurons], NEW, batch_rows=64, doubled=True)[0],
        "beside": lambda: patched_tokens(pair, batch, [neurons], NEW, batch_rows=64, doubled=False)[0],
    }
    expected = ways["published"]()
    assert torch.equal(ways["doubled"](), expected)
    assert torch.equal(ways["beside"](), expected)
    return ways


def main() -> None:
    """Compare the tokens, then the times: weights shared but for planted neurons, and all weights apart."""
    torch.set_num_threads(1)
    base = organism("base")
    known = torch.tensor([[unit.layer, unit.index] for unit in planted_units("planted-neurons")])
    seconds_of = {name: organism(name) for name in ("planted-neurons", "aligned")} | {"scaled": scaled(base)}
    pairs = {name: ModelPair(base, second) for name, second in seconds_of.items()}
    for rows in map(int, sys.argv[1:] or (1, 8, 32)):
        batch = base.chat_batch([text.text for text in prompts("harmful", "held_out", rows, 0)])
        for name, pair in pairs.items():
            ways = ways_of(pair, batch, known)
            calls, flops = zip(*map(counts, ways.values()), strict=True)
            found = seconds(ways)
            medians = {way: statistics.median(values) for way, values in found.items()}
            report = {
                "benchmark": "patching",
                "torch": torch.__version__,
                "machine": platform.machine(),
                "threads": 1,
                "second": name,
                "shared": round(pair.shared_share, 3),
                "rows": rows,
                "new_tokens": NEW,
                "cpu_seconds": medians,
                "range": {way: [min(values), max(values)] for way, values in found.items()},
                "calls": dict(zip(ways, calls, strict=True)),
                "flops": dict(zip(ways, flops, strict=True)),
                "times_less": {way: times_less(found, way) for way in ("doubled", "beside")},
            }
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
