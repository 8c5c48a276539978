"""The client, prompts and parsers against `transformers serve`: another program's HTTP, chat template and sampling.

The served model is a tiny Qwen2 trained here until it knows one answer by heart, whatever it is asked.
"""

import asyncio
from collections.abc import Iterator

import pytest

from safe_sail.errors import EndpointRefused
from safe_sail.features.judge_prompts import SegmentReply
from safe_sail.features.prompts import ExplanationReply, FeatureSamples, Prompt, explanation_prompt, read_explanations
from safe_sail.llm.client import OpenAiClient
from safe_sail.llm.exchange import Answered, ChatRequest, Failed, FailureReason, Message, Outcome
from safe_sail.llm.probe import Capabilities
from safe_sail.llm.tokens import estimate_prompt, estimate_tokens
from safe_sail.settings import LlmSettings
from tests.feature_samples import HOSTILE, a_context, active_contexts, silent_contexts
from tests.served import serving, write_model

pytestmark = pytest.mark.slow

ANSWER = '{"explanations":[{"id":"A","explanation":"violence against people"}]}'
STEPS = 150


def prompts() -> list[Prompt]:
    """Different explanation prompts, one with hostile contexts."""
    hostile = tuple(a_context(f"kill {text}", {"kill": 5.0}) for text in HOSTILE)
    samples = [
        FeatureSamples(active=active_contexts(), silent=silent_contexts(), scale=10.0),
        FeatureSamples(active=active_contexts()[2:], silent=silent_contexts()[:1], scale=7.0),
        FeatureSamples(active=hostile, scale=5.0),
    ]
    return [explanation_prompt([each], count_tokens=estimate_tokens, max_tokens=1500) for each in samples]


def messages_of(prompt: Prompt) -> tuple[Message, ...]:
    return Message("system", prompt.system), Message("user", prompt.user)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlmSettings]:
    folder = tmp_path_factory.mktemp("served") / "model"
    questions = [messages_of(prompt) for prompt in prompts()[:2]] + [(Message("user", "Say hello."),)]
    write_model(folder, [(question, ANSWER) for question in questions], STEPS)
    with serving(folder) as settings:
        yield settings


def ask(settings: LlmSettings, requests: list[ChatRequest]) -> tuple[list[Outcome], OpenAiClient]:
    async def run() -> tuple[list[Outcome], OpenAiClient]:
        async with OpenAiClient(settings) as client:
            return [outcome async for outcome in client.ask_all(requests)], client

    return asyncio.run(run())


def test_explanations_come_from_a_served_model_and_what_it_cannot_do_is_seen(served: LlmSettings):
    def check(reply: object) -> None:
        assert isinstance(reply, ExplanationReply)
        read_explanations(reply, 1)

    requests = [
        ChatRequest(
            request_id=str(number),
            messages=messages_of(prompt),
            prompt_version=prompt.version,
            reply_type=ExplanationReply,
            check=check,
            max_tokens=80,
        )
        for number, prompt in enumerate(prompts())
    ]
    outcomes, client = ask(served, requests)
    assert client.capabilities == Capabilities(schema=False, logprobs=False, usage=True), "it ignores both silently"
    answered = {o.request_id: o for o in outcomes if isinstance(o, Answered)}
    assert sorted(answered) == ["0", "1", "2"]
    for outcome in answered.values():
        assert isinstance(outcome.reply, ExplanationReply)
        assert read_explanations(outcome.reply, 1) == ["violence against people"]
        assert outcome.spending.attempts == 1
        assert outcome.spending.prompt_tokens > 0
        assert outcome.spending.cost is None
    first = answered["0"].spending
    assert first.completion_tokens <= 80
    assert estimate_prompt(requests[0].messages) > 0


def test_answer_of_another_form_is_a_failure_with_its_text(served: LlmSettings):
    request = ChatRequest(
        request_id="s",
        messages=messages_of(prompts()[0]),
        prompt_version="1",
        reply_type=SegmentReply,
        max_tokens=80,
    )
    (outcome,), _ = ask(served, [request])
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.attempts) == (FailureReason.INVALID_REPLY, 2)
    assert outcome.raw is not None
    assert "explanations" in outcome.raw


def test_model_that_the_server_does_not_serve_is_said_at_start(served: LlmSettings):
    other = LlmSettings(base_url=served.base_url, model="another-model")
    with pytest.raises(EndpointRefused, match="another-model"):
        ask(other, [])
