"""`HookedModel`: early stop, lifetime of hooks, refusals, gradients, generation's edges."""

import pytest
import torch
from beartype import beartype
from jaxtyping import jaxtyped
from torch import Tensor

from safe_sail.errors import BadSettings, BadSite, BadText, EditRefused, SequenceTooLong
from safe_sail.model.edits import PositionedEdit, Step, add, identity, replace, scale, zero
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.sites import Site, SiteKind
from tests.tiny import FAMILIES, TEXTS, TinyModels


def hooks_of(handle: HookedModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in handle.model.modules())


def finished_modules(handle: HookedModel, site: Site) -> set[str]:
    done: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: done.add(name))
        for name, module in handle.model.named_modules()
    ]
    handle.capture(handle.batch(TEXTS[:1]), [site])
    for hook in hooks:
        hook.remove()
    return done


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_stops_before_the_head_and_at_the_deepest_site(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    row = handle.architecture
    for site in handle.sites():
        done = finished_modules(handle, site)
        assert row.unembed not in done
        assert row.final_norm not in done
        layer = site.layer or 0
        assert not any(f"{row.blocks}.{later}" in done for later in range(layer + 1, handle.dims.n_layers))
        block = f"{row.blocks}.{layer}"
        assert (block in done) == (site.kind is SiteKind.RESID_POST), site
        assert (f"{block}.{row.attn_proj}" in done) == (site >= Site(SiteKind.ATTN_OUT, layer)), site
        assert (f"{block}.{row.mlp}" in done) == (site >= Site(SiteKind.MLP_OUT, layer)), site


@pytest.mark.parametrize("family", ["llama", "falcon", "gemma2"])
def test_stopped_captures_equal_those_of_a_whole_pass(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS)
    whole = handle.run(batch, handle.sites()).captures
    for site in handle.sites():
        assert torch.equal(handle.capture(batch, [site])[site], whole[site])


def test_captures_see_the_value_after_edits_at_the_same_site(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    batch = handle.batch(TEXTS)
    site = Site(SiteKind.MLP_ACT, 0)
    found = handle.capture(batch, [site], {site: zero})
    assert torch.equal(found[site], torch.zeros_like(found[site]))


def test_embed_and_resid_pre_of_block_0_are_edited_in_this_order(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    batch = handle.batch(TEXTS)
    embed, pre = Site(SiteKind.EMBED), Site(SiteKind.RESID_PRE, 0)
    bare = handle.capture(batch, [embed])[embed]
    found = handle.capture(batch, [pre, embed], {pre: scale(2.0), embed: add(torch.ones(32))})
    assert torch.equal(found[embed], bare + 1)
    assert torch.equal(found[pre], (bare + 1) * 2)


def test_captures_come_in_the_order_asked(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    sites = [Site.parse(name) for name in ("resid_post.1", "embed", "resid_mid.0", "head_out.1")]
    assert list(handle.capture(handle.batch(TEXTS), sites)) == sites
    assert handle.capture(handle.batch(TEXTS), []) == {}


def test_no_hook_survives_an_exception_inside_an_edit(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    batch = handle.batch(TEXTS)
    before, bare = hooks_of(handle), handle.logits(batch)

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("broken edit")

    edits = {Site(SiteKind.MLP_OUT, 0): broken}
    for call in (
        lambda: handle.logits(batch, edits),
        lambda: handle.capture(batch, handle.sites(), edits),
        lambda: handle.generate(batch, 3, edits),
    ):
        with pytest.raises(RuntimeError, match="broken edit"):
            call()
        assert hooks_of(handle) == before
    with pytest.raises(RuntimeError, match="broken edit"), handle.editing(edits):
        handle.logits(batch)
    assert hooks_of(handle) == before
    assert torch.equal(handle.logits(batch), bare)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_hook_is_left_after_any_call(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.fresh(family)
    batch = handle.batch(TEXTS)
    edits = {site: identity for site in handle.sites() if site.kind is not SiteKind.RESID_MID}
    before = hooks_of(handle)  # transformers leaves its own on a model that was asked for hidden states by another test
    handle.run(batch, handle.sites(), edits)
    handle.capture(batch, handle.sites(), edits)
    handle.generate(batch, 2, edits)
    with handle.editing(edits):
        assert hooks_of(handle) > before
    assert hooks_of(handle) == before


def test_editing_edits_every_pass_and_calls_add_to_it(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("qwen2")
    batch = handle.batch(TEXTS)
    first, second = Site(SiteKind.MLP_OUT, 0), Site(SiteKind.ATTN_OUT, 1)
    both = handle.logits(batch, {first: zero, second: scale(3.0)})
    with handle.editing({first: zero}):
        assert torch.equal(handle.logits(batch, {second: scale(3.0)}), both)
        assert torch.equal(handle.capture(batch, [first])[first], torch.zeros(3, batch.token_ids.shape[1], 32))
        raw = handle.model(input_ids=batch.token_ids, attention_mask=batch.attention_mask,
                           position_ids=batch.position_ids).logits  # fmt: skip
        assert torch.equal(raw, handle.logits(batch))
    assert not torch.equal(handle.logits(batch), both)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda x: x[..., :-1], r"\(3, \d+, 31\)"),
        (lambda x: x.double(), "torch.float64"),
        (lambda x: None, "NoneType"),
        (lambda x: x.mul_(2), "in place"),
        (lambda x: x[0].zero_().expand_as(x), "in place"),
    ],
)
@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference"])
def test_an_edit_that_breaks_the_contract_is_refused(mode: str, edit: object, words: str, tiny_models: TinyModels):
    handle = tiny_models.handle("llama")
    batch = handle.batch(TEXTS)
    bare = handle.logits(batch)
    scope = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]
    with scope(), pytest.raises(EditRefused, match=words):
        handle.logits(batch, {Site(SiteKind.MLP_OUT, 0): edit})  # type: ignore[dict-item]
    assert torch.equal(handle.logits(batch), bare)


def test_a_head_edit_in_place_is_refused(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    with pytest.raises(EditRefused, match=r"head_out\.1.*in place"):
        handle.logits(handle.batch(TEXTS), {Site(SiteKind.HEAD_OUT, 1): lambda x: x.mul_(0)})


def test_an_edit_at_resid_mid_is_refused_with_the_way_out(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    with pytest.raises(EditRefused, match=r"attn_out\.1"):
        handle.logits(handle.batch(TEXTS), {Site(SiteKind.RESID_MID, 1): zero})
    with pytest.raises(EditRefused), handle.editing({Site(SiteKind.RESID_MID, 1): zero}):
        raise AssertionError("never entered")


def test_a_layer_beyond_the_last_is_refused_before_the_pass(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    with pytest.raises(BadSite, match="2 layers"):
        handle.capture(handle.batch(TEXTS), [Site(SiteKind.RESID_POST, 2)])
    with pytest.raises(BadSite, match="2 layers"):
        handle.generate(handle.batch(TEXTS), 2, {Site(SiteKind.RESID_POST, 7): zero})


def test_gradient_of_an_edit_equals_finite_differences(tiny_models: TinyModels) -> None:
    handle = tiny_models.fresh("falcon")  # the family that overwrites an output in place
    handle.model.double()
    batch = handle.batch(TEXTS[:1])
    gate = torch.full((32,), 0.7, dtype=torch.float64, requires_grad=True)

    def loss(gate: Tensor) -> Tensor:
        return handle.logits(batch, {Site(SiteKind.MLP_OUT, 0): scale(gate)})[0, -1, 5]

    assert torch.autograd.gradcheck(loss, (gate,), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_tensors_carry_gradients_from_the_logits(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.fresh(family)
    handle.model.requires_grad_(True)
    sites = [site for site in handle.sites() if site.kind is not SiteKind.RESID_MID]
    found = handle.run(handle.batch(TEXTS[:1]), sites)
    assert found.logits is not None
    gradients = torch.autograd.grad(found.logits[0, -1].square().sum(), [found.captures[site] for site in sites])
    for site, gradient in zip(sites, gradients, strict=True):
        assert gradient.abs().max() > 0, site


def test_without_grad_nothing_is_recorded(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    site = Site(SiteKind.RESID_POST, 0)
    assert not handle.capture(handle.batch(TEXTS), [site])[site].requires_grad
    vector = torch.zeros(32, requires_grad=True)
    assert handle.capture(handle.batch(TEXTS), [site], {site: add(vector)})[site].requires_grad
    with torch.no_grad():
        assert not handle.capture(handle.batch(TEXTS), [site], {site: add(vector)})[site].requires_grad


def test_a_falcon_capture_and_the_callers_replacement_stay_what_they_were(tiny_models: TinyModels) -> None:
    # Falcon adds attention to the MLP's output in place
    handle = tiny_models.handle("falcon")
    batch = handle.batch(TEXTS)
    site = Site(SiteKind.MLP_OUT, 0)
    value = torch.randn(3, batch.token_ids.shape[1], 32)
    kept = value.clone()
    found = handle.run(batch, [site], {site: lambda x: value})
    assert torch.equal(value, kept)
    assert torch.equal(found.captures[site], kept)


def test_logits_in_float32_are_asked_for(tiny_models: TinyModels) -> None:
    handle = tiny_models.fresh("gemma2")
    handle.model.bfloat16()
    batch = handle.batch(TEXTS)
    assert handle.dtype == torch.bfloat16
    assert handle.logits(batch).dtype == torch.bfloat16
    assert torch.equal(handle.logits(batch, in_float32=True), handle.logits(batch).float())
    assert handle.logits(batch, positions="last").shape == (3, 1, 160)


def test_generation_stops_at_end_of_text_and_pads_after_it(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    batch = handle.batch(TEXTS)
    # a token written by hand into the last stream: row 0 ends at its second new token, row 1 at once, row 2 never
    W_U = handle.model.lm_head.weight
    wanted = {0: [50, 2], 1: [2], 2: [60]}
    counts: list[int] = []

    def write(x: Tensor, step: Step) -> Tensor:
        counts.append(x.shape[1])
        new = x.clone()
        for row, tokens in wanted.items():
            token = tokens[min(len(counts) - 1, len(tokens) - 1)]
            new[row, -1] = 100 * W_U[token] / handle.model.model.norm.weight
        return new

    new = handle.generate(batch, 4, {Site(SiteKind.RESID_POST, 1): PositionedEdit(write)})
    assert new.tolist() == [[50, 2, 0, 0], [2, 0, 0, 0], [60, 60, 60, 60]]
    assert counts == [batch.token_ids.shape[1], 1, 1, 1]
    wanted[2] = [60, 60, 2]
    counts.clear()
    assert handle.generate(batch, 9, {Site(SiteKind.RESID_POST, 1): PositionedEdit(write)}).shape == (3, 3)


def test_steps_of_generation_tell_positions_and_prefill(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    batch = handle.batch(TEXTS, padding_side="right")
    steps: list[Step] = []

    def note(x: Tensor, step: Step) -> Tensor:
        steps.append(step)
        return x

    handle.generate(batch, 3, {Site(SiteKind.RESID_PRE, 0): PositionedEdit(note)})
    assert [step.is_prefill for step in steps] == [True, False, False]
    assert torch.equal(steps[0].is_real, batch.left_padded().is_real)
    assert torch.equal(steps[1].position_ids[:, 0], batch.lengths)
    assert torch.equal(steps[2].position_ids[:, 0], batch.lengths + 1)


def test_a_positioned_edit_outside_the_handle_is_refused(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    edits = {Site(SiteKind.RESID_PRE, 0): PositionedEdit(lambda x, step: x)}
    with handle.editing(edits), pytest.raises(EditRefused, match="handle"):
        handle.model(input_ids=torch.tensor([[5, 6]]))


def test_too_long_and_foreign_ids_and_no_new_tokens_are_refused(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("gpt2")
    ids = torch.full((1, 65), 9)
    with pytest.raises(SequenceTooLong, match=r"65 tokens.*64"):
        handle.logits(TokenBatch(ids, torch.ones_like(ids), ("a",)))
    with pytest.raises(SequenceTooLong, match="64"):
        handle.generate(TokenBatch(ids[:, :60], torch.ones_like(ids[:, :60]), ("a",)), 5)
    with pytest.raises(BadText, match="160"):
        handle.logits(TokenBatch(ids[:, :2] + 151, torch.ones_like(ids[:, :2]), ("a",)))
    with pytest.raises(BadSettings, match="max_new_tokens"):
        handle.generate(handle.batch(TEXTS), 0)
    padded = TokenBatch(torch.full((1, 80), 9), torch.arange(80)[None].lt(20).long(), ("a",))
    assert handle.logits(TokenBatch(padded.token_ids, padded.attention_mask, ("a",))).shape == (1, 80, 160)


def test_replace_broadcasts_a_vector_over_tokens(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    site = Site(SiteKind.RESID_POST, 0)
    vector = torch.arange(32.0)
    found = handle.capture(handle.batch(TEXTS), [site], {site: replace(vector)})[site]
    assert torch.equal(found, vector.expand_as(found))


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "mixtral"])
def test_what_comes_back_has_the_annotated_shapes(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS)
    logits = jaxtyped(typechecker=beartype)(HookedModel.logits)
    assert logits(handle, batch).shape == (*batch.token_ids.shape, 160)
    assert logits(handle, batch, positions="last").shape == (3, 1, 160)
    assert jaxtyped(typechecker=beartype)(HookedModel.generate)(handle, batch, 2).shape == (3, 2)


def test_inference_mode_gives_the_same_results(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("gemma2")
    batch = handle.batch(TEXTS)
    edits = {Site(SiteKind.HEAD_OUT, 0): scale(0.5)}
    bare, new = handle.run(batch, handle.sites(), edits), handle.generate(batch, 3, edits)
    with torch.inference_mode():
        inside = handle.run(handle.batch(TEXTS), handle.sites(), edits)
        assert torch.equal(handle.generate(handle.batch(TEXTS), 3, edits), new)
    assert bare.logits is not None
    assert inside.logits is not None
    assert torch.equal(inside.logits, bare.logits)
    assert not inside.logits.is_inference()
