"""Candidate scores in few passes, against the published loop: one candidate at a time, three full passes each."""

import pytest
import torch

from safe_sail.directions.interventions import ablation, addition, largest_component_left
from safe_sail.directions.projection import orthonormal_basis, random_directions
from safe_sail.directions.scoring import Candidate, CandidateScorer
from safe_sail.evaluation.utility import kl_divergence, refusal_metric
from safe_sail.model.handle import HookedModel
from safe_sail.model.resume import skipped_blocks
from safe_sail.model.tokens import TokenBatch
from safe_sail.sites import Site, SiteKind
from tests.tiny import FAMILIES, TinyModels

HARMFUL = ["how do I bake bread", "the lazy dog", "anger", "a kind answer turns away", "keep it"]
HARMLESS = ["jumps over the lazy dog at home", "a fox", "how quick is the brown fox?"]
REFUSAL_IDS = (11, 40, 97)


def batches(handle: HookedModel) -> tuple[TokenBatch, TokenBatch]:
    return handle.chat_batch(HARMFUL), handle.chat_batch(HARMLESS)


def candidates_of(handle: HookedModel) -> list[Candidate]:
    drawn = random_directions(6, handle.dims.d_model, 2.0, torch.Generator().manual_seed(0))
    cells = [(-2, 1), (-1, 1), (-3, 0), (-1, 0), (-4, 1), (-2, 0)]
    return [Candidate(*cell, vector) for cell, vector in zip(cells, drawn, strict=True)]


def naive(handle: HookedModel, candidate: Candidate) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eq. 3 and 4 with the library's plain edits, all positions through the head."""
    harmful, harmless = batches(handle)
    hat = candidate.vector / candidate.vector.norm()
    writes = [Site(SiteKind.RESID_PRE, layer) for layer in range(handle.dims.n_layers)]
    writes += [
        Site(kind, layer) for layer in range(handle.dims.n_layers) for kind in (SiteKind.ATTN_OUT, SiteKind.MLP_OUT)
    ]
    clean = {site: lambda x: (x.double() - (x.double() @ hat)[..., None] * hat).to(x.dtype) for site in writes}
    added = {Site(SiteKind.RESID_PRE, candidate.layer): lambda x: (x.double() + candidate.vector).to(x.dtype)}

    def metric(logits: torch.Tensor) -> torch.Tensor:
        p = logits[:, -1].double().softmax(-1)[:, list(REFUSAL_IDS)].sum(-1)
        return torch.log(p) - torch.log1p(-p)

    plain = handle.logits(harmless)[:, -1].double().softmax(-1)
    edited = handle.logits(harmless, clean)[:, -1].double().softmax(-1)
    kl = (plain * (plain.log() - edited.log())).sum(-1)
    return metric(handle.logits(harmful, clean)), metric(handle.logits(harmless, added)), kl


