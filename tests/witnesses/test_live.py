"""Traces, comparisons and steered answers of the organism against transformers, SAELens and surgery by hand."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from safe_sail.directions.orthogonalise import orthogonalised
from safe_sail.errors import BadInput, SequenceTooLong
from safe_sail.evaluation.refusal import judge_reply
from safe_sail.links.compare import chance_highs, compare_prompts
from safe_sail.links.steer import direction_steer, feature_steer, steer_prompt
from safe_sail.links.trace import Asked, trace_prompt
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model
from safe_sail.organism.grammar import prompts
from safe_sail.organism.load import organism_path, organism_sae_paths
from safe_sail.records import Direction, SteerKind
from safe_sail.sae.handle import SAEHandle
from safe_sail.sae.load import load_sae
from safe_sail.settings import CompareSettings, TraceSettings
from safe_sail.sites import Site

TOPK, RELU = "organism.resid_post.3.topk8-1024", "organism.resid_post.3.relu-1024"
LAYER = 3
NEW = 24
# two float32 passes whose matrix products group otherwise: some tens of eps of values up to 30
CLOSE = {"rtol": 1e-4, "atol": 2e-4}


@pytest.fixture(scope="module")
def handle() -> HookedModel:
    return load_model(organism_path("aligned"), device="cpu", dtype=torch.float32, model_id="organism-aligned")


@pytest.fixture(scope="module")
def saes() -> dict[str, SAEHandle]:
    paths = organism_sae_paths()
    return {slug: load_sae(paths[slug], slug=slug, device="cpu") for slug in (TOPK, RELU)}


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """The same SAEs as SAELens loads them."""
    from sae_lens import SAE

    paths = organism_sae_paths()
    return {slug: SAE.load_from_disk(str(paths[slug]), device="cpu", dtype="float32") for slug in (TOPK, RELU)}


@pytest.fixture(scope="module")
def plain() -> Any:
    """The same model as transformers loads it, and nothing of ours."""
    return AutoModelForCausalLM.from_pretrained(organism_path("aligned"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def harmful() -> str:
    return prompts("harmful", "held_out", 1, 0)[0].text


@pytest.fixture(scope="module")
def harmless() -> str:
    return prompts("safe", "held_out", 1, 0)[0].text


def rendered(prompt: str) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(organism_path("aligned"))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def answer(model: Any, ids: Tensor) -> list[int]:
    with torch.no_grad():
        whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
    return whole[0, ids.shape[1] :].tolist()


def features(plain: Any, sae: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        hidden = plain(input_ids=ids, output_hidden_states=True).hidden_states[LAYER + 1]
        return sae.encode(hidden)[0]


def test_a_trace_is_transformers_states_in_sae_lens_features(
    handle: HookedModel, saes: dict[str, SAEHandle], theirs: dict[str, Any], plain: Any, harmful: str
):
    scales = {RELU: {index: 0.5 + index % 7 for index in range(0, 1024, 2)}}
    found = trace_prompt(handle, list(saes.values()), harmful, Asked(NEW), TraceSettings(n_top=5), scales)
    ids = rendered(harmful)
    generated = answer(plain, ids)
    assert found.text.reply is not None
    assert list(found.text.reply.token_ids) == generated
    assert list(found.text.token_ids) == ids[0].tolist() + generated
    assert "".join(found.text.tokens) == handle.tokenizer.decode(found.text.token_ids)
    assert found.text.reply.label == judge_reply(found.text.reply.text) == "refusal"
    assert [layer.sae for layer in found.layers] == [RELU, TOPK]
    for layer in found.layers:
        acts = features(plain, theirs[layer.sae], torch.tensor([found.text.token_ids]))
        assert list(layer.n_active) == pytest.approx((acts > 0).sum(dim=1).tolist(), abs=1)
        for one in layer.strongest:
            torch.testing.assert_close(torch.tensor(one.activations), acts[:, one.index], **CLOSE)
        by = scales.get(layer.sae, {})
        assert layer.is_normalised == bool(by)
        for place, row in enumerate(layer.top):
            # by hand: known scales first, by ratio; then the others by activation
            firing = [(index, value) for index, value in enumerate(acts[place].tolist()) if value]
            ranked = sorted((index not in by, -value / by.get(index, 1.0), index) for index, value in firing)[:5]
            assert [one.index for one in row] == [index for *_, index in ranked]
            for one in row:
                expected = acts[place, one.index].item() / by[one.index] if one.index in by else None
                assert one.normalised == (None if expected is None else pytest.approx(expected, rel=1e-3, abs=1e-3))


def test_a_trace_without_an_answer_is_the_prompt_alone(handle: HookedModel, saes: dict[str, SAEHandle], harmful: str):
    found = trace_prompt(handle, [saes[TOPK]], harmful, Asked(0), TraceSettings(), {})
    assert found.text.reply is None
    assert list(found.text.token_ids) == rendered(harmful)[0].tolist()
    with pytest.raises(SequenceTooLong, match="tokens"):
        trace_prompt(handle, [saes[TOPK]], "word " * 4000, Asked(0), TraceSettings(), {})


def test_a_comparison_of_means_is_the_difference_of_means(
    handle: HookedModel, saes: dict[str, SAEHandle], theirs: dict[str, Any], plain: Any, harmful: str, harmless: str
):
    settings = CompareSettings(n_features=6, n_random=50)
    found = compare_prompts(handle, [saes[RELU]], (harmful, harmless), Asked(0), settings, {})
    special = set(handle.tokenizer.all_special_ids)
    means = []
    for prompt in (harmful, harmless):
        ids = rendered(prompt)
        content = torch.tensor([one not in special for one in ids[0].tolist()])
        means.append(features(plain, theirs[RELU], ids)[content].mean(dim=0))
    gap = means[1] - means[0]
    layer = found.layers[0]
    assert not layer.is_normalised
    assert [one.index for one in layer.features] == gap.abs().argsort(descending=True)[:6].tolist()
    torch.testing.assert_close(
        torch.tensor([one.difference for one in layer.features]), gap[[one.index for one in layer.features]], **CLOSE
    )
    assert all(one.chance_high > 0 for one in layer.features)


def test_chance_is_what_every_exchange_of_tokens_gives():
    """Four tokens, all 6 ways to exchange them and all 16 signs of four pairs, by hand."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(n, 5, generator=generator, dtype=torch.float64) for n in (2, 2))
    pool = torch.cat([first, second])
    spread = pool.std(dim=0, correction=0)
    ways = [
        (pool[[i for i in range(4) if i not in pair]].mean(dim=0) - pool[list(pair)].mean(dim=0)).abs() / spread
        for pair in itertools.combinations(range(4), 2)
    ]
    largest = sorted(float(way.max()) for way in ways)
    found = chance_highs(first, second, CompareSettings(n_random=2000)) / spread
    # an exchange and its mirror give equal sizes, so the upper 5 % of draws lie in the largest of three pairs
    torch.testing.assert_close(found, torch.full((5,), largest[-1], dtype=torch.float64))
    pairs = torch.rand(2, 4, 5, generator=generator, dtype=torch.float64)
    change = pairs[1] - pairs[0]
    spread = change.square().mean(dim=0).sqrt()
    signed = [
        ((torch.tensor(signs, dtype=torch.float64) @ change / 4).abs() / spread).max()
        for signs in itertools.product((-1.0, 1.0), repeat=4)
    ]
    found = chance_highs(pairs[0], pairs[1], CompareSettings(alignment="token", n_random=2000)) / spread
    # 16 signs in mirrored pairs: the largest pair alone has 12.5 % of the draws
    torch.testing.assert_close(found, torch.full((5,), float(max(signed)), dtype=torch.float64))


