"""The tutorial's commands exist, take the options that it gives them, and do one after the other what it says."""

import json
import re
import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from db import store
from db.engine import make_engine, reading
from safe_sail.organism.grammar import contrastive_pairs, documents, prompts
from safe_sail.organism.load import organism_path, organism_sae_paths
from safe_sail.records import FeatureId
from scripts.main import COMMANDS, _load

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line]


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_tutorial_is_understood(line: str):
    program, name, *words = shlex.split(line)
    assert program == "safe-sail"
    assert name in COMMANDS
    if words == ["--help"]:
        return
    # parsing checks names, types and ranges of options, and runs nothing
    context = _load(name).make_context(name, list(words), resilient_parsing=False)
    assert context.info_name == name


def test_every_step_of_the_main_job_is_in_it():
    named = {shlex.split(line)[1] for line in LINES}
    assert {"score-saes", "collect-contexts", "explain-features", "judge-explanations", "intervene-features"} <= named


def test_an_option_that_does_not_exist_is_noticed():
    with pytest.raises(Exception, match="No such option"):
        _load("explain-features").make_context("explain-features", ["--no-such-option"], resilient_parsing=False)


WIDTH = 26
"""Features of the SAEs that the steps are run with: done in seconds, and enough for 20 controls."""
SMALLER = {"MODEL_FOLDER": str(organism_path("aligned")), "0-999": f"0-{WIDTH - 1}", "20": "1", "200": "4"}


def narrow_sae(folder: Path, k: int) -> None:
    """The first features of one of the organism's SAEs, as one that a user trained for `my-model`."""
    source = organism_sae_paths()["organism.resid_post.3.topk8-1024"]
    tensors = load_file(source / "sae_weights.safetensors")
    cut = {"W_enc": tensors["W_enc"][:, :WIDTH], "W_dec": tensors["W_dec"][:WIDTH], "b_enc": tensors["b_enc"][:WIDTH]}
    folder.mkdir(parents=True)
    save_file(
        {name: cut.get(name, value).contiguous() for name, value in tensors.items()}, folder / "sae_weights.safetensors"
    )
    config = json.loads((source / "cfg.json").read_text())
    metadata = config["metadata"] | {"model_name": "my-model"}
    (folder / "cfg.json").write_text(json.dumps(config | {"d_sae": WIDTH, "k": k, "metadata": metadata}))


def user_files(folder: Path) -> None:
    rows = [
        {"text": text.text, "label": label, "concept": concept, "pair": str(place)}
        for name, concept in (("weapon", "weapons"), ("cult", "cult"))  # the taxonomy's names
        for place, pair in enumerate(contrastive_pairs(name, "train", 8, 0))
        for text, label in zip(pair, (True, False), strict=True)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text.text}) for text in documents(80, 0)))
    for name, kind in (("harmful", "harmful"), ("harmless", "safe")):
        (folder / f"{name}.txt").write_text("\n".join(text.text for text in prompts(kind, "train", 24, 0)))


@pytest.mark.slow
def test_the_steps_without_a_language_model_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every line but those that need a hub, a GPU, an endpoint, or that serve: on the organism, with narrow SAEs."""
    user_files(tmp_path)
    for name, k in (("k32", 8), ("k64", 4)):
        narrow_sae(tmp_path / "my_saes" / name, k)
    monkeypatch.chdir(tmp_path)
    done = []
    for line in LINES:
        words = [SMALLER.get(word, word) for word in shlex.split(line)[1:]]
        if {"cuda", "--base-url", "--help", "serve"} & set(words):
            continue
        _load(words[0]).main(args=words[1:], standalone_mode=False)
        done.append(words[0])
    assert done == [
        "score-saes", "collect-contexts", "explain-features", "judge-explanations", "intervene-features"
    ]  # fmt: skip
    assert sorted(path.suffix for path in (tmp_path / "plots").iterdir()) == [".png"] * 3
    engine = make_engine("sqlite:///safe-sail.db", read_only=True)
    with reading(engine) as session:
        saes = {one.sae.slug: one for one in store.list_saes(session)}
        said = store.features_done(session, "k64", store.FeatureKind.EXPLANATIONS)
        judged = store.features_done(session, "k64", store.FeatureKind.EXPLANATION_SCORES)
        listed = store.list_features(session, "k64", sort=store.FeatureSort.SCORE, limit=1).rows
        changed = [store.load_intervention_scores(session, FeatureId(sae="k64", index=row.index)) for row in listed]
    engine.dispose()
    assert set(saes) == {"k32", "k64"}
    assert saes["k64"].n_collected == WIDTH
    assert len(said) == 4
    assert set() < judged <= said
    assert all(changed)
