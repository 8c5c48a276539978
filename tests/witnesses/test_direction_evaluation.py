"""Evaluations of a direction on random models: every intervention with its control, and what is refused or said."""

import pytest
import torch

from safe_sail.directions import find
from safe_sail.directions.candidates import (
    prepare,
)
from safe_sail.directions.evaluate import EvaluationTexts, evaluate_direction
from safe_sail.directions.find import find_direction
from safe_sail.directions.replies import Generation
from safe_sail.errors import EmptyConcept, NoDirection
from safe_sail.records import DirectionSelection
from safe_sail.settings import DirectionSettings
from safe_sail.sites import Site, SiteKind
from tests.deep import N_LAYERS, NAMED, OPEN, PROMPTS, deep, texts


def held_out() -> EvaluationTexts:
    return EvaluationTexts(texts(5, 8), texts(6, 9), texts(4, 10), [(text, "at home") for text in texts(3, 11)])


def test_an_evaluation_counts_every_intervention_with_its_control():
    handle = deep()
    settings = DirectionSettings(
        filter_prompts=False, induce_above=-1e9, kl_below=1e9, n_bootstrap=50, max_new_tokens=3, max_degenerate=1.0,
        n_random=2,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    found = find_direction(handle, PROMPTS, settings, slug="one", generator=generator, refusal_texts=NAMED)
    judged = evaluate_direction(handle, found, held_out(), settings, generator=generator)
    rows = {(one.intervention, one.prompts): one for one in judged.replies}
    assert set(rows) == {
        *((name, "harmful held out") for name in ("none", "ablation", "subtraction", "random ablation")),
        *((name, "harmless held out") for name in ("none", "ablation", "addition", "random addition")),
    }
    assert rows["none", "harmful held out"].n_prompts == 5
    assert rows["random addition", "harmless held out"].n_draws == 2
    assert {cost.texts for cost in judged.utility} == {"documents", "reference answers", "own replies"}
    assert judged.weights_gap is not None
    # KL by hand, plain softmax of both
    assert found.direction is not None
    vector = torch.tensor(found.direction.vectors[0], dtype=torch.float64)
    hat = vector / vector.norm()
    clean = {
        Site(kind, layer): lambda x: (x.double() - (x.double() @ hat)[..., None] * hat).float()
        for layer in range(N_LAYERS)
        for kind in (SiteKind.RESID_PRE, SiteKind.ATTN_OUT, SiteKind.MLP_OUT)
    }
    batch = handle.chat_batch(texts(6, 9))
    plain, edited = (handle.logits(batch, edits)[:, -1].double().softmax(-1) for edits in ({}, clean))
    assert judged.kl.value == pytest.approx(float((plain * (plain / edited).log()).sum(-1).mean()), rel=1e-4)


def test_a_judge_of_the_callers_own_is_used():
    handle = deep()
    settings = DirectionSettings(
        filter_prompts=False, induce_above=-1e9, kl_below=1e9, n_bootstrap=50, max_new_tokens=3, max_degenerate=1.0,
        n_random=2,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    found = find_direction(handle, PROMPTS, settings, slug="one", generator=generator, refusal_texts=NAMED)
    generation = Generation(3, 64, judge=lambda reply: "refusal")
    judged = evaluate_direction(handle, found, held_out(), settings, generator=generator, generation=generation)
    assert {one.refusal.value for one in judged.replies} == {1.0}


def test_a_search_without_direction_and_empty_texts_are_refused():
    settings = DirectionSettings(
        filter_prompts=False, n_bootstrap=50, n_random=2, max_new_tokens=3, max_rank=1, kl_below=1e-12
    )
    handle, generator = deep(), torch.Generator().manual_seed(0)
    found = find_direction(handle, PROMPTS, settings, slug="none", generator=generator, refusal_texts=NAMED)
    with pytest.raises(NoDirection, match="raw: 0 of 8 candidates"):
        evaluate_direction(handle, found, held_out(), settings, generator=generator)
    with pytest.raises(EmptyConcept, match="documents"):
        evaluate_direction(handle, found, held_out()._replace(documents=[]), settings, generator=generator)


def test_few_prompts_left_by_the_filter_are_said():
    handle = deep(2)
    prepared = prepare(handle, PROMPTS, OPEN, refusal_texts=NAMED)
    few = prepared._replace(n_prompts=prepared.n_prompts | {"harmful train": 3})
    notes = find._notes(few, [_Attempted()], PROMPTS, None, OPEN)  # type: ignore[list-item]
    assert notes[0].startswith("harmful train: only 3 of 12 prompts are left")


class _Attempted:
    """The part of an attempt that notes read."""

    record = DirectionSelection(
        estimator="raw", candidates=(), winner=None, lead=None, trials=(), confirmed=None, reason="none", n_launches=1,
        n_launches_naive=3,
    )  # fmt: skip
