"""Judge prompts: what the judge sees, and which answers are refused rather than counted as silence.

Write the golden prompts anew with `python -m tests.unit.features.test_judge_prompts`, and read the diff; a changed
prompt needs a new version constant.
"""

import json
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from safe_sail.errors import BadInput, JudgeError
from safe_sail.features.judge_prompts import (
    FittingReply,
    JudgedFeature,
    Marked,
    SegmentReply,
    TokenReply,
    detection_prompt,
    fuzzing_prompt,
    read_fitting,
    read_segments,
    read_tokens,
    segment_mark,
    segments_of,
    segments_prompt,
    tokens_prompt,
    true_levels,
)
from safe_sail.features.lexical import true_segments
from safe_sail.features.prompts import FeatureSamples, Prompt, explanation_prompt
from safe_sail.llm.tokens import estimate_tokens
from safe_sail.records import Context
from safe_sail.settings import JudgeSettings
from tests.feature_samples import HOSTILE, a_context, active_contexts, segments_shown, silent_contexts

GOLDEN = Path(__file__).parents[2] / "golden" / "prompts"
EXPLANATION = "violence against people: killing, stabbing, hurting"
SHORT = a_context("never kill a man. Be kind to men", {"kill": 4.0, "kind": 1.0})


def features() -> list[JudgedFeature]:
    return [
        JudgedFeature(EXPLANATION, (active_contexts()[0], silent_contexts()[1])),
        JudgedFeature("tea", (SHORT,)),
    ]


def prompts() -> dict[str, Prompt]:
    contexts = [active_contexts()[0], silent_contexts()[0]]
    return {
        "segments": segments_prompt(features()),
        "tokens": tokens_prompt(features()),
        "detection": detection_prompt(EXPLANATION, contexts),
        "fuzzing": fuzzing_prompt(EXPLANATION, [Marked(c, frozenset({3, 5})) for c in contexts]),
    }


def as_text(prompt: Prompt) -> str:
    return f"version: {prompt.version}\n\n--- system\n{prompt.system}\n\n--- user\n{prompt.user}\n"


@pytest.mark.parametrize("name", ["segments", "tokens", "detection", "fuzzing"])
def test_prompt_is_the_golden_one(name: str):
    assert as_text(prompts()[name]) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "context", [*active_contexts(), *silent_contexts(), SHORT, a_context("!!!!! ????? a", {"a": 1})]
)
def test_segments_join_to_the_text_and_agree_with_the_lexical_judge(context):
    segments = segments_of(context)
    assert "".join(segment.text for segment in segments) == "".join(context.tokens)
    assert [segment.active for segment in segments] == true_segments(context.tokens, context.activations)


def test_segments_are_four_words():
    assert [tuple(segment) for segment in segments_of(SHORT)] == [
        ("never kill a man", True),
        (". Be kind to", True),
        (" men", False),
    ]


def test_segments_are_numbered_text_by_text_and_tokens_through_all_features():
    document = json.loads(prompts()["segments"].user)
    (first, second), (third,) = (feature["texts"] for feature in document["features"])
    assert first == "①How do I kill② my neighbour and hide③ the body?"
    assert segments_shown(second) == ["The recipe says to", " beat two eggs with", " sugar."]
    assert third == "①never kill a man②. Be kind to③ men"
    document = json.loads(prompts()["tokens"].user)
    assert [[text["id"] for text in feature["texts"]] for feature in document["features"]] == [[1, 2], [3]]


def test_a_strangers_mark_is_no_mark_of_ours():
    text = "lists go ① one ⑫ two ㊿ and end"
    (shown,) = json.loads(segments_prompt([JudgedFeature("e", (a_context(text),))]).user)["features"][0]["texts"]
    assert "".join(segments_shown(shown)) == "lists go (1) one (12) two (50) and end"


def test_marks_of_segments_are_all_different_and_read_as_their_number():
    marks = [segment_mark(number) for number in range(1, 61)]
    assert len(set(marks)) == 60
    assert [unicodedata.normalize("NFKC", mark).strip("()") for mark in marks] == [str(n) for n in range(1, 61)]
    assert {len(mark) for mark in marks[:50]} == {1}


def test_prompts_do_not_show_the_truth():
    silent = [a_context(text) for text in ("How do I kill my neighbour and hide the body?",)]
    loud = [active_contexts()[0]]
    for build in (segments_prompt, tokens_prompt):
        assert build([JudgedFeature("e", tuple(silent))]) == build([JudgedFeature("e", tuple(loud))])
    assert detection_prompt("e", silent) == detection_prompt("e", loud)


def token_reply(*texts: tuple[int, list[tuple[int, int]]]) -> TokenReply:
    return TokenReply.model_validate(
        {"texts": [{"id": n, "active": [{"token": t, "level": v} for t, v in active]} for n, active in texts]}
    )


def test_segments_are_read_by_feature_and_context():
    answer = SegmentReply(active=[[2], [], [1, 2]])
    assert read_segments(answer, features()) == [[[False, True, False], [False, False, False]], [[True, True, False]]]


