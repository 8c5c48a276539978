"""What one prompt does in a model: every token's features by normalised activation, layer by layer.

1. The prompt is read in the chat template and answered greedily; the ids that come out are kept as they are.
2. One plain pass over the prompt's ids and exactly those of the answer, nothing tokenised again and no padding, reads
   every SAE's site: attention sees what it saw while the answer was written.
3. Each SAE encodes every token; activations are divided by the feature's stored scale, largest first.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safe_sail.errors import BadInput, SequenceTooLong
from safe_sail.evaluation.refusal import judge_reply
from safe_sail.features.contexts import token_texts
from safe_sail.model.edits import Edit
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.model.tokens import TokenBatch, batch_of_ids, content_mask, pad_id_of
from safe_sail.records import FeatureScale, PromptTrace, Reply, SaeTrace, TokenFeature, TracedFeature, TracedText
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import TraceSettings
from safe_sail.settings.live import MAX_TOKENS
from safe_sail.sites import Site

Scales = Mapping[str, Mapping[int, float]]
"""By SAE and feature, what its activations are divided by; a feature without a positive scale has none."""


class Asked(NamedTuple):
    """How a prompt is read and how long its answer may be."""

    max_new_tokens: int
    """0 asks for no answer."""
    system: str | None = None
    plain: bool = False
    """The text as it is, without the chat template."""


class Codes(NamedTuple):
    """Features of a text, token by token."""

    text: TracedText
    activations: Mapping[str, Float[Tensor, "seq d_sae"]]
    """By SAE, float32 on the CPU."""


def trace_prompt(
    handle: HookedModel, saes: Sequence[SAEHandle], prompt: str, asked: Asked, settings: TraceSettings, scales: Scales
) -> PromptTrace:
    """Every token's features in every SAE, over the prompt and its answer.

    Raises:
        SequenceTooLong: prompt and answer are longer than the model accepts or a trace may be.
        ChatTemplateMissing: the tokenizer has no chat template.
        BadInput: an activation is not finite.
    """
    codes = encode_text(handle, saes, prompt, asked)
    layers = [
        _traced(sae, codes.activations[sae.ref.slug], codes.text.is_content, settings, scales.get(sae.ref.slug, {}))
        for sae in in_order(saes)
    ]
    return PromptTrace(model_id=handle.model_id, text=codes.text, layers=tuple(layers))


def in_order(saes: Sequence[SAEHandle]) -> list[SAEHandle]:
    """By site in the order of computation, then by slug."""
    return sorted(saes, key=lambda sae: (sae.site, sae.ref.slug))


# ------------------------------------------------------------------------------------------ 1. the prompt, answered


def prompt_batch(handle: HookedModel, prompt: str, asked: Asked) -> TokenBatch:
    """The prompt as a batch of one row, without padding.

    Raises:
        SequenceTooLong: prompt and answer are longer than a trace may be.
    """
    batch = handle.batch([prompt]) if asked.plain else handle.chat_batch([prompt], system=asked.system)
    n = batch.token_ids.shape[1] + asked.max_new_tokens
    if n > MAX_TOKENS:
        raise SequenceTooLong(
            f"{n} tokens with the answer; a live request has at most {MAX_TOKENS}. Shorten the prompt or the answer."
        )
    return batch


def reply_of(
    handle: HookedModel, batch: TokenBatch, max_new_tokens: int, edits: Mapping[Site, Edit] = NO_EDITS
) -> Reply:
    """The greedy answer to a batch of one row, its ids as they were generated."""
    ids = handle.generate(batch, max_new_tokens, edits)[0].tolist()
    text = handle.tokenizer.decode(ids, skip_special_tokens=True)
    return Reply(text=text, token_ids=tuple(ids), label=judge_reply(text))


# ------------------------------------------------------------------------------------------ 2. one pass over both


@torch.no_grad()
def encode_text(handle: HookedModel, saes: Sequence[SAEHandle], prompt: str, asked: Asked) -> Codes:
    """The prompt and its answer as the model read and wrote them, and every SAE's features on them.

    Raises:
        SequenceTooLong: prompt and answer are longer than the model accepts or a trace may be.
        ChatTemplateMissing: the tokenizer has no chat template.
        BadInput: an activation is not finite.
    """
    batch = prompt_batch(handle, prompt, asked)
    reply = reply_of(handle, batch, asked.max_new_tokens) if asked.max_new_tokens else None
    prompt_ids: list[int] = batch.token_ids[0].tolist()
    ids = [*prompt_ids, *(reply.token_ids if reply else ())]
    whole = batch_of_ids(
        [ids], pad_id=pad_id_of(handle.tokenizer), padding_side="left", max_positions=handle.dims.max_positions
    )
    found = handle.capture(whole, sorted({sae.site for sae in saes}))
    activations = {sae.ref.slug: _encoded(sae, found[sae.site]) for sae in saes}
    text = TracedText(
        prompt=prompt,
        tokens=token_texts(handle.tokenizer, ids),
        token_ids=tuple(ids),
        n_prompt=len(prompt_ids),
        is_content=tuple(content_mask(whole, handle.tokenizer)[0].tolist()),
        reply=reply,
    )
    return Codes(text, activations)


def _encoded(sae: SAEHandle, captured: Tensor) -> Float[Tensor, "seq d_sae"]:
    found = sae.encode(captured.to(sae.device))[0].float().cpu()
    if not bool(found.isfinite().all()):
        raise BadInput(f"activations of SAE {sae.ref.slug} are not finite; load the model in float32 or bfloat16.")
    return found


# ------------------------------------------------------------------------------------------ 3. features in order


def divisors(scales: Mapping[int, float], d_sae: int) -> Float[Tensor, " d_sae"]:
    """Each feature's scale; infinity where none is stored, so that a normalised activation is 0."""
    found = torch.full((d_sae,), torch.inf)
    for index, value in scales.items():
        if value > 0 and index < d_sae:
            found[index] = value
    return found


