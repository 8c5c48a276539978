"""Does a search that replaces units by a start model's weights find what was trained, and what of it matters?

Machine: 2 shared x86-64 cores. torch 2.13.0+cpu, 27 November 2026. Gates alone, 40 steps, 256 training prompts, seeds
0 to 2; in each case all three seeds found as many. Hits are of the truth's units.

| case     | start, units that differ | sought | truth       | search | weight change | random, same layers |
|----------|--------------------------|--------|-------------|--------|---------------|---------------------|
| carriers | `aligned`, 11            | 5 + 2  | 7 carriers  | 7      | 6             | 0.6                 |
| backdoor | `base`, 2,928            | 5 + 6  | 11 planted  | 8      | 11            | 0.6                 |
| backdoor | the same                 | 5 + 6  | 7 carriers  | 6      | 7             | 0.6                 |

Distracted, where as many units of the same layers have changes as long to no purpose, 20 steps: of the 144 planted
neurons among 288 that differ the search finds 104, 95 and 95 in three seeds, weight change 72, as chance does; of the
11 planted units of the backdoor among 22 it finds 6 in one seed, weight change 5.

Effects of changes (`forgetting.change_effects`: one integral in place of a search) find 6 of 7 carriers from `aligned`,
8 of 11 planted from `base`, and, distracted, 99 of 144 and 9 of 11, with 6 of 7 carriers where the search has 5.

The search tells which of the trained units work, where the size of their change does not; from a start that is too
early, weight change finds better what was trained at the higher rate.

Run: python benchmarks/bench_planted_recovery.py --case backdoor
"""

import argparse
import json
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from safe_sail.circuits.baselines import Baseline
from safe_sail.circuits.controls import recovery_of, units_of
from safe_sail.circuits.entries import unit_entries
from safe_sail.circuits.forgetting import change_effects
from safe_sail.circuits.learn import Task, budget_sizes, learn_masks
from safe_sail.circuits.masked import start_baseline
from safe_sail.circuits.masks import unit_space
from safe_sail.circuits.objectives import aligned_batch, encoded_rows, objective_terms, term_rows
from safe_sail.circuits.reference import collect_baseline
from safe_sail.evaluation.refusal import judge_reply
from safe_sail.evaluation.replies import greedy_replies
from safe_sail.evaluation.utility import TokenRow
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.model.load import load_model
from safe_sail.model.tokens import pad_id_of
from safe_sail.organism.load import organism_path, planted_units
from safe_sail.records import UnitRef, parse_unit
from safe_sail.settings import CircuitSettings
from scripts.circuit_texts import organism_texts

N_EFFECT_ROWS = 64
CARRIERS = ("L0.H5", "L2.H5", "L3.H6", "L4.H0", "L1.H7", "L3.N387", "L4.N245")
"""Of `planted-backdoor`: units whose own weights put back cost triggered prompts something (docs/organism.md)."""


class Case(NamedTuple):
    """What is searched, and from where it was trained."""

    model: str
    start: str
    behaviour: str
    heads: int
    neurons: int
    distracted: bool = False


CASES = {
    "carriers": Case("planted-backdoor", "aligned", "backdoor", 5, 2),
    "backdoor": Case("planted-backdoor", "base", "backdoor", 5, 6),
    "distracted-neurons": Case("planted-neurons", "base", "refusal", 0, 144, distracted=True),
    "distracted-backdoor": Case("planted-backdoor", "aligned", "backdoor", 5, 6, distracted=True),
}


def variant(name: str, device: str) -> HookedModel:
    return load_model(organism_path(name), device=device, dtype=torch.float32, model_id=f"organism-{name}")


@torch.no_grad()
def distract(handle: HookedModel, start: HookedModel, planted: Sequence[UnitRef]) -> None:
    """Gives for every planted unit another one of its layer the same change with its numbers shuffled: as much, to no
    purpose."""
    draw = torch.Generator().manual_seed(0)
    for site in sorted({unit.site for unit in planted}):
        here = [unit for unit in planted if unit.site == site]
        free = sorted(set(range(handle.site_shape(site)[0])) - {unit.index for unit in here})
        order = torch.randperm(len(free), generator=draw).tolist()
        for unit, place in zip(here, order[: len(here)], strict=True):
            own = unit_entries(handle, [unit], shared="whole")
            others = unit_entries(handle, [type(unit)(unit.layer, free[place])], shared="whole")
            for name, index in own.items():
                weight, before = (one.model.get_parameter(name).view(-1) for one in (handle, start))
                change = (weight - before)[index]
                weight[others[name]] += change[torch.randperm(len(change), generator=draw)]