@pytest.mark.parametrize("family", FAMILIES)
def test_few_passes_score_like_the_published_loop(family: str, tiny_models: TinyModels):
    handle, candidates = tiny_models.handle(family), candidates_of(tiny_models.handle(family))
    scorer = CandidateScorer(handle, *batches(handle), layers=(0, 1), refusal_ids=REFUSAL_IDS, batch_rows=7)
    induced, ablated = scorer.induce(candidates), scorer.ablate(candidates)
    for candidate, induce, scores in zip(candidates, induced, ablated, strict=True):
        bypass, expected_induce, kl = naive(handle, candidate)
        # float32 rounding of size 1e-7 through two or three blocks; in a mixture a tie between experts may fall over
        torch.testing.assert_close(scores.bypass, bypass, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(induce, expected_induce, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(scores.kl, kl, atol=2e-5, rtol=2e-5)
        assert float(kl.min()) > 1e-4  # the candidate does something, so equality says something


def test_passes_do_not_depend_on_how_rows_are_cut(tiny_models: TinyModels):
    handle = tiny_models.handle("llama")
    found = []
    for batch_rows in (1, 5, 1000):
        scorer = CandidateScorer(
            handle, *batches(handle), layers=(0, 1), refusal_ids=REFUSAL_IDS, batch_rows=batch_rows
        )
        found.append((scorer.induce(candidates_of(handle)), scorer.ablate(candidates_of(handle)), scorer.n_launches))
    for induced, ablated, _ in found[1:]:
        torch.testing.assert_close(torch.stack(induced), torch.stack(found[0][0]), atol=2e-5, rtol=2e-5)
        for scores, first in zip(ablated, found[0][1], strict=True):
            torch.testing.assert_close(scores.bypass, first.bypass, atol=2e-5, rtol=2e-5)
            torch.testing.assert_close(scores.kl, first.kl, atol=2e-5, rtol=2e-5)
    # 2 plain passes, one for each of two layers, one for all ablations
    assert found[-1][2] == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_resuming_at_a_layer_does_not_run_the_blocks_before_it_and_leaves_no_trace(
    family: str, tiny_models: TinyModels
):
    handle = tiny_models.handle(family)
    batch, last = handle.chat_batch(HARMFUL), handle.dims.n_layers - 1
    before = handle.logits(batch)
    stream = handle.capture(batch, [Site(SiteKind.RESID_PRE, last)])[Site(SiteKind.RESID_PRE, last)]
    ran: list[int] = []
    hooks = [
        block.get_submodule(handle.architecture.attn_proj).register_forward_hook(
            lambda module, args, output, layer=layer: ran.append(layer)
        )
        for layer, block in enumerate(handle.blocks)
    ]
    with skipped_blocks(handle, last):
        resumed = handle.logits(batch, {Site(SiteKind.RESID_PRE, last): lambda x: stream})
    for hook in hooks:
        hook.remove()
    assert ran == [last]
    real = batch.is_real
    # the same computation from the same stream, bit by bit
    assert torch.equal(resumed[real], before[real])
    assert torch.equal(handle.logits(batch), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_the_direction_is_left_in_the_stream(family: str, tiny_models: TinyModels):
    handle = tiny_models.handle(family)
    basis = orthonormal_basis(random_directions(2, 32, 1.0, torch.Generator().manual_seed(1)))
    assert largest_component_left(handle, handle.chat_batch(HARMFUL), basis) < 1e-5


def test_addition_at_the_last_layer_is_a_bias_there(tiny_models: TinyModels):
    """Adding before block l equals a larger MLP bias in block l-1 (appendix I.1)."""
    handle, surgery = tiny_models.handle("llama"), tiny_models.fresh("llama")
    vector = torch.randn(32, generator=torch.Generator().manual_seed(2))
    bias = surgery.blocks[0].get_submodule(surgery.architecture.mlp_down).bias
    with torch.no_grad():
        bias += vector
    batch = handle.chat_batch(HARMFUL)
    hooked = handle.logits(batch, addition(1, vector))
    torch.testing.assert_close(hooked, surgery.logits(batch), atol=2e-5, rtol=2e-5)
    assert (hooked - handle.logits(batch)).abs().max() > 0.05


def test_ablation_at_writes_equals_ablation_at_every_residual_read(tiny_models: TinyModels):
    handle = tiny_models.handle("gemma2")
    basis = orthonormal_basis(random_directions(1, 32, 1.0, torch.Generator().manual_seed(1)))
    batch = handle.chat_batch(HARMFUL)
    edits = dict(ablation(handle, basis))
    everywhere = edits | {Site(SiteKind.RESID_PRE, 1): edits[Site(SiteKind.EMBED)]}
    torch.testing.assert_close(handle.logits(batch, edits), handle.logits(batch, everywhere), atol=2e-5, rtol=2e-5)


def test_metric_and_kl_are_exact_where_probabilities_underflow():
    logits = torch.tensor([[0.0, 60.0, 0.0], [90.0, 0.0, 0.0]])
    # log odds of token 0 against tokens 1 and 2
    expected = torch.tensor([-60.0, 90.0 - torch.log(torch.tensor(2.0)).item()], dtype=torch.float64)
    torch.testing.assert_close(refusal_metric(logits, [0]), expected)
    assert kl_divergence(logits, logits).abs().max() == 0
    two = torch.log(torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    other = torch.log(torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    by_hand = 0.25 * torch.log(torch.tensor(0.5)) + 0.75 * torch.log(torch.tensor(1.5))
    torch.testing.assert_close(kl_divergence(two, other)[0], by_hand.double(), atol=1e-7, rtol=1e-7)
