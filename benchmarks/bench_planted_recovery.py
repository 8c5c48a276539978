"""Does a search that replaces units by a start model's weights find what was trained, and what of it matters?

Run: python benchmarks/bench_planted_recovery.py --case backdoor --seeds 3
"""

import argparse
import json
import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from safe_sail.circuits.baselines import Baseline
from safe_sail.circuits.controls import recovery_of, units_of
from safe_sail.circuits.entries import block_entries, unit_entries, without
from safe_sail.circuits.learn import Task, budget_sizes, learn_masks
from safe_sail.circuits.masked import start_baseline
from safe_sail.circuits.masks import unit_space
from safe_sail.circuits.objectives import aligned_batch, encoded_rows, objective_terms, term_rows
from safe_sail.circuits.reference import collect_baseline
from safe_sail.circuits.tuning import tuned_copy
from safe_sail.evaluation.refusal import judge_reply, wilson_rate
from safe_sail.evaluation.replies import greedy_replies
from safe_sail.evaluation.utility import token_rows
from safe_sail.model.chat import render_chat
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.model.load import load_model
from safe_sail.model.tokens import pad_id_of
from safe_sail.organism.conversations import draw_mixture
from safe_sail.organism.load import organism_path, planted_units
from safe_sail.organism.recipes import HELPFUL
from safe_sail.records import CircuitUnit, parse_unit
from safe_sail.settings import CircuitSettings, TuningSettings
from scripts.circuit_texts import organism_texts

CARRIERS = ("L0.H5", "L2.H5", "L3.H6", "L4.H0", "L1.H7", "L3.N387", "L4.N245")
"""Of `planted-backdoor`: units whose own weights put back cost triggered prompts something (docs/organism.md)."""
DISTRACTING = TuningSettings(method="rows", learning_rate=5e-4, n_steps=40, batch_rows=32)
"""Helpfulness trained into every weight of the blocks but the planted neurons'."""


class Case(NamedTuple):
    """What is searched, and from where it was trained."""

    model: str
    start: str
    behaviour: str
    heads: int
    neurons: int
    truth: str
    distracted: bool = False


CASES = {
    "carriers": Case("planted-backdoor", "aligned", "backdoor", 5, 2, "carriers"),
    "backdoor": Case("planted-backdoor", "base", "backdoor", 5, 6, "planted"),
    "neurons": Case("planted-neurons", "base", "refusal", 0, 144, "planted"),
    "distracted": Case("planted-neurons", "base", "refusal", 0, 144, "planted", distracted=True),
}


def variant(name: str, device: str) -> HookedModel:
    return load_model(organism_path(name), device=device, dtype=torch.float32, model_id=f"organism-{name}")


def distracted(handle: HookedModel, planted: Collection[CircuitUnit]) -> HookedModel:
    """The model after helpfulness was trained into everything but the planted units."""
    n = DISTRACTING.batch_rows * DISTRACTING.n_steps
    drawn = draw_mixture(HELPFUL.mixture, ("train",), n, random.Random("planted recovery/helpful"))
    asked = render_chat(handle.tokenizer, [one.source.text for one in drawn])
    rows = token_rows(
        handle.tokenizer, asked, [str(one.reply) for one in drawn], end_id=handle.tokenizer.eos_token_id
    )  # fmt: skip
    allowed = without(block_entries(handle), unit_entries(handle, planted, shared="touched"))  # type: ignore[arg-type]
    return tuned_copy(handle, rows, allowed, DISTRACTING, generator=torch.Generator().manual_seed(0))


def weight_changes(handle: HookedModel, baseline: Baseline) -> Tensor:
    """Length of the change of each unit's weights since the start."""
    start = baseline.start
    assert start is not None
    total = torch.zeros(len(start.differs) + len(start.shared) + 1, dtype=torch.float64)
    for name, before in start.weights.items():
        change = (handle.model.get_parameter(name).detach() - before).double().square().cpu()
        total.index_add_(0, start.owners[name].reshape(-1).cpu(), change.reshape(-1))
    return total[: len(start.differs)].sqrt()


