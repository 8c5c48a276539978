"""Top contexts of chosen features: what each fires on, and how often it fires at all.

1. Every batch of windows passes once through the model, stopped at the deepest site, and through every SAE.
2. Per feature a top-k buffer keeps the windows with the largest peaks, one entry a window; firing counts and the
   largest value are kept beside it. Nothing else is kept, so memory does not grow with the corpus.
3. The kept windows pass through model and SAE again, for the activation on each of their tokens; and every positive
   activation of the corpus falls into a histogram whose range step 1 found.

Special and padding tokens never count: they hold activation 0 in a context and are in no count.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safe_sail.errors import BadText
from safe_sail.features.topk import NO_SOURCE, TopKBuffer
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, content_mask
from safe_sail.records import Context, FeatureId, Histogram, TopContexts
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import ContextSettings

Progress = Callable[[int], None]
"""Called with the number of windows that have just been seen."""


@dataclass(slots=True)
class _Found:
    """What one SAE's chosen features have shown so far."""

    features: Tensor
    buffer: TopKBuffer
    n_fired: Tensor
    maximum: Tensor
    counts: Tensor


def collect_contexts(
    model: HookedModel,
    saes: Sequence[SAEHandle],
    batches: Callable[[], Iterable[TokenBatch]],
    *,
    features: Mapping[str, Sequence[int]],
    settings: ContextSettings,
    progress: Progress | None = None,
) -> Iterator[TopContexts]:
    """Top contexts of each chosen feature, SAE by SAE, features in the order given.

    `batches` yields the same windows each time it is called (it is called twice); `features` names, per SAE slug, the
    features to follow. A feature that never fires has no contexts and no histogram.

    Raises:
        BadText: the corpus has no content token.
    """
    found = {
        sae.ref.slug: _Found(
            torch.tensor(list(features[sae.ref.slug]), dtype=torch.long),
            TopKBuffer(len(features[sae.ref.slug]), settings.n_contexts),
            torch.zeros(len(features[sae.ref.slug]), dtype=torch.long),
            torch.zeros(len(features[sae.ref.slug])),
            torch.zeros(len(features[sae.ref.slug]), settings.n_bins, dtype=torch.long),
        )
        for sae in saes
        if features.get(sae.ref.slug)
    }
    chosen = [sae for sae in saes if sae.ref.slug in found]
    if not chosen:
        return
    n_tokens = _first_pass(model, chosen, batches(), found, progress)
    contexts = _second_pass(model, chosen, batches(), found, progress)
    for sae in chosen:
        slug, one = sae.ref.slug, found[sae.ref.slug]
        for row, index in enumerate(one.features.tolist()):
            feature = FeatureId(sae=slug, index=index)
            kept = sorted(contexts[slug, row], key=lambda context: (-context.peak_activation, context.source_id))
            yield TopContexts(
                feature=feature,
                contexts=tuple(kept),
                n_tokens_seen=n_tokens,
                density=int(one.n_fired[row]) / n_tokens,
                max_activation=float(one.maximum[row]),
                histogram=_histogram(one, row),
            )


def _activations(
    model: HookedModel, saes: Sequence[SAEHandle], batch: TokenBatch, found: Mapping[str, _Found]
) -> tuple[Bool[Tensor, "batch seq"], dict[str, Float[Tensor, "batch seq feature"]]]:
    """Which tokens count, and the chosen features' activations, zero on tokens that do not."""
    content = content_mask(batch, model.tokenizer).cpu()
    captured = model.capture(batch, sorted({sae.site for sae in saes}))
    activations = {}
    for sae in saes:
        encoded = sae.encode(captured[sae.site], found[sae.ref.slug].features.to(sae.device)).float().cpu()
        activations[sae.ref.slug] = torch.where(content[..., None], encoded, 0.0)
    return content, activations