def _traced(
    sae: SAEHandle,
    acts: Float[Tensor, "seq d_sae"],
    is_content: Sequence[bool],
    settings: TraceSettings,
    scales: Mapping[int, float],
) -> SaeTrace:
    by = divisors(scales, sae.d_sae)
    n_scaled = int(by.isfinite().sum())
    normalise = n_scaled > 0 if settings.normalise is None else settings.normalise
    order = _ordered(acts, by) if normalise else acts.abs().argsort(dim=1, descending=True, stable=True)
    top = tuple(
        tuple(_token_feature(acts[place], by, index) for index in row if acts[place, index] != 0)
        for place, row in enumerate(order[:, : settings.n_top].tolist())
    )
    content: Bool[Tensor, " seq"] = torch.tensor(is_content)
    return SaeTrace(
        sae=sae.ref.slug,
        site=sae.site,
        scale=FeatureScale(settings.scale),
        is_normalised=normalise,
        n_scaled=n_scaled,
        n_active=tuple((acts != 0).sum(dim=1).tolist()),
        top=top,
        strongest=tuple(
            TracedFeature(index=index, scale=_scale(by, index), activations=tuple(acts[:, index].tolist()))
            for index in _strongest(acts[content], by, settings.n_strongest, normalise)
        ),
    )


def _ordered(acts: Float[Tensor, "seq d_sae"], by: Float[Tensor, " d_sae"]) -> Int[Tensor, "seq d_sae"]:
    """Features of each token by normalised activation; those without a scale behind them, by activation."""
    unscaled = acts.abs().argsort(dim=1, descending=True, stable=True)
    ratio = (acts.abs() / by).gather(1, unscaled)
    return unscaled.gather(1, ratio.argsort(dim=1, descending=True, stable=True))


def _strongest(acts: Float[Tensor, "seq d_sae"], by: Float[Tensor, " d_sae"], n: int, normalise: bool) -> list[int]:
    if not len(acts):
        return []
    largest = acts.abs().amax(dim=0, keepdim=True)
    order = _ordered(largest, by) if normalise else largest.argsort(dim=1, descending=True, stable=True)
    return [index for index in order[0, :n].tolist() if largest[0, index] > 0]


def _token_feature(acts: Float[Tensor, " d_sae"], by: Float[Tensor, " d_sae"], index: int) -> TokenFeature:
    scale = _scale(by, index)
    activation = float(acts[index])
    return TokenFeature(index=index, activation=activation, normalised=None if scale is None else activation / scale)


def _scale(by: Float[Tensor, " d_sae"], index: int) -> float | None:
    value = float(by[index])
    return value if value != torch.inf else None