def test_a_suffix_changes_only_what_stands_behind_it(handle: HookedModel, saes: dict[str, SAEHandle], harmful: str):
    settings = CompareSettings(alignment="token", n_random=50)
    same = compare_prompts(handle, [saes[TOPK]], (harmful, harmful), Asked(0), settings, {})
    assert same.layers[0].features == ()  # equal texts differ nowhere
    found = compare_prompts(handle, [saes[TOPK]], (harmful, harmful + " please."), Asked(0), settings, {})
    ids = [text.token_ids for text in (found.first, found.second)]
    assert all(ids[0][a] == ids[1][b] for a, b in found.pairs)
    assert len(found.pairs) == len(ids[0])  # the whole first text is in the second
    assert found.layers[0].features
    moved = [pair for pair in found.pairs if pair[0] != pair[1]]
    for one in found.layers[0].features:
        change = [abs(one.first_activations[a] - one.second_activations[b]) for a, b in found.pairs if a == b]
        assert max(change) < 1e-3  # tokens before the suffix see nothing of it
    assert moved


def hooked_answer(plain: Any, layer: int, change: Any, ids: Tensor, *, before: bool) -> list[int]:
    """Answer of transformers' own model with a hook of torch's on one block."""
    block = plain.model.layers[layer]

    def first(states: Tensor) -> Tensor:
        return states if states.shape[1] == 1 else states[:, :1]

    def changed(states: Tensor) -> Tensor:
        new = change(states)
        return torch.cat([states[:, :1], new[:, 1:]], dim=1) if states.shape[1] > 1 and not before else new

    if before:
        hook = block.register_forward_pre_hook(lambda _m, args: (changed(args[0]), *args[1:]))
    else:
        hook = block.register_forward_hook(
            lambda _m, _a, out: (changed(out[0]), *out[1:]) if isinstance(out, tuple) else changed(out)
        )
    try:
        return answer(plain, ids)
    finally:
        hook.remove()


