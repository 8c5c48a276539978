"""Near misses: texts that come close to what a feature fires on, and on which it is silent.

1. The nearest features of a feature are those whose decoder rows have the largest cosine with its own (encoder columns
   where a release left the decoder out).
2. Candidates are twins of a concept's texts, where the caller has some, and the strongest windows of the nearest
   features, strongest first and neighbour by neighbour within a rank; its own windows are left out.
3. All candidates pass once more through the model, each once. Those on which the feature fires nowhere are near misses.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safe_sail.features.context_buffers import ContextBuffers, FeatureBuffers, Window
from safe_sail.features.firings import chosen_features, firings_on
from safe_sail.features.topk import NO_SOURCE
from safe_sail.model.chat import chat_rows
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import batch_of_ids, content_mask, pad_id_of
from safe_sail.records import FeatureId
from safe_sail.sae.handle import SAEHandle

NearMisses = Mapping[str, Sequence[Sequence[Window]]]
"""By SAE slug and by row of the followed feature."""

_SPARE: Final = 2
"""Candidates looked at for each near miss wanted: on some of them the feature turns out to be active."""
_ROWS_AT_ONCE: Final = 1024


def find_near_misses(
    buffers: ContextBuffers,
    model: HookedModel,
    saes: Sequence[SAEHandle],
    *,
    twins: Mapping[FeatureId, Sequence[Window]] | None = None,
) -> NearMisses:
    """At most `n_near` near misses of each followed feature, twins first.

    Raises:
        BadInput: activations are not finite.
    """
    settings, found = buffers.settings, {}
    for sae in saes:
        one = buffers.saes[sae.ref.slug]
        if not settings.n_near:
            found[sae.ref.slug] = [list[Window]() for _ in one.features]
            continue
        neighbours = nearest_features(_directions(sae, one.features), settings.n_neighbours)
        candidates = []
        for row, index in enumerate(one.features):
            given = (twins or {}).get(FeatureId(sae=sae.ref.slug, index=index), ())
            near = (buffers.windows[n] for n in _numbers(one, row, neighbours[row], _SPARE * settings.n_near))
            candidates.append([*given, *near])
        found[sae.ref.slug] = _silent_ones(model, sae, one.features, candidates, settings.n_near, settings.batch_size)
    return found


def twin_windows(model: HookedModel, texts: Sequence[str], *, window: int) -> list[Window]:
    """Texts as user turns of the chat template, as scoring reads them; those longer than a window are left out.

    Raises:
        ChatTemplateMissing: the tokenizer has no chat template.
        BadText: there is no text, or one is empty.
    """
    rows = chat_rows(model.tokenizer, texts)
    return [
        Window(f"twin: {text[:60]}", array("i", row))
        for text, row in zip(texts, rows, strict=True)
        if len(row) <= window
    ]


# 1. neighbours


def nearest_features(directions: Float[Tensor, "feature d"], n: int) -> Int[Tensor, "feature n"]:
    """Rows of the n other features with the largest cosine, descending; fewer where there are fewer others."""
    unit = directions.float() / directions.float().norm(dim=1, keepdim=True).clamp(min=1e-30)
    n = min(n, len(unit) - 1)
    nearest = []
    for first in range(0, len(unit), _ROWS_AT_ONCE):
        cosines = unit[first : first + _ROWS_AT_ONCE] @ unit.T
        rows = torch.arange(len(cosines))
        cosines[rows, first + rows] = -torch.inf
        nearest.append(cosines.topk(n, dim=1).indices)
    return torch.cat(nearest).cpu()


def _directions(sae: SAEHandle, features: Sequence[int]) -> Tensor:
    if sae.has_decoder:
        return sae.decoder[torch.tensor(features, device=sae.device)]
    return torch.stack([sae.encoder_row(index) for index in features])


# 2. candidates


def _numbers(one: FeatureBuffers, row: int, neighbours: Tensor, n: int) -> Iterator[int]:
    """Numbers of at most n windows on which neighbours fire most and which the feature has not kept."""
    own = {int(number) for sources in one.sources() for number in sources[row]}
    seen = own | {NO_SOURCE}
    # the strongest window of each neighbour, then the second of each, and so on
    for number in one.top.best.sources[neighbours].T.flatten().tolist():
        if number not in seen:
            seen.add(number)
            yield number
            n -= 1
            if n == 0:
                return


# 3. what is silent


@torch.no_grad()
def _silent_ones(
    model: HookedModel,
    sae: SAEHandle,
    features: Sequence[int],
    candidates: Sequence[Sequence[Window]],
    n_near: int,
    batch_size: int,
) -> list[list[Window]]:
    distinct = {(window.source_id, tuple(window.token_ids)): window for of_one in candidates for window in of_one}
    place_of = {key: place for place, key in enumerate(distinct)}
    keys = [
        torch.tensor([place_of[window.source_id, tuple(window.token_ids)] for window in of_one], dtype=torch.long)
        * len(features)
        + row
        for row, of_one in enumerate(candidates)
    ]
    asked = torch.cat([torch.empty(0, dtype=torch.long), *keys])
    fires = torch.zeros(len(asked), dtype=torch.bool)
    chosen = chosen_features(sae, features)
    windows = list(distinct.values())
    for first in range(0, len(windows), batch_size):
        some = windows[first : first + batch_size]
        batch = batch_of_ids(
            [window.token_ids for window in some],
            pad_id=pad_id_of(model.tokenizer),
            padding_side="left",
            max_positions=model.dims.max_positions,
            source_ids=[window.source_id for window in some],
        )
        captured = model.capture(batch, [sae.site])[sae.site]
        found = firings_on(sae, chosen, captured, content_mask(batch, model.tokenizer), batch)
        fires |= torch.isin(asked, (found.windows + first) * len(features) + found.features)
    silent = (~fires).split([len(one) for one in keys])
    return [
        [window for window, is_silent in zip(of_one, quiet.tolist(), strict=True) if is_silent][:n_near]
        for of_one, quiet in zip(candidates, silent, strict=True)
    ]
