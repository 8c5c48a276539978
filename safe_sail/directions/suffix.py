"""How a given suffix changes a direction on refused prompts. The caller brings the suffix; nothing here searches one.

1. Each prompt stands three times: plain, with the suffix, with a fresh random suffix of as many tokens. Suffixes are
   put in as token ids, before the template's tokens that follow the instruction.
2. Cosine of the last token's stream with the direction, layer by layer.
3. Direct attribution: what each head writes along the direction at the last token.
4. The heads that write most on plain prompts: what they write under each condition, and how much of their attention
   from the last token goes to instruction and suffix.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.directions.projection import unit
from safe_sail.directions.read import N_BOOTSTRAP, depth_cosines, first_row, last_token_stream
from safe_sail.errors import BadInput, BadText
from safe_sail.evaluation.bootstrap import mean_estimate, resample_weights
from safe_sail.evaluation.utility import refusal_metric
from safe_sail.model import weights
from safe_sail.model.chat import chat_rows, post_instruction_ids
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, batch_of_ids, pad_id_of, special_ids
from safe_sail.records import Direction, HeadAttribution, SuffixStudy
from safe_sail.sites import Site, SiteKind

CONDITIONS = ("plain", "suffix", "random suffix")


class Rows(NamedTuple):
    """Prompts under one condition, as ids, with the columns of instruction and suffix counted from the right end."""

    ids: list[list[int]]
    n_after: int
    """Template tokens after the suffix."""
    n_suffix: int
    n_before: int
    """Template tokens before the instruction."""


def suffix_rows(
    handle: HookedModel,
    prompts: Sequence[str],
    suffix: str,
    *,
    system: str | None,
    generator: torch.Generator,
) -> dict[str, Rows]:
    """Token ids of each prompt under each condition.

    Raises:
        BadText: the suffix has no token.
        ChatTemplateMissing: the tokenizer has no chat template.
    """
    ids = handle.tokenizer(suffix, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise BadText(f"the suffix {suffix!r} has no token; give a text with words.")
    plain = chat_rows(handle.tokenizer, prompts, system=system)
    n_after = len(post_instruction_ids(handle.tokenizer, system=system))
    n_before = 0
    while len({tuple(row[: n_before + 1]) for row in plain}) == 1 and len(plain) > 1:
        n_before += 1
    special = special_ids(handle.tokenizer)
    words = torch.tensor([token for token in range(len(handle.tokenizer)) if token not in special])

    def put(row: list[int], added: list[int]) -> list[int]:
        return [*row[: len(row) - n_after], *added, *row[len(row) - n_after :]]

    def drawn() -> list[int]:
        chosen: list[int] = words[torch.randint(len(words), (len(ids),), generator=generator)].tolist()
        return chosen

    return {
        "plain": Rows(plain, n_after, 0, n_before),
        "suffix": Rows([put(row, ids) for row in plain], n_after, len(ids), n_before),
        "random suffix": Rows([put(row, drawn()) for row in plain], n_after, len(ids), n_before),
    }


@torch.no_grad()
def head_writes(
    handle: HookedModel, batch: TokenBatch, vector: Float[Tensor, " d_model"]
) -> Float[Tensor, "batch layer head"]:
    """What each head writes along the unit direction at the last token of left-padded rows, float64.

    Source: Arditi et al. 2024, section 5.2 (direct feature attribution), arXiv:2406.11717.
    """
    hat = unit(vector)
    sites = [Site(SiteKind.HEAD_OUT, layer) for layer in range(handle.dims.n_layers)]
    found = handle.capture(batch, sites)
    return torch.stack(
        [
            torch.einsum(
                "bhd,hd->bh", found[site][:, -1].double().cpu(), weights.W_O(handle, layer).double().cpu() @ hat
            )
            for layer, site in enumerate(sites)
        ],
        dim=1,
    )


@torch.no_grad()
def last_token_attention(handle: HookedModel, batch: TokenBatch) -> Float[Tensor, "batch layer head seq"]:
    """Attention weights from the last token of left-padded rows; read with the eager implementation."""
    with _eager(handle):
        found = handle.model(
            input_ids=batch.token_ids.to(handle.device),
            attention_mask=batch.attention_mask.to(handle.device),
            position_ids=batch.position_ids.to(handle.device),
            use_cache=False,
            output_attentions=True,
        ).attentions
    return torch.stack([layer[:, :, -1].float().cpu() for layer in found], dim=1)


@contextmanager
def _eager(handle: HookedModel) -> Iterator[None]:
    """Scope in which attention weights exist: fused implementations do not compute them.

    Raises:
        BadInput: the model class cannot be switched to it; Falcon is one.
    """
    before = handle.model.config._attn_implementation
    handle.model.set_attn_implementation("eager")
    try:
        if handle.model.config._attn_implementation != "eager":
            raise BadInput(
                f"{handle.model_id}: attention weights need eager attention, and {handle.architecture.class_name} "
                'cannot be switched to it; load it with attn_implementation="eager".'
            )
        yield
    finally:
        handle.model.set_attn_implementation(before)


def study_suffix(
    handle: HookedModel,
    direction: Direction,
    prompts: Sequence[str],
    suffix: str,
    *,
    refusal_ids: Sequence[int],
    n_heads: int = 8,
    batch_rows: int = 64,
    system: str | None = None,
    generator: torch.Generator,
) -> SuffixStudy:
    """Cosines, head attributions and attention under the three conditions.

    Raises:
        BadText: the suffix has no token, or there is no prompt.
        ChatTemplateMissing: the tokenizer has no chat template.
        BadInput: the model cannot be switched to eager attention, which alone gives weights.
    Source: Arditi et al. 2024, section 5, arXiv:2406.11717.
    """
    vector = first_row(direction)
    rows = suffix_rows(handle, prompts, suffix, system=system, generator=generator)
    batches = {name: _batch(handle, one.ids) for name, one in rows.items()}
    weights_of = resample_weights(len(prompts), N_BOOTSTRAP, generator)
    writes = {name: head_writes(handle, batch, vector) for name, batch in batches.items()}
    looks = {name: last_token_attention(handle, batch) for name, batch in batches.items()}
    flat = writes["plain"].mean(0).flatten()
    top = torch.argsort(flat, descending=True, stable=True)[:n_heads].tolist()
    heads = []
    for place in top:
        layer, head = divmod(place, handle.dims.n_heads)
        regions = {name: _regions(looks[name][:, layer, head], batches[name], rows[name]) for name in CONDITIONS}
        heads.append(
            HeadAttribution(
                layer=layer,
                head=head,
                written={name: mean_estimate(writes[name][:, layer, head], weights_of) for name in CONDITIONS},
                instruction={name: regions[name][0] for name in CONDITIONS},
                suffix={name: regions[name][1] for name in CONDITIONS},
            )
        )
    return SuffixStudy(
        direction=direction.slug,
        n_suffix_tokens=rows["suffix"].n_suffix,
        cosines={
            name: depth_cosines(last_token_stream(handle, batches[name], batch_rows), vector, generator)
            for name in CONDITIONS
        },
        refusal_metric={
            name: mean_estimate(_metric(handle, batches[name], refusal_ids), weights_of) for name in CONDITIONS
        },
        heads=tuple(heads),
    )


def _batch(handle: HookedModel, ids: list[list[int]]) -> TokenBatch:
    return batch_of_ids(
        ids, pad_id=pad_id_of(handle.tokenizer), padding_side="left", max_positions=handle.dims.max_positions
    )


@torch.no_grad()
def _metric(handle: HookedModel, batch: TokenBatch, refusal_ids: Sequence[int]) -> Float[Tensor, " batch"]:
    return refusal_metric(handle.logits(batch, positions="last")[:, -1], refusal_ids)


def _regions(attention: Float[Tensor, "batch seq"], batch: TokenBatch, rows: Rows) -> tuple[float, float]:
    """Mean attention that falls on the instruction and on the suffix."""
    seq = attention.shape[1]
    columns = torch.arange(seq)
    first_suffix = seq - rows.n_after - rows.n_suffix
    starts = seq - batch.lengths + rows.n_before
    on_instruction = (columns >= starts[:, None]) & (columns < first_suffix)
    on_suffix = (columns >= first_suffix) & (columns < seq - rows.n_after)
    return (
        float((attention * on_instruction).sum(-1).double().mean()),
        float((attention * on_suffix).sum(-1).double().mean()),
    )