def _first_pass(
    model: HookedModel,
    saes: Sequence[SAEHandle],
    batches: Iterable[TokenBatch],
    found: Mapping[str, _Found],
    progress: Progress | None,
) -> int:
    """Fills buffers, counts and maxima; the number of content tokens."""
    n_tokens, n_windows = 0, 0
    for batch in batches:
        with torch.no_grad():
            content, activations = _activations(model, saes, batch, found)
        n_tokens += int(content.sum())
        windows = torch.arange(n_windows, n_windows + len(batch))
        n_windows += len(batch)
        for slug, values in activations.items():
            one = found[slug]
            peaks = values.amax(dim=1).T
            one.buffer.update(peaks, windows)
            one.n_fired += (values > 0).sum(dim=(0, 1))
            one.maximum = torch.maximum(one.maximum, peaks.amax(dim=1))
        if progress is not None:
            progress(len(batch))
    if n_tokens == 0:
        raise BadText("the corpus has no content token; give some text.")
    return n_tokens


def _second_pass(
    model: HookedModel,
    saes: Sequence[SAEHandle],
    batches: Iterable[TokenBatch],
    found: Mapping[str, _Found],
    progress: Progress | None,
) -> dict[tuple[str, int], list[Context]]:
    """Histograms of everything, and the contexts of the kept windows by slug and row."""
    wanted: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for slug, one in found.items():
        for row, sources in enumerate(one.buffer.sources.tolist()):
            for source in sources:
                if source != NO_SOURCE:
                    wanted[source].append((slug, row))
    contexts: dict[tuple[str, int], list[Context]] = defaultdict(list)
    n_windows = 0
    for batch in batches:
        with torch.no_grad():
            _, activations = _activations(model, saes, batch, found)
        for slug, values in activations.items():
            _count_bins(found[slug], values)
        for place in range(len(batch)):
            for slug, row in wanted.get(n_windows + place, ()):
                contexts[slug, row].append(_context(model, batch, place, activations[slug][place, :, row]))
        n_windows += len(batch)
        if progress is not None:
            progress(len(batch))
    return contexts


def _count_bins(one: _Found, values: Float[Tensor, "batch seq feature"]) -> None:
    n_bins = one.counts.shape[1]
    flat = values.flatten(0, 1).T
    # A bin is closed at its upper edge, so that the largest value is in the last one.
    share = flat / one.maximum.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    bins = ((share * n_bins).ceil().long() - 1).clamp(0, n_bins - 1)
    one.counts += torch.zeros_like(one.counts).scatter_add(1, bins, (flat > 0).long())


def _histogram(one: _Found, row: int) -> Histogram | None:
    maximum, n_bins = float(one.maximum[row]), one.counts.shape[1]
    if maximum == 0:
        return None
    edges = tuple(maximum * edge / n_bins for edge in range(n_bins + 1))
    return Histogram(edges=edges, counts=tuple(one.counts[row].tolist()))


def token_texts(tokenizer: Any, token_ids: Sequence[int]) -> tuple[str, ...]:
    """Each token's own part of the text; a character of several tokens stands at its last one, the others are empty."""
    texts, written = [], ""
    for end in range(1, len(token_ids) + 1):
        whole = tokenizer.decode(token_ids[:end], clean_up_tokenization_spaces=False)
        # Decoded alone, a byte of a longer character becomes U+FFFD: wait for the rest of the character.
        incomplete = whole.endswith("\ufffd") and end < len(token_ids)
        texts.append("" if incomplete else whole[len(written) :])
        written = written if incomplete else whole
    return tuple(texts)


def _context(model: HookedModel, batch: TokenBatch, place: int, activations: Float[Tensor, " seq"]) -> Context:
    real = batch.is_real[place].cpu()
    token_ids = batch.token_ids[place].cpu()[real].tolist()
    values = activations[real]
    return Context(
        tokens=token_texts(model.tokenizer, token_ids),
        token_ids=tuple(token_ids),
        activations=tuple(values.tolist()),
        peak=int(values.argmax()),
        source_id=batch.source_ids[place],
    )
