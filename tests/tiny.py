"""Builders of tiny random models with a real tokenizer, written to disk as a user's model folder would be.

Every parameter is random, biases and norm gains included, so that no identity holds by a zero or a one. Models have
2 or 3 layers and fewer than 50,000 parameters. `tiny_folder("llama", tmp_path)` writes one; `FAMILIES` names them all,
the variants of a family after it ("falcon", "falcon_grouped", ...).
"""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model

TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "how do I bake bread at home?",
    "a kind answer turns away anger, and a patient one keeps it away for longer",
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

VOCAB = 160
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GATED: dict[str, Any] = {**_SIZES, "intermediate_size": 40}
_GQA: dict[str, Any] = {**_GATED, "num_key_value_heads": 2}
_MOE: dict[str, Any] = {
    **_GQA,
    "num_hidden_layers": 3,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "mlp_only_layers": [1],
}


def _llama(**more: Any) -> torch.nn.Module:
    return LlamaForCausalLM(LlamaConfig(**{**_GQA, "attention_bias": True, "mlp_bias": True, **more}))


def _gpt2(**more: Any) -> torch.nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=40,
                   pad_token_id=0, bos_token_id=1, eos_token_id=2, **more)
    )  # fmt: skip


def _gpt_neox(**more: Any) -> torch.nn.Module:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**{**_GATED, **more}))


def _falcon(**more: Any) -> torch.nn.Module:
    return FalconForCausalLM(FalconConfig(**{**_SIZES, "ffn_hidden_size": 40, **more}))


def _stablelm(**more: Any) -> torch.nn.Module:
    return StableLmForCausalLM(StableLmConfig(**{**_GQA, "use_qkv_bias": True, **more}))


_BUILDERS: dict[str, Callable[[], torch.nn.Module]] = {
    "llama": lambda: _llama(),
    "llama_tied": lambda: _llama(tie_word_embeddings=True, attention_bias=False, mlp_bias=False),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_GQA, head_dim=12, sliding_window=5)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_GQA)),
    "qwen2_sliding": lambda: Qwen2ForCausalLM(
        Qwen2Config(**_GQA, use_sliding_window=True, sliding_window=5, max_window_layers=1, tie_word_embeddings=True)
    ),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(Qwen2MoeConfig(**_MOE, shared_expert_intermediate_size=20)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_GQA, head_dim=12)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**_MOE, head_dim=12, norm_topk_prob=True)),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**{**_GQA, "intermediate_size": 16}, num_local_experts=4, num_experts_per_tok=2)
    ),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_GQA, head_dim=12)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**_GQA, head_dim=12, sliding_window=5, final_logit_softcapping=4.0, attn_logit_softcapping=3.0)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**_GQA, head_dim=12, sliding_window=5, layer_types=["sliding_attention", "full_attention"])
    ),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**_GQA)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_GQA)),
    "gpt2": lambda: _gpt2(),
    "gpt2_untied": lambda: _gpt2(tie_word_embeddings=False),
    "gpt_neox": lambda: _gpt_neox(),
    "gpt_neox_sequential": lambda: _gpt_neox(use_parallel_residual=False),
    "falcon": lambda: _falcon(bias=True, tie_word_embeddings=False),
    "falcon_grouped": lambda: _falcon(new_decoder_architecture=True, num_kv_heads=2),
    "falcon_sequential": lambda: _falcon(parallel_attn=False, multi_query=False, alibi=True, bias=True),
    "stablelm": lambda: _stablelm(),
    "stablelm_parallel": lambda: _stablelm(use_parallel_residual=True, qk_layernorm=True),
}

FAMILIES: tuple[str, ...] = tuple(_BUILDERS)
"""Every fixture; its model class is a row of the architecture table."""


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer trained on printable ASCII, with padding, chat tokens and a chat template."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=_SPECIAL,
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=_SPECIAL[4:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=64,
    )


def tiny_model(family: str, seed: int = 0) -> torch.nn.Module:
    """A random Hugging Face model of a family, not yet on disk."""
    generator = torch.Generator().manual_seed(seed)
    model = _BUILDERS[family]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.1 * noise)
            elif "embed" in name or "wte" in name:
                # small beside what blocks write, or a tied head would only repeat the last token
                parameter.copy_(noise * (0.05 if family.startswith("gemma") else 0.3))
            else:
                # about unit variance through every map, so that each part matters to the logits
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return model.eval()


def tiny_folder(family: str, root: Path) -> Path:
    """Folder of a tiny model and its tokenizer under `root`, as `save_pretrained` writes it."""
    folder = root / family
    tiny_model(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


class TinyModels:
    """Folders and handles of all families, built when first asked for and kept for the session."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, Path] = {}
        self._handles: dict[str, HookedModel] = {}

    def folder(self, family: str) -> Path:
        """Folder of a family; shared, so tests that damage it copy it first."""
        if family not in self._folders:
            self._folders[family] = tiny_folder(family, self._root)
        return self._folders[family]

    def handle(self, family: str) -> HookedModel:
        """Float32 handle of a family; shared, so tests leave its weights alone."""
        if family not in self._handles:
            self._handles[family] = load_model(self.folder(family), device="cpu", dtype=torch.float32)
        return self._handles[family]

    def fresh(self, family: str) -> HookedModel:
        """A handle of its own, for tests that change weights."""
        shared = self.handle(family)
        return HookedModel(copy.deepcopy(shared.model), shared.tokenizer, shared.architecture, model_id=shared.model_id)
