"""The search on random models: the published loop's winner, and every input that it refuses or says something about."""

import copy
from typing import Any

import pytest
import torch

from safe_sail.directions.candidates import (
    find_differences,
    prepare,
    rule_of,
    score_cells,
    select_cell,
    table_of,
)
from safe_sail.directions.find import find_direction
from safe_sail.directions.means import class_sums
from safe_sail.directions.selection import Selection
from safe_sail.directions.subspace import Cell, concept_basis, repeated_basis
from safe_sail.errors import ChatTemplateMissing, EmptyConcept, NoDirection, RefusalTokensMissing
from safe_sail.model.handle import HookedModel
from safe_sail.settings import DirectionSettings
from safe_sail.sites import Site, SiteKind
from tests.deep import N_LAYERS, NAMED, OPEN, PROMPTS, deep
from tests.tiny import TinyModels, tiny_tokenizer


def naive_winner(handle: HookedModel, kl_below: float) -> tuple[tuple[int, int], dict[tuple[int, int], list[float]]]:
    """The published loop written plainly: one prompt at a time for the means, three full passes for each candidate."""
    ids = [handle.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in NAMED]

    def mean(prompts: Any) -> torch.Tensor:
        rows = []
        for prompt in prompts:
            sites = [Site(SiteKind.RESID_PRE, layer) for layer in range(N_LAYERS)]
            found = handle.capture(handle.chat_batch([prompt]), sites)
            rows.append(torch.stack([found[site][0, -2:] for site in sites], dim=1).double())
        return torch.stack(rows).mean(0)

    def metric(logits: torch.Tensor) -> float:
        p = logits[:, -1].double().softmax(-1)[:, ids].sum(-1)
        return float((p.log() - (1 - p).log()).mean())

    vectors = mean(PROMPTS.harmful_train) - mean(PROMPTS.harmless_train)
    harmful, harmless = handle.chat_batch(PROMPTS.harmful_validation), handle.chat_batch(PROMPTS.harmless_validation)
    plain = handle.logits(harmless)[:, -1].double().log_softmax(-1)
    scores: dict[tuple[int, int], list[float]] = {}
    for position in (-2, -1):
        for layer in range(1, N_LAYERS):
            r = vectors[position, layer]
            hat = r / r.norm()
            clean = {
                Site(kind, place): (lambda x, hat=hat: (x.double() - (x.double() @ hat)[..., None] * hat).float())
                for place in range(N_LAYERS)
                for kind in (SiteKind.RESID_PRE, SiteKind.ATTN_OUT, SiteKind.MLP_OUT)
            }
            added = {Site(SiteKind.RESID_PRE, layer): lambda x, r=r: (x.double() + r).float()}
            edited = handle.logits(harmless, clean)[:, -1].double().log_softmax(-1)
            scores[position, layer] = [
                metric(handle.logits(harmful, clean)),
                metric(handle.logits(harmless, added)),
                float((plain.exp() * (plain - edited)).sum(-1).mean()),
            ]
    left = [cell for cell, (_, _, kl) in scores.items() if cell[1] < 0.8 * N_LAYERS and kl < kl_below]
    return min(left, key=lambda cell: (scores[cell][0], cell)), scores


@pytest.mark.parametrize("seed", range(4))
def test_the_winner_and_every_score_are_those_of_the_published_loop(seed: int):
    handle = deep(seed)
    kls = sorted(kl for _, _, kl in naive_winner(handle, 1e9)[1].values())
    settings = DirectionSettings(
        filter_prompts=False, induce_above=-1e9, kl_below=(kls[5] + kls[6]) / 2, score_all=True, n_bootstrap=50
    )
    winner, scores = naive_winner(handle, settings.kl_below)
    prepared = prepare(handle, PROMPTS, settings, refusal_texts=NAMED)
    scored = score_cells(handle, prepared, find_differences(handle, prepared, settings, "raw"), settings)
    found = select_cell(scored, N_LAYERS, settings)
    assert isinstance(found, Selection)
    assert (found.winner.position, found.winner.layer) == winner
    table = table_of(scored, N_LAYERS, settings, torch.Generator().manual_seed(0))
    assert len(table) == 2 * N_LAYERS
    for cell in table:
        if cell.layer == 0:
            assert cell.reasons == ("no difference",)
            continue
        assert cell.bypass is not None
        assert cell.induce is not None
        assert cell.kl is not None
        came = (cell.bypass.value, cell.induce.value, cell.kl.value)
        assert came == pytest.approx(scores[cell.position, cell.layer], abs=5e-5)
        assert cell.bypass.low <= cell.bypass.value <= cell.bypass.high
        assert cell.bypass.n == 7


