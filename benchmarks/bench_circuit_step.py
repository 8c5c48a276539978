"""How much more does a step of the search for a circuit cost than a pass of the frozen model on the same rows?

Machine: 2 shared x86-64 cores, one thread. torch 2.13.0+cpu, transformers 5.23.0. 27 November 2026.
16 refused and 16 kept prompts of the organism's grammar, 1,152 tokens with padding; median of 9 (range).

|                                  | bare, s | step, s | step / bare      | kept for backward, bare / step |
|----------------------------------|---------|---------|------------------|--------------------------------|
| embedded organism, 160 wide      | 0.40    | 0.46    | 1.05 (0.95-1.25) | 79.7 / 89.6 MB                 |
| random weights, 480 wide         | 1.95    | 1.91    | 0.96 (0.90-1.11) | 281.1 / 309.2 MB               |

With a start model's weights (`aligned` and `planted-neurons`, from `base`), idle cores, the same day:

|                                  | bare, s | step, s | step / bare      | kept for backward, bare / step |
|----------------------------------|---------|---------|------------------|--------------------------------|
| means, for comparison            | 0.40    | 0.41    | 1.02 (0.91-1.33) | 79.7 / 89.6 MB                 |
| every unit trained               | 0.38    | 0.54    | 1.45 (1.14-1.61) | 79.7 / 132.8 MB                |
| 144 neurons of two blocks trained| 0.42    | 0.29    | 0.67 (0.52-0.75) | 79.7 / 30.1 MB                 |

Masks of values are within 1.15: a step takes no gradient below layer 0's heads, and the bare pass does, down to the
embeddings. Masks of weights need the gradient of every weight that training changed, a third product beside the two of
the bare pass; below the first changed block they need none.

The bare pass computes the same losses of the frozen model without hooks and takes their gradient by the embeddings,
from rows that were batched before. A step builds its batch, masks every head and neuron, and moves the gates.
The losses are equal where the mask replaces nothing. Times are of the processor, one thread, the two in turn.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from safe_sail.circuits.learn import Parts, Scale, Task, mask_gradients, search_step
from safe_sail.circuits.masked import start_baseline
from safe_sail.circuits.masks import unit_space
from safe_sail.circuits.objectives import (
    AlignedBatch,
    aligned_batch,
    encoded_rows,
    objective_terms,
    split_losses,
    term_rows,
)
from safe_sail.circuits.reference import collect_baseline
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model
from safe_sail.model.tokens import pad_id_of
from safe_sail.organism.load import organism_path
from safe_sail.settings import CircuitSettings
from scripts.circuit_texts import organism_texts

REPEATS = 9
SETTINGS = CircuitSettings(n_train=64, n_validation=2, n_evaluate=2)
"""The command's defaults: 16 refused and 16 kept prompts in a step, mean ablation."""
BOUND = 1.15


def wider(handle: HookedModel, d_model: int) -> HookedModel:
    """Random weights of the organism's depth, vocabulary and proportions: cost does not ask what a model says."""
    torch.manual_seed(0)
    shape = {"hidden_size": d_model, "intermediate_size": 3 * d_model, "head_dim": d_model // 8}
    model = LlamaForCausalLM(LlamaConfig(**{**handle.model.config.to_dict(), **shape})).eval().requires_grad_(False)
    return HookedModel(model, handle.tokenizer, handle.architecture, model_id=f"llama-{d_model}")


def task_of(handle: HookedModel, start: HookedModel | None) -> Task:
    """The default search for refusal, or the same with a start model's weights in place of means."""
    texts, space = organism_texts("refusal", SETTINGS, 0), unit_space(handle)
    rows = encoded_rows(handle, texts.reference[:16], None, None)
    if start is None:
        baseline = collect_baseline(handle, space, [aligned_batch(rows, pad_id_of(handle.tokenizer)).batch], "mean")
    else:
        baseline = start_baseline(handle, start, space)
    train = term_rows(handle, objective_terms(SETTINGS), texts.train, SETTINGS)
    return Task(handle, space, train, (), baseline, SETTINGS)


def bare_pass(task: Task, parts: Parts, aligned: AlignedBatch) -> float:
    """The frozen model's losses and their gradient by the embeddings."""
    batch = aligned.batch
    embeddings = task.handle.model.get_input_embeddings()(batch.token_ids).requires_grad_()
    logits = task.handle.model(
        inputs_embeds=embeddings,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=aligned.targets.shape[1],
    ).logits.float()
    found = split_losses(logits, aligned, parts, margin=task.settings.margin)
    loss = torch.stack([term.term.weight * each for (term, _), each in zip(parts, found, strict=True)]).sum()
    loss.backward()
    return float(loss.detach())


def saved_bytes(work: Callable[[], object]) -> int:
    """Bytes of distinct tensors that autograd keeps for backward."""
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch.nn.Parameter):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        work()
    return sum(kept.values())


def compare(handle: HookedModel, start: HookedModel | None = None) -> dict[str, Any]:
    """Equality of losses, then processor seconds of both, and what both keep for backward."""
    task = task_of(handle, start)
    parts: Parts = [(term, list(range(SETTINGS.step_rows))) for term in task.train]
    aligned = aligned_batch([term.rows[row] for term, rows in parts for row in rows], pad_id_of(handle.tokenizer))
    logits = torch.randn(1, task.space.n_units).requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=0.1, momentum=0.9)
    scale, generator = Scale(task.space), torch.Generator().manual_seed(0)
    whole = mask_gradients(task, torch.zeros(1, task.space.n_units), parts, shift=0)
    plain = bare_pass(task, parts, aligned)
    assert abs(float(whole.loss) - plain) <= 1e-6 * abs(plain), (float(whole.loss), plain)

    def step() -> None:
        optimizer.zero_grad()
        search_step(task, logits, parts, wide=1.0, generator=generator, shift=0, scale=scale)
        optimizer.step()

    works: dict[str, Callable[[], object]] = {"bare": lambda: bare_pass(task, parts, aligned), "step": step}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    memory = {name: saved_bytes(work) for name, work in works.items()}
    for _ in range(REPEATS):
        for name, work in works.items():
            begin = time.process_time()
            work()
            seconds[name].append(time.process_time() - begin)
    ratios = [mine / bare for mine, bare in zip(seconds["step"], seconds["bare"], strict=True)]
    return {
        "model": handle.model_id,
        "ablation": task.baseline.kind,
        "n_tokens": aligned.batch.attention_mask.numel(),
        "loss": plain,
        "seconds_bare": statistics.median(seconds["bare"]),
        "seconds_step": statistics.median(seconds["step"]),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "bytes_bare": memory["bare"],
        "bytes_step": memory["step"],
    }


def main() -> None:
    """The organism, a model three times as wide, and the organism from a start model: all units trained, and few."""
    torch.set_num_threads(1)
    aligned, planted, base = (
        load_model(organism_path(name), device="cpu", dtype=torch.float32, model_id=f"organism-{name}")
        for name in ("aligned", "planted-neurons", "base")
    )
    found = [compare(aligned), compare(wider(aligned, 480)), compare(aligned, base), compare(planted, base)]
    print(
        json.dumps(
            {
                "benchmark": "circuit_step",
                "torch": torch.__version__,
                "machine": platform.machine(),
                "threads": 1,
                "bound": BOUND,
                "rows": found,
            }
        )
    )
    assert all(one["ratio"] <= BOUND for one in found if one["ablation"] == "mean"), [one["ratio"] for one in found]


if __name__ == "__main__":
    main()
