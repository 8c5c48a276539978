"""What does collecting contexts cost beside its floor (forward, encode, top-k), and beside keeping every activation?

Two x86-64 cores beside other processes at a lower priority, one thread, CPU seconds; Python 3.11, torch 2.13.0+cpu,
transformers 5.23.0; 2026-11-27. Random Llama, d_model 256, stopped after 4 layers; ReLU SAE of 4,096 features, L0 58;
windows of 64 tokens. Three repeats over 49,152 tokens, the two in turn batch by batch:

| | tokens / CPU s |
|---|---|
| floor: forward, product, running top-k | 3,958 |
| this | 3,736 (0.94 of the floor, 0.91 to 0.96) |
| keep every activation, sort at the end | 3,060 |

On the same machine when nothing else ran all three were nearly twice as fast (7,049, 6,438 and 6,896; one repeat,
2026-11-21), and this had 0.91 of the floor.

Windows, activations on every token and counts are equal, bit by bit. What is between is mostly the top-k's payload and
the spread sample, which cost most in the first windows, when every window enters. Without encoding in pieces of 8 MB it
was 0.82; the plain floor encodes a batch at once. Making 4,096 records with their texts takes 5 to 17 s more, once.

Peak memory of the process from 0.2 to 2 million tokens (d_model 64, 512 features): 458 to 489 MB; keeping everything:
508 to 4,460 MB. The 31 MB were token ids of kept windows, bounded by features times windows kept; they have since
been packed into a seventh, which is not measured here.

Run: OMP_NUM_THREADS=1 python -m benchmarks.bench_contexts
"""

import argparse
import gc
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import transformers
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.masking_utils import create_causal_mask

from safe_sail.features.context_buffers import ContextBuffers
from safe_sail.features.contexts import NumberedBatch, collected, fill_buffers
from safe_sail.model.architectures import ARCHITECTURES
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.records import SaeRef
from safe_sail.sae.form import SaeForm, SaeWeights
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import ContextSettings
from safe_sail.sites import Site

WINDOW, BATCH, K, VOCAB = 64, 64, 20, 4096
SETTINGS = ContextSettings(n_contexts=K, window=WINDOW, batch_size=BATCH)
LARGE = {"d_model": 256, "layers": 4, "d_sae": 4096}
SMALL = {"d_model": 64, "layers": 1, "d_sae": 512}


class Parts(NamedTuple):
    model: HookedModel
    sae: SAEHandle
    W_enc: Tensor
    b_enc: Tensor


def build(size: dict[str, int]) -> Parts:
    """A random Llama and a random ReLU SAE whose features fire on one token in a hundred."""
    torch.manual_seed(0)
    d_model, d_sae = size["d_model"], size["d_sae"]
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=d_model,
        num_hidden_layers=size["layers"] + 2,
        intermediate_size=d_model * 8 // 3,
        num_attention_heads=d_model // 64,
        attn_implementation="sdpa",
    )
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    llama = LlamaForCausalLM(config).eval().requires_grad_(False)
    model = HookedModel(llama, tokenizer, ARCHITECTURES["LlamaForCausalLM"], model_id="bench")
    site = Site.parse(f"resid_post.{size['layers'] - 1}")
    (first,) = batches(1)
    with torch.no_grad():
        x = model.capture(first.batch, [site])[site].flatten(0, 1)
    W_enc = torch.randn(d_model, d_sae) / d_model**0.5
    b_enc = -(x @ W_enc).quantile(0.99, dim=0)
    ref = SaeRef(
        slug="s", release=None, sae_id="x", model_id=None, site=site, d_in=d_model, width=d_sae, architecture="standard"
    )
    weights = SaeWeights(W_enc=W_enc, b_enc=b_enc, W_dec=W_enc.T.contiguous(), b_dec=torch.zeros(d_model))
    return Parts(model, SAEHandle(ref, weights, SaeForm(activation="relu")), W_enc, b_enc)


def batches(n: int) -> Iterator[NumberedBatch]:
    """Random tokens; batches are made when asked for, so that the corpus takes no memory."""
    generator = torch.Generator().manual_seed(1)
    for place in range(n):
        ids = torch.randint(0, VOCAB, (BATCH, WINDOW), generator=generator)
        first = place * BATCH
        yield NumberedBatch(first, TokenBatch(ids, torch.ones_like(ids), tuple(map(str, range(first, first + BATCH)))))


