"""SAEs with a planted feature, and SAEs wide and dense with none: the planted one is ranked first, noise is nothing."""

import dataclasses

import pytest
import torch

from safe_sail.data.concepts import ConceptDataset, LabelledText
from safe_sail.errors import BadSettings
from safe_sail.features.ranking import rank_saes
from safe_sail.features.score import ConceptSplits, concept_blocks, score_saes
from safe_sail.model.handle import HookedModel
from safe_sail.records import SaeRef
from safe_sail.sae.form import SaeForm, SaeWeights
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import ScoreSettings
from safe_sail.sites import Site
from tests.tiny import TinyModels

SITE = Site.parse("embed")
PLANTED = 3
WORDS = ["gate", "dog", "mat", "cat", "sea", "hat", "sun", "owl"]
LETTERS = {"q": "z", "x": "k"}
"""A concept's letter, and the letter that stands in its place in the other text of the pair."""
SETTINGS = ScoreSettings(n_bootstrap=200, n_shuffles=2, batch_size=32)


@pytest.fixture(scope="module")
def model(tiny_models: TinyModels) -> HookedModel:
    return tiny_models.handle("llama")


def built(model: HookedModel, slug: str, width: int, density: float, letters: str) -> SAEHandle:
    """Random features that fire on about the given share of the vocabulary, and one that fires on each letter alone."""
    generator = torch.Generator().manual_seed(width)
    embedding = model.model.get_submodule(model.architecture.embed).weight.detach()
    weights = torch.randn(model.dims.d_model, width, generator=generator)
    # blind to the letters: otherwise a random feature that reads one is no noise
    known = embedding[[model.tokenizer(one, add_special_tokens=False)["input_ids"][0] for one in "qzxk"]]
    basis = torch.linalg.qr(known.T).Q
    weights = weights - basis @ (basis.T @ weights)
    bias = -(embedding @ weights).quantile(1 - density, dim=0)
    for place, letter in enumerate(letters):
        (token,) = model.tokenizer(letter, add_special_tokens=False)["input_ids"]
        products = embedding @ embedding[token]
        others = torch.cat([products[:token], products[token + 1 :]]).max()
        weights[:, PLANTED + place] = embedding[token]
        bias[PLANTED + place] = -(products[token] + others) / 2
    ref = SaeRef(
        slug=slug, release=None, sae_id="x", model_id=None, site=SITE, d_in=model.dims.d_model, width=width,
        architecture="standard",
    )  # fmt: skip
    zeros = torch.zeros(model.dims.d_model)
    filled = SaeWeights(W_enc=weights, b_enc=bias, W_dec=weights.T.contiguous(), b_dec=zeros)
    return SAEHandle(ref, filled, SaeForm(activation="relu"))


