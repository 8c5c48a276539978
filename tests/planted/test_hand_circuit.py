"""A circuit built by hand is what its page says, and is found exactly by every gate."""

from dataclasses import replace

import pytest
import torch

from safe_sail.circuits.baselines import Baseline
from safe_sail.circuits.judging import Behaviour
from safe_sail.circuits.masks import masked_edits, unit_space
from safe_sail.circuits.objectives import aligned_batch, encoded_rows
from safe_sail.circuits.reference import collect_baseline
from safe_sail.circuits.search import find_circuit
from safe_sail.evaluation.refusal import Label
from safe_sail.model.edits import Edit
from safe_sail.model.handle import HookedModel
from safe_sail.records import CircuitSearch
from safe_sail.settings import CircuitSettings
from safe_sail.sites import Site
from tests.hand import UNITS, hand_model, hand_prompts

SETTINGS = CircuitSettings(
    budget_heads=1, budget_neurons=2, steps=30, n_train=24, n_validation=12, n_evaluate=12, n_random=2, check_every=10,
    step_rows=8, n_bootstrap=20, max_new_tokens=1, n_reference=12, first_tokens=1, learning_rate=0.3,
)  # fmt: skip


def judge(reply: str) -> Label:
    """`b` is the circuit's reply, `a` the model's without it."""
    labels: dict[str, Label] = {"a": "compliance", "b": "refusal"}
    return labels.get(reply.strip(), "degenerate")


BEHAVIOUR = Behaviour("letter", "compliance", judge)


def first_letters(handle: HookedModel, prompts: list[str], edits: dict[Site, Edit]) -> set[str]:
    ids = handle.logits(handle.chat_batch(prompts), edits, positions="last")[:, -1].argmax(-1)
    return set(handle.tokenizer.convert_ids_to_tokens(ids.tolist()))


def search(
    handle: HookedModel, settings: CircuitSettings, seeds: tuple[int, ...] = (0,), baseline: Baseline | None = None
) -> CircuitSearch:
    space, train = unit_space(handle), hand_prompts(24, 1)
    rows = encoded_rows(handle, [tuple(one) for one in train.kept], None, None)
    baseline = baseline or collect_baseline(handle, space, [aligned_batch(rows[:12], 0).batch], settings.ablation)
    validation = hand_prompts(12, 2)
    return find_circuit(
        handle, space, train, validation, baseline, settings, BEHAVIOUR, slug="hand.letter",
        harmless=[one.prompt for one in validation.kept], seeds=seeds, planted=UNITS,
    )  # fmt: skip


def test_the_hand_made_circuit_is_what_its_page_says() -> None:
    handle = hand_model()
    space, prompts = unit_space(handle), hand_prompts(12, 0)
    target, clean = [one.prompt for one in prompts.target], [one.prompt for one in prompts.kept]
    keep = torch.ones(space.n_units)
    keep[[space.place(unit) for unit in UNITS]] = 0
    assert (first_letters(handle, target, {}), first_letters(handle, clean, {})) == ({"b"}, {"a"})
    assert first_letters(handle, target, masked_edits(space, keep)) == {"a"}
    alone = masked_edits(space, 1 - keep)
    assert (first_letters(handle, target, alone), first_letters(handle, clean, alone)) == ({"b"}, {"a"})


@pytest.mark.parametrize(
    ("gate", "ablation"),
    [("top_k", "zero"), ("top_k", "resample"), ("straight_through", "mean"), ("hard_concrete", "zero")],
)
def test_the_hand_made_circuit_is_found_exactly(gate: str, ablation: str) -> None:
    handle = hand_model()
    initial = -1.0 if gate != "top_k" else -2.0
    settings = replace(SETTINGS, gate=gate, ablation=ablation, initial_logit=initial, max_need=0)
    found = search(handle, settings)
    assert found.circuit.units == UNITS
    whole = next(one for one in found.recovery if one.kind == "units")
    assert (whole.precision.value, whole.recall.value) == (1.0, 1.0)
    # one of 4 heads and two of 12 neurons: one in four and two in twelve of three
    assert whole.random_precision == pytest.approx((1 / 4 + 2 * 2 / 12) / 3)


def test_the_published_alignment_objective_finds_it_too() -> None:
    found = search(hand_model(), replace(SETTINGS, objective="alignment", max_need=0))
    assert found.circuit.units == UNITS
    assert found.alone is None
