"""SAEs trained in a stream: what goes in is what the model computes, what comes out loads everywhere."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from safe_sail.errors import BadInput, BadSettings, BadText
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, special_ids
from safe_sail.sae.load import load_sae
from safe_sail.sae.stream import RECORD_FILE, ActivationStream, is_finished, store_trained, train_on_stream
from safe_sail.settings import SaeRecipe, SaeTrainingSettings
from safe_sail.sites import Site
from tests.tiny import TEXTS, TinyModels

RESID, ACT = Site.parse("resid_post.1"), Site.parse("mlp_act.0")
SETTINGS = SaeTrainingSettings(window=16, batch_size=4, buffer_rows=128)
JOB: dict[str, object] = {"model": "llama", "seed": 0}


@pytest.fixture
def model(tiny_models: TinyModels) -> HookedModel:
    return tiny_models.handle("llama")


def recipe(slug: str, **changes: object) -> SaeRecipe:
    words: dict[str, object] = {"architecture": "topk", "d_sae": 40, "k": 4, "steps": 60, "batch_rows": 32}
    return SaeRecipe(slug=slug, **(words | changes))  # type: ignore[arg-type]


RECIPES = [
    recipe("topk"),
    recipe("batchtopk", architecture="batchtopk"),
    recipe("relu", architecture="standard", sparsity=0.2),
    recipe("jumprelu", architecture="jumprelu", sparsity=0.2),
]


def corpus(model: HookedModel) -> Iterator[TokenBatch]:
    for first in range(0, len(TEXTS), 4):
        yield model.batch(TEXTS[first : first + 4])


def trained_weights(
    model: HookedModel, folder: Path, recipes: dict[Site, list[SaeRecipe]]
) -> dict[str, dict[str, torch.Tensor]]:
    found, _ = train_on_stream(model, lambda: corpus(model), recipes, settings=SETTINGS, prepend_bos=True, seed=3)
    return {
        one.recipe.slug: load_file(store_trained(one, folder, {"job": JOB}) / "sae_weights.safetensors")
        for one in found
    }


def test_a_pass_of_the_stream_holds_each_content_token_once_at_every_site(model: HookedModel):
    stream = ActivationStream(model, lambda: corpus(model), [RESID, ACT])
    n_batches = sum(1 for _ in corpus(model))
    rows = list(islice(stream, n_batches))
    special = special_ids(model.tokenizer)
    by_hand: dict[Site, list[torch.Tensor]] = {RESID: [], ACT: []}
    for text in TEXTS:
        batch = model.batch([text])
        kept = [place for place, token in enumerate(batch.token_ids[0].tolist()) if token not in special]
        for site, values in model.capture(batch, [RESID, ACT]).items():
            by_hand[site] += [values[0, place] for place in kept]
    for site, expected in by_hand.items():
        found = torch.cat([part[str(site)] for part in rows])
        # a text beside others and alone: float32 rounding through two blocks
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert stream.n_tokens == len(by_hand[RESID])


def test_the_corpus_is_opened_again_and_no_further_than_needed(model: HookedModel):
    n_batches = sum(1 for _ in corpus(model))
    stream = ActivationStream(model, lambda: corpus(model), [RESID])
    n_content = sum(len(part[str(RESID)]) for part in islice(stream, n_batches))
    _, read = train_on_stream(
        model, lambda: corpus(model), {RESID: [recipe("topk")]}, settings=SETTINGS, prepend_bos=True, seed=0
    )
    assert read.n_passes == -(-read.n_tokens // n_content) > 1
    # what the steps took, what the buffer holds, and the forward pass that filled it
    assert read.n_tokens <= 60 * 32 + SETTINGS.buffer_rows + 4 * SETTINGS.window


@pytest.fixture(scope="module")
def folder(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("trained")
    trained_weights(tiny_models.handle("llama"), made, {ACT: RECIPES})
    return made


@pytest.mark.parametrize("trained", RECIPES, ids=lambda one: one.slug)
def test_what_is_stored_loads_here_and_in_saelens_and_computes_the_same(
    trained: SaeRecipe, folder: Path, model: HookedModel
):
    import sae_lens

    ours = load_sae(folder / trained.slug, expect_model_id="llama")
    theirs = sae_lens.SAE.load_from_disk(folder / trained.slug)
    assert (ours.site, ours.prepend_bos, ours.context_size) == (ACT, True, SETTINGS.window)
    x = model.capture(next(corpus(model)), [ACT])[ACT].flatten(0, 1)
    with torch.no_grad():
        expected = theirs.encode(x)
    found = ours.encode(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert 0 < (found > 0).sum() < found.numel()
    residual = (ours.reconstruct(x) - x).square().sum()
    # 60 steps on 40 features for 40 coordinates: better than the mean, in the model's own units
    assert residual < (x - x.mean(dim=0)).square().sum()


def test_what_an_sae_becomes_does_not_depend_on_which_train_beside_it(model: HookedModel, folder: Path, tmp_path: Path):
    together = {one.slug: load_file(folder / one.slug / "sae_weights.safetensors") for one in RECIPES}
    for one in RECIPES[:1] + RECIPES[3:]:
        beside = {RESID: [recipe("other", d_sae=16)], ACT: [one]}
        found = trained_weights(model, tmp_path / one.slug, beside)
        assert found[one.slug].keys() == together[one.slug].keys()
        assert all(torch.equal(found[one.slug][name], together[one.slug][name]) for name in found[one.slug])


def test_another_seed_gives_another_sae(model: HookedModel, folder: Path):
    found, _ = train_on_stream(
        model, lambda: corpus(model), {ACT: RECIPES[:1]}, settings=SETTINGS, prepend_bos=True, seed=4
    )
    assert not torch.equal(found[0].finish().W_enc, load_file(folder / "topk" / "sae_weights.safetensors")["W_enc"])


def test_whole_folders_are_finished_and_others_are_refused(folder: Path, tmp_path: Path):
    assert is_finished(RECIPES[0], folder, JOB)
    assert not is_finished(recipe("new"), folder, JOB)
    with pytest.raises(BadInput, match="trained otherwise: seed differ"):
        is_finished(RECIPES[0], folder, JOB | {"seed": 1})
    with pytest.raises(BadInput, match="trained otherwise: recipe differ"):
        is_finished(recipe("topk", k=5), folder, JOB)
    (tmp_path / "topk").mkdir()
    with pytest.raises(BadInput, match="no SAE of such a training"):
        is_finished(RECIPES[0], tmp_path, JOB)
    kept = json.loads((folder / "topk" / RECORD_FILE).read_text())
    assert kept["recipe"]["k"] == 4
    assert not list(folder.glob(".*")), "nothing half-written is left"


def test_bad_input_is_refused(model: HookedModel):
    def train(*recipes: SaeRecipe, n_batches: int = 1) -> None:
        batches = [model.batch(TEXTS)] * n_batches
        train_on_stream(model, lambda: batches, {RESID: list(recipes)}, settings=SETTINGS, prepend_bos=True, seed=0)

    with pytest.raises(BadSettings, match=r"share their batches.*got batches of 32, 64 rows"):
        train(recipe("one"), recipe("other", batch_rows=64))
    with pytest.raises(BadSettings, match="buffer of 128 rows; got batches of 256"):
        train(recipe("one", batch_rows=256))
    with pytest.raises(BadText, match="no content token to train on"):
        train(recipe("one"), n_batches=0)
    with pytest.raises(BadSettings, match=r"fell apart at step \d+: its loss is"):
        train(recipe("one", architecture="standard", learning_rate=1e30))
    with pytest.raises(BadSettings, match="k is at most d_sae"):
        recipe("one", k=41)
    with pytest.raises(BadSettings, match="architecture is one of"):
        recipe("one", architecture="gated")
