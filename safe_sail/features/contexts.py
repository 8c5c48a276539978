"""What chosen features fire on: top contexts, contexts over their quantiles, random ones, and how often they fire.

1. Windows are numbered by their place in the corpus. Every batch passes once through the model, stopped at the deepest
   site, and through every SAE; of the chosen features' activations on content tokens the positive ones go on.
2. `ContextBuffers` keeps what the results need, in memory that does not grow with the corpus, and merges over shards.
3. Near misses are looked for among what the nearest features fire on.
4. At the end the buffers become records, feature by feature.

Special and padding tokens never count: they hold activation 0 in a context and are in no count. Each of the steps can
be done alone by a caller who saves the buffers between batches or fills them elsewhere.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from safe_sail.errors import BadText
from safe_sail.features.context_buffers import ContextBuffers, FeatureBuffers, KeptWindows, Window
from safe_sail.features.firings import chosen_features, firings_on
from safe_sail.features.histogram import linear_counts, quantile
from safe_sail.features.near_misses import NearMisses, find_near_misses
from safe_sail.features.topk import NO_SOURCE
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, content_mask
from safe_sail.records import Context, ContextSample, FeatureId, Histogram, TopContexts
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import ContextSettings

Progress = Callable[[int], None]
"""Called with the number of windows that have just been seen."""


class Collected(NamedTuple):
    """What one feature fires on, and what it does on texts that it did not choose."""

    top: TopContexts
    sample: ContextSample


class NumberedBatch(NamedTuple):
    """A batch and the place of its first window in the corpus; the others follow it."""

    first: int
    batch: TokenBatch


def collect_contexts(
    model: HookedModel,
    saes: Sequence[SAEHandle],
    batches: Iterable[TokenBatch],
    *,
    features: Mapping[str, Sequence[int]],
    settings: ContextSettings,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> Iterator[Collected]:
    """Contexts of each chosen feature, SAE by SAE, features in the order given, in one pass over the batches.

    `features` names, per SAE slug, the features to follow. A feature that never fires has no contexts and no histogram.

    Raises:
        BadText: the corpus has no content token.
        BadInput: a window is longer than `settings.window`, a feature is named twice, or activations are not finite.
    """
    chosen = [sae for sae in saes if features.get(sae.ref.slug)]
    if not chosen:
        return
    seed = int(torch.randint(2**62, (1,), generator=generator))
    buffers = ContextBuffers({s.ref.slug: features[s.ref.slug] for s in chosen}, settings=settings, seed=seed)
    for seen in fill_buffers(buffers, model, chosen, numbered(batches)):
        if progress is not None:
            progress(seen)
    yield from collected(buffers, model.tokenizer, find_near_misses(buffers, model, chosen))


# 1. one pass


def numbered(batches: Iterable[TokenBatch]) -> Iterator[NumberedBatch]:
    """The batches with the place of their first window."""
    first = 0
    for batch in batches:
        yield NumberedBatch(first, batch)
        first += len(batch)


def fill_buffers(
    buffers: ContextBuffers, model: HookedModel, saes: Sequence[SAEHandle], batches: Iterable[NumberedBatch]
) -> Iterator[int]:
    """Takes the batches into the buffers; after each of them, the number of its windows.

    Raises:
        BadInput: a window is longer than the settings say, or activations are not finite.
    """
    sites = sorted({sae.site for sae in saes})
    chosen = {sae.ref.slug: chosen_features(sae, buffers.saes[sae.ref.slug].features) for sae in saes}
    for first, batch in batches:
        with torch.no_grad():
            content = content_mask(batch, model.tokenizer)
            captured = model.capture(batch, sites)
            found = {
                sae.ref.slug: firings_on(sae, chosen[sae.ref.slug], captured[sae.site], content, batch) for sae in saes
            }
        buffers.update(torch.arange(first, first + len(batch)), _windows(batch), int(content.sum()), found)
        yield len(batch)


def _windows(batch: TokenBatch) -> list[Window]:
    is_real = batch.is_real.cpu()
    ids = batch.token_ids.cpu()
    return [
        Window(source_id, array("i", row[real].tolist()))
        for source_id, row, real in zip(batch.source_ids, ids, is_real, strict=True)
    ]


# 4. records


def collected(buffers: ContextBuffers, tokenizer: Any, near_misses: NearMisses | None = None) -> Iterator[Collected]:
    """What the buffers show of each feature, SAE by SAE, features in the order given.

    Raises:
        BadText: no content token was seen.
    """
    if buffers.n_tokens == 0:
        raise BadText("the corpus has no content token; give some text.")

    @lru_cache(maxsize=2**16)
    def texts(number: int) -> tuple[str, ...]:
        return token_texts(tokenizer, buffers.windows[number].token_ids.tolist())

    @lru_cache(maxsize=2**12)
    def silent(source_id: str, token_ids: tuple[int, ...]) -> Context:
        zeros = (0.0,) * len(token_ids)
        words = token_texts(tokenizer, token_ids)
        return Context(tokens=words, token_ids=token_ids, activations=zeros, peak=0, source_id=source_id)

    def context(number: int, activations: Sequence[float]) -> Context:
        window = buffers.windows[number]
        values = tuple(activations[: len(window.token_ids)])
        return Context(
            tokens=texts(number),
            token_ids=tuple(window.token_ids),
            activations=values,
            peak=values.index(max(values)),
            source_id=window.source_id,
        )

    for slug, one in buffers.saes.items():
        drawn = _dense_rows(one)
        for row, index in enumerate(one.features):
            top = _kept(one.top, row, context, frozenset())
            best = frozenset(one.top.best.sources[row].tolist())
            random = [context(n, drawn(n, row)) for n in sorted(buffers.drawn_numbers - best)]
            spread = [] if one.spread is None else _kept(one.spread, row, context, best)
            missed = () if near_misses is None else near_misses[slug][row]
            feature = FeatureId(sae=slug, index=index)
            yield Collected(
                _top_contexts(buffers, feature, one, row, top),
                ContextSample(
                    feature=feature,
                    spread=tuple(spread),
                    random=tuple(random),
                    near_misses=tuple(silent(window.source_id, tuple(window.token_ids)) for window in missed),
                    quantile_999=quantile(one.counts[row], 0.999, n=buffers.n_tokens, maximum=float(one.maxima[row])),
                ),
            )


def _kept(
    kept: KeptWindows, row: int, context: Callable[[int, Sequence[float]], Context], without: frozenset[int]
) -> list[Context]:
    """Contexts of a feature's kept windows, descending by peak (ties: source id)."""
    pairs = zip(kept.best.sources[row].tolist(), kept.activations[row].tolist(), strict=True)
    found = [context(number, values) for number, values in pairs if number != NO_SOURCE and number not in without]
    return sorted(found, key=lambda one: (-one.peak_activation, one.source_id))


