"""A feature planted to fire on one token is found, judged and shown, and chance finds nothing."""

import dataclasses
import math
from array import array

import pytest
import torch

from safe_sail.data.concepts import ConceptDataset, LabelledText
from safe_sail.errors import BadInput, BadText
from safe_sail.execution.executors import InlineExecutor
from safe_sail.features.context_buffers import ContextBuffers, Window
from safe_sail.features.context_shards import ShardTask, merge_packed, unpacked
from safe_sail.features.contexts import collect_contexts, collected, fill_buffers, numbered
from safe_sail.features.near_misses import find_near_misses
from safe_sail.features.score import ConceptSplits, score_saes, text_maxima
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import special_ids
from safe_sail.records import FeatureId, SaeRef
from safe_sail.sae.form import SaeForm, SaeWeights
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import ContextSettings, ScoreSettings
from safe_sail.sites import Site
from tests.tiny import TinyModels

SITE = Site.parse("embed")
PLANTED, N_FEATURES = 3, 8
WORDS = ["gate", "dog", "mat", "cat", "sea", "hat", "sun", "owl"]
SETTINGS = ScoreSettings(n_bootstrap=200, n_shuffles=20, batch_size=5)


@pytest.fixture(scope="module")
def model(tiny_models: TinyModels) -> HookedModel:
    return tiny_models.handle("llama")


@pytest.fixture(scope="module")
def sae(model: HookedModel) -> SAEHandle:
    """Feature 3 fires on the letter q alone; the others fire at random."""
    generator = torch.Generator().manual_seed(1)
    embedding = model.model.get_submodule(model.architecture.embed).weight.detach()
    (q,) = model.tokenizer("q", add_special_tokens=False)["input_ids"]
    weights = torch.randn(model.dims.d_model, N_FEATURES, generator=generator)
    bias = -1.5 * (embedding @ weights).std(dim=0)
    weights[:, PLANTED] = embedding[q]
    products = embedding @ embedding[q]
    others = torch.cat([products[:q], products[q + 1 :]]).max()
    assert products[q] > others, "the planted token must read itself best"
    bias[PLANTED] = -(products[q] + others) / 2
    ref = SaeRef(
        slug="planted",
        release=None,
        sae_id="x",
        model_id=None,
        site=SITE,
        d_in=model.dims.d_model,
        width=N_FEATURES,
        architecture="standard",
    )
    filled = SaeWeights(W_enc=weights, b_enc=bias, W_dec=weights.T.contiguous(), b_dec=torch.zeros(model.dims.d_model))
    return SAEHandle(ref, filled, SaeForm(activation="relu"))


