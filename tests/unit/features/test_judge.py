"""A judge's simulation becomes a score beside its control; what fails never counts as silence. Real server, no LLM.

The server plays a judge that knows one rule: a segment or token is active where it holds the word that the description
names.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from safe_sail.errors import BadRecord
from safe_sail.features.judge import Judged, JudgeTask, NotJudged, judge_explanations
from safe_sail.llm.client import OpenAiClient
from safe_sail.llm.tokens import estimate_tokens
from safe_sail.records import Context, Explanation, FeatureId, JudgeMethod
from safe_sail.settings import JudgeSettings
from tests.feature_samples import a_context, segments_shown
from tests.llm_requests import KNOWN, settings_for
from tests.llm_server import Act, Call, LlmServer, Say, Status

WORDS = ("kill", "tea", "garden", "train")
TEMPLATES = ("please {} it now or later today", "we saw how they {} again and again", "nobody wanted to {} on a Sunday")


def contexts_for(word: str) -> tuple[Context, ...]:
    active = [a_context(text.format(word), {word: 4.0 + n}, f"{word}{n}") for n, text in enumerate(TEMPLATES)]
    others = [other for other in WORDS if other != word]
    silent = [a_context(TEMPLATES[n % 3].format(other), None, f"{word}-{other}") for n, other in enumerate(others)]
    return (*active, *silent)


def task(index: int, word: str, says: str | None = None) -> JudgeTask:
    explanation = Explanation(
        feature=FeatureId(sae="s", index=index), text=f"the word {says or word}", explainer="e", prompt_version="1"
    )
    return JudgeTask(explanation, contexts_for(word), 6.0)


def all_tasks() -> list[JudgeTask]:
    return [task(index, word) for index, word in enumerate(WORDS)]


def judge(call: Call) -> Act:
    asked = json.loads(call.asked)
    feature = asked["features"][0] if "features" in asked else asked
    word = feature["description"].split()[-1]
    if "features" not in asked:
        return Say(json.dumps({"fitting": [text["id"] for text in feature["texts"] if fits(text, word)]}))
    if word == "dead":
        return Status(500)
    if word == "lazy":
        return Say('{"active":[[]]}')
    texts: list[Any] = []
    for text in feature["texts"]:
        by_token = isinstance(text, dict)
        pieces = text["tokens"].values() if by_token else segments_shown(text)
        hits = [n for n, piece in enumerate(pieces, start=1) if word in piece.split()]
        texts.append({"id": text["id"], "active": [{"token": n, "level": 8} for n in hits]} if by_token else hits)
    name = "active" if isinstance(texts[0], list) else "texts"
    answer = json.dumps({name: texts}, separators=(",", ":"))
    prompt = sum(estimate_tokens(message["content"]) for message in call.body["messages"])
    return Say(answer, prompt_tokens=prompt, completion_tokens=estimate_tokens(answer))


def fits(text: dict[str, Any], word: str) -> bool:
    """Detection: the word is there; fuzzing: it is all that is marked."""
    if "text" in text:
        return word in text["text"].split()
    return all(piece[0].strip() == word for piece in text["pieces"] if isinstance(piece, list))


def run(
    tasks: Sequence[JudgeTask], script: Callable[[Call], Act] = judge, seed: int = 0, **changes: Any
) -> tuple[dict[int, Judged | NotJudged], LlmServer]:
    async def ask(server: LlmServer) -> list[Judged | NotJudged]:
        async with OpenAiClient(settings_for(server, max_attempts=1), capabilities=KNOWN) as client:
            return [result async for result in judge_explanations(tasks, client, JudgeSettings(**changes), seed=seed)]

    with LlmServer(script) as server:
        results = asyncio.run(ask(server))
    assert len(results) == len(tasks)
    by_index = {(r.score.feature if isinstance(r, Judged) else r.feature).index: r for r in results}
    assert len(by_index) == len(tasks), "none twice"
    return by_index, server


@pytest.mark.parametrize("method", list(JudgeMethod))
def test_right_explanations_score_high_and_others_do_not(method: JudgeMethod):
    results, server = run(all_tasks(), method=method)
    is_share = method in (JudgeMethod.DETECTION, JudgeMethod.FUZZING)
    for result in results.values():
        assert isinstance(result, Judged)
        score = result.score
        assert (score.method, score.score.n, result.n_calls) == (method, 6, 1)
        assert score.score.value > 0.98, "levels differ a little between contexts, the judge says 8 for all"
        assert score.control.value < (0.6 if is_share else 0.2)
        assert score.control.n == 4
        assert score.score.low < 0.9 or not is_share, "six right answers do not prove perfection"
    assert len(server.calls) == 4 + 4


@pytest.mark.parametrize("method", [JudgeMethod.DETECTION, JudgeMethod.FUZZING])
def test_whole_texts_need_contexts_of_both_kinds(method: JudgeMethod):
    explanation, contexts, scale = task(4, "kill")
    active = tuple(context for context in contexts if context.peak_activation > 0)
    silent = tuple(context for context in contexts if context.peak_activation == 0)
    results, _ = run([*all_tasks(), JudgeTask(explanation, silent, scale)], method=method)
    assert isinstance(results[4], NotJudged)
    assert results[4].reason == "no_context"
    assert "0 active and 3 silent contexts" in results[4].message
    results, _ = run([*all_tasks(), JudgeTask(explanation, active, scale)], method=method)
    # a wrong mark can stand in an active context, so fuzzing does without silent ones
    assert isinstance(results[4], Judged if method is JudgeMethod.FUZZING else NotJudged)


def test_failed_calls_are_failures_and_constant_predictions_are_their_own_kind():
    tasks = [*all_tasks(), task(4, "kill", "dead"), task(5, "kill", "lazy"), task(6, "kill", "xylophone")]
    results, _ = run(tasks)
    reasons = {index: r.reason for index, r in results.items() if isinstance(r, NotJudged)}
    assert reasons == {4: "server_error", 5: "invalid_reply", 6: "constant"}
    lazy = results[5]
    assert isinstance(lazy, NotJudged)
    assert (lazy.raw, lazy.spending.attempts) == ('{"active":[[]]}', 2)


def test_single_feature_has_no_control_and_costs_nothing():
    results, server = run([task(0, "kill")])
    assert isinstance(results[0], NotJudged)
    assert results[0].reason == "no_control"
    assert server.calls == []


def test_feature_whose_contexts_fit_no_call_is_a_failure():
    empty = JudgeTask(task(4, "kill").explanation, (), 1.0)
    results, _ = run([*all_tasks(), empty])
    assert isinstance(results[4], NotJudged)
    assert results[4].reason == "no_context"


def test_judging_stops_once_the_interval_is_narrow():
    def sloppy(call: Call) -> Act:
        """Right about every second text; wrong about the others."""
        answer = judge(call)
        assert isinstance(answer, Say)
        texts = json.loads(answer.text)["active"]
        return Say(json.dumps({"active": [text if n % 2 else [] if text else [1] for n, text in enumerate(texts)]}))

    calls = {}
    for width in (2.0, 0.0):
        results, _ = run(all_tasks(), script=sloppy, n_contexts=3, max_calls=2, enough_width=width)
        calls[width] = sum(r.n_calls for r in results.values() if isinstance(r, Judged))
        assert all(r.score.score.n == 3 * r.n_calls for r in results.values() if isinstance(r, Judged))
    assert calls[0.0] == 8
    assert calls[2.0] < 8


def test_order_of_contexts_depends_on_feature_and_seed_not_on_the_run():
    def asked(server: LlmServer) -> set[str]:
        """Calls about a feature's own contexts; a control shows another word's."""
        own = {w: f'"the word {w}"' for w in WORDS}
        calls = [call.asked for call in server.calls]
        return {text for text in calls if any(says in text and text.count(w) > 3 for w, says in own.items())}

    _, first = run(all_tasks())
    _, again = run(list(reversed(all_tasks())))
    _, other = run(all_tasks(), seed=1)
    assert len(asked(first)) == 4
    assert asked(again) == asked(first)
    assert not asked(other) & asked(first)


def test_without_controls_nothing_is_judged():
    results, server = run(all_tasks(), n_controls=0)
    assert {r.reason for r in results.values() if isinstance(r, NotJudged)} == {"no_control"}
    assert server.calls == []


def test_feature_that_comes_twice_is_refused():
    with pytest.raises(BadRecord, match="comes twice"):
        run([task(0, "kill"), task(0, "tea")])