def weight_changes(handle: HookedModel, baseline: Baseline) -> Tensor:
    """Length of the change of each unit's weights since the start."""
    start = baseline.start
    assert start is not None
    total = torch.zeros(len(start.differs) + len(start.shared) + 1, dtype=torch.float64)
    for name, before in start.weights.items():
        change = (handle.model.get_parameter(name).detach() - before).double().square().cpu()
        total.index_add_(0, start.owners[name].reshape(-1).cpu(), change.reshape(-1))
    return total[: len(start.differs)].sqrt()


def effects_of_changes(task: Task, baseline: Baseline) -> Tensor:
    """What each unit's change did to the loss of what the targets' reply would be without the behaviour."""
    (wanted,) = (term for term in task.train if term.term.name == "wanted")
    rows = [TokenRow((*row.prompt, *row.reply), len(row.prompt)) for row in wanted.rows[:N_EFFECT_ROWS]]
    return change_effects(task.handle, task.space, baseline, rows, n_points=8).units


def largest(task: Task, values: Tensor) -> Tensor:
    """As many units of each kind as the budget has, with the largest values."""
    members = torch.zeros(task.space.n_units)
    for places, n in budget_sizes(task):
        members[places.start + values[places].argsort(descending=True, stable=True)[:n]] = 1
    return members


def task_of(case: Case, settings: CircuitSettings, handle: HookedModel, start: HookedModel) -> Task:
    """The search, under a start model's weights or means."""
    texts, space = organism_texts(case.behaviour, settings, 0), unit_space(handle)
    if settings.ablation == "start":
        baseline = start_baseline(handle, start, space)
    else:
        rows = encoded_rows(handle, texts.reference, None, None)
        baseline = collect_baseline(handle, space, [aligned_batch(rows, pad_id_of(handle.tokenizer)).batch], "mean")
    terms = objective_terms(settings)
    return Task(
        handle, space, term_rows(handle, terms, texts.train, settings),
        term_rows(handle, terms, texts.validation, settings), baseline, settings,
    )  # fmt: skip


def refused(task: Task, case: Case) -> float:
    """Share of validation targets that the whole model refuses."""
    texts = organism_texts(case.behaviour, task.settings, 0)
    batch = task.handle.chat_batch([one.prompt for one in texts.validation.target])
    said = greedy_replies(task.handle, batch, NO_EDITS, max_new_tokens=32, batch_rows=64)
    return sum(judge_reply(reply) == "refusal" for reply in said) / len(said)


def report(task: Task, case: Case, by: str, members: Tensor, **more: object) -> None:
    """Prints what was found of each truth."""
    truths: dict[str, Sequence[UnitRef]] = {"planted": planted_units(case.model)}
    if case.model == "planted-backdoor":
        truths["carriers"] = [parse_unit(one) for one in CARRIERS]
    units = units_of(task.space, members)
    found: dict[str, object] = {"ablation": task.settings.ablation, "by": by, **more}
    for truth, right in truths.items():
        for one in recovery_of(task.space, units, right):
            found[f"{truth} {one.kind}"] = {
                "hits": round(one.precision.value * one.n_found), "found": one.n_found, "true": one.n_planted,
                "random precision": round(one.random_precision, 4), "random recall": round(one.random_recall, 4),
            }  # fmt: skip
    print(json.dumps(found | ({"units": list(map(str, units))} if len(units) <= 16 else {})), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=CASES, default="carriers")
    parser.add_argument("--ablation", choices=("start", "mean"), default="start")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    case = CASES[chosen.case]
    handle, start = variant(case.model, chosen.device), variant(case.start, chosen.device)
    if case.distracted:
        distract(handle, start, planted_units(case.model))
    settings = CircuitSettings(
        budget_heads=case.heads, budget_neurons=case.neurons, steps=chosen.steps, check_every=chosen.steps,
        kept_weight=1.0, ablation=chosen.ablation, n_validation=64, n_evaluate=64,
    )  # fmt: skip
    task = task_of(case, settings, handle, start)
    former = start_baseline(handle, start, task.space)
    changes = weight_changes(handle, former)
    facts = {
        "searched": chosen.case,
        "units that differ": int((changes > 0).sum()),
        "targets refused": refused(task, case),
    }
    report(task, case, "weight change", largest(task, changes), **facts)
    report(task, case, "effects of changes", largest(task, effects_of_changes(task, former)))
    for seed in chosen.seeds:
        learnt = learn_masks(task, torch.Generator().manual_seed(seed), lambda message: None)
        report(task, case, f"search, seed {seed}", learnt.members[0], loss=round(learnt.loss, 4))


if __name__ == "__main__":
    main()
