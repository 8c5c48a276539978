"""Every feature ends explained or failed with its reason, none twice, against a real server."""

import asyncio
import json

import pytest

from safe_sail.errors import BadRecord
from safe_sail.features.explain import ExplainTask, LlmExplained, NotExplained, explain_features
from safe_sail.features.prompts import EXPLANATION_VERSION, FeatureSamples
from safe_sail.llm.client import OpenAiClient
from safe_sail.records import FeatureId
from safe_sail.settings import ExplainSettings
from tests.feature_samples import a_context, active_contexts, silent_contexts
from tests.llm_requests import KNOWN, settings_for
from tests.llm_server import Act, Call, LlmServer, Say, Status


def task(index: int, word: str) -> ExplainTask:
    active = a_context(f"please {word} this", {word: 5.0})
    return ExplainTask(FeatureId(sae="s", index=index), FeatureSamples(active=(active,), scale=5.0))


def script(call: Call) -> Act:
    """Names the active token; cannot be reached about `dead`, talks about `chat`, and names nothing about `odd`."""
    (feature,) = json.loads(call.asked)["features"]
    word = next(piece[0] for piece in feature["active"][0] if not isinstance(piece, str)).strip()
    if word == "dead":
        return Status(500)
    if word == "chat":
        return Say("I would rather talk about something else.")
    entry = {"id": "B" if word == "odd" else "A", "explanation": f"the word {word}"}
    return Say(json.dumps({"explanations": [entry]}))


def run(tasks: list[ExplainTask]) -> list[LlmExplained | NotExplained]:
    async def explain(server: LlmServer) -> list[LlmExplained | NotExplained]:
        async with OpenAiClient(settings_for(server, max_attempts=2), capabilities=KNOWN) as client:
            return [result async for result in explain_features(tasks, client, ExplainSettings())]

    with LlmServer(script) as server:
        return asyncio.run(explain(server))


def test_every_feature_ends_explained_or_failed_with_its_reason():
    silent = ExplainTask(FeatureId(sae="s", index=9), FeatureSamples(active=silent_contexts(), scale=1.0))
    results = run([task(0, "kill"), task(1, "dead"), task(2, "chat"), task(3, "odd"), silent, task(4, "beat")])
    explained = {r.explanation.feature.index: r.explanation for r in results if isinstance(r, LlmExplained)}
    failed = {r.feature.index: r for r in results if isinstance(r, NotExplained)}
    assert len(results) == 6
    assert {index: explanation.text for index, explanation in explained.items()} == {
        0: "the word kill",
        4: "the word beat",
    }
    assert {(e.explainer, e.prompt_version) for e in explained.values()} == {("m", EXPLANATION_VERSION)}
    assert {index: (f.reason, f.spending.attempts) for index, f in failed.items()} == {
        1: ("server_error", 2),
        2: ("invalid_reply", 2),
        3: ("invalid_reply", 2),
        9: ("no_prompt", 0),
    }
    assert failed[2].raw == "I would rather talk about something else."


def test_feature_that_comes_twice_is_refused():
    with pytest.raises(BadRecord, match="s/0 comes twice"):
        run([task(0, "kill"), task(0, "kill")])


def test_explainer_sees_silent_contexts_beside_active_ones():
    seen = []

    def watch(call: Call) -> Act:
        seen.append(json.loads(call.asked)["features"][0])
        return Say('{"explanations":[{"id":"A","explanation":"violence"}]}')

    async def explain(server: LlmServer) -> None:
        samples = FeatureSamples(active=active_contexts(), silent=silent_contexts(), scale=10.0)
        async with OpenAiClient(settings_for(server), capabilities=KNOWN) as client:
            settings = ExplainSettings(n_active=2, n_silent=1)
            async for _ in explain_features([ExplainTask(FeatureId(sae="s", index=0), samples)], client, settings):
                pass

    with LlmServer(watch) as server:
        asyncio.run(explain(server))
    assert [(len(feature["active"]), len(feature["silent"])) for feature in seen] == [(2, 1)]
