"""The table: Hugging Face class name -> module paths and facts, one row per family.

This file alone knows module paths. A new family is a new row, not a new class (docs/adding_an_architecture.md). Rows
are looked up by class name and never guessed from module names; what a family decides by its configuration is a small
function of the configuration in the row.

Two decisions carry the table: heads and neurons are read as the *input* of a linear map, so the same rule holds for
every family, gated MLP and attention implementation; and `attn_out`/`mlp_out` mean *what is added to the stream*, so a
post-norm is inside them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from safe_sail.errors import BadSite, UnknownArchitecture
from safe_sail.sites import SiteKind


class QkvLayout(StrEnum):
    """How the output rows of the query, key and value projections are stored."""

    SEPARATE = "separate"
    """Three modules."""
    CONCATENATED = "concatenated"
    """One module: all query heads, then all key heads, then all value heads."""
    GROUPED = "grouped"
    """One module: per key-value head, its query heads, its key, its value."""


class Place(NamedTuple):
    """One module border."""

    path: str
    """Below the block; empty for the block itself."""
    side: Literal["input", "output"]


def _never(config: Any) -> bool:
    return False


def _accepted(config: Any) -> str | None:
    return None


def _kv_heads(config: Any) -> int:
    return int(config.num_key_value_heads)


def _all_heads(config: Any) -> int:
    return int(config.num_attention_heads)


def _separate(config: Any) -> QkvLayout:
    return QkvLayout.SEPARATE


def _concatenated(config: Any) -> QkvLayout:
    return QkvLayout.CONCATENATED


def _grouped(config: Any) -> QkvLayout:
    return QkvLayout.GROUPED


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """One row: where a family keeps its parts. Paths of parts are below the block, the others below the model.

    The defaults are those of Llama, from which most families descend.
    """

    class_name: str
    """Hugging Face class, as `config.architectures` names it."""
    family: str
    """Name of the fixture in tests/tiny.py."""
    blocks: str = "model.layers"
    embed: str = "model.embed_tokens"
    position_embed: str | None = None
    """Learned absolute positions, which write to the stream as W_E does."""
    final_norm: str = "model.norm"
    unembed: str = "lm_head"
    attn_proj: str = "self_attn.o_proj"
    """W_O; its input is `head_out`."""
    attn_out: str = "self_attn.o_proj"
    """Its output is what attention adds to the stream."""
    mlp: str = "mlp"
    """Its input is `mlp_in`."""
    mlp_out: str = "mlp"
    """Its output is what the MLP adds to the stream."""
    mlp_down: str = "mlp.down_proj"
    """W_out; its input is `mlp_act`."""
    mlp_up: str = "mlp.up_proj"
    """W_in; with `gate_is_fused`, the module that holds W_gate above W_in."""
    mlp_gate: str | None = "mlp.gate_proj"
    gate_is_fused: bool = False
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    qkv_layout: Callable[[Any], QkvLayout] = _separate
    kv_heads: Callable[[Any], int] = _kv_heads
    experts: str | None = None
    """Module of the fused experts in a mixture's sparse blocks; a block without it is dense."""
    shared_expert: str | None = None
    """Path of an expert that every token passes, beside the routed ones."""
    conv1d: bool = False
    """Weights are stored [in, out] (Conv1D of GPT-2) and not [out, in]."""
    parallel: Callable[[Any], bool] = _never
    """Attention and MLP both read the block's input, so there is no `resid_mid`."""
    post_norm: bool = False
    """A norm stands between the writing matrices and the stream: its gain does not commute with a projection, so
    orthogonalising weights is not the same as ablating a direction."""
    mlp_out_is_overwritten: bool = False
    """The block adds to the MLP's output in place; the handle gives it a copy so that a capture stays what it was."""
    refused: Callable[[Any], str | None] = _accepted
    """Why a configuration of this class is refused, or None."""

    def place(self, kind: SiteKind) -> Place:
        """Module border where sites of this kind are read and edited."""
        match kind:
            case SiteKind.EMBED | SiteKind.RESID_PRE:
                return Place("", "input")
            case SiteKind.HEAD_OUT:
                return Place(self.attn_proj, "input")
            case SiteKind.ATTN_OUT:
                return Place(self.attn_out, "output")
            case SiteKind.MLP_IN:
                return Place(self.mlp, "input")
            case SiteKind.MLP_ACT:
                return Place(self.mlp_down, "input")
            case SiteKind.MLP_OUT:
                return Place(self.mlp_out, "output")
            case SiteKind.RESID_POST:
                return Place("", "output")
            case SiteKind.RESID_MID:
                raise BadSite("`resid_mid` is the sum of `resid_pre` and `attn_out`; no module holds it.")


def _gpt_neox_parallel(config: Any) -> bool:
    return bool(config.use_parallel_residual)


def _falcon_parallel(config: Any) -> bool:
    return bool(config.new_decoder_architecture or config.parallel_attn)


def _falcon_layout(config: Any) -> QkvLayout:
    if config.multi_query and not config.new_decoder_architecture:
        return QkvLayout.CONCATENATED
    return QkvLayout.GROUPED


def _falcon_kv_heads(config: Any) -> int:
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