def labelled(seed: int, n: int = 40, concept: str = "q") -> ConceptDataset:
    """Four words and a number that no other seed uses; every second text has the letter q for a word."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for place in range(n):
        order = torch.randperm(len(WORDS), generator=generator).tolist()
        words = [WORDS[i] for i in order[:4]]
        if place % 2 == 0:
            words[place % 4] = "q"
        rows.append(LabelledText(" ".join(words) + f" {seed} {place}", place % 2 == 0))
    return ConceptDataset(concept=concept, domain="test", category="test", rows=tuple(rows), source="planted")


def test_planted_feature_wins_with_a_perfect_score(model: HookedModel, sae: SAEHandle):
    concept = ConceptSplits(labelled(1), labelled(2))
    (result,) = score_saes(
        model, [sae], [concept], settings=SETTINGS, generator=torch.Generator().manual_seed(0), as_chat=False
    )
    assert result.score.best_feature.index == PLANTED
    assert result.score.rate_gap.value == 1
    assert result.score.auroc.value == 1
    assert result.score.f1.value == 1
    assert result.score.rate_gap.n == 40
    assert result.features[0].q_value < 0.001
    assert abs(result.score.control_rate_gap.value) < 0.2
    assert result.score.control_rate_gap.high < 0.6


def test_shuffled_labels_give_no_specific_feature(model: HookedModel, sae: SAEHandle):
    generator = torch.Generator().manual_seed(0)
    shuffled = []
    for seed in (1, 2):
        dataset = labelled(seed)
        order = torch.randperm(len(dataset.rows), generator=generator).tolist()
        rows = (row._replace(is_positive=dataset.is_positive[i]) for row, i in zip(dataset.rows, order, strict=True))
        shuffled.append(dataclasses.replace(dataset, rows=tuple(rows)))
    concept = ConceptSplits(shuffled[0], shuffled[1])
    (result,) = score_saes(model, [sae], [concept], settings=SETTINGS, generator=generator, as_chat=False)
    assert result.score.n_specific == 0
    assert result.score.rate_gap.low < 0.2


def test_text_maxima_equal_a_loop_over_texts(model: HookedModel, sae: SAEHandle):
    texts = list(labelled(3).texts)
    maxima = text_maxima(model, [sae], texts, batch_size=7, as_chat=False)["planted"]
    special = special_ids(model.tokenizer)
    for row, text in enumerate(texts):
        batch = model.batch([text])
        keep = [place for place, token in enumerate(batch.token_ids[0].tolist()) if token not in special]
        acts = sae.encode(model.capture(batch, [SITE])[SITE][0, keep])
        torch.testing.assert_close(maxima[row], acts.amax(dim=0))


def test_texts_that_choose_may_not_judge(model: HookedModel, sae: SAEHandle):
    texts = labelled(1)
    for splits in (ConceptSplits(texts, texts), ConceptSplits(texts, labelled(2, concept="another"))):
        with pytest.raises(BadInput, match="no text in both"):
            next(score_saes(model, [sae], [splits], settings=SETTINGS, generator=torch.Generator()))


def test_contexts_equal_a_collector_that_keeps_everything(model: HookedModel, sae: SAEHandle):
    texts = [*labelled(4).texts, *labelled(5).texts]
    settings = ContextSettings(n_contexts=6, n_bins=5, batch_size=9)

    def batches():
        for first in range(0, len(texts), settings.batch_size):
            part = texts[first : first + settings.batch_size]
            yield model.batch(part, source_ids=[str(first + i) for i in range(len(part))])

    chosen = {"planted": [PLANTED, 0, 5]}
    generator = torch.Generator().manual_seed(2)
    collected = list(collect_contexts(model, [sae], batches(), features=chosen, settings=settings, generator=generator))
    found = [one.top for one in collected]
    special = special_ids(model.tokenizer)
    everything = []
    for text in texts:
        batch = model.batch([text])
        ids = batch.token_ids[0]
        acts = sae.encode(model.capture(batch, [SITE])[SITE][0])
        acts[[i for i, token in enumerate(ids.tolist()) if token in special]] = 0
        everything.append((ids.tolist(), acts))
    n_content = sum(token not in special for ids, _ in everything for token in ids)
    for one in found:
        index = one.feature.index
        values = torch.cat([acts[:, index] for _, acts in everything])
        assert one.n_tokens_seen == n_content
        assert one.density == pytest.approx(float((values > 0).sum()) / n_content)
        assert one.max_activation == pytest.approx(float(values.max()), rel=1e-5)
        peaks = sorted(((float(acts[:, index].max()), -i) for i, (_, acts) in enumerate(everything)), reverse=True)
        expected = [str(-i) for peak, i in peaks[:6] if peak > 0]
        assert {context.source_id for context in one.contexts} <= {str(i) for i in range(len(texts))}
        assert [c.peak_activation for c in one.contexts] == pytest.approx([p for p, _ in peaks[:6] if p > 0], rel=1e-5)
        assert len(one.contexts) == len(expected)
        for context in one.contexts:
            ids, acts = everything[int(context.source_id)]
            assert list(context.token_ids) == ids
            assert context.activations == pytest.approx(acts[:, index].tolist(), abs=1e-5)
            assert "".join(context.tokens) == model.tokenizer.decode(ids)
        assert one.histogram is not None
        assert sum(one.histogram.counts) == int((values > 0).sum())
        assert one.histogram.edges[-1] == pytest.approx(one.max_activation)
    assert all("q" in "".join(context.tokens) for context in found[0].contexts)
    for one in collected:
        top = {context.source_id for context in one.top.contexts}
        drawn = {context.source_id for context in one.sample.random}
        assert not top & drawn
        assert settings.n_random - len(top) <= len(drawn) <= settings.n_random
        for context in one.sample.random:
            ids, acts = everything[int(context.source_id)]
            assert list(context.token_ids) == ids
            assert context.activations == pytest.approx(acts[:, one.top.feature.index].tolist(), abs=1e-5)


def test_quantile_contexts_and_q999_equal_a_collector_that_keeps_everything(model: HookedModel, sae: SAEHandle):
    texts = [*labelled(6).texts, *labelled(7).texts]
    settings = ContextSettings(n_contexts=2, n_spread=5, n_random=3, n_near=0, batch_size=9)
    special = special_ids(model.tokenizer)
    batches = [model.batch(texts[first : first + 9], source_ids=texts[first : first + 9]) for first in range(0, 80, 9)]
    (found,) = collect_contexts(
        model, [sae], batches, features={"planted": [0]}, settings=settings, generator=torch.Generator().manual_seed(3)
    )
    acts = {}
    for text in texts:
        batch = model.batch([text])
        row = sae.encode(model.capture(batch, [SITE])[SITE][0])[:, 0]
        acts[text] = torch.where(torch.tensor([i not in special for i in batch.token_ids[0].tolist()]), row, -1.0)
    firing = {text for text, row in acts.items() if row.max() > 0}
    top = {context.source_id for context in found.top.contexts}
    spread = [context.source_id for context in found.sample.spread]
    assert set(spread) <= firing - top
    assert settings.n_spread - len(top) <= len(spread) <= settings.n_spread
    peaks = [context.peak_activation for context in found.sample.spread]
    assert peaks == pytest.approx([float(acts[text].max()) for text in spread], rel=1e-5)
    assert peaks == sorted(peaks, reverse=True)
    everything = sorted(float(value) for row in acts.values() for value in row[row >= 0])
    exact = everything[math.ceil(0.999 * len(everything)) - 1]
    assert found.sample.quantile_999 == pytest.approx(exact, rel=1 / 16)
    assert {context.source_id for context in found.sample.silent} == {c.source_id for c in found.sample.random} - firing


def test_near_misses_are_what_the_nearest_features_fire_on_and_this_one_does_not(model: HookedModel, sae: SAEHandle):
    texts = [*labelled(10).texts, *labelled(11).texts]
    settings = ContextSettings(n_contexts=4, n_random=0, n_spread=3, n_near=6, n_neighbours=2, batch_size=9)
    batches = [model.batch(texts[first : first + 9], source_ids=texts[first : first + 9]) for first in range(0, 80, 9)]
    features = {"planted": list(range(N_FEATURES))}
    generator = torch.Generator().manual_seed(3)
    found = list(collect_contexts(model, [sae], batches, features=features, settings=settings, generator=generator))
    special = special_ids(model.tokenizer)
    fires = {}
    for text in texts:
        batch = model.batch([text])
        content = [token not in special for token in batch.token_ids[0].tolist()]
        acts = sae.encode(model.capture(batch, [SITE])[SITE][0])[content]
        fires[text] = (acts > 0).any(dim=0).tolist()
    rows = sae.decoder / sae.decoder.norm(dim=1, keepdim=True)
    n_found = 0
    for index, one in enumerate(found):
        others = [other for other in range(N_FEATURES) if other != index]
        nearest = sorted(others, key=lambda other: -float(rows[index] @ rows[other]))[:2]
        theirs = {context.source_id for other in nearest for context in found[other].top.contexts}
        missed = [context.source_id for context in one.sample.near_misses]
        assert set(missed) <= theirs
        assert not any(fires[text][index] for text in missed)
        own = {context.source_id for context in (*one.top.contexts, *one.sample.spread)}
        expected = {text for text in theirs - own if not fires[text][index]}
        assert len(missed) == min(6, len(expected))
        n_found += len(missed)
    assert n_found > 0


def test_twins_come_first_among_near_misses_and_only_where_the_feature_is_silent(model: HookedModel, sae: SAEHandle):
    buffers = ContextBuffers({"planted": [PLANTED, 1]}, settings=ContextSettings(n_near=2), seed=5)
    assert sum(fill_buffers(buffers, model, [sae], numbered([model.batch(list(labelled(12).texts))]))) == 40
    texts = ("sun q", "sun owl", "hat sea", "gate dog")
    twins = [Window(text, array("i", model.batch([text]).token_ids[0].tolist())) for text in texts]
    near = find_near_misses(buffers, model, [sae], twins={FeatureId(sae="planted", index=PLANTED): twins})
    assert [window.source_id for window in near["planted"][0]] == ["sun owl", "hat sea"]
    assert not {window.source_id for window in near["planted"][1]} & set(texts)


def test_shards_through_an_executor_give_the_same_as_one_pass(model: HookedModel, sae: SAEHandle):
    texts = [*labelled(8).texts, *labelled(9).texts]
    settings = ContextSettings(n_contexts=3, n_spread=2, n_random=4, batch_size=7)
    batches = list(numbered(model.batch(texts[first : first + 7]) for first in range(0, 80, 7)))

    task = ShardTask(model=model, saes=[sae], features={"planted": [PLANTED, 1]}, settings=settings, seed=5)
    whole = ContextBuffers(task.features, settings=settings, seed=5)
    assert sum(fill_buffers(whole, model, [sae], batches)) == whole.n_windows == 80
    groups = [[tuple(batches[1::3]), tuple(batches[2::3])], [tuple(batches[0::3])]]
    merged = ContextBuffers(task.features, settings=settings, seed=5)
    for part in InlineExecutor().merged(lambda: task, groups, merge_packed):
        merged.merge(unpacked(part))
    assert list(collected(merged, model.tokenizer)) == list(collected(whole, model.tokenizer))


def test_activations_that_are_not_finite_are_refused(model: HookedModel, sae: SAEHandle):
    broken = SaeWeights(
        W_enc=torch.full((sae.d_in, 2), 3e38),
        b_enc=torch.zeros(2),
        W_dec=torch.zeros(2, sae.d_in),
        b_dec=torch.zeros(sae.d_in),
    )
    ref = dataclasses.replace(sae.ref, width=2)
    handle = SAEHandle(ref, broken, SaeForm(activation="relu"))
    batch = model.batch(list(labelled(1).texts))
    with pytest.raises(BadInput, match="not finite"):
        list(
            collect_contexts(
                model,
                [handle],
                [batch],
                features={"planted": [0, 1]},
                settings=ContextSettings(),
                generator=torch.Generator(),
            )
        )


def test_contexts_need_content(model: HookedModel, sae: SAEHandle):
    with pytest.raises(BadText, match="no content token"):
        list(
            collect_contexts(
                model,
                [sae],
                [],
                features={"planted": [0]},
                settings=ContextSettings(),
                generator=torch.Generator(),
            )
        )
