"""By default a feature takes a call to explain and one to judge: 3,000 prompt tokens for both, whatever its texts."""

import pytest

from safe_sail.features.explain import explanation_requests
from safe_sail.features.judge import JudgeTask, judging_requests
from safe_sail.features.prompts import FeatureSamples
from safe_sail.llm.exchange import ChatRequest
from safe_sail.llm.tokens import estimate_tokens
from safe_sail.records import Context, Explanation, FeatureId
from safe_sail.settings import ExplainSettings, JudgeSettings
from tests.feature_samples import HOSTILE, a_context

FEATURE = FeatureId(sae="s", index=0)
WORDS = {"short": "a kill b", "long": " ".join(["one two three, kill! four"] * 60), "strange": " kill ".join(HOSTILE)}
EXPLANATION = Explanation(feature=FEATURE, text="violence " * 60, explainer="e", prompt_version="1")


def contexts(text: str, active: bool) -> tuple[Context, ...]:
    """Forty texts, each with another number before it."""
    said = text if active else text.replace("kill", "bake")
    return tuple(a_context(f"{place} {said}", {"kill": 1.0 + place / 4} if active else None) for place in range(40))


def requests_for(text: str, explain: ExplainSettings, judge: JudgeSettings) -> list[list[ChatRequest]]:
    """Requests that explain and that judge."""
    samples = FeatureSamples(active=contexts(text, True), silent=contexts(text, False), scale=10.0)
    asked = [one for one in explanation_requests([(FEATURE, samples)], explain) if isinstance(one, ChatRequest)]
    task = JudgeTask(EXPLANATION, (*contexts(text, True), *contexts(text, False)), 10.0)
    return [asked, list(judging_requests([task], judge, seed=0, with_control=False))]


def tokens(request: ChatRequest) -> int:
    return sum(estimate_tokens(message.content) for message in request.messages)


@pytest.mark.parametrize("kind", WORDS)
def test_two_calls_and_three_thousand_prompt_tokens_are_enough_for_any_feature(kind: str):
    explaining, judging = requests_for(WORDS[kind], ExplainSettings(), JudgeSettings())
    assert len(explaining) == len(judging) == 1
    assert JudgeSettings().max_calls == 1  # so no later round asks again
    assert max(map(tokens, explaining + judging)) <= 1500
    assert sum(map(tokens, explaining + judging)) <= 3000


def test_without_the_limits_long_texts_take_more():
    explaining, judging = requests_for(
        WORDS["long"],
        ExplainSettings(max_prompt_tokens=10**6, tokens_before=400),
        JudgeSettings(max_prompt_tokens=10**6, tokens_before=400),
    )
    assert min(map(tokens, explaining + judging)) > 1500