class Floor:
    """The model's own blocks in a plain loop, one product, one running top-k; nothing else."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        d_sae = parts.W_enc.shape[1]
        self.values = torch.full((d_sae, K), -torch.inf)
        self.sources = torch.full((d_sae, K), -1)

    def encoded(self, batch: TokenBatch) -> Tensor:
        llama = self.parts.model.model
        embeds = llama.model.embed_tokens(batch.token_ids)
        positions = batch.position_ids
        mask = create_causal_mask(
            config=llama.config,
            inputs_embeds=embeds,
            attention_mask=batch.attention_mask,
            past_key_values=None,
            position_ids=positions,
        )
        rotary = llama.model.rotary_emb(embeds, position_ids=positions)
        x = embeds
        assert self.parts.sae.site.layer is not None
        for block in llama.model.layers[: self.parts.sae.site.layer + 1]:
            x = block(x, attention_mask=mask, position_embeddings=rotary, position_ids=positions, use_cache=False)
        return (x.flatten(0, 1) @ self.parts.W_enc + self.parts.b_enc).relu_()

    def step(self, first: int, batch: TokenBatch) -> None:
        peaks = self.encoded(batch).view(len(batch), WINDOW, -1).amax(dim=1)
        values = torch.cat([self.values, peaks.T], dim=1)
        sources = torch.arange(first, first + len(batch)).expand(len(values), -1)
        self.values, order = values.topk(K, dim=1)
        self.sources = torch.cat([self.sources, sources], dim=1).gather(1, order)


class KeepEverything(Floor):
    """Every activation that is not zero is kept as (token, feature, value), and sorted at the end."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self.n_tokens = 0

    def step(self, first: int, batch: TokenBatch) -> None:
        encoded = self.encoded(batch)
        token, feature = encoded.nonzero(as_tuple=True)
        self.kept.append((token + first * WINDOW, feature, encoded[token, feature]))
        self.n_tokens += len(encoded)

    def finish(self) -> dict[str, Tensor]:
        token, feature, value = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        d_sae, n = self.parts.W_enc.shape[1], self.n_tokens // WINDOW
        peaks = torch.zeros(d_sae * n).scatter_reduce_(0, feature * n + token // WINDOW, value, "amax").view(d_sae, n)
        top = peaks.sort(dim=1, descending=True, stable=True)
        dense = torch.zeros(d_sae, K, WINDOW)
        rank = torch.full((d_sae, n), -1)
        rank.scatter_(1, top.indices[:, :K], torch.arange(K).expand(d_sae, -1))
        place = rank[feature, token // WINDOW]
        inside = place >= 0
        dense[feature[inside], place[inside], token[inside] % WINDOW] = value[inside]
        return {
            "peaks": top.values[:, :K],
            "sources": top.indices[:, :K],
            "activations": dense,
            "n_fired": torch.bincount(feature, minlength=d_sae),
        }


class Ours:
    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        features = {parts.sae.ref.slug: range(parts.sae.d_sae)}
        self.buffers = ContextBuffers(features, settings=SETTINGS, seed=0)

    def step(self, first: int, batch: TokenBatch) -> None:
        for _ in fill_buffers(self.buffers, self.parts.model, [self.parts.sae], [NumberedBatch(first, batch)]):
            pass


def check_equal(ours: Ours, floor: Floor, everything: KeepEverything) -> None:
    """Same windows, activations and counts; then, and only then, time means something."""
    found, kept = everything.finish(), ours.buffers.saes["s"]
    fires = found["peaks"] > 0
    assert torch.equal(kept.top.best.values.clamp(min=0), found["peaks"])
    assert torch.equal(kept.top.best.sources[fires], found["sources"][fires])
    assert torch.equal(kept.top.activations[fires], found["activations"][fires])
    assert torch.equal(kept.counts.sum(dim=1), found["n_fired"])
    assert torch.equal(floor.values, found["peaks"])


def run(collector: Any, n: int) -> float:
    start = time.process_time()
    for first, batch in batches(n):
        collector.step(first, batch)
    return time.process_time() - start


@torch.no_grad()
def compare(parts: Parts, n: int, repeats: int) -> dict[str, Any]:
    """CPU seconds of both, batch by batch in turn, so that what else the machine does falls on both."""
    ratios, seconds = [], {"floor": [], "ours": [], "keep_everything": []}
    for _ in range(repeats):
        floor, ours = Floor(parts), Ours(parts)
        spent = {"floor": 0.0, "ours": 0.0}
        gc.collect()
        for place, (first, batch) in enumerate(batches(n)):
            turns = [("floor", floor), ("ours", ours)]
            for name, one in turns if place % 2 else reversed(turns):
                start = time.process_time()
                one.step(first, batch)
                spent[name] += time.process_time() - start
        ratios.append(spent["floor"] / spent["ours"])
        for name, value in spent.items():
            seconds[name].append(value)
    everything = KeepEverything(parts)
    start = time.process_time()
    for first, batch in batches(n):
        everything.step(first, batch)
    everything.finish()
    seconds["keep_everything"].append(time.process_time() - start)
    check_equal(ours, floor, everything)
    start = time.process_time()
    n_records = sum(1 for _ in collected(ours.buffers, parts.model.tokenizer))
    records = time.process_time() - start
    n_tokens = n * BATCH * WINDOW
    return {
        "tokens": n_tokens,
        "l0": round(float(ours.buffers.saes["s"].counts.sum()) / n_tokens, 1),
        "tokens_per_cpu_s": {name: round(n_tokens / statistics.median(s)) for name, s in seconds.items()},
        "share_of_floor": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "records_cpu_s": round(records, 1),
        "records": n_records,
    }


@torch.no_grad()
def memory(n: int, collector: str) -> None:
    parts = build(SMALL)
    one = Ours(parts) if collector == "ours" else KeepEverything(parts)
    run(one, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(one, n)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak_mb": after // 1024, "grown_mb": (after - before) // 1024}))


def measured_memory(n: int, collector: str) -> dict[str, int]:
    """In a process of its own, because a peak never falls."""
    words = [sys.executable, "-m", "benchmarks.bench_contexts", "--memory", collector, "--batches", str(n)]
    found: dict[str, int] = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", choices=["ours", "keep_everything", "skip"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory in ("ours", "keep_everything"):
        memory(options.batches, options.memory)
        return
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "large": compare(build(LARGE), options.batches, options.repeats),
    }
    if options.memory is None:
        for n in (50, 500):
            for collector in ("ours", "keep_everything"):
                result[f"memory {collector} {n * BATCH * WINDOW}"] = measured_memory(n, collector)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
