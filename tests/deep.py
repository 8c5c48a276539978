"""A random Llama of five layers and prompts for it, for tests of searches over positions and layers."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from safe_sail.directions.candidates import (
    DirectionPrompts,
)
from safe_sail.model.architectures import ARCHITECTURES
from safe_sail.model.handle import HookedModel
from safe_sail.settings import DirectionSettings
from tests.tiny import VOCAB, tiny_tokenizer

WORDS = (
    "the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "how", "do", "I", "bake", "bread", "at",
    "home", "kind", "answer", "turns", "away", "anger",
)  # fmt: skip
NAMED = ("the", "a", "fox")
N_LAYERS = 5


def texts(n: int, seed: int) -> list[str]:
    draw = torch.Generator().manual_seed(seed)
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (3 + k % 5,), generator=draw)) for k in range(n)]


PROMPTS = DirectionPrompts(texts(12, 1), texts(11, 2), texts(7, 3), texts(6, 4), ["first", "second", "third"] * 4)
OPEN = DirectionSettings(
    filter_prompts=False, induce_above=-1e9, kl_below=1e9, n_bootstrap=50, n_random=2, max_new_tokens=3, max_rank=2
)


def deep(seed: int = 0, tokenizer: Any = None) -> HookedModel:
    """A random Llama of five layers, so that positions and layers can disagree."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=N_LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * parameter.shape[-1] ** -0.5)
    return HookedModel(model, tokenizer or tiny_tokenizer(), ARCHITECTURES["LlamaForCausalLM"], model_id="deep")
