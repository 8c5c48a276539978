"""What an endpoint is at the start, and what never reaches it or leaves it: keys, environment, redirects."""

import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from pydantic import SecretStr

from safe_sail.errors import (
    BadSettings,
    BudgetExhausted,
    EndpointRefused,
    EndpointUnreachable,
)
from safe_sail.llm.client import OpenAiClient
from safe_sail.llm.endpoint import _retry_after
from safe_sail.llm.exchange import Answered, Failed
from safe_sail.llm.probe import Capabilities
from safe_sail.settings import LlmSettings
from tests.llm_requests import Colour, a_request, ask_all, one, settings_for
from tests.llm_server import Act, Call, LlmServer, Raw, Say, Status


def test_endpoint_that_is_down_is_said_at_start():
    settings = LlmSettings(base_url="http://127.0.0.1:9/v1", model="m")
    with pytest.raises(EndpointUnreachable, match=r"m at http://127.0.0.1:9/v1: no connection to the endpoint"):
        ask_all(settings, [], capabilities=None)


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (Status(401), EndpointRefused),
        (Status(404), EndpointRefused),
        (Status(400), EndpointRefused),
        (Status(500), EndpointUnreachable),
        (Raw("<html>"), EndpointUnreachable),
    ],
)
def test_endpoint_that_refuses_is_said_at_start(act: Act, error: type[Exception]):
    with LlmServer(lambda _: act) as server, pytest.raises(error):
        ask_all(settings_for(server), [], capabilities=None)


def test_budget_below_a_probe_is_said_at_start():
    with LlmServer(lambda _: Say("ok")) as server, pytest.raises(BudgetExhausted, match="0 of 50 tokens are spent"):
        ask_all(settings_for(server, budget_tokens=50), [], capabilities=None)


def test_probe_believes_only_what_it_sees():
    def honest(call: Call) -> Act:
        shaped = "response_format" in call.body
        return Say('{"password": "teal-417"}' if shaped else "Hello!", logprobs="logprobs" in call.body)

    def strict(call: Call) -> Act:
        return Status(400) if {"response_format", "logprobs"} & set(call.body) else Say("Hello!", with_usage=False)

    seen = {}
    for name, script in {"honest": honest, "polite": lambda _: Say("Hello!"), "strict": strict}.items():
        with LlmServer(script) as server:
            _, client = ask_all(settings_for(server), [], capabilities=None)
        seen[name] = tuple(client.capabilities)
    assert seen == {"honest": (True, True, True), "polite": (False, False, True), "strict": (False, False, False)}


def test_schema_is_sent_only_where_it_is_honoured():
    sent = {}
    for honoured in (True, False):
        with LlmServer(lambda _: Say('{"colour": "teal"}')) as server:
            capabilities = Capabilities(schema=honoured, logprobs=False, usage=True)
            ask_all(settings_for(server), [a_request("q", reply_type=Colour)], capabilities=capabilities)
        sent[honoured] = server.calls[0].body.get("response_format", {}).get("json_schema", {}).get("name")
    assert sent == {True: "Colour", False: None}


def test_key_is_in_no_text_that_leaves_the_client(caplog: pytest.LogCaptureFixture):
    key = "sk-very-secret-0123456789"
    caplog.set_level(logging.DEBUG)
    with LlmServer(lambda call: Status(401, body=f"bad key {call.headers['authorization']}")) as server:
        outcomes, client = ask_all(settings_for(server), [a_request("q")], api_key=SecretStr(key))
        with pytest.raises(EndpointRefused) as refused:
            ask_all(settings_for(server), [], api_key=SecretStr(key), capabilities=None)
    assert server.calls[0].headers["authorization"] == f"Bearer {key}"
    (outcome,) = outcomes
    assert isinstance(outcome, Failed)
    assert "[key]" in outcome.message
    texts = [
        repr(outcome),
        repr(client),
        repr(client.__dict__),
        str(refused.value),
        repr(settings_for(server)),
        caplog.text,
    ]
    assert caplog.text, "the SDK logs at this level"
    assert not [text for text in texts if key in text]


def test_environment_adds_nothing_to_a_request(monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "OPENAI_API_KEY": "sk-env",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
        "OPENAI_ORG_ID": "org-env",
        "OPENAI_PROJECT_ID": "proj-env",
        "OPENAI_CUSTOM_HEADERS": "X-Env: 1",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    outcome, server = one(lambda _: Say("ok"))
    assert isinstance(outcome, Answered)
    sent = server.calls[0].headers
    assert not {"authorization", "x-env", "openai-organization", "openai-project"} & set(sent)
    assert "env" not in str(sent)


def test_key_over_plain_http_to_another_machine_is_refused():
    settings = LlmSettings(base_url="http://llm.example/v1", model="m")
    with pytest.raises(BadSettings, match=r"plain http to llm\.example"):
        OpenAiClient(settings, api_key=SecretStr("sk"))
    OpenAiClient(
        LlmSettings(base_url="http://llm.example/v1", model="m", allow_plain_http=True), api_key=SecretStr("sk")
    )


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read(headers: dict[str, str], seconds: float | None):
    assert _retry_after(headers) == seconds


def test_retry_after_may_be_a_date():
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    wait = _retry_after({"retry-after": in_a_minute})
    assert wait is not None
    assert 58 < wait <= 60
    assert _retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
