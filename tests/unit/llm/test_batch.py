"""A batch's files hold every request once, and its results end every request answered or failed."""

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from safe_sail.errors import BadRecord, BatchUnreadable, BudgetExhausted
from safe_sail.llm.batch import line_id, read_batch, write_batch
from safe_sail.llm.exchange import Answered, ChatRequest, Failed, FailureReason, Message
from safe_sail.llm.pricing import load_prices
from safe_sail.settings import LlmSettings
from tests.llm_server import Say, completion

SETTINGS = LlmSettings(base_url="https://api.openai.com/v1", model="gpt-4o-mini")


class Colour(BaseModel):
    colour: str


def requests(n: int) -> list[ChatRequest]:
    return [
        ChatRequest(
            request_id=f"f/{number}",
            messages=(Message("user", f"text {number} ü\n"),),
            prompt_version="1",
            reply_type=Colour,
            max_tokens=10,
        )
        for number in range(n)
    ]


def result(number: int, say: Say | None, *, status: int = 200, error: object = None) -> str:
    body: Any = completion(say) if say else {"error": {"message": "no"}}
    response = None if error else {"status_code": status, "body": body}
    (*_, request) = requests(number + 1)
    return json.dumps({"id": "b", "custom_id": line_id(request), "response": response, "error": error})


def test_files_hold_every_request_once(tmp_path: Path):
    paths = write_batch(requests(5), tmp_path / "batch", settings=SETTINGS, price=None, max_requests=2)
    assert [path.name for path in paths] == [f"requests_{n:03d}.jsonl" for n in range(3)]
    assert sorted(path.name for path in (tmp_path / "batch").iterdir()) == [path.name for path in paths]
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    assert [line["custom_id"].partition("~")[0] for line in lines] == [f"f/{n}" for n in range(5)]
    assert len({line["custom_id"].partition("~")[2] for line in lines}) == 5
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    first = lines[0]["body"]
    assert first["messages"] == [{"role": "user", "content": "text 0 ü\n"}]
    assert (first["model"], first["max_tokens"]) == ("gpt-4o-mini", 10)
    assert first["response_format"]["json_schema"]["name"] == "Colour"


def test_batch_beyond_the_budget_writes_nothing(tmp_path: Path):
    settings = LlmSettings(base_url=SETTINGS.base_url, model=SETTINGS.model, budget_tokens=60)
    with pytest.raises(BudgetExhausted):
        write_batch(requests(5), tmp_path / "batch", settings=settings, price=None)
    assert not (tmp_path / "batch").exists()


def test_second_batch_in_one_folder_is_refused(tmp_path: Path):
    write_batch(requests(1), tmp_path, settings=SETTINGS, price=None)
    with pytest.raises(BatchUnreadable, match="already holds"):
        write_batch(requests(1), tmp_path, settings=SETTINGS, price=None)


def test_repeated_id_writes_nothing(tmp_path: Path):
    with pytest.raises(BadRecord, match="comes twice"):
        write_batch([*requests(2), *requests(1)], tmp_path / "batch", settings=SETTINGS, price=None)
    assert not (tmp_path / "batch").exists()


def test_every_request_ends_answered_or_failed_with_its_cost(tmp_path: Path):
    output, errors = tmp_path / "output.jsonl", tmp_path / "errors.jsonl"
    good = Say('{"colour": "teal"}', prompt_tokens=100, completion_tokens=10)
    output.write_text(
        "\n".join(
            [
                result(1, Say("?", prompt_tokens=100, completion_tokens=10)),
                result(0, good),
                result(3, Say("", refusal="no")),
                result(4, Say('{"col', finish_reason="length")),
                json.dumps(
                    {"custom_id": line_id(requests(8)[7]), "response": {"status_code": 200, "body": {"choices": []}}}
                ),
            ]
        )
    )
    errors.write_text(result(2, None, status=500) + "\n\n" + result(5, None, error={"code": "batch_expired"}) + "\n")
    listed = load_prices().price_of(base_url=SETTINGS.base_url, model=SETTINGS.model)
    assert listed is not None
    outcomes = read_batch(requests(8), [output, errors], price=listed.in_batch())
    assert [outcome.request_id for outcome in outcomes] == [f"f/{n}" for n in range(8)]
    answered = outcomes[0]
    assert isinstance(answered, Answered)
    assert answered.reply == Colour(colour="teal")
    # half of 100 x 0.15 + 10 x 0.60 millionths
    assert answered.spending.cost == Decimal("0.0000105")
    reasons = [outcome.reason for outcome in outcomes[1:] if isinstance(outcome, Failed)]
    assert reasons == [
        FailureReason.INVALID_REPLY,
        FailureReason.SERVER_ERROR,
        FailureReason.MODEL_REFUSED,
        FailureReason.TRUNCATED,
        FailureReason.SERVER_ERROR,
        FailureReason.MISSING,
        FailureReason.BROKEN_RESPONSE,
    ]
    assert isinstance(outcomes[1], Failed)
    assert (outcomes[1].raw, outcomes[1].spending.prompt_tokens) == ("?", 100), "a misfit was paid for"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (result(0, Say("x")) + "\n" + result(1, Say("x"))[:40], "line 2: expected a result"),
        (result(0, Say("x")) + "\n" + result(0, Say("x")), "line 2: `f/0~[0-9a-f]+` has a result already"),
        (result(9, Say("x")), "line 1: `f/9~[0-9a-f]+` is none of the 2 requests"),
    ],
)
def test_damaged_results_are_refused(text: str, problem: str, tmp_path: Path):
    path = tmp_path / "output.jsonl"
    path.write_text(text)
    with pytest.raises(BatchUnreadable, match=problem):
        read_batch(requests(2), [path], price=None)


def test_missing_results_are_refused(tmp_path: Path):
    with pytest.raises(BatchUnreadable, match="No such file"):
        read_batch(requests(1), [tmp_path / "none.jsonl"], price=None)


def test_an_answer_is_taken_for_its_own_question_alone(tmp_path: Path):
    asked, other = requests(1)[0], replace(requests(1)[0], messages=(Message("user", "another text"),))
    (tmp_path / "output.jsonl").write_text(result(0, Say('{"colour": "teal"}')))
    outcomes = read_batch([asked], [tmp_path / "output.jsonl"], price=None)
    assert isinstance(outcomes[0], Answered)
    with pytest.raises(BatchUnreadable, match="is none of the 1 requests"):
        read_batch([other], [tmp_path / "output.jsonl"], price=None)


def test_a_line_that_was_asked_again_counts_as_it_ended(tmp_path: Path):
    files = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    files[0].write_text(result(0, None, status=500))
    files[1].write_text(result(0, Say('{"colour": "teal"}')))
    for order in (files, files[::-1]):
        (outcome,) = read_batch(requests(1), order, price=None)
        assert isinstance(outcome, Answered)