def _dense_rows(one: FeatureBuffers) -> Callable[[int, int], list[float]]:
    """Activations on a drawn window's tokens, by number and row of the feature."""
    width = one.top.activations.shape[2]
    bounds = torch.arange(len(one.features) + 1)
    starts = {number: torch.searchsorted(window.features, bounds).tolist() for number, window in one.drawn.items()}

    def dense(number: int, row: int) -> list[float]:
        window, (start, stop) = one.drawn[number], starts[number][row : row + 2]
        values = [0.0] * width
        for position, value in zip(
            window.positions[start:stop].tolist(), window.values[start:stop].tolist(), strict=True
        ):
            values[position] = value
        return values

    return dense


def _top_contexts(
    buffers: ContextBuffers, feature: FeatureId, one: FeatureBuffers, row: int, contexts: Sequence[Context]
) -> TopContexts:
    maximum, n_bins = float(one.maxima[row]), buffers.settings.n_bins
    histogram = None
    if maximum > 0:
        edges = tuple(maximum * edge / n_bins for edge in range(n_bins + 1))
        counts = linear_counts(one.counts[row], maximum=maximum, n_bins=n_bins)
        histogram = Histogram(edges=edges, counts=tuple(counts))
    return TopContexts(
        feature=feature,
        contexts=tuple(contexts),
        n_tokens_seen=buffers.n_tokens,
        density=int(one.counts[row].sum()) / buffers.n_tokens,
        max_activation=maximum,
        histogram=histogram,
    )


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
