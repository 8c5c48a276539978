"""`safe-sail collect-contexts` on a tiny model: what it keeps, what it refuses, and how it survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file

from db import store
from db.engine import make_engine, reading
from safe_sail.data.corpus import corpus_batches, read_documents
from safe_sail.errors import BadInput, BadText, CorpusUnreadable, SaeModelMismatch
from safe_sail.model.tokens import special_ids
from safe_sail.records import FeatureId
from safe_sail.sae.load import load_sae
from scripts import context_runs
from scripts.collect_contexts import collect_contexts
from scripts.score_saes import score as score_saes
from tests.ray_start import patiently
from tests.tiny import TEXTS, TinyModels
from tests.unit.sae.test_load import write_folder

D_SAE = 10


@pytest.fixture
def job(tiny_models: TinyModels, tmp_path: Path) -> dict[str, object]:
    d_model = tiny_models.handle("llama").dims.d_model
    generator = torch.Generator().manual_seed(0)
    # the bias makes a feature fire on one token in three
    sae = write_folder(
        tmp_path / "tiny-sae",
        metadata={"model_name": "llama"},
        tensors={
            "W_enc": torch.randn(d_model, D_SAE, generator=generator),
            "W_dec": torch.randn(D_SAE, d_model, generator=generator),
            "b_enc": torch.full((D_SAE,), -4.0),
            "b_dec": torch.zeros(d_model),
        },
        d_in=d_model,
    )
    corpus = tmp_path / "texts.txt"
    corpus.write_text("\n\n".join(f"{text} {place}" for place in range(20) for text in TEXTS))
    return {
        "model": str(tiny_models.folder("llama")),
        "sae": [str(sae)],
        "corpus": str(corpus),
        "database": f"sqlite:///{tmp_path / 'found.db'}",
        "window": 12,
        "batch_size": 8,
        "n_contexts": 5,
    }


def test_it_keeps_what_a_loop_over_windows_finds(job: dict[str, object], tiny_models: TinyModels):
    collect_contexts(**job, features="7,0-2")  # type: ignore[arg-type]
    model = tiny_models.handle("llama")
    sae = load_sae(str(job["sae"][0]))  # type: ignore[index]
    special = special_ids(model.tokenizer)
    windows = []
    for batch in corpus_batches(
        read_documents(Path(str(job["corpus"]))),
        model.tokenizer,
        window=12,
        batch_size=1,
        max_positions=64,
        prepend_bos=True,
    ):
        acts = sae.encode(model.capture(batch, [sae.site])[sae.site][0])
        acts[[token in special for token in batch.token_ids[0].tolist()]] = 0
        windows.append((batch.source_ids[0], batch.token_ids[0], acts))
    n_silent = {}
    n_content = sum(token not in special for _, ids, _ in windows for token in ids.tolist())
    with reading(make_engine(str(job["database"]))) as session:
        assert store.features_done(session, "tiny-sae", store.FeatureKind.TOP_CONTEXTS) == {7, 0, 1, 2}
        for index in (7, 0, 1, 2):
            found = store.load_top_contexts(session, FeatureId(sae="tiny-sae", index=index)).record
            assert found.n_tokens_seen == n_content
            values = torch.cat([acts[:, index] for _, _, acts in windows])
            assert found.density == pytest.approx(float((values > 0).sum()) / n_content)
            peaks = sorted((float(acts[:, index].max()) for _, _, acts in windows), reverse=True)[:5]
            # batches of eight and of one windows differ by float32 rounding through two blocks
            assert [c.peak_activation for c in found.contexts] == pytest.approx([p for p in peaks if p > 0], rel=1e-4)
            sample = store.load_context_sample(session, FeatureId(sae="tiny-sae", index=index)).record
            by_source = {source: acts[:, index] for source, _, acts in windows}
            own = {context.source_id for context in found.contexts}
            for context in (*sample.spread, *sample.random):
                assert context.source_id not in own
                assert context.activations == pytest.approx(by_source[context.source_id].tolist(), abs=1e-4)
            assert all(float(by_source[context.source_id].max()) <= 0 for context in sample.near_misses)
            assert sample.spread
            shown = (*sample.random, *sample.near_misses)
            silent = {context.source_id for context in shown if float(by_source[context.source_id].max()) <= 0}
            assert {context.source_id for context in sample.silent} == silent
            n_silent[index] = len(silent)
    assert any(n_silent.values()), "no feature has a silent context, so nothing was compared"


SLOW_AT_LAST = """
import time
from scripts import context_runs
from scripts.main import main

