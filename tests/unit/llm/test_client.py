"""The client against a real server that fails on purpose: every request ends once, and costs what the ledger says."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from pydantic import BaseModel

from safe_sail.errors import (
    BadRecord,
    JudgeError,
    PriceUnknown,
)
from safe_sail.llm.client import OpenAiClient
from safe_sail.llm.exchange import Answered, Failed, FailureReason, Outcome
from safe_sail.settings import LlmSettings
from tests.llm_requests import KNOWN, Colour, a_request, ask_all, in_turn, one, settings_for
from tests.llm_server import Act, Call, Cut, Hang, Held, LlmServer, Raw, Say, Status

TOO_MANY = Status(429, (("retry-after-ms", "30"),))


def test_request_is_answered_with_its_usage():
    outcome, _ = one(lambda _: Say("hello", prompt_tokens=7, completion_tokens=3))
    assert isinstance(outcome, Answered)
    assert outcome.text == "hello"
    spending = outcome.spending
    assert (spending.attempts, spending.prompt_tokens, spending.completion_tokens) == (1, 7, 3)


def test_cost_is_unknown_where_the_price_is():
    outcome, _ = one(lambda _: Say("hello"))
    assert outcome.spending.cost is None


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Status(500), FailureReason.SERVER_ERROR),
        (Cut(), FailureReason.CONNECTION),
        (Raw("{"), FailureReason.BROKEN_RESPONSE),
        (Raw('{"choices": []}'), FailureReason.BROKEN_RESPONSE),
        (Raw("null"), FailureReason.BROKEN_RESPONSE),
    ],
)
def test_fault_is_tried_again_then_fails_with_its_reason_and_attempts(fault: Act, reason: FailureReason):
    healed, _ = one(in_turn(fault, fault, Say("ok")), max_attempts=3)
    assert isinstance(healed, Answered)
    assert healed.spending.attempts == 3
    failed, server = one(lambda _: fault, max_attempts=3)
    assert isinstance(failed, Failed)
    assert (failed.reason, failed.attempts, len(server.calls)) == (reason, 3, 3)
    assert failed.spending.assumed_tokens > 0, "the endpoint may bill what it did not finish"


def test_hanging_endpoint_times_out():
    outcome, server = one(lambda _: Hang(), timeout_s=0.3, max_attempts=2)
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.attempts) == (FailureReason.TIMEOUT, 2)
    assert len(server.calls) <= 2, "one that the server was too busy to read counts for the client alone"


@pytest.mark.parametrize(("header", "value", "least"), [("retry-after", "1", 1.0), ("retry-after-ms", "300", 0.3)])
def test_retry_after_is_obeyed(header: str, value: str, least: float):
    outcome, server = one(in_turn(Status(429, ((header, value),)), Say("ok")))
    assert isinstance(outcome, Answered)
    first, second = server.calls
    assert second.at - first.at >= least
    assert outcome.spending.assumed_tokens == 0, "a 429 costs nothing"


def test_retry_after_longer_than_allowed_fails_at_once():
    outcome, server = one(lambda _: Status(429, (("retry-after", "3600"),)))
    assert isinstance(outcome, Failed)
    assert outcome.reason is FailureReason.RATE_LIMITED
    assert "3600 s" in outcome.message
    assert len(server.calls) == 1


def test_rejections_are_bounded():
    outcome, server = one(lambda _: Status(429, (("retry-after-ms", "1"),)), max_rejections=5)
    assert isinstance(outcome, Failed)
    assert (outcome.reason, len(server.calls)) == (FailureReason.RATE_LIMITED, 5)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (Status(400), FailureReason.REQUEST_REFUSED),
        (Status(404), FailureReason.REQUEST_REFUSED),
        (Status(429, body='{"error": {"code": "insufficient_quota"}}'), FailureReason.QUOTA_EXHAUSTED),
        (Say("", refusal="I cannot help with that"), FailureReason.MODEL_REFUSED),
        (Say("half", finish_reason="content_filter"), FailureReason.MODEL_REFUSED),
        (Say("half an ans", finish_reason="length"), FailureReason.TRUNCATED),
    ],
)
def test_what_cannot_heal_is_not_tried_again(act: Act, reason: FailureReason):
    outcome, server = one(lambda _: act)
    assert isinstance(outcome, Failed)
    assert (outcome.reason, len(server.calls)) == (reason, 1)


def test_redirect_is_not_followed():
    with LlmServer(lambda _: Say("stolen")) as thief:
        outcome, _ = one(lambda _: Status(307, (("location", f"{thief.url}/chat/completions"),)))
    assert isinstance(outcome, Failed)
    assert outcome.reason is FailureReason.REQUEST_REFUSED
    assert thief.calls == []


def test_misfit_answer_is_asked_again_once_with_what_was_wrong():
    outcome, server = one(in_turn(Say('{"color": 1}'), Say('{"colour": "teal"}')), a_request("q", reply_type=Colour))
    assert isinstance(outcome, Answered)
    assert outcome.reply == Colour(colour="teal")
    assert outcome.spending.attempts == 2
    assert outcome.spending.prompt_tokens == 20
    question, answer, complaint = server.calls[1].body["messages"]
    assert (question["content"], answer["content"]) == ("q", '{"color": 1}')
    assert "colour: Field required" in complaint["content"]


def test_second_misfit_is_a_failure_that_keeps_the_raw_text():
    outcome, server = one(lambda _: Say("no JSON today"), a_request("q", reply_type=Colour))
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.raw) == (FailureReason.INVALID_REPLY, "no JSON today")
    assert len(server.calls) == 2


def test_answer_inside_prose_is_found():
    outcome, server = one(lambda _: Say('Sure! {"colour": "teal"} Anything else?'), a_request("q", reply_type=Colour))
    assert isinstance(outcome, Answered)
    assert outcome.reply == Colour(colour="teal")
    assert len(server.calls) == 1


def test_right_form_with_wrong_content_is_asked_again():
    def check(reply: BaseModel) -> None:
        assert isinstance(reply, Colour)
        if reply.colour != "teal":
            raise JudgeError(f"{reply.colour} is no colour here.")

    script = in_turn(Say('{"colour": "grey"}'), Say('{"colour": "teal"}'))
    outcome, server = one(script, a_request("q", reply_type=Colour, check=check))
    assert isinstance(outcome, Answered)
    assert "grey is no colour here" in server.calls[1].body["messages"][-1]["content"]


def test_every_request_ends_once_whatever_happens():
    acts = [TOO_MANY, Status(500), Cut(), Raw("[]"), Say("?"), Hang(0.05)]

    def script(call: Call) -> Act:
        number = int(call.asked)
        if number % 10 == 0:
            return acts[number // 10 % len(acts)]  # never heals
        return acts[number % len(acts)] if call.nth == 0 else Say('{"colour": "teal"}')

    names = [str(number) for number in range(120)]
    with LlmServer(script) as server:
        settings = settings_for(server, max_attempts=3, max_rejections=4)
        outcomes, client = ask_all(settings, [a_request(name, reply_type=Colour) for name in names])
    assert sorted(outcome.request_id for outcome in outcomes) == sorted(names)
    failed = {outcome.request_id for outcome in outcomes if isinstance(outcome, Failed)}
    assert failed == {name for name in names if name.endswith("0")}
    assert client.total.attempts == len(server.calls) == sum(outcome.spending.attempts for outcome in outcomes)
    assert client.total.prompt_tokens == server.prompt_tokens
    assert client.total.completion_tokens == server.completion_tokens
    assert client.total.assumed_tokens == sum(outcome.spending.assumed_tokens for outcome in outcomes)


def test_budget_in_tokens_is_never_exceeded_and_the_rest_fails_unsent():
    with LlmServer(lambda _: Say("ok", prompt_tokens=9, completion_tokens=20, seconds=0.01)) as server:
        settings = settings_for(server, budget_tokens=500)
        outcomes, client = ask_all(settings, [a_request(f"q{n}") for n in range(60)])
    answered = [outcome for outcome in outcomes if isinstance(outcome, Answered)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    # an attempt claims 10 or 11 prompt bytes and 20 of the answer, and settles at 29: at most 17 fit into 500
    assert len(answered) in {16, 17}
    assert server.prompt_tokens + server.completion_tokens == client.total.tokens <= 500
    assert {(outcome.reason, outcome.attempts) for outcome in failed} == {(FailureReason.BUDGET_EXHAUSTED, 0)}
    assert all(outcome.spending.cost == 0 for outcome in failed)


def test_budget_in_money_needs_a_price():
    settings = LlmSettings(base_url="http://127.0.0.1:9/v1", model="m", budget_money=1.0)
    with pytest.raises(PriceUnknown, match="price table lacks"):
        OpenAiClient(settings)


def test_limit_falls_on_429_to_what_was_accepted_and_requests_at_once_stay_below_the_setting():
    """Twelve are open at once; four of them are held until the eight others have been refused."""
    n_refused = 0

    def script(call: Call) -> Act:
        nonlocal n_refused
        if server.in_flight > 4:
            n_refused += 1
            return Held(lambda: len(server.calls) >= 12, TOO_MANY)
        return Held(lambda: n_refused >= 8, Say("ok"))

    async def run(settings: LlmSettings) -> tuple[list[Outcome], int]:
        async with OpenAiClient(settings, capabilities=KNOWN) as client:
            outcomes, lowest = [], client.in_flight_limit
            async for outcome in client.ask_all(a_request(str(n)) for n in range(100)):
                outcomes.append(outcome)
                lowest = min(lowest, client.in_flight_limit)
            return outcomes, lowest

    with LlmServer(script) as server:
        outcomes, lowest = asyncio.run(run(settings_for(server, max_in_flight=12)))
    assert [isinstance(outcome, Answered) for outcome in outcomes] == [True] * 100
    assert server.peak_in_flight == 12
    assert lowest <= 4


def test_kept_answers_cost_nothing_and_come_back_the_same(tmp_path: Path):
    with LlmServer(lambda call: Say(f'{{"colour": "{call.asked}"}}')) as server:
        settings = settings_for(server, cache_path=str(tmp_path / "answers.db"))
        requests = [a_request(str(n), reply_type=Colour) for n in range(5)]
        first, _ = ask_all(settings, requests)
        again, client = ask_all(settings, requests)
        other, _ = ask_all(settings, [a_request("0", reply_type=Colour, prompt_version="test/2")])
    assert len(server.calls) == 6
    assert {o.request_id: o.reply for o in first if isinstance(o, Answered)} == {
        o.request_id: o.reply for o in again if isinstance(o, Answered)
    }
    assert (client.total.attempts, client.total.cache_hits, client.total.cost) == (0, 5, 0)
    assert other[0].spending.attempts == 1


def test_failures_are_not_kept(tmp_path: Path):
    with LlmServer(in_turn(Say("?"), Say("?"), Say('{"colour": "teal"}'))) as server:
        settings = settings_for(server, cache_path=str(tmp_path / "answers.db"))
        first, _ = ask_all(settings, [a_request("q", reply_type=Colour)])
        second, _ = ask_all(settings, [a_request("q", reply_type=Colour)])
    assert isinstance(first[0], Failed)
    assert isinstance(second[0], Answered)


def test_leaving_early_cancels_what_is_open_and_counts_it():
    async def run(settings: LlmSettings) -> OpenAiClient:
        async with OpenAiClient(settings, capabilities=KNOWN) as client:
            async with aclosing(client.ask_all(a_request(str(n)) for n in range(50))) as outcomes:
                async for outcome in outcomes:
                    assert outcome.request_id == "0"
                    break
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return client

    with LlmServer(lambda call: Say("ok", seconds=0.0 if call.asked == "0" else 600.0)) as server:
        client = asyncio.run(run(settings_for(server)))
    assert client.total.attempts in {8, 9}, "eight at once, and perhaps the one that took the first one's place"
    assert client.total.assumed_tokens >= 7 * 20, "what was cancelled may be billed"


def test_request_id_that_comes_twice_is_refused():
    with LlmServer(lambda _: Say("ok")) as server, pytest.raises(BadRecord, match="`q` comes twice"):
        ask_all(settings_for(server), [a_request("q"), a_request("q")])
