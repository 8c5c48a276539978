"""Patching while generating: nothing patched is the first model, everything the second, each step a naive re-run."""

import pytest
import torch
from torch import Tensor

from safe_sail.errors import BadSettings, ModelsDiffer, NeuronsMissing
from safe_sail.model.edits import Edit
from safe_sail.model.tokens import TokenBatch
from safe_sail.neurons.completions import end_ids
from safe_sail.neurons.pair import ModelPair
from safe_sail.neurons.patching import patched_replies, patched_tokens
from safe_sail.sites import Site, SiteKind
from tests.neuron_pairs import WITH_NEURONS, every_neuron, mlp_pair, moved_all
from tests.tiny import TEXTS, TinyModels

NEW = 6
NOTHING = torch.empty(0, 2, dtype=torch.long)


def naive(pair: ModelPair, batch: TokenBatch, patch: Tensor) -> Tensor:
    """Both models read the whole text anew for every token, one row at a time, without a cache."""
    rows = []
    for ids, mask in zip(batch.token_ids, batch.attention_mask, strict=True):
        row, new = ids[mask.bool()], []
        while len(new) < NEW and not (new and new[-1] in end_ids(pair)):
            one = TokenBatch(row[None], torch.ones_like(row)[None], ("row",))
            edits: dict[Site, Edit] = {}
            for layer in sorted(set(patch[:, 0].tolist())):
                site, index = Site(SiteKind.MLP_ACT, layer), patch[patch[:, 0] == layer, 1]
                theirs = pair.second.capture(one, [site])[site]

                def put(x: Tensor, theirs: Tensor = theirs, index: Tensor = index) -> Tensor:
                    y = x.clone()
                    y[..., index] = theirs[..., index]
                    return y

                edits[site] = put
            new.append(int(pair.first.logits(one, edits)[0, -1].argmax()))
            row = torch.cat([row, torch.tensor(new[-1:])])
        rows.append(new + [pair.first.tokenizer.pad_token_id] * (NEW - len(new)))
    return torch.tensor(rows)


def padded(new: Tensor) -> Tensor:
    """`generate` stops where all rows have ended; patched replies are as wide as was asked."""
    return torch.nn.functional.pad(new, (0, NEW - new.shape[1]), value=0)


ENGINES = (True, False)


@pytest.mark.parametrize("family", WITH_NEURONS)
def test_nothing_patched_is_the_first_model_and_every_neuron_the_second(family: str, tiny_models: TinyModels) -> None:
    pair = mlp_pair(tiny_models, family)
    assert pair.can_double
    batch = pair.first.batch(TEXTS)
    first, second = (padded(one.generate(batch, NEW)) for one in (pair.first, pair.second))
    assert not torch.equal(first, second)
    for doubled in ENGINES:
        found = patched_tokens(pair, batch, [NOTHING, every_neuron(pair)], NEW, batch_rows=6, doubled=doubled)
        assert torch.equal(found[0], first)
        assert torch.equal(found[1], second)


@pytest.mark.parametrize("family", WITH_NEURONS)
def test_patched_generation_equals_the_naive_loop(family: str, tiny_models: TinyModels) -> None:
    pair = mlp_pair(tiny_models, family)
    generator = torch.Generator().manual_seed(0)
    every = every_neuron(pair)
    half, tenth = (every[torch.randperm(len(every), generator=generator)[: len(every) // n]] for n in (2, 10))
    batch = pair.first.batch(TEXTS, padding_side="right")
    expected = torch.stack([naive(pair, batch, patch) for patch in (half, tenth)])
    for doubled in ENGINES:
        assert torch.equal(patched_tokens(pair, batch, [half, tenth], NEW, batch_rows=4, doubled=doubled), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "gemma2", "phi3", "qwen2_moe"])
def test_both_engines_agree_where_every_weight_differs_and_neurons_alone_do_not_make_the_second_model(
    family: str, tiny_models: TinyModels
) -> None:
    pair = ModelPair(tiny_models.handle(family), moved_all(tiny_models, family))
    assert pair.shared_share < 0.1
    batch = pair.first.batch(TEXTS)
    patches = [every_neuron(pair), every_neuron(pair)[::3]]
    one, two = (patched_tokens(pair, batch, patches, NEW, batch_rows=8, doubled=way) for way in ENGINES)
    assert torch.equal(one, two)
    assert torch.equal(one[0], naive(pair, batch, patches[0]))
    assert not torch.equal(one[0], padded(pair.second.generate(batch, NEW)))


def test_leaving_out_the_last_layer_is_no_longer_the_second_model(tiny_models: TinyModels) -> None:
    pair = mlp_pair(tiny_models, "llama")
    batch, every = pair.first.batch(TEXTS), every_neuron(mlp_pair(tiny_models, "llama"))
    found = patched_tokens(pair, batch, [every[every[:, 0] < 1]], NEW, batch_rows=8)[0]
    assert not torch.equal(found, padded(pair.second.generate(batch, NEW)))


def test_texts_are_those_of_the_tokens_and_rows_come_back_in_order(tiny_models: TinyModels) -> None:
    pair = mlp_pair(tiny_models, "llama")
    batch = pair.first.batch(TEXTS)
    patches = [every_neuron(pair), NOTHING]
    texts = patched_replies(pair, batch, patches, NEW, batch_rows=1)
    for model, found in zip((pair.second, pair.first), texts, strict=True):
        new = model.generate(batch, NEW)
        assert found == model.tokenizer.batch_decode(new, skip_special_tokens=True)


def test_no_module_keeps_the_other_half_after_an_error(tiny_models: TinyModels) -> None:
    pair = mlp_pair(tiny_models, "llama")
    before = pair.first.logits(pair.first.batch(TEXTS))
    with pytest.raises(RuntimeError, match="stop"), pair.doubled():
        raise RuntimeError("stop")
    assert not any("forward" in module.__dict__ for module in pair.first.model.modules())
    assert torch.equal(before, pair.first.logits(pair.first.batch(TEXTS)))


def test_what_cannot_be_patched_is_refused(tiny_models: TinyModels) -> None:
    pair = mlp_pair(tiny_models, "llama")
    batch = pair.first.batch(TEXTS)
    with pytest.raises(NeuronsMissing, match=r"L0\.N40: the model has 2 layers of 40 neurons"):
        patched_tokens(pair, batch, [torch.tensor([[0, 3], [0, 40]])], NEW, batch_rows=2)
    for patches, new, rows in (([], NEW, 2), ([NOTHING], 0, 2), ([NOTHING], NEW, 0)):
        with pytest.raises(BadSettings, match="expected at least 1"):
            patched_tokens(pair, batch, patches, new, batch_rows=rows)
    other = moved_all(tiny_models, "mistral")
    other.model.config.sliding_window = 3  # decided in modules without weights, which one pass cannot run twice
    apart = ModelPair(tiny_models.handle("mistral"), other)
    with pytest.raises(ModelsDiffer, match="one pass cannot run both"):
        patched_tokens(apart, batch, [NOTHING], NEW, batch_rows=2, doubled=True)
