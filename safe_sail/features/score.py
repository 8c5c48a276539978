"""How specifically each SAE carries each safety concept, before anyone explains a feature.

1. All texts of all concepts pass once through the model, stopped at the deepest site, and through every SAE; of each
   text the maximum activation of every feature over its content tokens is kept.
2. Per concept and SAE, the choosing texts pick the best feature by its firing-rate gap.
3. The judging texts, none of which chose, give that feature's gap, AUROC and F1 with bootstrap intervals.
4. The same choice and judgement with shuffled labels, several times, says what chance alone finds.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from safe_sail.data.concepts import ConceptDataset
from safe_sail.errors import BadInput
from safe_sail.features import separability
from safe_sail.features.separability import FiringRates, RankStatistics
from safe_sail.model.chat import instruction_mask
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import content_mask
from safe_sail.records import ConceptScore, Estimate, FeatureId, SaeScore
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import ScoreSettings

SPECIFIC_Q = 0.05
SPECIFIC_GAP = 0.5

Progress = Callable[[int], None]
"""Called with the number of texts that have just been read."""


class ConceptSplits(NamedTuple):
    """One concept's texts: those that choose a feature, and those that judge it."""

    choose: ConceptDataset
    judge: ConceptDataset


class SaeConceptResult(NamedTuple):
    """What one SAE shows of one concept."""

    score: SaeScore
    features: tuple[ConceptScore, ...]
    """The best features by the choosing texts, best first, judged on the judging texts."""


def score_saes(
    model: HookedModel,
    saes: Sequence[SAEHandle],
    concepts: Sequence[ConceptSplits],
    *,
    settings: ScoreSettings,
    generator: torch.Generator,
    n_features: int = 20,
    as_chat: bool = True,
    progress: Progress | None = None,
) -> Iterator[SaeConceptResult]:
    """Score of every SAE on every concept, SAE by SAE; all texts are read in one pass before the first is yielded.

    With `as_chat` texts are user turns of the chat template, and only the instruction's own tokens count.

    Raises:
        BadInput: the two splits of a concept share a text, or belong to two concepts.
        ChatTemplateMissing: `as_chat` and the tokenizer has no chat template.
    """
    for splits in concepts:
        _require_disjoint(splits)
    every = list(dict.fromkeys(text for splits in concepts for part in splits for text in part.texts))
    row_of = {text: row for row, text in enumerate(every)}
    maxima = text_maxima(model, saes, every, batch_size=settings.batch_size, as_chat=as_chat, progress=progress)
    for sae in saes:
        for splits in concepts:
            choose, judge = (_rows(maxima[sae.ref.slug], row_of, part) for part in splits)
            yield _score(sae, splits.judge.concept, choose, judge, settings, n_features, generator)


def _require_disjoint(splits: ConceptSplits) -> None:
    choose, judge = splits
    shared = set(choose.texts) & set(judge.texts)
    if shared or choose.concept != judge.concept:
        raise BadInput(
            f"concept `{choose.concept}` is chosen on `{choose.split}` and judged on `{judge.split}` of "
            f"`{judge.concept}`: expected one concept and no text in both, got {len(shared)} shared texts"
            f"{f', as {min(shared)[:60]!r}' if shared else ''}. Divide the texts first (`ConceptDataset.divided`)."
        )


def text_maxima(
    model: HookedModel,
    saes: Sequence[SAEHandle],
    texts: Sequence[str],
    *,
    batch_size: int,
    as_chat: bool = True,
    progress: Progress | None = None,
) -> dict[str, Float[Tensor, "text d_sae"]]:
    """Largest activation of every feature over each text's content tokens, float32 on the CPU, by SAE slug."""
    sites = sorted({sae.site for sae in saes})
    maxima = {sae.ref.slug: torch.zeros(len(texts), sae.d_sae) for sae in saes}
    # Texts of equal length share a batch, so that no pass is spent on padding.
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        chosen = [texts[row] for row in rows]
        batch = model.chat_batch(chosen) if as_chat else model.batch(chosen)
        mask = instruction_mask(batch, model.tokenizer) if as_chat else content_mask(batch, model.tokenizer)
        with torch.no_grad():
            captured = model.capture(batch, sites)
            for sae in saes:
                acts = sae.encode(captured[sae.site]).masked_fill(~mask.to(sae.device)[..., None], 0)
                maxima[sae.ref.slug][rows] = acts.amax(dim=1).float().cpu()
        if progress is not None:
            progress(len(rows))
    return maxima


class _Part(NamedTuple):
    """One split of one concept for one SAE."""

    values: Float[Tensor, "text d_sae"]
    is_positive: Bool[Tensor, " text"]


def _rows(values: Tensor, row_of: dict[str, int], part: ConceptDataset) -> _Part:
    return _Part(values[[row_of[text] for text in part.texts]], torch.tensor(part.is_positive))


