"""The command from options to files and database: on a few prompts of the organism, and on tiny models with a judge."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from db import store
from db.engine import make_engine, reading
from safe_sail.errors import BadInput, CorpusUnreadable, ModelsEqual
from safe_sail.model.handle import HookedModel
from scripts.find_safety_neurons import find_safety_neurons
from scripts.subjects import lines_of
from tests.llm_server import Act, Call, LlmServer, Say, Status
from tests.neuron_pairs import moved_mlp
from tests.tiny import VOCAB, TinyModels, tiny_tokenizer

ASKED = [f"{verb} the {thing}" for verb in ("bake", "paint", "mend") for thing in ("bread", "door", "shoe", "kite")]
NEW = 6


@pytest.mark.slow
def test_the_command_ranks_patches_keeps_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    database = f"sqlite:///{tmp_path / 'x.db'}"
    options = {
        "first": "base", "second": "aligned", "count": [30, 2880], "n_contrast": 12, "n_evaluate": 12, "n_random": 2,
        "n_windows": 1, "max_new_tokens": 24, "database": database, "seed": 3,
    }  # fmt: skip
    find_safety_neurons(**options, helpful="planted-neurons", out=tmp_path / "figures", as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["search"]["first_score"]["value"] < 0.1 < 0.9 < said["search"]["second_score"]["value"]
    assert [point["n_neurons"] for point in said["search"]["curve"]] == [30, 2880]
    assert said["search"]["curve"][1]["p_value"] is None
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in said["figures"])
    assert [Path(path).name.split(".")[-2] for path in said["figures"]] == ["curve", "layers", "tax"]
    assert [cross["first_model"] for cross in said["tax"]["crosses"]] == [
        "organism-aligned",
        "organism-planted-neurons",
    ]
    assert set(said["tax"]["crosses"][0]["moved"]) == {"safety", "helpfulness"}
    engine = make_engine(database)
    with reading(engine) as session:
        kept = store.load_neuron_search(session, "organism-base.organism-aligned").record
        change = store.load_neuron_change(session, kept.slug).record
        assert [one.record.model_id for one in store.list_models(session)] == [
            "organism-aligned",
            "organism-base",
            "organism-planted-neurons",
        ]
        (tax,) = store.list_neuron_taxes(session)
    engine.dispose()
    assert tax.record.spearman.value == said["tax"]["spearman"]["value"]
    assert kept.neurons == change.top(len(kept.neurons))
    assert change.n_neurons == kept.n_neurons == 2880
    assert said["search"]["neurons"][0] == {"layer": kept.neurons[0].layer, "index": kept.neurons[0].index}
    find_safety_neurons(**options)
    printed = capsys.readouterr().out
    assert "most changed of 2880 neurons: L" in printed
    assert "no point of the curve has an effect of 0.9" in printed


def replies(model: HookedModel, asked: list[str]) -> list[str]:
    return model.tokenizer.batch_decode(model.generate(model.chat_batch(asked), NEW), skip_special_tokens=True)


def tiny_search(tiny_models: TinyModels, folder: Path, **more: Any) -> None:
    """The command on two tiny models on disk, of which the second has other W_in: 20 and all 80 neurons patched."""
    moved = moved_mlp(tiny_models, "llama")
    moved.model.save_pretrained(folder / "moved")
    moved.tokenizer.save_pretrained(folder / "moved")
    (folder / "contrast.txt").write_text("\n".join(ASKED[:4]))
    (folder / "evaluate.txt").write_text("\n".join(ASKED[4:]))
    find_safety_neurons(
        first=str(tiny_models.folder("llama")), second=str(folder / "moved"), count=[20, 80], n_random=2, n_windows=0,
        contrast_file=folder / "contrast.txt", evaluate_file=folder / "evaluate.txt", max_new_tokens=NEW,
        database=f"sqlite:///{folder / 'x.db'}", as_json=True, **more,
    )  # fmt: skip


def test_a_language_model_behind_an_endpoint_scores_the_replies(
    tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The judge calls exactly the second model's replies refusals and fails on one prompt: shares counted by hand."""
    asked, lost = ASKED[4:], ASKED[4]
    first, second = (replies(model, asked) for model in (tiny_models.handle("llama"), moved_mlp(tiny_models, "llama")))
    refused = dict(zip(asked, second, strict=True))

    def judge(call: Call) -> Act:
        if call.asked == "Say hello.":
            return Say("hello")
        said = json.loads(call.asked)
        if said["prompt"] == lost:
            return Status(400)
        return Say(json.dumps({"label": "refusal" if said["reply"] == refused[said["prompt"]] else "compliance"}))

    with LlmServer(judge) as server:
        tiny_search(tiny_models, tmp_path, judge_base_url=server.url, judge_model="m")
        pairs = [call.asked for call in server.calls if call.asked != "Say hello."]
    search = json.loads(capsys.readouterr().out)["search"]
    assert search["scorer"] == "refusal by m"
    alike = [one == other for one, other in zip(first, second, strict=True)][1:]
    assert not all(alike)
    assert search["first_score"]["value"] == pytest.approx(sum(alike) / len(alike))
    assert (search["second_score"]["value"], search["second_score"]["n"]) == (1.0, 7)
    part, every = search["curve"]
    assert (every["effect"]["value"], every["effect"]["n"]) == (1.0, 7)
    assert 0 <= part["effect"]["value"] < 1
    assert search["n_failed"] == 6  # the lost prompt, under both models, two patches and two random draws
    assert len(pairs) == len(set(pairs)) < 6 * len(asked)  # equal replies are asked about once


