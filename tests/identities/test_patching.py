"""Patching while generating: nothing patched is the first model, everything the second, each step a naive re-run."""

from collections.abc import Iterator
from contextlib import contextmanager

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
from tests.neuron_pairs import WITH_NEURONS, every_neuron, mlp_pair, moved_all, moved_blocks, moved_mlp
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


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "falcon_sequential", "gemma3", "qwen3_moe"])
def test_both_engines_agree_where_the_models_part_late_and_the_patch_ends_early(
    family: str, tiny_models: TinyModels
) -> None:
    first = tiny_models.handle(family)
    dense = every_neuron(ModelPair(first, moved_all(tiny_models, family)))
    deepest, last = int(dense[:, 0].max()), first.dims.n_layers - 1
    shallowest = dense[dense[:, 0] == int(dense[:, 0].min())]
    batch = first.batch(TEXTS)
    plain = padded(first.generate(batch, NEW))
    for second, patches in (
        (moved_blocks(tiny_models, family, [deepest]), [dense, shallowest]),
        (moved_blocks(tiny_models, family, list(range(last + 1))), [shallowest]),
        (moved_all(tiny_models, family), [shallowest]),
    ):
        pair = ModelPair(first, second)
        expected = torch.stack([naive(pair, batch, patch) for patch in patches])
        for way in ENGINES:
            assert torch.equal(patched_tokens(pair, batch, patches, NEW, batch_rows=4, doubled=way), expected)
        assert not torch.equal(expected[0], plain)


@contextmanager
def counted_rows(modules: list[torch.nn.Module]) -> Iterator[list[int]]:
    """Scope that notes how many rows each module gives, in the order of the calls."""
    rows: list[int] = []
    hooks = [module.register_forward_hook(lambda module, args, found: rows.append(len(found))) for module in modules]
    yield rows
    for hook in hooks:
        hook.remove()


def test_rows_of_the_second_model_run_where_they_are_needed_alone(tiny_models: TinyModels) -> None:
    first = tiny_models.handle("llama_tied")
    n_layers, batch = first.dims.n_layers, first.batch(TEXTS[:3])
    dense = every_neuron(ModelPair(first, moved_all(tiny_models, "llama_tied")))
    shallow, once, twice = dense[dense[:, 0] == 0], 3, 6
    for second, patch, expected in (
        (moved_blocks(tiny_models, "llama_tied", [n_layers - 1]), dense, [once] * (n_layers - 1) + [twice]),
        (moved_blocks(tiny_models, "llama_tied", [0]), shallow, [twice] + [once] * (n_layers - 1)),
        (moved_blocks(tiny_models, "llama_tied", [n_layers - 1]), shallow, [once] * n_layers),
        (moved_mlp(tiny_models, "llama_tied"), dense, [once] + [twice] * (n_layers - 1)),
        (moved_all(tiny_models, "llama_tied"), shallow, [twice] + [once] * (n_layers - 1)),
    ):
        # what attention's first map gives: a block itself is called before its rows are doubled
        maps = [block.get_submodule("self_attn.q_proj") for block in first.blocks]
        with counted_rows(maps) as rows:
            patched_tokens(ModelPair(first, second), batch, [patch], 1, batch_rows=8, doubled=True)
        assert rows == expected


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