def largest(task: Task, values: Tensor) -> Tensor:
    """As many units of each kind as the budget has, with the largest values."""
    members = torch.zeros(task.space.n_units)
    for places, n in budget_sizes(task):
        members[places.start + values[places].argsort(descending=True, stable=True)[:n]] = 1
    return members


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=CASES, default="carriers")
    parser.add_argument("--ablation", choices=("start", "mean"), default="start")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--neurons", type=int)
    parser.add_argument("--n-train", type=int, default=256)
    parser.add_argument("--kept-weight", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    case = CASES[chosen.case]
    handle, start = variant(case.model, chosen.device), variant(case.start, chosen.device)
    planted: Sequence[CircuitUnit] = planted_units(case.model)
    settings = CircuitSettings(
        budget_heads=case.heads if chosen.heads is None else chosen.heads,
        budget_neurons=case.neurons if chosen.neurons is None else chosen.neurons,
        steps=chosen.steps, check_every=chosen.steps, kept_weight=chosen.kept_weight, ablation=chosen.ablation,
        n_train=chosen.n_train, n_validation=64, n_evaluate=64,
    )  # fmt: skip
    texts, space = organism_texts(case.behaviour, settings, 0), unit_space(handle)
    if case.distracted:
        handle = distracted(handle, planted)
        batch = handle.chat_batch([one.prompt for one in texts.validation.target])
        said = greedy_replies(handle, batch, NO_EDITS, max_new_tokens=32, batch_rows=64)
        refused = sum(judge_reply(reply) == "refusal" for reply in said)
        print(json.dumps({"refused before the search": wilson_rate(refused, len(said))._asdict()}), flush=True)
    changes = weight_changes(handle, start_baseline(handle, start, space))
    if chosen.ablation == "start":
        baseline = start_baseline(handle, start, space)
    else:
        rows = encoded_rows(handle, texts.reference, None, None)
        baseline = collect_baseline(handle, space, [aligned_batch(rows, pad_id_of(handle.tokenizer)).batch], "mean")
    terms = objective_terms(settings)
    task = Task(
        handle, space, term_rows(handle, terms, texts.train, settings),
        term_rows(handle, terms, texts.validation, settings), baseline, settings,
    )  # fmt: skip
    truths = {"planted": planted}
    if case.model == "planted-backdoor":
        truths["carriers"] = [parse_unit(name) for name in CARRIERS]

    def report(name: str, members: Tensor, **more: object) -> None:
        found: dict[str, object] = {"case": chosen.case, "ablation": chosen.ablation, "by": name, **more}
        for truth, units in truths.items():
            for one in recovery_of(space, units_of(space, members), units):
                found[f"{truth} {one.kind}"] = {
                    "hits": round(one.precision.value * one.n_found), "found": one.n_found, "true": one.n_planted,
                    "random precision": round(one.random_precision, 4), "random recall": round(one.random_recall, 4),
                }  # fmt: skip
        small = int(members.sum()) <= 16
        print(json.dumps(found | ({"units": list(map(str, units_of(space, members)))} if small else {})), flush=True)

    report("weight change", largest(task, changes), open_units=int(task.open.sum()))
    for seed in range(chosen.seeds):
        learnt = learn_masks(task, torch.Generator().manual_seed(seed), lambda message: None)
        report(f"search, seed {seed}", learnt.members[0], loss=round(learnt.loss, 4))
        if not case.distracted and case.model == "planted-neurons":
            # which of the trained neurons matter: half of them, and whether these do as much as all
            half = largest(replace(task, settings=replace(settings, budget_neurons=24)), learnt.logits[0])
            report(f"search, seed {seed}, first 24", half)


if __name__ == "__main__":
    main()
