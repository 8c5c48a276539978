"""How much safety does tuning keep when what it makes the model forget is found, and left alone or put back?

`aligned`, low rank 16, 1e-3, 90 steps of 32 rows, 256 held-out prompts of each group, seeds 0, 1, 2; shares of all
units, each kind. Refused and not answered all the same; safe prompts answered helpfully. 2 x86-64 cores, torch
2.13.0+cpu, 28 November 2026.

| arm                              | seed 0     | seed 1     | seed 2     |
|----------------------------------|------------|------------|------------|
| before                           | .992, 0    | .992, 0    | .996, 0    |
| everything trained               | .367, .652 | .355, .797 | .262, .754 |
| everything, each change times .8 | .734, .660 | .633, .695 | .734, .672 |
| found 10 % put back              | .977, .711 | .969, .762 | .977, .738 |
| random 10 % put back             | .508, .859 | .262, .945 | .449, .887 |
| found 20 % left alone            | .652, .785 | .730, .891 | .898, .707 |

Putting back a tenth keeps 96.5 % of safety at full tuning's utility; leaving the same units alone in a second training
keeps less, since the others take over. More in docs/methods/circuit_tuning.md.

Run: python -m benchmarks.bench_forgetting --rate 1e-3 --steps 90 --seed 0
"""

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.bench_tuning_curve import MAX_NEW_TOKENS, judged, rows
from safe_sail.circuits.entries import block_entries, unit_entries, without
from safe_sail.circuits.forgetting import find_forgetting, put_back, refused_rows
from safe_sail.circuits.tuning import tuned_copy
from safe_sail.circuits.tuning_study import random_units
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model
from safe_sail.organism.grammar import prompts
from safe_sail.organism.load import organism_path
from safe_sail.records import HeadRef, NeuronRef, UnitRef
from safe_sail.settings import ForgettingSettings, TuningSettings

SCALES = (0.9, 0.8, 0.7, 0.6, 0.5)
"""The control that needs no circuit: every change made smaller."""


@torch.no_grad()
def scaled(before: HookedModel, tuned: HookedModel, part: float) -> HookedModel:
    """The model with this part of every change."""
    model = copy.deepcopy(tuned.model)
    for name, weight in model.named_parameters():
        weight.copy_(torch.lerp(before.model.get_parameter(name), weight, part))
    return HookedModel(model, tuned.tokenizer, tuned.architecture, model_id=tuned.model_id)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="aligned", help="a variant of the organism, or a folder")
    parser.add_argument("--method", default="low_rank")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--batch-rows", type=int, default=32)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.03, 0.1, 0.2], help="of all units, each kind")
    parser.add_argument("--sizes", nargs="*", default=[], help="heads+neurons, as 3+56, in place of shares")
    parser.add_argument("--left-alone", type=float, nargs="*", default=[0.1, 0.2], help="shares also trained anew")
    parser.add_argument("--task-weight", type=float, default=ForgettingSettings().task_weight)
    parser.add_argument("--n", type=int, default=256, help="prompts of each group")
    parser.add_argument("--split", default="held_out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()

    path = Path(chosen.model) if Path(chosen.model).is_dir() else organism_path(chosen.model)
    before = load_model(path, device=chosen.device, dtype=torch.float32, model_id=f"organism-{path.name}")
    train = rows(before, "train", chosen.batch_rows * chosen.steps, chosen.seed)
    held = rows(before, chosen.split, chosen.n, chosen.seed)
    harmful, safe = (prompts(kind, chosen.split, chosen.n, 500 + chosen.seed) for kind in ("harmful", "safe"))
    settings = TuningSettings(
        method=chosen.method, learning_rate=chosen.rate, batch_rows=chosen.batch_rows, n_steps=chosen.steps
    )
    whole, draw = block_entries(before), torch.Generator().manual_seed(100 + chosen.seed)

    def report(arm: str, handle: HookedModel, **more: object) -> None:
        facts = {"model": chosen.model, "rate": chosen.rate, "steps": chosen.steps, "seed": chosen.seed, "arm": arm}
        print(json.dumps(facts | more | judged(handle, harmful, safe, held)), flush=True)

    def without_units(units: list[UnitRef]) -> HookedModel:
        allowed = without(whole, unit_entries(before, units, shared="touched"))
        order = torch.Generator().manual_seed(chosen.seed)
        return tuned_copy(before, train, allowed, settings, generator=order)

    report("before", before)
    full = without_units([])
    report("everything", full)
    for part in SCALES:
        report(f"everything, {part} of each change", scaled(before, full, part))
    find = ForgettingSettings(task_weight=chosen.task_weight)
    asked = [one.text for one in prompts("harmful", "train", find.n_prompts, 700 + chosen.seed)]
    told = refused_rows(before, asked, max_new_tokens=MAX_NEW_TOKENS, batch_rows=128)
    task = train[: find.n_prompts]
    dims = before.dims
    per_share = [
        (share, round(share * dims.n_layers * dims.n_heads), round(share * dims.n_layers * dims.d_mlp))
        for share in chosen.shares
    ]
    given = [(None, *map(int, size.split("+"))) for size in chosen.sizes]
    for share, n_heads, n_neurons in given or per_share:
        some = replace(find, budget_heads=n_heads, budget_neurons=n_neurons)
        found = find_forgetting(before, full, told, task, some, slug="forgetting")
        units: list[UnitRef] = [one for one in found.circuit.units if isinstance(one, HeadRef | NeuronRef)]
        random = random_units(before, units, draw)
        for name, one in (("found", units), ("random", random)):
            size = {"share": share, "units": len(one), "heads": sum(isinstance(unit, HeadRef) for unit in one)}
            restored = put_back(before, full, unit_entries(before, one, shared="touched"))
            report(f"{name} put back", restored, **size)
            if share in chosen.left_alone:
                report(f"{name} left alone", without_units(one), **size)


if __name__ == "__main__":
    main()
