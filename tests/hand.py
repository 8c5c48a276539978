"""A chat model small enough to work by hand: one head and two neurons answer `b` to a prompt with a `Z`, else `a`.

Two layers, four heads of width 4, twelve neurons a layer. Directions of the stream: 0 is 1 everywhere, 1 marks `Z`,
2 is what head L0.H1 brings from `Z` to every later token (it attends to all tokens alike), 3 is what the neurons L1.N3
and L1.N5 write where 2 is set. The head of the model reads `a` from direction 0 and `b` from direction 3; one of the
two neurons is not enough. Every other weight is small noise.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from safe_sail.circuits.objectives import CircuitPrompts, ContrastPrompt, KeptPrompt
from safe_sail.model.architectures import ARCHITECTURES
from safe_sail.model.handle import HookedModel
from safe_sail.records import HeadRef, NeuronRef
from tests.tiny import VOCAB, tiny_tokenizer

UNITS = (HeadRef(0, 1), NeuronRef(1, 3), NeuronRef(1, 5))
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "bread", "home")
NOISE = 0.01


def hand_model() -> HookedModel:
    """The model in float32, without grad."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            weight.copy_(NOISE * torch.randn(weight.shape, generator=draw))
            if "q_proj" in name or "k_proj" in name:
                weight.zero_()  # attention to all tokens alike
    token = {text: tokenizer.convert_tokens_to_ids(text) for text in "abZ"}
    embed = model.model.embed_tokens.weight
    embed[:, :4] = 0
    embed[:, 0] = 1
    embed[token["Z"], 1] = 2
    head, reader = model.model.layers[0].self_attn, model.model.layers[1].mlp
    head.v_proj.weight[4, 1] = 1  # the first coordinate of head 1
    head.o_proj.weight[2, 4] = 2
    for neuron in (3, 5):
        reader.gate_proj.weight[neuron, 2] = 2
        reader.up_proj.weight[neuron, 0] = 1
        reader.down_proj.weight[3, neuron] = 0.07
    model.lm_head.weight[token["a"], 0] = 4
    model.lm_head.weight[token["b"], 3] = 4
    return HookedModel(model, tokenizer, ARCHITECTURES["LlamaForCausalLM"], model_id="hand")


def hand_prompts(n: int, seed: int) -> CircuitPrompts:
    """Prompts with `Z`, answered `b` by the circuit and `a` without it, and prompts without one, answered `a`."""
    draw = torch.Generator().manual_seed(seed)
    target, kept = [], []
    for index in range(n):
        words = [WORDS[i] for i in torch.randint(len(WORDS), (3,), generator=draw)]
        clean = " ".join(words)
        words.insert(index % 3, "Z")
        target.append(ContrastPrompt(" ".join(words), "b", "a", clean))
        kept.append(KeptPrompt(clean, "a"))
    return CircuitPrompts(target, kept)
