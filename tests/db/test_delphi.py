"""delphi's folders: explanations go out and come back; outcomes come in as balanced accuracy, computed by hand."""

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine

from db.engine import reading, writing
from db.interchange.delphi import Imported, export_delphi, import_delphi
from db.store import list_features, load_explanations, load_published_scores, save_explanations
from safe_sail.errors import BadInput, ExportRefused
from tests.db import builders as a


def bring(engine: Engine, folder: Path) -> Imported:
    with writing(engine) as session:
        return import_delphi(session, folder, sae=a.SAE, explainer="llama", run_id=a.RUN)


def write(folder: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def outcome(activating: bool, prediction: bool | None) -> dict[str, object]:
    return {"str_tokens": ["a"], "activating": activating, "prediction": prediction, "correct": True}


def test_explanations_leave_and_come_back(engine: Engine, tmp_path: Path) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        said = [a.explanation(3, 'a "quoted"\nword \u2028'), a.explanation(5), a.explanation(5, "x", "gpt")]
        save_explanations(session, said, run_id=a.RUN)
    out = tmp_path / "out"
    with reading(engine) as session:
        assert export_delphi(session, a.SAE, out, explainer="lexical") == 2
        with pytest.raises(ExportRefused, match="nothing explained by `nobody`"):
            export_delphi(session, a.SAE, tmp_path / "none", explainer="nobody")
    assert sorted(path.name for path in (out / "explanations").iterdir()) == [
        f"{a.SAE}_latent3.txt", f"{a.SAE}_latent5.txt",
    ]  # fmt: skip
    assert not (tmp_path / "none").exists()
    assert bring(engine, out) == Imported(2, 0, 0)
    with reading(engine) as session:
        texts = [one.record.text for one in load_explanations(session, a.feature(3)) if one.record.explainer == "llama"]
        assert texts == ['a "quoted"\nword \u2028']


def test_outcomes_become_balanced_accuracy(engine: Engine, tmp_path: Path) -> None:
    a.catalogue(engine)
    # 2 of 3 activating found, 1 of 2 silent passed, one without a reply: (2/3 + 1/2) / 2
    outcomes = [outcome(True, True), outcome(True, True), outcome(True, False), outcome(False, False),
                outcome(False, True), outcome(True, None)]  # fmt: skip
    folder = write(tmp_path / "in", {
        "scores/detection/layers.3_latent3.txt": outcomes,
        "scores/fuzz/layers.3_latent3.txt": [outcome(True, True)],
    })  # fmt: skip
    assert bring(engine, folder) == Imported(0, 1, 1)
    with reading(engine) as session:
        (score,) = load_published_scores(session, a.feature(3))
    assert (score.record.method, score.record.source) == ("detection_balanced_accuracy", "llama")
    assert score.record.value == pytest.approx(7 / 12)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "expected explanations/ or scores/"),
        ({"explanations/layers.3_latent3.txt": "not json"}, "latent3.txt: expected JSON"),
        ({"explanations/layers.3_latent3.txt": ["x"]}, r"to be a text .* got \['x'\]"),
        ({"explanations/layers.3_latent3.txt": ""}, "expected JSON"),
        ({"explanations/notes.txt": "x"}, "expected a name as <module>_latent<index>.txt; got 'notes.txt'"),
        ({"explanations/a_latent1.txt": '"x"', "explanations/b_latent2.txt": '"y"'}, "files of one module, a; got 'b'"),
        ({"explanations/a_latent1.txt": '"x"', "explanations/a_latent99.txt": '"y"'}, r"features of .* are 0 to 15"),
        ({"scores/fuzz/a_latent1.txt": {}}, "a JSON list of outcomes"),
        ({"scores/fuzz/a_latent1.txt": [1]}, "outcomes with `activating`"),
        ({"scores/fuzz/a_latent1.txt": [{"activating": True, "prediction": "yes"}]}, "`prediction` to be true"),
    ],
)
def test_a_bad_file_is_named_and_leaves_nothing(
    engine: Engine, tmp_path: Path, files: dict[str, object], complaint: str
) -> None:
    a.catalogue(engine)
    with pytest.raises(BadInput, match=complaint):
        bring(engine, write(tmp_path / "in", files))
    with reading(engine) as session:
        assert list_features(session, a.SAE).total == 0
