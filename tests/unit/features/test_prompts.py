"""Explanation prompts: what the model sees, what strangers' text can never do, and which answers are refused.

Write the golden prompts anew with `python -m tests.unit.features.test_prompts`, and read the diff; a changed prompt
needs a new version constant.
"""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_sail.errors import BadInput, JudgeError
from safe_sail.features.prompts import (
    EXPLANATION_VERSION,
    ExplanationReply,
    FeatureSamples,
    Prompt,
    Window,
    as_pieces,
    cut,
    explanation_prompt,
    level_of,
    read_explanations,
    spread_over_levels,
)
from safe_sail.fence import as_json
from safe_sail.llm.tokens import estimate_tokens
from tests.feature_samples import HOSTILE, a_context, active_contexts, silent_contexts

GOLDEN = Path(__file__).parents[2] / "golden" / "prompts"
MARKERS = re.compile(r"<|\[/?[A-Z_]+\]|[\u200b\u2028\u202e\ud800\U000e0041\x00\x07]")


def a_feature() -> FeatureSamples:
    return FeatureSamples(active=active_contexts(), silent=silent_contexts(), scale=10.0, promotes=(" die", "Ġdeath"))


def a_prompt(feature: FeatureSamples, max_tokens: int = 1500) -> Prompt:
    return explanation_prompt([feature], count_tokens=estimate_tokens, max_tokens=max_tokens)


def as_text(prompt: Prompt) -> str:
    return f"version: {prompt.version}\n\n--- system\n{prompt.system}\n\n--- user\n{prompt.user}\n"


def test_prompt_is_the_golden_one():
    assert as_text(a_prompt(a_feature())) == (GOLDEN / "explanation.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("activation", "level"), [(0.0, 0), (-3.0, 0), (0.49, 0), (0.5, 1), (4.4, 4), (4.5, 5), (10.0, 10), (99.0, 10)]
)
def test_levels_are_tenths_rounded_half_up(activation: float, level: int):
    assert level_of(activation, 10.0) == level


def test_context_becomes_silent_strings_and_levels():
    context = a_context("Ġbe kind, never kill, he said", {"kill": 7.0, "never": 0.4})
    assert as_pieces(context, 10.0) == [" be kind, never", [" kill", 7], ", he said"]


def test_window_is_cut_around_the_peak():
    context = a_context("a b c d e f g h", {"e": 1.0})
    small = cut(context, Window(before=2, after=1))
    assert (small.tokens, small.peak) == ((" c", " d", " e", " f"), 2)
    assert cut(context, Window(before=50, after=50)) == context
    first, last = a_context("a b c d", {"a": 1.0}), a_context("a b c d", {"d": 1.0})
    assert cut(first, Window(before=1, after=1)).tokens == ("a", " b", " c"), "a whole window at either end"
    assert cut(last, Window(before=1, after=1)).tokens == (" b", " c", " d")


def test_samples_come_from_every_level_before_a_second_from_any():
    contexts = [a_context(f"word {n}", {"word": value}) for n, value in enumerate([10, 9.9, 9.8, 5, 5.1, 2, 0.1])]
    chosen = spread_over_levels(contexts, scale=10.0, n=4)
    assert [context.peak_activation for context in chosen] == [10, 9.9, 5, 2]
    assert len(spread_over_levels(contexts, scale=10.0, n=99)) == 6, "level 0 shows nothing"


@given(st.text())
def test_json_of_any_text_reads_back_and_holds_no_marker(text: str):
    written = as_json([text])
    assert json.loads(written) == [re.sub("[\ud800-\udfff]", "\ufffd", text)]
    assert not re.search(r"<|\[/?[A-Z_]+\]", written)
    written.encode()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_ends_up_inside_a_json_string_only(text: str):
    first = text.split()[0]
    active = a_context(text, {re.sub(r"\W", "", first): 5.0})
    if active.peak_activation == 0:
        active = a_context(f"kill {text}", {"kill": 5.0})
    prompt = a_prompt(FeatureSamples(active=(active,), silent=(a_context(text, source_id="s"),), scale=5.0))
    assert prompt.system == a_prompt(a_feature()).system, "what instructs is fixed"
    document = json.loads(prompt.user)
    assert set(document) == {"features"}
    (feature,) = document["features"]
    assert set(feature) == {"id", "active", "silent"}
    assert feature["silent"] == [re.sub("[\ud800-\udfff]", "\ufffd", "".join(cut(a_context(text), Window()).tokens))]
    pieces = [piece if isinstance(piece, str) else piece[0] for piece in feature["active"][0]]
    assert all(isinstance(piece, str) for piece in pieces)
    assert not MARKERS.search(prompt.user)
    assert "\n" not in prompt.user


def test_prompt_drops_its_weakest_samples_to_fit():
    feature = a_feature()
    whole = a_prompt(feature)
    needed = estimate_tokens(whole.system) + estimate_tokens(whole.user)
    smaller = json.loads(a_prompt(feature, needed - 60).user)["features"][0]
    assert len(smaller["active"]) + len(smaller["silent"]) < 8
    assert smaller["active"][0] == json.loads(whole.user)["features"][0]["active"][0], "the strongest stays"
    with pytest.raises(BadInput, match="holds not even one context of each of 1 features"):
        a_prompt(feature, estimate_tokens(whole.system) + 20)


def test_default_prompt_of_long_contexts_keeps_within_its_tokens():
    long = tuple(
        a_context(" ".join(f"neighbourhood{n} {k}" for k in range(60)), {f"neighbourhood{n}": 1.0 + n})
        for n in range(40)
    )
    prompt = a_prompt(FeatureSamples(active=long, silent=long[:9], scale=40.0))
    assert estimate_tokens(prompt.system) + estimate_tokens(prompt.user) <= 1500


def test_several_features_share_a_prompt_under_letters():
    prompt = explanation_prompt([a_feature()] * 3, count_tokens=estimate_tokens, max_tokens=3000)
    assert [feature["id"] for feature in json.loads(prompt.user)["features"]] == ["A", "B", "C"]
    one = a_prompt(a_feature())
    together = estimate_tokens(prompt.system) + estimate_tokens(prompt.user)
    assert together < 3 * (estimate_tokens(one.system) + estimate_tokens(one.user))


def test_feature_without_activation_is_not_explained():
    with pytest.raises(BadInput, match="got none of level 1"):
        a_prompt(FeatureSamples(active=silent_contexts(), scale=1.0))
    with pytest.raises(BadInput, match="is positive; got 0"):
        FeatureSamples(active=active_contexts(), scale=0.0)


def reply(*entries: tuple[str, str]) -> ExplanationReply:
    return ExplanationReply.model_validate({"explanations": [{"id": i, "explanation": text} for i, text in entries]})


def test_explanations_come_back_in_order_in_one_clean_line():
    answer = reply(("B", "words for\n tea\u202e"), ("A", "killing of people"))
    assert read_explanations(answer, 2) == ["killing of people", "words for tea"]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (reply(("A", "one")), "expected the ids A, B once each, got A"),
        (reply(("A", "one"), ("A", "two")), "got A, A"),
        (reply(("A", "one"), ("C", "two")), "got A, C"),
        (reply(("A", "one"), ("B", "...")), "B has no word"),
    ],
)
def test_unusable_explanations_are_refused(answer: ExplanationReply, problem: str):
    with pytest.raises(JudgeError, match=problem):
        read_explanations(answer, 2)


def test_version_names_the_prompt():
    assert a_prompt(a_feature()).version == EXPLANATION_VERSION


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "explanation.txt").write_text(as_text(a_prompt(a_feature())), encoding="utf-8")