save, n_saves = context_runs.save_state, 0

def save_and_wait(*words):
    global n_saves
    save(*words)
    n_saves += 1
    if n_saves > 30:
        time.sleep(3600)

context_runs.save_state = save_and_wait
main()
"""
"""The command; after thirty saves it waits for its killer, however late that one comes."""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(job: dict[str, object], tmp_path: Path):
    Path(str(job["corpus"])).write_text("\n\n".join(f"{text} {place}" for place in range(150) for text in TEXTS))
    collect_contexts(**job, state=tmp_path / "undisturbed", save_every=8)  # type: ignore[arg-type]
    killed = tmp_path / "killed"
    words = [f"--{name.replace('_', '-')}={value}" for name, value in job.items() if name not in ("sae", "database")]
    words += [f"--sae={job['sae'][0]}", f"--database=sqlite:///{tmp_path / 'killed.db'}"]  # type: ignore[index]
    words += [f"--state={killed}", "--save-every=8"]
    command = [sys.executable, "-c", SLOW_AT_LAST, "collect-contexts", *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not (killed / "state.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    n_done = _n_windows(killed)
    assert 0 < n_done < _n_windows(tmp_path / "undisturbed"), "it must be killed on its way"
    collect_contexts(**(job | {"database": f"sqlite:///{tmp_path / 'killed.db'}"}), state=killed, save_every=8)  # type: ignore[arg-type]
    assert _bytes_of(killed) == _bytes_of(tmp_path / "undisturbed")
    found = []
    for database in (str(job["database"]), f"sqlite:///{tmp_path / 'killed.db'}"):
        with reading(make_engine(database)) as session:
            features = [FeatureId(sae="tiny-sae", index=index) for index in range(D_SAE)]
            found.append([store.load_top_contexts(session, feature).record for feature in features])
    assert found[0] == found[1]


@pytest.mark.slow
def test_workers_of_ray_end_in_the_same_bytes(job: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    # 140 windows in shards of 16 and groups of three shards, so that shards merge and groups too
    monkeypatch.setattr(context_runs, "_SHARD_BATCHES", 2)
    database = {"database": f"sqlite:///{tmp_path / 'ray.db'}"}
    collect_contexts(**job, state=tmp_path / "inline")  # type: ignore[arg-type]
    on_ray = job | database | {"state": tmp_path / "ray", "save_every": 40, "executor": "ray", "workers": 2}
    patiently(lambda: collect_contexts(**on_ray))  # type: ignore[arg-type]
    assert _n_windows(tmp_path / "ray") == 140
    assert _bytes_of(tmp_path / "ray") == _bytes_of(tmp_path / "inline")


def test_a_data_set_gives_what_its_texts_give_as_a_file(job: dict[str, object], tmp_path: Path):
    texts = Path(str(job["corpus"])).read_text().split("\n\n")
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"body": texts}).save_to_disk(tmp_path / "set")
    found = []
    for place, corpus in enumerate((str(job["corpus"]), str(tmp_path / "set"))):
        database = f"sqlite:///{tmp_path / f'{place}.db'}"
        collect_contexts(**(job | {"corpus": corpus, "database": database}), features="1", text_field="body")  # type: ignore[arg-type]
        with reading(make_engine(database)) as session:
            found.append(store.load_top_contexts(session, FeatureId(sae="tiny-sae", index=1)).record)
    assert [one.token_ids for one in found[0].contexts] == [one.token_ids for one in found[1].contexts]
    assert found[0].histogram == found[1].histogram
    assert found[0].contexts, "the feature fires"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"executor": "dask"}, "inline or ray; got 'dask'"),
        ({"workers": 2}, "belong to --executor ray"),
        ({"executor": "ray", "device": "cuda:1"}, "gives each worker its GPU"),
    ],
)
def test_executors_that_cannot_be_are_refused(job: dict[str, object], change: dict[str, object], says: str):
    with pytest.raises(BadInput, match=says):
        collect_contexts(**(job | change))  # type: ignore[arg-type]


def _n_windows(folder: Path) -> int:
    return int(json.loads((folder / "state.json").read_text())["info"]["n_windows"])


def _bytes_of(folder: Path) -> tuple[bytes, str]:
    (tensors,) = folder.glob("state-*.safetensors")
    assert load_file(tensors)
    return tensors.read_bytes(), (folder / "state.json").read_text().replace(tensors.name, "")


def test_a_state_of_another_run_is_refused(job: dict[str, object], tmp_path: Path):
    collect_contexts(**job, state=tmp_path / "state")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="settings, seed differ"):
        collect_contexts(**(job | {"n_contexts": 6}), state=tmp_path / "state", seed=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"features": "3-1"}, BadInput, "0 to 9; got '3-1'"),
        ({"features": "10"}, BadInput, "0 to 9; got '10'"),
        ({"features": "a"}, BadInput, "got 'a'"),
        ({"corpus": "missing.txt"}, CorpusUnreadable, "missing.txt"),
        ({"window": 1000}, BadInput, "windows of"),
        ({"dtype": "int8"}, BadInput, "float32, bfloat16"),
        ({"model_id": "other"}, SaeModelMismatch, "other"),
    ],
)
def test_bad_input_is_refused_before_a_database_exists(
    job: dict[str, object], tmp_path: Path, change: dict[str, object], error: type[Exception], says: str
):
    with pytest.raises(error, match=says):
        collect_contexts(**(job | change))  # type: ignore[arg-type]
    assert not (tmp_path / "found.db").exists()


def test_a_corpus_without_content_is_refused(job: dict[str, object]):
    Path(str(job["corpus"])).write_text("<s>")
    with pytest.raises(BadText, match="no content token"):
        collect_contexts(**job)  # type: ignore[arg-type]


def test_twins_of_a_concepts_pairs_are_near_misses_of_the_features_that_mark_it(
    job: dict[str, object], tiny_models: TinyModels, tmp_path: Path
):
    """Positives say dog, their twins bread; whatever feature tells them apart best must be silent on its twins."""
    rows = []
    for place, verb in enumerate(("bake", "paint", "mend", "jump", "turn", "keep", "fox", "home")):
        for text, label in ((f"the lazy dog, {verb}", True), (f"the bread, {verb}", False)):
            rows.append(
                {"text": text, "label": label, "concept": "dog", "pair": str(place), "domain": "d", "category": "c"}
            )
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps(row) for row in rows))
    given = {name: job[name] for name in ("model", "sae", "database")}
    with pytest.raises(BadInput, match="run score-saes with these SAEs and texts first"):
        collect_contexts(**job, twins=[str(pairs)])  # type: ignore[arg-type]
    score_saes(**given, concepts=[str(pairs)], taxonomy=None, n_bootstrap=20)  # type: ignore[arg-type]
    collect_contexts(**job, twins=[str(pairs)])  # type: ignore[arg-type]
    model, sae = tiny_models.handle("llama"), load_sae(str(job["sae"][0]))  # type: ignore[index]
    with reading(make_engine(str(job["database"]))) as session:
        best = {
            row.index
            for row in store.list_features(session, "tiny-sae").rows
            if row.rate_gap and row.rate_gap.value > 0
        }
        kept = {n: store.load_context_sample(session, FeatureId(sae="tiny-sae", index=n)) for n in range(D_SAE)}
    assert best
    twins_of = {
        n: [one for one in sample.record.near_misses if one.source_id.startswith("twin: ")]
        for n, sample in kept.items()
        if sample is not None
    }
    assert {n for n, twins in twins_of.items() if twins} <= best
    assert any(twins_of[n] for n in best)
    for n, twins in twins_of.items():
        for twin in twins:
            text = twin.source_id.removeprefix("twin: ")
            assert {"text": text, "label": False} in [{"text": row["text"], "label": row["label"]} for row in rows]
            batch = model.chat_batch([text])
            acts = sae.encode(model.capture(batch, [sae.site])[sae.site])[0, :, n]
            special = torch.tensor([token in special_ids(model.tokenizer) for token in batch.token_ids[0].tolist()])
            assert not (acts[~special] > 0).any()
    pairs.write_text("\n".join(json.dumps({**row, "pair": None}) for row in rows))
    with pytest.raises(BadInput, match="expected pairs"):
        collect_contexts(**job, twins=[str(pairs)])  # type: ignore[arg-type]
