"""Settings files: the shipped ones run on tiny models and SAEs of the same classes, and the command line wins."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from db import store
from db.engine import make_engine, reading
from safe_sail.errors import BadSettings
from safe_sail.sae.load import find_in_registry
from safe_sail.sites import Site
from scripts.main import app
from scripts.settings_file import PRESETS, preset_names, read_settings
from scripts.subjects import sae_source
from tests.tiny import TEXTS, TinyModels
from tests.unit.sae.test_load import write_folder

OPTIONS = {
    name: name.replace("-", "_")
    for name in ("model", "sae", "device", "dtype", "corpus", "window", "batch-size", "plain", "seed")
}
CLASSES = {
    "safe-sail-qwen2.5-3b": ("qwen2", "Qwen2.5-3B-Instruct"),
    "gemma-2-2b-gemma-scope": ("gemma2", "gemma-2-2b"),
    "qwen3-1.7b-qwen-scope": ("qwen3", "Qwen3-1.7B-Base"),
}
"""Family of the tiny model, and what the real SAEs call theirs."""


def tensors(d_model: int, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "W_enc": torch.randn(d_model, 12, generator=generator),
        "W_dec": torch.randn(12, d_model, generator=generator),
        "b_enc": torch.zeros(12),
        "b_dec": torch.zeros(d_model),
        **more,
    }


def tiny_sae(name: str, d_model: int, folder: Path) -> str:
    """An SAE of the preset's class: stacked TopK with ties, JumpReLU, TopK."""
    metadata = {"model_name": CLASSES[name][1], "hook_name": "blocks.1.hook_resid_post", "prepend_bos": True}
    config: dict[str, Any] = {"metadata": metadata, "d_in": d_model, "d_sae": 12}
    if name.startswith("gemma"):
        made = tensors(d_model, threshold=torch.full((12,), 0.1))
        return str(write_folder(folder / "jump", tensors=made, architecture="jumprelu", **config))
    if name.startswith("qwen3"):
        extra = {"k": 3, "rescale_acts_by_decoder_norm": False}
        return str(write_folder(folder / "topk", tensors=tensors(d_model), architecture="topk", **extra, **config))
    generator = torch.Generator().manual_seed(0)
    stack = {
        "pre_encoder_bias._bias_reference": torch.zeros(1, d_model),
        "encoder.weight": torch.randn(1, 12, d_model, generator=generator),
        "encoder.bias": torch.zeros(1, 12),
    }
    save_file(stack, folder / "ckpt_layer1.safetensors")
    return f"{folder / 'ckpt_layer1.safetensors'}?site=mlp_out.1&activation=topk&k=3&model_id={CLASSES[name][1]}"


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_shipped_file_runs_on_a_tiny_model_and_sae_of_its_classes(name: str, tiny_models: TinyModels, tmp_path: Path):
    family, model_id = CLASSES[name]
    (tmp_path / "texts.txt").write_text("\n\n".join(f"{text} {place}" for place in range(4) for text in TEXTS))
    rows = ["text,label,concept,pair"]
    rows += [
        f"the {word} {place},{label},insult,{place}" for place in range(8) for word, label in (("fox", 1), ("dog", 0))
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    database = f"sqlite:///{tmp_path / 'kept.db'}"
    common = [
        f"--settings={name}", f"--model={tiny_models.folder(family)}", f"--model-id={model_id}", "--device=cpu",
        "--dtype=float32", f"--sae={tiny_sae(name, tiny_models.handle(family).dims.d_model, tmp_path)}",
        f"--database={database}", f"--corpus={tmp_path / 'texts.txt'}",
    ]  # fmt: skip
    done = invoke("collect-contexts", *common, "--window=12")
    assert "features fired on" in done.stdout
    assert "of weights" in done.stderr
    assert "a million tokens" in done.stderr
    done = invoke("score-saes", *common, f"--concepts={tmp_path / 'pairs.csv'}", "--n-bootstrap=50", "--json")
    assert done.exit_code == 0
    with reading(make_engine(database)) as session:
        runs = {run.command: run for run in store.list_runs(session)}
    # what the file says and the command line does not
    collected = runs["collect-contexts"].settings["settings"]
    assert (collected["batch_size"], collected["window"]) == (32, 12)
    assert runs["score-saes"].settings["batch_size"] == 32
    assert runs["score-saes"].settings["as_chat"] is (name == "safe-sail-qwen2.5-3b")


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_dry_run_says_what_is_needed_and_leaves_nothing(name: str, tiny_models: TinyModels, tmp_path: Path):
    family, _ = CLASSES[name]
    (tmp_path / "corpus.txt").touch()  # empty: whoever reads it ends with an error
    done = invoke(
        "collect-contexts", f"--settings={name}", f"--model={tiny_models.folder(family)}", "--device=cpu",
        f"--sae={tiny_sae(name, tiny_models.handle(family).dims.d_model, tmp_path)}",
        f"--corpus={tmp_path / 'corpus.txt'}", "--dtype=float32",
        f"--database=sqlite:///{tmp_path / 'kept.db'}", "--dry-run",
    )  # fmt: skip
    assert "of SAEs" in done.stdout
    assert not (tmp_path / "kept.db").exists()


def test_shipped_files_name_what_there_is():
    assert preset_names() == sorted(CLASSES)
    for name in CLASSES:
        values = read_settings(name, "collect-contexts", OPTIONS)
        assert values["device"] == "cuda"
        for sae in values["sae"]:
            source, site, form = sae_source(sae)
            if form is None:
                release, sae_id = find_in_registry(str(source))
                assert release.startswith(("gemma-scope-2b", "qwen-scope-3-1.7b"))
                assert sae_id
            else:
                assert form.k == 200
                assert site is not None
                assert str(source) == f"sae_checkpoints/ckpt_layer{site.layer}.pt"
    saes = read_settings("safe-sail-qwen2.5-3b", "score-saes", OPTIONS)["sae"]
    assert [sae_source(sae).site for sae in saes] == [Site.parse(f"mlp_out.{n}") for n in (0, 8, 17, 26, 35)]
    assert (PRESETS / "gemma-2-2b-gemma-scope.yaml").read_text().startswith("# Gemma 2 2B")


def test_a_section_wins_over_the_top_and_is_for_its_command_alone(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3\nwindow_size: {a: 1}\nscore-saes: {seed: 4}\ncollect-contexts: {batch_size: 2}\n")
    assert read_settings(str(file), "collect-contexts", OPTIONS) == {"seed": 3, "batch_size": 2}
    assert read_settings(str(file), "score-saes", OPTIONS) == {"seed": 4}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "must map options to values"),
        ("collect-contexts: 3", "`collect-contexts` to such a mapping"),
        ("windows: 12", "names windows, which collect-contexts does not have"),
        ("collect-contexts: {windows: 12}", "names collect-contexts: windows"),
        ("a: [", "is not YAML"),
    ],
)
def test_files_that_say_something_else_are_refused(text: str, says: str, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(BadSettings, match=says):
        read_settings(str(tmp_path / "mine.yaml"), "collect-contexts", OPTIONS)


def test_a_name_that_is_no_file_lists_the_shipped_ones():
    with pytest.raises(BadSettings, match="nor one of gemma-2-2b-gemma-scope"):
        read_settings("gemma-9b", "collect-contexts", OPTIONS)