def paired(letter: str, seed: int, n: int = 60) -> ConceptDataset:
    """Pairs of four different words each, so that random features differ; the letter, or what stands in its place."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for place in range(n):
        for positive in (True, False):
            order = torch.randperm(len(WORDS), generator=generator).tolist()
            words = [WORDS[i] for i in order[:4]]
            words[place % 4] = letter if positive else LETTERS[letter]
            rows.append(LabelledText(" ".join(words) + f" {seed} {place}", positive, str(place)))
    return ConceptDataset(concept=letter, domain="test", category="test", rows=tuple(rows), source="planted")


CONCEPTS = [ConceptSplits(paired(letter, 2 * i + 1), paired(letter, 2 * i + 2)) for i, letter in enumerate(LETTERS)]


@pytest.fixture(scope="module")
def saes(model: HookedModel) -> list[SAEHandle]:
    return [
        built(model, "planted", 16, 0.02, "qzxk"),
        built(model, "wide", 600, 0.05, ""),
        built(model, "dense", 100, 0.1, ""),
    ]


def results(model: HookedModel, saes: list[SAEHandle], concepts=CONCEPTS, settings: ScoreSettings = SETTINGS):
    generator = torch.Generator().manual_seed(0)
    found = score_saes(model, saes, concepts, settings=settings, generator=generator, as_chat=False)
    return {(one.score.sae, one.score.concept): one for one in found}


def test_wide_and_dense_saes_do_not_win_by_noise(model: HookedModel, saes: list[SAEHandle]):
    found = results(model, saes)
    record = {key: one.specificity for key, one in found.items()}
    for letter in LETTERS:
        planted, wide, dense = (record[slug, letter] for slug in ("planted", "wide", "dense"))
        assert planted is not None
        assert wide is not None
        assert dense is not None
        assert wide.l0[0] > planted.l0[0], "noise must be what the plain count rewards"
        assert dense.i_cdf.value > planted.i_cdf.value, "noise must be what the plain mean rewards"
        assert planted.n_specific >= 1
        assert planted.specific.low >= 1 / 16 - 1e-9
        assert abs(wide.specific.value) < 0.2 * planted.specific.value
    ranked = rank_saes(
        [one.evidence for one in found.values()], n_bootstrap=500, generator=torch.Generator().manual_seed(0)
    )
    assert ranked[0].sae == "planted"
    assert ranked[0].tied_with == ()


def test_what_stands_in_the_concepts_place_has_a_feature_too_and_cancels_nothing(
    model: HookedModel, saes: list[SAEHandle]
):
    record = results(model, saes)["planted", "q"].specificity
    assert record is not None
    assert record.l0[-1] == record.l0_null[-1] == 1
    assert record.specific.value > 0.9 / 16


def test_shuffled_pairs_give_no_specific_feature(model: HookedModel, saes: list[SAEHandle]):
    generator = torch.Generator().manual_seed(3)

    def shuffled(part: ConceptDataset) -> ConceptDataset:
        coins = {str(place): bool(torch.rand(1, generator=generator) < 0.5) for place in range(60)}
        rows = tuple(row._replace(is_positive=row.is_positive != coins[row.pair or ""]) for row in part.rows)
        return dataclasses.replace(part, rows=rows)

    concepts = [ConceptSplits(shuffled(splits.choose), shuffled(splits.judge)) for splits in CONCEPTS]
    for one in results(model, saes, concepts).values():
        assert one.score.n_specific == 0
        assert one.specificity is not None
        assert one.specificity.n_specific == 0
        assert one.specificity.specific.low <= 0.2 / 16


def test_blocks_of_concepts_change_no_score(model: HookedModel, saes: list[SAEHandle]):
    one_concept = 4 * 716 * 240
    assert len(concept_blocks(CONCEPTS, saes, max_bytes=2 * one_concept)) == 1
    assert len(concept_blocks(CONCEPTS, saes, max_bytes=2 * one_concept - 1)) == 2
    together = results(model, saes)
    apart = results(model, saes, settings=dataclasses.replace(SETTINGS, max_bytes=one_concept))
    for key, one in together.items():
        other = apart[key]
        assert other.score.rate_gap.value == one.score.rate_gap.value
        assert other.score.best_feature == one.score.best_feature
        assert one.specificity is not None
        assert other.specificity is not None
        assert other.specificity.l0 == one.specificity.l0
        assert other.specificity.specific.value == one.specificity.specific.value


def test_texts_shared_by_concepts_are_read_once_in_a_block(model: HookedModel, saes: list[SAEHandle]):
    (block,) = concept_blocks([CONCEPTS[0], CONCEPTS[0]], saes, max_bytes=2**31)
    assert len(block.texts) == 240
    read = []
    generator = torch.Generator().manual_seed(0)
    list(score_saes(model, saes, CONCEPTS, settings=SETTINGS, generator=generator, as_chat=False, progress=read.append))
    assert sum(read) == 480


def test_one_concept_must_fit_the_memory(saes: list[SAEHandle]):
    with pytest.raises(BadSettings, match="`q` has 240 texts, which take 687,360 bytes"):
        concept_blocks(CONCEPTS, saes, max_bytes=600_000)


def test_texts_without_pairs_are_scored_without_specificity(model: HookedModel, saes: list[SAEHandle]):
    def unpaired(part: ConceptDataset) -> ConceptDataset:
        return dataclasses.replace(part, rows=tuple(row._replace(pair=None) for row in part.rows))

    concepts = [ConceptSplits(*map(unpaired, splits)) for splits in CONCEPTS[:1]]
    found = results(model, saes, concepts)["planted", "q"]
    assert found.specificity is None
    assert found.evidence.per_pair is None
    assert found.score.rate_gap.value == 1
