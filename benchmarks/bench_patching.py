"""How much quicker is patching while generating as one doubled pass than as the published loop over two models?

Machine: 2 shared x86-64 cores, one thread, other work beside it. torch 2.13.0+cpu, transformers 5.23.0, 27 Nov 2026.
Model: the embedded organism, 6 layers; the 144 planted neurons patched, replies of up to 40 tokens.

| second model (weights shared) | rows | way       | processor seconds, median of 5 (range) | times less |
|-------------------------------|------|-----------|-----------------------------------------|------------|
| planted-neurons (0.89)        |    1 | published | 0.34 (0.32-0.37)                        |       1.00 |
| planted-neurons (0.89)        |    1 | doubled   | 0.21 (0.15-0.22)                        |       1.59 |
| planted-neurons (0.89)        |    1 | beside    | 0.32 (0.30-0.40)                        |       1.05 |
| aligned (0.27)                |    1 | published | 0.54 (0.40-0.58)                        |       1.00 |
| aligned (0.27)                |    1 | doubled   | 0.54 (0.37-0.60)                        |       1.01 |
| aligned (0.27)                |    1 | beside    | 0.50 (0.44-0.51)                        |       1.09 |
| planted-neurons (0.89)        |    8 | published | 0.77 (0.62-0.88)                        |       1.00 |
| planted-neurons (0.89)        |    8 | doubled   | 0.47 (0.42-0.49)                        |       1.64 |
| planted-neurons (0.89)        |    8 | beside    | 0.63 (0.61-0.71)                        |       1.22 |
| aligned (0.27)                |    8 | published | 0.79 (0.75-0.85)                        |       1.00 |
| aligned (0.27)                |    8 | doubled   | 0.72 (0.66-0.96)                        |       1.09 |
| aligned (0.27)                |    8 | beside    | 0.77 (0.68-0.83)                        |       1.03 |

A second run with less beside it: 1.44 times less at 1 row and 1.50 at 8 where weights are shared (wanted 1.6), 1.19 and
1.15 where they differ.

The same tokens each way. One pass for both models is 1.4 to 1.6 times quicker where most weights are shared; where most
differ their maps run twice anyway, and the second model beside the first, stopped at the deepest chosen layer, costs
as much.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from safe_sail.model.edits import Edit
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model
from safe_sail.model.tokens import TokenBatch, pad_id_of
from safe_sail.neurons.pair import ModelPair
from safe_sail.neurons.patching import patched_tokens
from safe_sail.organism.grammar import prompts
from safe_sail.organism.load import organism_path, planted_units
from safe_sail.sites import Site, SiteKind

REPEATS = 5
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


def seconds(works: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each repeat, the ways taking turns so that a busy machine slows them alike."""
    for work in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, work in works.items():
            begin = time.process_time()
            work()
            found[name].append(time.process_time() - begin)
    return found


def organism(variant: str) -> HookedModel:
    """A variant of the shipped organism."""
    return load_model(organism_path(variant), device="cpu", dtype=torch.float32, model_id=f"organism-{variant}")


def compared(pair: ModelPair, batch: TokenBatch, neurons: Tensor) -> dict[str, list[float]]:
    """Seconds of each way, after all gave the same tokens."""
    ways: dict[str, Callable[[], Tensor]] = {
        "published": lambda: published_loop(pair, batch, neurons),
        "doubled": lambda: patched_tokens(pair, batch, [neurons], NEW, batch_rows=64, doubled=True)[0],
        "beside": lambda: patched_tokens(pair, batch, [neurons], NEW, batch_rows=64, doubled=False)[0],
    }
    expected = ways["published"]()
    assert torch.equal(ways["doubled"](), expected)
    assert torch.equal(ways["beside"](), expected)
    return seconds(dict(ways))


def main() -> None:
    """Compare the tokens, then the times: weights shared but for planted neurons, and all weights apart."""
    torch.set_num_threads(1)
    base = organism("base")
    known = torch.tensor([[unit.layer, unit.index] for unit in planted_units("planted-neurons")])
    pairs = {name: ModelPair(base, organism(name)) for name in ("planted-neurons", "aligned")}
    for rows in (1, 8):
        batch = base.chat_batch([text.text for text in prompts("harmful", "held_out", rows, 0)])
        for name, pair in pairs.items():
            found = compared(pair, batch, known)
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
                "times_faster": {way: medians["published"] / medians[way] for way in ("doubled", "beside")},
            }
            print(json.dumps(report))


if __name__ == "__main__":
    main()