def _falcon_refused(config: Any) -> str | None:
    if config.new_decoder_architecture and not config.parallel_attn:
        return "new_decoder_architecture without parallel_attn: transformers builds norms that its forward never finds"
    if not config.new_decoder_architecture and config.parallel_attn and config.num_ln_in_parallel_attn == 2:
        return "two norms in parallel attention need new_decoder_architecture: transformers' forward finds none"
    if config.alibi and getattr(config, "_attn_implementation", None) == "eager":
        # transformers 5.23 folds the bias into the mask and adds it to the scores again: tests/identities/test_heads.py
        return 'alibi with eager attention: transformers adds the position bias twice; use attn_implementation="sdpa"'
    return None


def _gpt2_refused(config: Any) -> str | None:
    if config.add_cross_attention:
        return "add_cross_attention: a decoder of an encoder-decoder writes to the stream in a third place"
    return None


def _gemma_refused(config: Any) -> str | None:
    if getattr(config, "use_bidirectional_attention", None):
        return "use_bidirectional_attention: an encoder, whose tokens see later ones, is no causal language model"
    return None


_ROWS = (
    Architecture(class_name="LlamaForCausalLM", family="llama"),
    Architecture(class_name="MistralForCausalLM", family="mistral"),
    Architecture(class_name="Qwen2ForCausalLM", family="qwen2"),
    Architecture(class_name="Qwen3ForCausalLM", family="qwen3"),
    Architecture(
        class_name="Qwen2MoeForCausalLM",
        family="qwen2_moe",
        experts="mlp.experts",
        shared_expert="mlp.shared_expert",
    ),
    Architecture(class_name="Qwen3MoeForCausalLM", family="qwen3_moe", experts="mlp.experts"),
    Architecture(class_name="MixtralForCausalLM", family="mixtral", experts="mlp.experts"),
    Architecture(class_name="GemmaForCausalLM", family="gemma", refused=_gemma_refused),
    Architecture(
        class_name="Gemma2ForCausalLM",
        family="gemma2",
        attn_out="post_attention_layernorm",
        mlp_out="post_feedforward_layernorm",
        post_norm=True,
        refused=_gemma_refused,
    ),
    Architecture(
        class_name="Gemma3ForCausalLM",
        family="gemma3",
        attn_out="post_attention_layernorm",
        mlp_out="post_feedforward_layernorm",
        post_norm=True,
        refused=_gemma_refused,
    ),
    Architecture(
        class_name="Olmo2ForCausalLM",
        family="olmo2",
        attn_out="post_attention_layernorm",
        mlp_out="post_feedforward_layernorm",
        post_norm=True,
    ),
    Architecture(
        class_name="Phi3ForCausalLM",
        family="phi3",
        mlp_up="mlp.gate_up_proj",
        mlp_gate="mlp.gate_up_proj",
        gate_is_fused=True,
        qkv=("self_attn.qkv_proj",),
        qkv_layout=_concatenated,
    ),
    Architecture(class_name="StableLmForCausalLM", family="stablelm", parallel=_gpt_neox_parallel),
    Architecture(
        class_name="GPT2LMHeadModel",
        family="gpt2",
        blocks="transformer.h",
        embed="transformer.wte",
        position_embed="transformer.wpe",
        final_norm="transformer.ln_f",
        attn_proj="attn.c_proj",
        attn_out="attn.c_proj",
        mlp_down="mlp.c_proj",
        mlp_up="mlp.c_fc",
        mlp_gate=None,
        qkv=("attn.c_attn",),
        qkv_layout=_concatenated,
        kv_heads=_all_heads,
        conv1d=True,
        refused=_gpt2_refused,
    ),
    Architecture(
        class_name="GPTNeoXForCausalLM",
        family="gpt_neox",
        blocks="gpt_neox.layers",
        embed="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        attn_proj="attention.dense",
        attn_out="attention.dense",
        mlp_down="mlp.dense_4h_to_h",
        mlp_up="mlp.dense_h_to_4h",
        mlp_gate=None,
        qkv=("attention.query_key_value",),
        qkv_layout=_grouped,
        kv_heads=_all_heads,
        parallel=_gpt_neox_parallel,
    ),
    Architecture(
        class_name="FalconForCausalLM",
        family="falcon",
        blocks="transformer.h",
        embed="transformer.word_embeddings",
        final_norm="transformer.ln_f",
        attn_proj="self_attention.dense",
        attn_out="self_attention.dense",
        mlp_down="mlp.dense_4h_to_h",
        mlp_up="mlp.dense_h_to_4h",
        mlp_gate=None,
        qkv=("self_attention.query_key_value",),
        qkv_layout=_falcon_layout,
        kv_heads=_falcon_kv_heads,
        parallel=_falcon_parallel,
        mlp_out_is_overwritten=True,
        refused=_falcon_refused,
    ),
)

ARCHITECTURES: dict[str, Architecture] = {row.class_name: row for row in _ROWS}
"""Rows by Hugging Face class name."""


def architecture_of(class_name: str, config: Any) -> Architecture:
    """Row of a Hugging Face class.

    Raises:
        UnknownArchitecture: the class has no row, or its row refuses this configuration.
    """
    row = ARCHITECTURES.get(class_name)
    if row is None:
        raise UnknownArchitecture(
            f"model class `{class_name}` has no row in the architecture table; known: "
            f"{', '.join(sorted(ARCHITECTURES))}. docs/adding_an_architecture.md says how to add one."
        )
    if reason := row.refused(config):
        raise UnknownArchitecture(f"this configuration of `{class_name}` is refused: {reason}.")
    return row