def test_a_steered_answer_is_that_of_hooks_by_hand(
    handle: HookedModel, saes: dict[str, SAEHandle], theirs: dict[str, Any], plain: Any, harmful: str
):
    ids = rendered(harmful)
    sae = theirs[TOPK]
    acts = features(plain, sae, ids)
    index = int(acts[1:].amax(dim=0).argmax())
    # this form's activations carry the row's norm, and its rows are unit vectors
    assert sae.cfg.rescale_acts_by_decoder_norm
    row = sae.W_dec.detach()[index] / sae.W_dec.detach()[index].norm()
    ablate = feature_steer(saes[TOPK], index, SteerKind.ABLATE, coefficient=1.0, unit=1.0)
    found = steer_prompt(handle, harmful, Asked(NEW), ablate)
    assert list(found.plain.token_ids) == answer(plain, ids)
    by_hand = hooked_answer(
        plain, LAYER, lambda x: x - sae.encode(x)[..., index : index + 1].detach() * row, ids, before=False
    )
    assert list(found.steered.token_ids) == by_hand
    boost = feature_steer(saes[TOPK], index, SteerKind.ADD, coefficient=-4.0, unit=3.0)
    boosted = steer_prompt(handle, harmful, Asked(NEW), boost)
    assert list(boosted.steered.token_ids) == hooked_answer(plain, LAYER, lambda x: x - 12.0 * row, ids, before=False)
    assert boosted.steered.token_ids != boosted.plain.token_ids
    assert boosted.length == pytest.approx(12.0, rel=1e-6)
    assert boosted.kl > 0


def refusal_direction(plain: Any) -> Direction:
    """Difference of means at the last token, by transformers alone."""
    means = []
    for kind in ("harmful", "safe"):
        rows = [
            plain(input_ids=rendered(one.text), output_hidden_states=True).hidden_states[LAYER][0, -1]
            for one in prompts(kind, "train", 24, 0)  # type: ignore[arg-type]
        ]
        means.append(torch.stack(rows).double().mean(dim=0))
    return Direction(
        slug="by-hand", model_id="organism-aligned", site=Site.parse(f"resid_pre.{LAYER}"), position=-1,
        estimator="raw", vectors=(tuple((means[0] - means[1]).tolist()),),
    )  # fmt: skip


@torch.no_grad()
def test_a_direction_steers_as_a_hook_and_as_edited_weights_do(
    handle: HookedModel, plain: Any, harmful: str, harmless: str
):
    direction = refusal_direction(plain)
    vector = torch.tensor(direction.vectors[0])
    added = steer_prompt(handle, harmless, Asked(NEW), direction_steer(handle, direction, SteerKind.ADD, coefficient=1))
    by_hand = hooked_answer(plain, LAYER, lambda x: x + vector, rendered(harmless), before=True)
    assert list(added.steered.token_ids) == by_hand
    assert (added.plain.label, added.steered.label) == ("compliance", "refusal")
    ablated = steer_prompt(
        handle, harmful, Asked(NEW), direction_steer(handle, direction, SteerKind.ABLATE, coefficient=1)
    )
    edited = orthogonalised(handle, (vector.double() / vector.double().norm())[None]).model
    assert list(ablated.steered.token_ids) == answer(edited, rendered(harmful))
    assert ablated.plain.label == "refusal"


def test_what_cannot_be_steered_is_refused(handle: HookedModel, saes: dict[str, SAEHandle]):
    with pytest.raises(BadInput, match="adds nothing"):
        feature_steer(saes[TOPK], 3, SteerKind.ADD, coefficient=1.0, unit=0.0)
    d_model = handle.dims.d_model
    rows = ((1.0,) + (0.0,) * (d_model - 1), (0.0, 1.0) + (0.0,) * (d_model - 2))
    for vectors, said in ((rows, "subspace of 2 rows"), (((1.0, 0.0),), "2 wide")):
        direction = Direction(
            slug="d", model_id="m", site=Site.parse("resid_pre.3"), position=-1, estimator="raw", vectors=vectors
        )
        with pytest.raises(BadInput, match=said):
            direction_steer(handle, direction, SteerKind.ADD, coefficient=1.0)
