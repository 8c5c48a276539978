"""How specifically each SAE carries each safety concept, before anyone explains a feature.

1. The texts of all concepts pass once through the model, stopped at the deepest site, and through every SAE; of each
   text the maximum activation of every feature over its content tokens is kept, as float32. Where that is more than
   the settings allow, as many concepts as fit are read and scored at a time.
2. Per concept and SAE, the choosing texts pick the best feature by its firing-rate gap.
3. The judging texts, none of which chose, give that feature's gap, AUROC and F1 with bootstrap intervals.
4. The same choice and judgement with shuffled labels, several times, says what chance alone finds.
5. Where texts come in pairs, `specificity` says how much of the whole SAE tells them apart.
6. What each pair and text said is kept beside the scores, so that `ranking` can compare SAEs on the same texts.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from safe_sail.data.concepts import ConceptDataset
from safe_sail.errors import BadInput, BadSettings
from safe_sail.evaluation.draws import named_generator
from safe_sail.features import separability
from safe_sail.features.ranking import ConceptEvidence
from safe_sail.features.separability import FiringRates, RankStatistics
from safe_sail.features.specificity import PairValues, Specificity, specificity
from safe_sail.model.chat import instruction_mask
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import content_mask
from safe_sail.records import ConceptScore, Estimate, FeatureId, SaeScore, SaeSpecificity
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
    specificity: SaeSpecificity | None
    """None where one of the two splits holds no pair."""
    evidence: ConceptEvidence
    """For `ranking.rank_saes`."""


class ConceptBlock(NamedTuple):
    """Concepts that are read together, and their texts, each once."""

    concepts: tuple[ConceptSplits, ...]
    texts: tuple[str, ...]


def concept_blocks(
    concepts: Sequence[ConceptSplits], saes: Sequence[SAEHandle], *, max_bytes: int
) -> list[ConceptBlock]:
    """The concepts in order, as few blocks as the memory allows: 4 bytes per text and feature of all SAEs.

    Raises:
        BadSettings: one concept alone needs more.
    """
    per_text = 4 * sum(sae.d_sae for sae in saes)
    blocks: list[ConceptBlock] = []
    for splits in concepts:
        own = dict.fromkeys(text for part in splits for text in part.texts)
        if per_text * len(own) > max_bytes:
            raise BadSettings(
                f"concept `{splits.judge.concept}` has {len(own)} texts, which take {per_text * len(own):,} bytes for "
                f"{len(saes)} SAEs with {per_text // 4} features together; ScoreSettings.max_bytes is {max_bytes:,}. "
                f"Raise it, or give fewer texts or SAEs."
            )
        joined = dict.fromkeys((*blocks[-1].texts, *own)) if blocks else own
        if blocks and per_text * len(joined) <= max_bytes:
            blocks[-1] = ConceptBlock((*blocks[-1].concepts, splits), tuple(joined))
        else:
            blocks.append(ConceptBlock((splits,), tuple(own)))
    return blocks


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
    """Score of every SAE on every concept: block by block of concepts, in each SAE by SAE.

    What is drawn for an SAE and a concept depends on no other one: alone it gets the score that it gets beside others.
    With `as_chat` texts are user turns of the chat template, and only the instruction's own tokens count. Memory is
    4 bytes per text of a block and feature of all SAEs, at most `settings.max_bytes`.

    Raises:
        BadInput: the two splits of a concept share a text, or belong to two concepts.
        BadSettings: a concept's texts need more memory than the settings allow.
        ChatTemplateMissing: `as_chat` and the tokenizer has no chat template.
    """
    for splits in concepts:
        _require_disjoint(splits)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    for block in concept_blocks(concepts, saes, max_bytes=settings.max_bytes):
        row_of = {text: row for row, text in enumerate(block.texts)}
        maxima = text_maxima(
            model, saes, block.texts, batch_size=settings.batch_size, as_chat=as_chat, progress=progress
        )
        for sae in saes:
            for splits in block.concepts:
                own = named_generator(seed, f"{sae.ref.slug}/{splits.judge.concept}")
                yield _score(sae, splits, maxima[sae.ref.slug], row_of, settings, n_features, own)


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


def _pair_values(values: Tensor, row_of: dict[str, int], part: ConceptDataset) -> PairValues:
    positive, negative = ([row_of[pair[side]] for pair in part.pairs] for side in (0, 1))
    return PairValues(values[positive], values[negative])


def _specificity(
    sae: SAEHandle,
    splits: ConceptSplits,
    values: Tensor,
    row_of: dict[str, int],
    settings: ScoreSettings,
    generator: torch.Generator,
) -> Specificity | None:
    choose, judge = (_pair_values(values, row_of, part) for part in splits)
    if not len(choose.positive) or not len(judge.positive):
        return None
    return specificity(
        sae.ref.slug,
        splits.judge.concept,
        choose=choose,
        judge=judge,
        n_bootstrap=settings.n_bootstrap,
        generator=generator,
    )


def _score(
    sae: SAEHandle,
    splits: ConceptSplits,
    values: Float[Tensor, "text d_sae"],
    row_of: dict[str, int],
    settings: ScoreSettings,
    n_features: int,
    generator: torch.Generator,
) -> SaeConceptResult:
    concept = splits.judge.concept
    choose, judge = (_rows(values, row_of, part) for part in splits)
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
    found = _specificity(sae, splits, values, row_of, settings, generator)
    fires = (judge.values[:, best.feature.index] > 0).double()
    evidence = ConceptEvidence(
        sae=sae.ref.slug,
        concept=concept,
        per_pair=None if found is None else found.per_pair,
        fires_positive=fires[judge.is_positive],
        fires_negative=fires[~judge.is_positive],
        n_specific=None if found is None else found.record.n_specific,
    )
    return SaeConceptResult(score, features, None if found is None else found.record, evidence)


def _ranked_features(part: _Part) -> Int[Tensor, " d_sae"]:
    """Features by descending rate gap (ties: AUROC, then the lower index)."""
    gap = separability.firing_rates(part.values, part.is_positive).gap
    auroc = separability.rank_statistics(part.values, part.is_positive).auroc
    by_auroc = auroc.sort(descending=True, stable=True).indices
    return by_auroc[gap[by_auroc].sort(descending=True, stable=True).indices]


def _best_feature(part: _Part) -> Int[Tensor, "1"]:
    """The first of `_ranked_features`; only features with the largest gap are ranked, a tenth of the time."""
    gap = separability.firing_rates(part.values, part.is_positive).gap
    leading = (gap == gap.max()).nonzero()[:, 0]
    return leading[_ranked_features(_Part(part.values[:, leading], part.is_positive))[:1]]


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
        best = _best_feature(_Part(choose.values, labels))
        labels = separability.shuffled_labels(judge.is_positive, generator=generator)
        gaps.append(float(separability.firing_rates(judge.values[:, best], labels).gap[0]))
    found = torch.tensor(gaps, dtype=torch.float64)
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    mean = float(found.mean())
    return Estimate(value=mean, low=min(low, mean), high=max(high, mean), n=settings.n_shuffles)
