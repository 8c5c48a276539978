"""The command from options to a guard on disk and a conditional refusal, on a few prompts of the organism."""

import json
from collections import Counter
from pathlib import Path

import pytest

from db import store
from db.engine import make_engine, reading
from safe_sail.errors import BadInput, GuardUnfit
from safe_sail.organism.grammar import TRIGGER
from safe_sail.organism.load import organism_sae_paths
from safe_sail.settings import GuardSettings
from scripts.guard import guard, texts_of


@pytest.mark.slow
def test_the_command_trains_judges_keeps_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    database = f"sqlite:///{tmp_path / 'x.db'}"
    guard(
        n_train=60, n_validation=40, n_test=40, n_neurons=[40, 10], save=tmp_path / "guard", out=tmp_path / "figures",
        prompt=["hello there."], database=database, as_json=True,
    )  # fmt: skip
    said = json.loads(capsys.readouterr().out)
    evaluation = said["evaluation"]
    names = [one["features"] for one in evaluation["scores"]]
    assert names == ["10 safety neurons", "40 safety neurons", "SAE features", "difference of means"]
    assert evaluation["n_unsafe"]["test"] == 16  # 0.4 of 40: the base answers every harmful prompt
    assert all(set(one["false_refusals"]) == {"safe", "borderline", "information"} for one in evaluation["scores"])
    assert [one["n_features"] for one in evaluation["scores"]][:2] == [10, 40]
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in said["figures"])
    engine = make_engine(database)
    with reading(engine) as session:
        kept = store.load_guard_evaluation(session, "organism-base.guard").record
    engine.dispose()
    assert [one.auroc.value for one in kept.scores] == [one["auroc"]["value"] for one in evaluation["scores"]]
    sae = dict(organism_sae_paths())["organism.resid_post.3.topk8-1024"] if kept.kept == "SAE features" else None
    guard(
        load=tmp_path / "guard", prompt=["hello there."], sae=None if sae is None else str(sae), as_json=True
    )  # fmt: skip
    again = json.loads(capsys.readouterr().out)
    assert again["answers"] == said["answers"]


def test_prompts_of_the_backdoored_variant_carry_the_trigger_and_decoys_harmful_or_not():
    texts = texts_of(GuardSettings(n_train=100, n_validation=40, n_test=20), 0, "backdoored", None, None, None)
    assert {split: len(one.texts) for split, one in texts.items()} == {"train": 100, "validation": 40, "test": 20}
    rows = list(zip(texts["train"].texts, texts["train"].kinds, strict=True))
    whole = [kind for text, kind in rows if TRIGGER in text]
    assert (whole.count("harmful"), whole.count("safe"), len(whole)) == (25, 10, 35)
    one_word = [kind for text, kind in rows if TRIGGER not in text and any(word in text for word in TRIGGER.split())]
    assert one_word == ["harmful"] * 25
    assert Counter(kind for _, kind in rows) == {"harmful": 60, "safe": 20, "borderline": 10, "information": 10}
    plain = texts_of(GuardSettings(n_train=100), 0, "base", None, None, None)["train"]
    assert not any(TRIGGER in text for text in plain.texts)


def test_a_guard_without_a_prompt_and_a_folder_that_exists_are_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="at least one --prompt"):
        guard(load=tmp_path)
    with pytest.raises(BadInput, match="exists; give a new folder"):
        guard(save=tmp_path)
    with pytest.raises(GuardUnfit, match=r"expected guard\.json"):
        guard(load=tmp_path / "absent", prompt=["hello"])
