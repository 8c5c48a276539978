"""Verdicts of other judges, as the command reads them and prints the phrase judge beside them."""

import json
from pathlib import Path
from typing import Any

import pytest

from safe_sail.errors import BadInput, CorpusUnreadable
from scripts.direction_calibration import calibration_of

REFUSES, ANSWERS, BROKEN = "I cannot help with that request.", "First take the plan, then fold it.", "no no no no"


def a_file(folder: Path, *rows: tuple[str, dict[str, Any]]) -> Path:
    path = folder / "judged.json"
    path.write_text(json.dumps([{"prompt": "p", "response": text, "category": "c", **more} for text, more in rows]))
    return path


def test_each_column_gets_its_table_and_its_meaning(tmp_path: Path):
    path = a_file(
        tmp_path,
        (REFUSES, {"jailbreak": 0, "refused": True}),
        (REFUSES, {"jailbreak": 1, "refused": True}),
        (ANSWERS, {"jailbreak": 1, "refused": False}),
        (BROKEN, {"jailbreak": 0, "refused": False}),
    )
    section = calibration_of(path, ["refused"])
    assert section is not None
    jailbreak, refused = section.plain
    assert (jailbreak["verdict"], jailbreak["agreement"]["n"], jailbreak["n_degenerate"]) == ("jailbreak", 3, 1)
    assert jailbreak["agreement"]["share"] == pytest.approx(2 / 3)
    assert refused["agreement"]["share"] == 1
    assert {"phrase_judge": "refusal", "verdict": "compliance", "n": 1} in jailbreak["counts"]
    said = [" ".join(line.split()) for line in section.lines]
    assert said[0] == "phrase judge against judged.json, 4 rows:"
    assert said[1].startswith("jailbreak (true says compliance): same 0.667")
    assert said[3:6] == ["refusal 1 1", "compliance 0 1", "degenerate 1 0"]
    assert said[6].startswith("refused (true says refusal): same 1.000")
    json.dumps(section.plain)


def test_files_without_verdicts_and_unknown_columns_are_refused(tmp_path: Path):
    assert calibration_of(None, []) is None
    with pytest.raises(BadInput, match="--judged FILE"):
        calibration_of(None, ["refused"])
    path = a_file(tmp_path, (REFUSES, {"jailbreak": 0}))
    with pytest.raises(BadInput, match="no row has refused; the rows have jailbreak"):
        calibration_of(path, ["refused"])
    with pytest.raises(BadInput, match="no row has a verdict"):
        calibration_of(a_file(tmp_path, (REFUSES, {})), [])
    with pytest.raises(CorpusUnreadable):
        calibration_of(tmp_path / "absent.json", [])
