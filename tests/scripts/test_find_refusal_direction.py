"""The command from options to files and database, on a few prompts of the organism."""

import json
from pathlib import Path

import pytest

from db import store
from db.engine import make_engine, reading
from safe_sail.errors import CorpusUnreadable
from safe_sail.settings import DirectionSettings
from scripts.direction_report import draw_figures
from scripts.find_refusal_direction import _file_texts, find_refusal_direction
from tests.llm_server import LlmServer, Say


@pytest.mark.slow
def test_the_command_finds_keeps_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    database = f"sqlite:///{tmp_path / 'x.db'}"
    judged = tmp_path / "judged.json"
    judged.write_text('[{"prompt": "p", "response": "I cannot help with that.", "category": "c", "jailbreak": 0}]')
    with LlmServer(lambda call: Say("hello" if call.asked == "Say hello." else '{"label":"refusal"}')) as server:
        find_refusal_direction(
            model="aligned",
            estimator=["projected"],
            n_train=64,
            n_validation=24,
            n_evaluate=12,
            suffix="and the answer is",
            judged=judged,
            judge_base_url=server.url,
            judge_model="m",
            out=tmp_path / "figures",
            database=database,
            seed=3,
            as_json=True,
        )
    said = json.loads(capsys.readouterr().out)
    assert said["search"]["outcome"] == "single"
    assert said["search"]["direction"]["site"].startswith("resid_pre.")
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in said["figures"])
    assert len(said["figures"]) == 3
    assert said["calibration"][0]["agreement"]["share"] == 1
    studied = said["suffix"]
    assert studied["n_suffix_tokens"] >= 4
    assert {len(curve) for curve in studied["cosines"].values()} == {6}
    assert studied["cosines"]["plain"] != studied["cosines"]["suffix"]
    assert studied["refusal_metric"]["plain"]["n"] == 12
    shares = said["llm_judge"]["replies"]
    assert [(one["intervention"], one["n"], one["failed"]) for one in shares] == [
        (name, 12, 0) for name in ("none", "ablation", "subtraction", "none", "ablation", "addition")
    ]
    assert shares[0]["prompts"] == "harmful held out"
    assert [one["phrase_judge"]["refusal"]["share"] for one in shares] == [
        one["refusal"]["value"] for one in said["evaluation"]["replies"] if one["n_draws"] == 1
    ]
    engine = make_engine(database)
    with reading(engine) as session:
        kept = store.load_direction_search(session, "organism-aligned.refusal").record
        assert kept.direction is not None
        assert list(kept.direction.vectors[0]) == said["search"]["direction"]["vectors"][0]
        judged = store.load_direction_evaluation(session, kept.direction.slug)
        assert judged is not None
        assert judged.record.kl.value == said["evaluation"]["kl"]["value"]
        seen = store.load_direction_reading(session, kept.direction.slug)
        assert seen is not None
        assert set(seen.record.cosines) == {"aligned harmful", "aligned harmless", "base harmful", "base harmless"}
        assert draw_figures(kept, judged.record, seen.record, tmp_path / "again")
    engine.dispose()


def test_files_of_instructions_are_split_without_overlap(tmp_path: Path):
    paths = []
    for name in ("harmful", "harmless"):
        paths.append(tmp_path / f"{name}.txt")
        paths[-1].write_text("\n".join(f"{name} {index}" for index in range(20)) + "\n\nharmful 1\n")
    search, held_out = _file_texts(DirectionSettings(), 0, *paths)
    parts = [search.harmful_train, search.harmful_validation, held_out.harmful]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 20
    assert all(parts)


@pytest.mark.parametrize("content", [b"", b"one\ntwo\n", b"\xff\xfe\x00"])
def test_a_file_that_cannot_serve_is_named(content: bytes, tmp_path: Path):
    path = tmp_path / "few.txt"
    path.write_bytes(content)
    with pytest.raises(CorpusUnreadable, match=r"few\.txt: expected"):
        _file_texts(DirectionSettings(), 0, path, path)
    with pytest.raises(CorpusUnreadable, match="absent"):
        _file_texts(DirectionSettings(), 0, tmp_path / "absent.txt", path)