def test_the_fast_search_takes_at_most_a_third_of_the_passes_and_finds_the_same():
    handle = deep(1)
    whole = DirectionSettings(filter_prompts=False, induce_above=-4.0, kl_below=1e9, score_all=True)
    quick = DirectionSettings(filter_prompts=False, induce_above=-4.0, kl_below=1e9)
    prepared = prepare(handle, PROMPTS, whole, refusal_texts=NAMED)
    found = find_differences(handle, prepared, whole, "raw")
    all_scored, scored = (score_cells(handle, prepared, found, settings) for settings in (whole, quick))
    first, second = (select_cell(table, N_LAYERS, whole) for table in (all_scored, scored))
    assert isinstance(first, Selection)
    assert isinstance(second, Selection)
    assert first.winner[:2] == second.winner[:2]
    assert scored.n_launches * 3 <= scored.n_launches_naive
    skipped = [cell for cell in scored.cells if cell.ablated is None and cell.candidate.layer > 0]
    assert skipped  # something was pruned, so the equality says something


def test_padding_side_of_the_tokenizer_does_not_matter():
    right = copy.deepcopy(tiny_tokenizer())
    right.padding_side = "right"
    found = []
    for tokenizer in (tiny_tokenizer(), right):
        handle = deep(0, tokenizer)
        prepared = prepare(handle, PROMPTS, OPEN, refusal_texts=NAMED)
        found.append(find_differences(handle, prepared, OPEN, "raw").vectors)
    assert torch.equal(found[0], found[1])


def test_batch_size_does_not_matter():
    handle = deep()
    batch = handle.chat_batch(PROMPTS.harmful_train)
    one, many = (class_sums(handle, batch, n_positions=2, batch_rows=rows).mean for rows in (1, 64))
    torch.testing.assert_close(one, many, atol=2e-5, rtol=2e-5)


def test_a_model_without_chat_template_is_refused():
    bare = copy.deepcopy(tiny_tokenizer())
    bare.chat_template = None
    with pytest.raises(ChatTemplateMissing):
        prepare(deep(0, bare), PROMPTS, OPEN)


def test_a_system_prompt_of_the_template_is_said():
    own = copy.deepcopy(tiny_tokenizer())
    own.chat_template = "<|system|>be kind<|end|>" + own.chat_template
    prepared = prepare(deep(0, own), PROMPTS, OPEN, refusal_texts=NAMED)
    assert prepared.template.prefix.startswith("<|system|>be kind<|end|>")
    assert "adds a system prompt of its own" in prepared.template.notes[0]
    assert prepared.template.suffix == ("<|end|>", "<|assistant|>")


def test_a_template_that_ends_with_the_instruction_leaves_one_position():
    plain = copy.deepcopy(tiny_tokenizer())
    plain.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    prepared = prepare(deep(0, plain), PROMPTS, OPEN, refusal_texts=NAMED)
    assert prepared.template.n_positions == 1
    assert "only the prompt's last token" in prepared.template.notes[0]


def test_a_class_that_the_filter_empties_is_named():
    settings = DirectionSettings(filter_prompts=True)
    with pytest.raises(EmptyConcept, match=r"harmful train: none of 12 prompts is left.*'the', 'a', 'f"):
        prepare(deep(), PROMPTS, settings, refusal_texts=NAMED)


def test_a_class_without_prompts_is_named():
    with pytest.raises(EmptyConcept, match="harmless validation"):
        prepare(deep(), PROMPTS._replace(harmless_validation=[]), OPEN, refusal_texts=NAMED)


def test_a_model_that_does_not_refuse_has_no_refusal_tokens():
    with pytest.raises(RefusalTokensMissing, match=r"nearest: '.*' 0\.\d+ against 0\.\d+"):
        prepare(deep(), PROMPTS, OPEN)