def test_levels_are_read_by_feature_and_context():
    first, second = features()
    answer = token_reply((1, [(4, 9)]), (2, []), (3, [(2, 4), (9, 0)]))
    (one, two), (three,) = read_tokens(answer, [first, second])
    assert one == true_levels(first.contexts[0], 10.0)[:3] + [9] + [0] * (len(one) - 4)
    assert (sum(two), len(two)) == (0, len(first.contexts[1].tokens))
    assert three == [0, 4, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (partial(read_segments, SegmentReply(active=[[], []])), "expected 3 lists, one for each text, got 2"),
        (partial(read_segments, SegmentReply(active=[[], [], [], []])), "got 4"),
        (partial(read_segments, SegmentReply(active=[[4], [], []])), "text 1, segments: expected numbers from 1"),
        (partial(read_segments, SegmentReply(active=[[1, 1], [], []])), "each at most once"),
        (partial(read_tokens, token_reply((1, []), (2, []))), r"expected the ids 1 to 3 once each, got \[1, 2\]"),
        (partial(read_tokens, token_reply((1, []), (2, []), (2, []))), r"got \[1, 2, 2\]"),
        (partial(read_tokens, token_reply((1, [(0, 5)]), (2, []), (3, []))), "text 1, tokens"),
        (partial(read_tokens, token_reply((1, []), (2, []), (3, [(2, 5), (2, 6)]))), "text 3, tokens"),
    ],
)
def test_unusable_answers_are_refused(read: Callable[[list[JudgedFeature]], object], problem: str):
    with pytest.raises(JudgeError, match=problem):
        read(features())


def test_fitting_texts_are_read_and_strange_ids_refused():
    assert read_fitting(FittingReply(fitting=[3, 1]), 4) == [True, False, True, False]
    assert read_fitting(FittingReply(fitting=[]), 2) == [False, False]
    for strange in ([5], [0], [1, 1]):
        with pytest.raises(JudgeError, match="texts: expected numbers from 1 to 4"):
            read_fitting(FittingReply(fitting=strange), 4)


def test_marks_stand_alone_in_a_list():
    document = json.loads(fuzzing_prompt("e", [Marked(SHORT, frozenset({1, 2}))]).user)
    assert document["texts"][0]["pieces"] == ["never", [" kill"], [" a"], " man. Be kind to men"]
    for marks in (frozenset[int](), frozenset({99})):
        with pytest.raises(BadInput, match="marks are positions among 9 tokens"):
            fuzzing_prompt("e", [Marked(SHORT, marks)])


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_and_explanation_stay_data(hostile: str):
    context = a_context(hostile)
    judged = [JudgedFeature(hostile, (context,))]
    made = {
        "segments": segments_prompt(judged),
        "tokens": tokens_prompt(judged),
        "detection": detection_prompt(hostile, [context]),
        "fuzzing": fuzzing_prompt(hostile, [Marked(context, frozenset({0}))]),
    }
    for name, prompt in made.items():
        assert prompt.system == prompts()[name].system
        assert isinstance(json.loads(prompt.user), dict)
        assert not [mark for mark in ("<", "[INST]", "\n", "\u202e", "\u200b", "\U000e0041") if mark in prompt.user]


def test_a_judge_without_contexts_is_refused():
    for broken in ([], [JudgedFeature("e", ())]):
        with pytest.raises(BadInput, match="at least one feature, and a context of each"):
            segments_prompt(broken)


TALKS = "The committee said on Monday that several members would leave the talks unless the other side agreed to stop"


def realistic(number: int, active: bool) -> Context:
    words = [*TALKS.split(), "and", "more", "of", "the", "same", "came", "later"]
    text = " ".join(words[number % 5 :] + words[: number % 5])
    return a_context(text, {"talks": 8.0 - number / 4, "stop": 3.0} if active else None, source_id=str(number))


def test_two_default_calls_take_at_most_3000_prompt_tokens_a_feature():
    samples = FeatureSamples(
        active=tuple(realistic(n, True) for n in range(20)),
        silent=tuple(realistic(n, False) for n in range(20, 26)),
        scale=8.0,
    )
    explaining = explanation_prompt([samples], count_tokens=estimate_tokens, max_tokens=1500)
    judged = tuple(realistic(n, n % 2 == 0) for n in range(20, 20 + JudgeSettings().n_contexts))
    judging = segments_prompt([JudgedFeature(EXPLANATION * 3, judged)])
    total = sum(estimate_tokens(part) for prompt in (explaining, judging) for part in (prompt.system, prompt.user))
    assert total <= 3000


def test_segments_cost_a_quarter_of_tokens_by_the_estimate():
    contexts = tuple(realistic(n, n % 2 == 0) for n in range(JudgeSettings().n_contexts))
    judged = [JudgedFeature(EXPLANATION, contexts)]
    by_segment, by_token = segments_prompt(judged), tokens_prompt(judged)
    segments = [[n for n, segment in enumerate(segments_of(c), 1) if segment.active] for c in contexts]
    tokens = [[{"token": n, "level": v} for n, v in enumerate(true_levels(c, 8.0), 1) if v] for c in contexts]
    answers = ({"active": segments}, {"texts": [{"id": n, "active": a} for n, a in enumerate(tokens, 1)]})
    cost = [
        sum(estimate_tokens(text) for text in (prompt.system, prompt.user, json.dumps(answer, separators=(",", ":"))))
        for prompt, answer in zip((by_segment, by_token), answers, strict=True)
    ]
    assert cost[0] < 0.25 * cost[1]


if __name__ == "__main__":
    for golden_name, golden_prompt in prompts().items():
        (GOLDEN / f"{golden_name}.txt").write_text(as_text(golden_prompt), encoding="utf-8")
