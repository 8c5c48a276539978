"""Top contexts of chosen features: what each fires on, and how often it fires at all.

1. Every batch of windows passes once through the model, stopped at the deepest site, and through every SAE.
2. Per feature a top-k buffer keeps the windows with the largest peaks, one entry a window; firing counts and the
   largest value are kept beside it. Nothing else is kept, so memory does not grow with the corpus.
3. In a second pass the kept windows give the activation on each of their tokens, as do a few windows drawn at random,
   the same for all features; and every positive activation falls into a histogram whose range step 2 found.

Special and padding tokens never count: they hold activation 0 in a context and are in no count.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Collected(NamedTuple):
    """What one feature fires on, and what it does on texts that it did not choose."""

    top: TopContexts
    random: tuple[Context, ...]
    """Windows drawn at random from the corpus, none of which is among the top ones; mostly silent."""


@dataclass(slots=True)
class _Found:
    """What the chosen features of one SAE have shown so far."""

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
    generator: torch.Generator,
    progress: Progress | None = None,
) -> Iterator[Collected]:
    """Top and random contexts of each chosen feature, SAE by SAE, features in the order given.

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
    seen = _first_pass(model, chosen, batches(), found, progress)
    drawn = frozenset(torch.randperm(seen.n_windows, generator=generator)[: settings.n_random].tolist())
    contexts = _second_pass(model, chosen, batches(), found, drawn, progress)
    for sae in chosen:
        slug, one = sae.ref.slug, found[sae.ref.slug]
        for row, index in enumerate(one.features.tolist()):
            kept = contexts[slug, row]
            yield Collected(
                TopContexts(
                    feature=FeatureId(sae=slug, index=index),
                    contexts=tuple(sorted(kept.top, key=lambda c: (-c.peak_activation, c.source_id))),
                    n_tokens_seen=seen.n_tokens,
                    density=int(one.n_fired[row]) / seen.n_tokens,
                    max_activation=float(one.maximum[row]),
                    histogram=_histogram(one, row),
                ),
                tuple(kept.random),
            )


class _Seen(NamedTuple):
    """Size of the corpus."""

    n_windows: int
    n_tokens: int


class _Kept(NamedTuple):
    """Contexts of one feature."""

    top: list[Context]
    random: list[Context]


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
) -> _Seen:
    """Fills buffers, counts and maxima; the size of the corpus."""
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
    return _Seen(n_windows, n_tokens)


def _second_pass(
    model: HookedModel,
    saes: Sequence[SAEHandle],
    batches: Iterable[TokenBatch],
    found: Mapping[str, _Found],
    drawn: frozenset[int],
    progress: Progress | None,
) -> dict[tuple[str, int], _Kept]:
    """Histograms of everything, and the contexts of the kept and the drawn windows, by slug and row."""
    wanted: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for slug, one in found.items():
        for row, sources in enumerate(one.buffer.sources.tolist()):
            for source in sources:
                if source != NO_SOURCE:
                    wanted[source].append((slug, row))
    contexts: dict[tuple[str, int], _Kept] = defaultdict(lambda: _Kept([], []))
    n_windows = 0
    for batch in batches:
        with torch.no_grad():
            _, activations = _activations(model, saes, batch, found)
        for slug, values in activations.items():
            _count_bins(found[slug], values)
        for place in range(len(batch)):
            top = wanted.get(n_windows + place, [])
            every = [(slug, row) for slug, one in found.items() for row in range(len(one.features))]
            others = set(every) - set(top) if n_windows + place in drawn else set()
            if not top and not others:
                continue
            text = _text(model, batch, place)
            for slug, row in top:
                contexts[slug, row].top.append(text.context(activations[slug][place, :, row]))
            for slug, row in others:
                contexts[slug, row].random.append(text.context(activations[slug][place, :, row]))
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


class _Text(NamedTuple):
    """One window, ready to be shown beside any feature's activations."""

    source_id: str
    real: Bool[Tensor, " seq"]
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]

    def context(self, activations: Float[Tensor, " seq"]) -> Context:
        """The window with these activations."""
        values = activations[self.real]
        return Context(
            tokens=self.tokens,
            token_ids=self.token_ids,
            activations=tuple(values.tolist()),
            peak=int(values.argmax()),
            source_id=self.source_id,
        )


def _text(model: HookedModel, batch: TokenBatch, place: int) -> _Text:
    real = batch.is_real[place].cpu()
    token_ids = batch.token_ids[place].cpu()[real].tolist()
    return _Text(batch.source_ids[place], real, tuple(token_ids), token_texts(model.tokenizer, token_ids))
