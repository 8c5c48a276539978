"""What makes two models a pair, and what is said where they are none."""

import copy

import pytest
import torch

from safe_sail.errors import ModelsDiffer, ModelsEqual, TokenizersDiffer
from safe_sail.model.handle import HookedModel
from safe_sail.neurons.doubling import doubled_batch
from safe_sail.neurons.pair import ModelPair
from tests.neuron_pairs import WITH_NEURONS, mlp_pair, moved_all, moved_blocks, moved_mlp
from tests.tiny import FAMILIES, TEXTS, TinyModels


@pytest.mark.parametrize("family", FAMILIES)
def test_a_doubled_pass_gives_both_models_logits(family: str, tiny_models: TinyModels) -> None:
    pair = ModelPair(tiny_models.handle(family), moved_all(tiny_models, family, 0.1))
    batch = pair.first.batch(TEXTS)
    with pair.doubled() as both:
        first, second = both.logits(doubled_batch(batch)).chunk(2)
    real = batch.is_real
    # float32 through two or three blocks of products of size one
    for found, model in ((first, pair.first), (second, pair.second)):
        torch.testing.assert_close(found[real], model.logits(batch)[real], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first[real], second[real], atol=1e-2)


@pytest.mark.parametrize("family", WITH_NEURONS)
def test_modules_apart_are_those_that_were_moved(family: str, tiny_models: TinyModels) -> None:
    pair = mlp_pair(tiny_models, family)
    row = pair.first.architecture
    assert pair.modules_apart == tuple(f"{row.blocks}.{layer}.{row.mlp_up}" for layer in pair.layers)
    assert 0.5 < pair.shared_share < 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_the_first_block_apart_is_the_first_that_was_moved(family: str, tiny_models: TinyModels) -> None:
    first = tiny_models.handle(family)
    last = first.dims.n_layers - 1
    for layers in ([0, last], [last]):
        assert ModelPair(first, moved_blocks(tiny_models, family, layers)).first_block_apart == layers[0]
    assert ModelPair(first, moved_all(tiny_models, family)).first_block_apart is None  # embeddings come before them
    after = tiny_models.fresh(family)
    with torch.no_grad():
        after.model.get_submodule(after.architecture.final_norm).weight *= 1.5
    assert ModelPair(first, after).first_block_apart == last + 1


def test_equal_models_are_refused(tiny_models: TinyModels) -> None:
    with pytest.raises(ModelsEqual, match="llama and llama have the same weights"):
        ModelPair(tiny_models.handle("llama"), tiny_models.fresh("llama"))


def test_models_of_another_class_shape_or_dtype_are_refused(tiny_models: TinyModels) -> None:
    llama = tiny_models.handle("llama")
    with pytest.raises(ModelsDiffer, match="is a LlamaForCausalLM, mistral a MistralForCausalLM"):
        ModelPair(llama, tiny_models.handle("mistral"))
    with pytest.raises(ModelsDiffer, match=r"`lm_head\.weight` is \(160, 32\) in llama and None in"):
        ModelPair(llama, tiny_models.handle("llama_tied"))
    half = moved_mlp(tiny_models, "llama")
    half.model.to(torch.bfloat16)
    with pytest.raises(ModelsDiffer, match=r"float32, llama in torch\.bfloat16"):
        ModelPair(llama, half)


def test_another_tokenizer_is_refused(tiny_models: TinyModels) -> None:
    moved = moved_mlp(tiny_models, "llama")
    tokenizer = copy.deepcopy(moved.tokenizer)
    tokenizer.add_tokens(["zebra"])
    other = HookedModel(moved.model, tokenizer, moved.architecture, model_id="other")
    with pytest.raises(TokenizersDiffer, match="token 'zebra' is None to llama and 160 to other"):
        ModelPair(tiny_models.handle("llama"), other)


def test_chat_text_takes_the_template_of_the_model_that_has_one(tiny_models: TinyModels) -> None:
    moved = moved_mlp(tiny_models, "llama")
    bare = copy.deepcopy(moved.tokenizer)
    bare.chat_template = None
    pair = ModelPair(HookedModel(moved.model, bare, moved.architecture, model_id="base"), tiny_models.handle("llama"))
    assert torch.equal(pair.chat_batch(["hello"]).token_ids, pair.second.chat_batch(["hello"]).token_ids)
    assert pair.swapped().first is pair.second