def _score(
    sae: SAEHandle,
    concept: str,
    choose: _Part,
    judge: _Part,
    settings: ScoreSettings,
    n_features: int,
    generator: torch.Generator,
) -> SaeConceptResult:
    ranked = _ranked_features(choose)
    rates = separability.firing_rates(judge.values, judge.is_positive)
    ranks = separability.rank_statistics(judge.values, judge.is_positive)
    q_values = separability.benjamini_hochberg(ranks.p_value)
    chosen = ranked[:n_features]
    bounds = _bounds(_Part(judge.values[:, chosen], judge.is_positive), settings, generator)
    n = judge.is_positive.shape[0]
    features = tuple(
        _concept_score(sae.ref.slug, concept, int(index), place, judge, rates, ranks, q_values, bounds)
        for place, index in enumerate(chosen.tolist())
    )
    best = features[0]
    f1 = separability.f1_of_firing(judge.values[:, chosen[:1]], judge.is_positive)
    score = SaeScore(
        sae=sae.ref.slug,
        concept=concept,
        best_feature=best.feature,
        auroc=best.auroc,
        rate_gap=best.rate_gap,
        f1=_estimate(float(f1[0]), bounds.f1, 0, n),
        control_rate_gap=_control(choose, judge, settings, generator),
        n_specific=int(((q_values < SPECIFIC_Q) & (rates.gap > SPECIFIC_GAP)).sum()),
    )
    return SaeConceptResult(score, features)


def _ranked_features(part: _Part) -> Int[Tensor, " d_sae"]:
    """Features by descending rate gap (ties: AUROC, then the lower index)."""
    gap = separability.firing_rates(part.values, part.is_positive).gap
    auroc = separability.rank_statistics(part.values, part.is_positive).auroc
    by_auroc = auroc.sort(descending=True, stable=True).indices
    return by_auroc[gap[by_auroc].sort(descending=True, stable=True).indices]


class _Bounds(NamedTuple):
    """Intervals of the chosen features on the judging texts."""

    gap: separability.Interval
    auroc: separability.Interval
    f1: separability.Interval


def _bounds(part: _Part, settings: ScoreSettings, generator: torch.Generator) -> _Bounds:
    """Percentile intervals over texts drawn again within each class; the three statistics see the same draws."""
    positive, negative = part.values[part.is_positive], part.values[~part.is_positive]
    sizes = (positive.shape[0], negative.shape[0])
    labels = torch.tensor([True] * sizes[0] + [False] * sizes[1])

    def statistics(rows: Sequence[Tensor]) -> Float64[Tensor, " statistic"]:
        drawn = torch.cat([positive[rows[0]], negative[rows[1]]])
        gap = separability.firing_rates(drawn, labels).gap
        auroc = separability.rank_statistics(drawn, labels).auroc
        return torch.cat([gap, auroc, separability.f1_of_firing(drawn, labels)])

    both = separability.bootstrap_interval(statistics, sizes, generator=generator, n_resamples=settings.n_bootstrap)
    lows, highs = both.low.chunk(3), both.high.chunk(3)
    return _Bounds(*(separability.Interval(low, high) for low, high in zip(lows, highs, strict=True)))


def _estimate(value: float, bounds: separability.Interval, place: int, n: int) -> Estimate:
    # A percentile interval can miss its own point estimate by a hair; the record's ends then include it.
    low, high = float(bounds.low[place]), float(bounds.high[place])
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=n)


def _concept_score(
    slug: str,
    concept: str,
    index: int,
    place: int,
    judge: _Part,
    rates: FiringRates,
    ranks: RankStatistics,
    q_values: Tensor,
    bounds: _Bounds,
) -> ConceptScore:
    n_positive = int(judge.is_positive.sum())
    n = judge.is_positive.shape[0]
    return ConceptScore(
        feature=FeatureId(sae=slug, index=index),
        concept=concept,
        auroc=_estimate(float(ranks.auroc[index]), bounds.auroc, place, n),
        rate_positive=float(rates.positive[index]),
        rate_negative=float(rates.negative[index]),
        rate_gap=_estimate(float(rates.gap[index]), bounds.gap, place, n),
        n_positive=n_positive,
        n_negative=n - n_positive,
        q_value=float(q_values[index]),
    )


def _control(choose: _Part, judge: _Part, settings: ScoreSettings, generator: torch.Generator) -> Estimate:
    """Rate gap on the judging texts of the feature that shuffled labels choose: mean and range over the shuffles."""
    gaps = []
    for _ in range(settings.n_shuffles):
        labels = separability.shuffled_labels(choose.is_positive, generator=generator)
        best = _ranked_features(_Part(choose.values, labels))[:1]
        labels = separability.shuffled_labels(judge.is_positive, generator=generator)
        gaps.append(float(separability.firing_rates(judge.values[:, best], labels).gap[0]))
    found = torch.tensor(gaps, dtype=torch.float64)
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    mean = float(found.mean())
    return Estimate(value=mean, low=min(low, mean), high=max(high, mean), n=settings.n_shuffles)