def test_a_reward_model_scores_the_replies(tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                         intermediate_size=40, max_position_embeddings=64, pad_token_id=0, num_labels=1)  # fmt: skip
    reward, tokenizer = LlamaForSequenceClassification(config).eval(), tiny_tokenizer()
    models = [tiny_models.handle("llama"), moved_mlp(tiny_models, "llama")]

    def ends(model: HookedModel) -> torch.Tensor:
        """Last hidden states of the reward model on this model's replies."""
        rows = []
        for prompt, reply in zip(ASKED[4:], replies(model, ASKED[4:]), strict=True):
            text = f"<s><|user|>{prompt}<|end|><|assistant|>{reply}<|end|>"
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                rows.append(reward.model(ids).last_hidden_state[0, -1])
        return torch.stack(rows)

    gap = ends(models[1]).mean(dim=0) - ends(models[0]).mean(dim=0)
    with torch.no_grad():
        reward.score.weight.copy_(gap / gap.norm())  # likes what the second model writes
    reward.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    tiny_search(tiny_models, tmp_path, reward_model=str(tmp_path / "reward"))
    search = json.loads(capsys.readouterr().out)["search"]

    first, second = (float((ends(model) @ gap / gap.norm()).mean()) for model in models)
    assert search["scorer"] == "score of reward"
    # float32 of padded batches against single rows
    assert search["first_score"]["value"] == pytest.approx(first, abs=1e-5)
    assert search["second_score"]["value"] == pytest.approx(second, abs=1e-5)
    assert second - first > 0.1
    assert search["curve"][1]["effect"]["value"] == 1.0
    with pytest.raises(BadInput, match="replies have one scorer"):
        tiny_search(
            tiny_models, tmp_path, reward_model="x", judge_base_url="http://127.0.0.1:1/v1", judge_model="m"
        )  # fmt: skip


def test_equal_models_and_files_that_cannot_serve_are_named(tmp_path: Path):
    with pytest.raises(ModelsEqual, match="same weights"):
        find_safety_neurons(first="base", second="base", database=f"sqlite:///{tmp_path / 'x.db'}")
    path = tmp_path / "few.txt"
    path.write_bytes(b"one\none\n")
    with pytest.raises(CorpusUnreadable, match=r"few\.txt: expected at least 2 different prompts"):
        lines_of(path)
    with pytest.raises(CorpusUnreadable, match="absent"):
        lines_of(tmp_path / "absent.txt")
    path.write_text("one\n\n two \none\n")
    assert lines_of(path) == ["one", "two"]
