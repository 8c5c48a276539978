"""Two prompts in one model: which features they activate differently, token by token or in the mean.

1. Both texts are traced alike.
2. Compared are the content tokens of each, by their means; or equal runs of token ids, each token with its counterpart.
3. Features are ordered by the size of the difference.
4. Control: tokens exchanged between the texts at random, and each time the largest difference of any feature, each in
   units of its own spread over tokens (the max-t of Westfall and Young 1993). With counterparts each pair is exchanged
   or not. A feature that fires on one token alone can never pass it.

Two prompts are two observations: the control says what tokens alone would give, not what other prompts would.
"""

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.errors import BadInput
from safe_sail.links.trace import Asked, Codes, Scales, divisors, encode_text, in_order
from safe_sail.model.handle import HookedModel
from safe_sail.records import Alignment, DifferingFeature, FeatureScale, PromptComparison, SaeComparison, TracedText
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import CompareSettings


def compare_prompts(
    handle: HookedModel,
    saes: Sequence[SAEHandle],
    prompts: tuple[str, str],
    asked: Asked,
    settings: CompareSettings,
    scales: Scales,
) -> PromptComparison:
    """The features of every SAE that differ most between two prompts.

    Raises:
        SequenceTooLong: a prompt with its answer is longer than the model accepts or a trace may be.
        ChatTemplateMissing: the tokenizer has no chat template.
        BadInput: there is nothing to compare: a text has no content token there, or no run of tokens is in both.
    """
    first, second = (encode_text(handle, saes, prompt, asked) for prompt in prompts)
    parts = [_part(codes.text, settings) for codes in (first, second)]
    pairs: tuple[tuple[int, int], ...] = ()
    if settings.alignment == "token":
        pairs = _counterparts(first.text, second.text, parts)
        places = [[pair[side] for pair in pairs] for side in (0, 1)]
    else:
        places = [
            [place for place in part if codes.text.is_content[place]]
            for part, codes in zip(parts, (first, second), strict=True)
        ]
    if not all(places):
        raise BadInput(
            "expected tokens to compare in both texts: content tokens for means, a run of equal tokens for "
            "counterparts; one has none. Compare means, or another part."
        )
    layers = [_compared(sae, (first, second), places, settings, scales.get(sae.ref.slug, {})) for sae in in_order(saes)]
    return PromptComparison(
        model_id=handle.model_id,
        alignment=Alignment(settings.alignment),
        first=first.text,
        second=second.text,
        pairs=pairs,
        n_compared=(len(places[0]), len(places[1])),
        layers=tuple(layers),
    )


def _part(text: TracedText, settings: CompareSettings) -> range:
    return range(text.n_prompt) if settings.part == "prompt" else range(text.n_prompt, len(text.token_ids))


def _counterparts(first: TracedText, second: TracedText, parts: Sequence[range]) -> tuple[tuple[int, int], ...]:
    """Places of equal token ids, in runs that keep their order in both texts."""
    ids = [list(text.token_ids[part.start : part.stop]) for text, part in zip((first, second), parts, strict=True)]
    found = []
    for block in SequenceMatcher(a=ids[0], b=ids[1], autojunk=False).get_matching_blocks():
        start = parts[0].start + block.a, parts[1].start + block.b
        found += [(start[0] + step, start[1] + step) for step in range(block.size)]
    return tuple(found)


def _compared(
    sae: SAEHandle,
    codes: tuple[Codes, Codes],
    places: Sequence[Sequence[int]],
    settings: CompareSettings,
    scales: Mapping[int, float],
) -> SaeComparison:
    whole = [one.activations[sae.ref.slug] for one in codes]
    by = divisors(scales, sae.d_sae)
    normalise = bool(by.isfinite().any()) if settings.normalise is None else settings.normalise
    chosen = [acts[list(where)] for acts, where in zip(whole, places, strict=True)]
    is_active = (chosen[0] != 0).any(dim=0) | (chosen[1] != 0).any(dim=0)
    kept = (is_active & by.isfinite() if normalise else is_active).nonzero()[:, 0]
    unit = by[kept] if normalise else torch.ones(len(kept))
    first, second = (acts[:, kept].double() / unit for acts in chosen)
    means = first.mean(dim=0), second.mean(dim=0)
    chance = chance_highs(first, second, settings)
    sizes = (means[1] - means[0]).abs()
    order = sizes.argsort(descending=True, stable=True)[: settings.n_features]
    return SaeComparison(
        sae=sae.ref.slug,
        site=sae.site,
        scale=FeatureScale(settings.scale),
        is_normalised=normalise,
        n_left_out=int((is_active & ~by.isfinite()).sum()) if normalise else 0,
        n_random=settings.n_random,
        features=tuple(
            DifferingFeature(
                index=int(kept[row]),
                first=float(means[0][row]),
                second=float(means[1][row]),
                scale=float(by[kept[row]]) if by[kept[row]].isfinite() else None,
                chance_high=float(chance[row]),
                first_activations=tuple(whole[0][:, kept[row]].tolist()),
                second_activations=tuple(whole[1][:, kept[row]].tolist()),
            )
            for row in order.tolist()
            if sizes[row] > 0
        ),
    )


def chance_highs(
    first: Float[Tensor, "n f"], second: Float[Tensor, "m f"], settings: CompareSettings
) -> Float[Tensor, " f"]:
    """Difference of each feature that exchanged tokens reach in 5 % of draws, counting the largest of all features.

    Source: Westfall and Young 1993, Resampling-Based Multiple Testing, single-step max-t; the spread is taken once.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    if settings.alignment == "token":
        change = second - first
        spread = change.square().mean(dim=0).sqrt()
        signs = torch.randint(0, 2, (settings.n_random, len(change)), generator=generator).double() * 2 - 1
        drawn = signs @ change / len(change)
    else:
        pool = torch.cat([first, second])
        spread = pool.std(dim=0, correction=0)
        ranks = torch.rand(settings.n_random, len(pool), generator=generator, dtype=torch.float64).argsort(dim=1)
        sums = (ranks < len(first)).double() @ pool
        drawn = (pool.sum(dim=0) - sums) / len(second) - sums / len(first)
    moves = spread > 0
    if not bool(moves.any()):
        return torch.zeros_like(spread)
    largest = (drawn[:, moves].abs() / spread[moves]).amax(dim=1)
    return largest.quantile(0.95) * spread
