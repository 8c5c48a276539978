"""A guard on a tiny model: what it reads, that it finds what decides the label, and that it comes back from disk."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from safe_sail.errors import BadSettings, ExportRefused, GuardUnfit
from safe_sail.model.handle import HookedModel
from safe_sail.neurons.guard import Guard, load_guard, save_guard
from safe_sail.neurons.guarding import GuardPrompts, Trained, train_guards
from safe_sail.neurons.probe import Probe
from safe_sail.neurons.readers import DirectionReader, NeuronReader, Reader, read_all, read_mean
from safe_sail.neurons.scorers import Scorer, reward_scorer
from safe_sail.settings import GuardSettings
from safe_sail.sites import Site
from tests.tiny import TinyModels

WORDS = ("bread", "door", "shoe", "kite", "lamp", "soap")
ASKED = [" ".join(words) for words in itertools.permutations(WORDS, 3)]
SETTINGS = GuardSettings(n_random=3, n_bootstrap=100, max_new_tokens=3, max_false_refusals=0.1)
TELLING = NeuronReader(torch.tensor([[1, 3]]))


def scorer_of(handle: HookedModel) -> Scorer:
    """Above 0 exactly where one neuron's activation at the prompt's last token is above its median."""
    (values,) = read_all(handle, handle.chat_batch(ASKED), [TELLING], 64)
    above = {asked for asked, value in zip(ASKED, values[:, 0], strict=True) if value > values.median()}
    return reward_scorer("planted", lambda prompt, reply: float(prompt in above))


def splits() -> dict[str, GuardPrompts]:
    kinds = ["borderline" if index % 4 == 0 else "harmful" for index in range(len(ASKED))]
    return {
        name: GuardPrompts(ASKED[place::3], kinds[place::3])
        for place, name in enumerate(("train", "validation", "test"))
    }


def trained(handle: HookedModel, readers: Mapping[str, Reader]) -> Trained:
    return train_guards(
        handle, readers, splits(), SETTINGS, slug="tiny.guard", change="tiny", scorer=scorer_of(handle),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def test_readers_read_the_last_token(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    batch = handle.chat_batch(ASKED[:5] + ["one longer prompt of some more words"])
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    neurons = NeuronReader(torch.tensor([[1, 5], [0, 2], [1, 0]]))
    site = Site.parse("resid_post.0")
    found = read_all(handle, batch, [neurons, DirectionReader(site, vector)], batch_rows=2)
    for row in range(len(batch)):
        one = handle.chat_batch([(ASKED[:5] + ["one longer prompt of some more words"])[row]])
        at = handle.capture(one, [*neurons.sites, site])
        acts = [at[Site.parse("mlp_act.1")][0, -1], at[Site.parse("mlp_act.0")][0, -1]]
        torch.testing.assert_close(
            found[0][row], torch.stack([acts[0][5], acts[1][2], acts[0][0]]), rtol=1e-4, atol=1e-5
        )
        place = at[site][0, -1] @ vector / vector.norm()
        torch.testing.assert_close(found[1][row, 0], place, rtol=1e-4, atol=1e-5)
    chosen = torch.tensor([True, False, True, False, False, True])
    rows = [handle.capture(handle.chat_batch([text]), [site])[site][0, -1] for text in (ASKED[0], ASKED[2])]
    rows.append(handle.capture(handle.chat_batch(["one longer prompt of some more words"]), [site])[site][0, -1])
    mean = read_mean(handle, batch, site, chosen, 2)
    torch.testing.assert_close(mean.float(), torch.stack(rows).mean(dim=0), rtol=1e-4, atol=1e-5)


def test_the_guard_finds_the_neuron_that_decides_and_exceeds_random_ones(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    direction = DirectionReader(Site.parse("resid_post.0"), torch.ones(32))
    found = trained(handle, {"direction": direction, "safety neurons": TELLING})
    evaluation = found.evaluation
    assert evaluation.kept == "safety neurons" == found.guard.features
    other, telling = evaluation.scores
    # the label is a step of this neuron, but for the borderline quarter, where no answer counts as unsafe
    assert telling.auroc.value > 0.8 > other.auroc.value
    assert telling.exceeds_random
    assert len(telling.random_draws) == 3
    assert telling.random_auroc.value == pytest.approx(sum(telling.random_draws) / 3)
    assert telling.gain.value == pytest.approx(telling.auroc.value - telling.random_auroc.value)
    assert set(telling.false_refusals) == {"borderline"}
    assert (evaluation.n_train, evaluation.n_test) == (40, 40)
    assert any("direction does not exceed random neurons" in note for note in evaluation.notes) != other.exceeds_random
    assert telling.roc[0] == (0.0, 0.0)
    assert telling.roc[-1] == (1.0, 1.0)


def test_numbers_of_neurons_ascend() -> None:
    for bad in ((), (3, 3), (9, 3), (0, 3)):
        with pytest.raises(BadSettings, match="ascending from 1 up"):
            GuardSettings(n_neurons=bad)


def test_a_guard_refuses_from_its_threshold_on_and_lets_the_model_answer_below(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    guard = trained(handle, {"safety neurons": TELLING}).guard
    answers = guard.answer(handle, ASKED, max_new_tokens=3, refusal_text="no.")
    refused = [answer for answer in answers if answer.refused]
    assert 0 < len(refused) < len(answers)
    assert all(answer.reply == "no." and answer.probability >= guard.threshold for answer in refused)
    for asked, answer in zip(ASKED[:12], answers[:12], strict=True):
        if not answer.refused:
            new = handle.generate(handle.chat_batch([asked]), 3)
            assert answer.reply == handle.tokenizer.decode(new[0], skip_special_tokens=True)


def test_a_saved_guard_is_the_same_guard(tiny_models: TinyModels, tmp_path: Path) -> None:
    handle = tiny_models.handle("llama")
    direction = DirectionReader(Site.parse("resid_post.0"), torch.randn(32, dtype=torch.float64))
    for name, reader in (("safety neurons", TELLING), ("refusal direction", direction)):
        guard = trained(handle, {name: reader}).guard
        save_guard(guard, tmp_path / name)
        loaded = load_guard(tmp_path / name)
        assert (loaded.threshold, loaded.features, loaded.model_id) == (guard.threshold, name, "llama")
        assert torch.equal(loaded.probabilities(handle, ASKED), guard.probabilities(handle, ASKED))
        with pytest.raises(ExportRefused, match="exists"):
            save_guard(guard, tmp_path / name)


def probe(n: int) -> Probe:
    return Probe(torch.zeros(n), torch.ones(n), torch.ones(n), 0.0)


def test_a_guard_of_another_model_or_width_is_refused(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    wide = Guard(
        model_id="llama", features="x", threshold=0.5, probe=probe(1), reader=NeuronReader(torch.tensor([[0, 40]]))
    )
    with pytest.raises(GuardUnfit, match=r"`mlp_act\.0` of llama is 40 wide, the guard reads 41"):
        wide.probabilities(handle, ["hello"])
    with pytest.raises(GuardUnfit, match="was trained on llama and cannot read mistral"):
        wide.probabilities(tiny_models.handle("mistral"), ["hello"])
    narrow = DirectionReader(Site.parse("resid_post.0"), torch.ones(8))
    with pytest.raises(GuardUnfit, match="32 wide, the guard reads 8"):
        read_all(handle, handle.chat_batch(["hello"]), [narrow], 4)


@pytest.mark.parametrize("damage", ["no json", "no tensors", "format", "field", "shape", "sae"])
def test_a_damaged_guard_is_said(damage: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    guard = Guard(model_id="llama", features="x", threshold=0.5, probe=probe(1), reader=TELLING)
    save_guard(guard, tmp_path / "g")
    facts = tmp_path / "g" / "guard.json"
    told = json.loads(facts.read_text())
    if damage == "no json":
        facts.write_text("{")
    elif damage == "no tensors":
        (tmp_path / "g" / "guard.safetensors").write_bytes(b"12345678")
    elif damage == "format":
        facts.write_text(json.dumps(told | {"format": "other"}))
    elif damage == "field":
        del told["bias"]
        facts.write_text(json.dumps(told))
    else:
        from safetensors.torch import load_file, save_file

        tensors = load_file(tmp_path / "g" / "guard.safetensors")
        if damage == "shape":
            tensors["weight"] = torch.ones(2)
        else:
            tensors["sae_features"] = tensors.pop("neurons")[0]
            facts.write_text(json.dumps(told | {"sae": "some.sae", "site": "resid_post.0"}))
        save_file(tensors, tmp_path / "g" / "guard.safetensors")
    said = r"g: (expected|weights of shapes|the guard reads features of SAE some\.sae; got none)"
    with pytest.raises(GuardUnfit, match=said):
        load_guard(tmp_path / "g")