def test_no_candidate_is_an_outcome_with_its_reasons_and_curves():
    settings = DirectionSettings(
        filter_prompts=False, n_bootstrap=50, n_random=2, max_new_tokens=3, max_rank=2, kl_below=1e-12,
        estimators=("raw", "standardised"),
    )  # fmt: skip
    found = find_direction(
        deep(), PROMPTS, settings, slug="none", generator=torch.Generator().manual_seed(0), refusal_texts=NAMED
    )
    assert found.outcome == "none"
    assert found.direction is None
    assert [selection.estimator for selection in found.selections] == ["raw", "standardised"]
    assert all(selection.winner is None for selection in found.selections)
    assert "raw: 0 of 8 candidates pass every filter: 2 of 8 candidates lie at layer 4 or later" in found.reasons[0]
    assert {name: [effect.rank for effect in curve] for name, curve in found.curves.items()} == {
        "concepts": [1, 2],
        "repeated": [1, 2],
    }
    assert any(reason.startswith("concepts: no rank up to 2") for reason in found.reasons)


def test_a_confirmed_candidate_ends_the_search():
    """Random models never say a refusal phrase, so every candidate that passes the filters is confirmed."""
    settings = DirectionSettings(
        filter_prompts=False, induce_above=-1e9, kl_below=1e9, n_bootstrap=50, max_new_tokens=3, max_degenerate=1.0
    )
    found = find_direction(
        deep(), PROMPTS, settings, slug="one", generator=torch.Generator().manual_seed(0), refusal_texts=NAMED
    )
    assert found.outcome == "single"
    assert found.direction is not None
    assert [selection.estimator for selection in found.selections] == ["raw"]
    winner = found.selections[0].winner
    assert winner == (found.direction.position, found.direction.site.layer)
    assert found.selections[0].lead is not None
    assert found.added is not None
    assert found.added.vectors == found.direction.vectors  # nothing induces refusal, so the first candidate stays
    assert any("No addition made" in note for note in found.notes)


def test_concept_rows_span_the_projected_concept_differences():
    handle = deep()
    prepared = prepare(handle, PROMPTS, OPEN, refusal_texts=NAMED)
    basis = concept_basis(handle, prepared, Cell(-1, 2), DirectionSettings(max_rank=3, filter_prompts=False))
    assert basis is not None
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))

    def mean(prompts: list[str]) -> torch.Tensor:
        site = Site(SiteKind.RESID_PRE, 2)
        rows = [handle.capture(handle.chat_batch([prompt]), [site])[site][0, -1].double() for prompt in prompts]
        return torch.stack(rows).mean(0)

    harmless = mean(list(PROMPTS.harmless_train))
    along = harmless / harmless.norm()
    for first in range(3):
        difference = mean(list(PROMPTS.harmful_train)[first::3]) - harmless
        difference -= (difference @ along) * along
        outside = difference - (difference @ basis.T) @ basis
        assert outside.norm() < 1e-5 * difference.norm()  # float32 activations


def test_repeated_directions_are_found_in_the_model_without_the_former():
    handle = deep()
    prepared = prepare(handle, PROMPTS, OPEN, refusal_texts=NAMED)
    found = list(repeated_basis(handle, prepared, OPEN, rule_of(OPEN)))
    assert [len(basis) for _, basis in found] == [1, 2]
    torch.testing.assert_close(found[1][1][0], found[0][1][0])


def test_the_error_of_an_empty_table_reaches_the_caller_of_the_rule():
    handle = deep()
    settings = DirectionSettings(filter_prompts=False, induce_above=1e9)
    prepared = prepare(handle, PROMPTS, settings, refusal_texts=NAMED)
    scored = score_cells(handle, prepared, find_differences(handle, prepared, settings, "raw"), settings)
    found = select_cell(scored, N_LAYERS, settings)
    assert isinstance(found, NoDirection)
    assert "6 do not induce refusal above 1e+09" in str(found)


def test_a_post_norm_family_is_searched_like_any_other(tiny_models: TinyModels):
    """A post-norm family is searched like any other: only its weight edit is refused."""
    handle = tiny_models.handle("gemma2")
    settings = DirectionSettings(
        filter_prompts=False, induce_above=-1e9, kl_below=1e9, layer_share=1.0, n_bootstrap=50, max_new_tokens=3,
        max_degenerate=1.0,
    )  # fmt: skip
    found = find_direction(
        handle, PROMPTS, settings, slug="gemma2", generator=torch.Generator().manual_seed(0), refusal_texts=NAMED
    )
    assert found.outcome == "single"
