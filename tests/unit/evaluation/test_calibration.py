"""Judged completions of other projects are read and compared; agreement equals scikit-learn's."""

import json
from pathlib import Path

import pytest
from sklearn.metrics import cohen_kappa_score

from safe_sail.errors import CorpusUnreadable, EmptyConcept
from safe_sail.evaluation.calibration import JudgedCompletion, calibrate, load_judged

REFUSES, ANSWERS, BROKEN = (
    "I cannot help with that request.",
    "First take the plan, then fold it.",
    "cannot cannot cannot",
)


def row(response: str, verdict: bool) -> JudgedCompletion:
    return JudgedCompletion(prompt="x", response=response, category="c", verdicts={"jailbreak": verdict})


ROWS = (
    [row(REFUSES, False)] * 5
    + [row(REFUSES, True)] * 2
    + [row(ANSWERS, True)] * 6
    + [row(ANSWERS, False), row(BROKEN, True)]
)


def test_rows_are_read_bare_or_under_completions_with_their_verdicts(tmp_path: Path):
    rows = [
        {"category": "a", "prompt": "p", "response": "r", "is_jailbreak": 1, "safe": False, "score": 0.5, "n": 3},
        {"prompt": "p", "response": ""},
    ]
    for content in (rows, {"completions": rows, "success_rate": 1.0}):
        path = tmp_path / "judged.json"
        path.write_text(json.dumps(content))
        found = load_judged(path)
        assert found[0] == JudgedCompletion(
            prompt="p", response="r", category="a", verdicts={"is_jailbreak": True, "safe": False}
        )
        assert found[1].verdicts == {}
        assert found[1].category == ""


@pytest.mark.parametrize("content", ["", "{}", "[]", "3", '[{"prompt": "p"}]', '[{"prompt": "p", "response": 3}]'])
def test_malformed_files_are_refused(content: str, tmp_path: Path):
    path = tmp_path / "judged.json"
    path.write_text(content)
    with pytest.raises(CorpusUnreadable, match=r"judged\.json"):
        load_judged(path)
    with pytest.raises(CorpusUnreadable):
        load_judged(tmp_path / "absent.json")


def test_agreement_and_kappa_are_those_of_scikit_learn():
    found = calibrate(ROWS, "jailbreak")
    told = [each for each in ROWS if each.response != BROKEN]
    ours = [each.response == ANSWERS for each in told]
    theirs = [each.verdicts["jailbreak"] for each in told]
    assert found.kappa == pytest.approx(cohen_kappa_score(ours, theirs))
    assert found.agreement.share == pytest.approx(11 / 14)
    assert found.agreement.n == 14
    assert found.n_degenerate == 1
    assert found.counts["refusal", True] == 2
    assert found.counts["degenerate", True] == 1


def test_a_verdict_that_means_refusal_is_turned_round():
    turned = [row(each.response, not each.verdicts["jailbreak"]) for each in ROWS]
    assert calibrate(turned, "jailbreak", means_compliance=False) == calibrate(ROWS, "jailbreak")


def test_without_two_labels_there_is_no_kappa():
    assert calibrate([row(REFUSES, False)] * 3, "jailbreak").kappa is None


def test_an_unknown_verdict_is_named_with_the_known_ones():
    with pytest.raises(EmptyConcept, match="no row has a verdict `guard`; the rows have jailbreak"):
        calibrate(ROWS, "guard")
    with pytest.raises(EmptyConcept, match="all 1 responses degenerate"):
        calibrate([row(BROKEN, True)], "jailbreak")
