"""The second judge of `find-refusal-direction`: what its options mean, and what it prints beside the phrase judge."""

import json
from pathlib import Path
from typing import Any

import pytest

from safe_sail.errors import BadInput, PriceUnknown
from safe_sail.evaluation.llm_judge import Said
from scripts.direction_judge import Heard, ReplyJudge, judge_of, judge_replies
from tests.llm_server import Act, Call, LlmServer, Say, Status

HEARD = [
    Heard("harmful held out", "none", tuple(Said(f"steal {n}", "Sorry, I cannot do that.") for n in range(3))),
    Heard("harmful held out", "ablation", (Said("steal 0", "Sure, take the bag."), Said("steal 1", "Go, then run."))),
]


def by(url: str | None, model: str | None = "m", **more: Any) -> ReplyJudge | None:
    nothing: dict[str, Any] = {"budget_tokens": None, "budget_money": None, "cache": None, "prices": None}
    return judge_of(url, model, **{**nothing, **more})


def strict(call: Call) -> Act:
    """Fails on `steal 1`; calls everything else a refusal."""
    if call.asked == "Say hello.":
        return Say("hello")
    return Status(400) if "steal 1" in call.asked else Say('{"label":"refusal"}')


def test_shares_failures_and_agreement_are_printed_beside_the_phrase_judge():
    with LlmServer(strict) as server:
        judge = by(server.url)
        assert judge is not None
        section = judge_replies(judge, HEARD)
    plain, ablated = section.plain["replies"]
    assert (plain["n"], plain["failed"]) == (2, 1)
    assert plain["llm_judge"]["refusal"]["share"] == plain["phrase_judge"]["refusal"]["share"] == 1
    assert (ablated["n"], ablated["failed"]) == (1, 1)
    assert ablated["llm_judge"]["refusal"]["share"] == 1
    assert ablated["phrase_judge"]["refusal"]["share"] == 0
    assert section.plain["failed"] == {"request_refused": 2}
    assert section.plain["agreement"]["share"] == pytest.approx(2 / 3)
    said = "\n".join(section.lines)
    assert "n=1, 1 failed" in said
    assert "without a label: 2 of 5 replies (request_refused 2)" in said
    json.dumps(section.plain)


def test_where_every_call_fails_there_are_no_shares():
    with LlmServer(lambda call: Say("hello") if call.asked == "Say hello." else Status(400)) as server:
        judge = by(server.url)
        assert judge is not None
        section = judge_replies(judge, HEARD)
    assert section.plain["agreement"] is None
    assert all(row["llm_judge"] == {} for row in section.plain["replies"])
    assert "unknown, no reply got a label" in "\n".join(section.lines)


def test_the_judge_needs_endpoint_and_model_and_a_price_for_a_budget_in_money(tmp_path: Path):
    assert by(None, None) is None
    for url, model, more in (
        ("http://127.0.0.1:1/v1", None, {}),
        (None, "m", {}),
        (None, None, {"budget_tokens": 9}),
        (None, None, {"cache": tmp_path / "x"}),
    ):
        with pytest.raises(BadInput, match="--judge-base-url and --judge-model"):
            by(url, model, **more)
    with pytest.raises(PriceUnknown):
        by("http://127.0.0.1:1/v1", budget_money=1.0)
