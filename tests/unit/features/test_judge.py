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
from tests.feature_samples import a_context
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
    (feature,) = json.loads(call.asked)["features"]
    word = feature["description"].split()[-1]
    if word == "dead":
        return Status(500)
    if word == "lazy":
        return Say('{"texts":[{"id":1,"active":[]}]}')
    texts = []
    for text in feature["texts"]:
        by_token = "tokens" in text
        hits = [int(n) for n, piece in text["tokens" if by_token else "segments"].items() if word in piece.split()]
        texts.append({"id": text["id"], "active": [{"token": n, "level": 8} for n in hits] if by_token else hits})
    answer = json.dumps({"texts": texts}, separators=(",", ":"))
    prompt = sum(estimate_tokens(message["content"]) for message in call.body["messages"])
    return Say(answer, prompt_tokens=prompt, completion_tokens=estimate_tokens(answer))


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


@pytest.mark.parametrize(
    ("by_tokens", "method"), [(False, JudgeMethod.SEGMENT_SIMULATION), (True, JudgeMethod.TOKEN_SIMULATION)]
)
def test_right_explanations_score_high_and_others_do_not(by_tokens: bool, method: JudgeMethod):
    results, server = run(all_tasks(), by_tokens=by_tokens)
    for result in results.values():
        assert isinstance(result, Judged)
        score = result.score
        assert (score.method, score.score.n, result.n_calls) == (method, 6, 1)
        assert score.score.value > 0.98, "levels differ a little between contexts, the judge says 8 for all"
        assert score.control.value < 0.2
        assert score.control.n == 4
    assert len(server.calls) == 4 + 4


def test_failed_calls_are_failures_and_constant_predictions_are_their_own_kind():
    tasks = [*all_tasks(), task(4, "kill", "dead"), task(5, "kill", "lazy"), task(6, "kill", "xylophone")]
    results, _ = run(tasks)
    reasons = {index: r.reason for index, r in results.items() if isinstance(r, NotJudged)}
    assert reasons == {4: "server_error", 5: "invalid_reply", 6: "constant"}
    lazy = results[5]
    assert isinstance(lazy, NotJudged)
    assert (lazy.raw, lazy.spending.attempts) == ('{"texts":[{"id":1,"active":[]}]}', 2)


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
        texts = json.loads(answer.text)["texts"]
        for text in texts[::2]:
            text["active"] = [1] if not text["active"] else []
        return Say(json.dumps({"texts": texts}))

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
