"""Whatever mix of faults a server answers with: every request ends once, the ledger is the server's, budgets hold."""

import time
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safe_sail.llm.exchange import Answered, Failed
from tests.llm_requests import Colour, a_request, ask_all, settings_for
from tests.llm_server import Act, Call, Cut, Hang, LlmServer, Raw, Say, Status

GOOD = '{"colour": "teal"}'
ACTS: list[Act] = [
    Say(GOOD),
    Say(GOOD, prompt_tokens=3, completion_tokens=2),
    Say(GOOD, with_usage=False),
    Say("no JSON"),
    Say('{"colour": 1}', prompt_tokens=6),
    Say("", refusal="no"),
    Status(429, (("retry-after-ms", "5"),)),
    Status(429),
    Status(400),
    Status(503, (("retry-after", "0"),)),
    Cut(),
    Raw("{}"),
    Hang(0.0),
]


@given(
    scripts=st.lists(st.lists(st.sampled_from(ACTS), min_size=1, max_size=5), min_size=1, max_size=15),
    changes=st.fixed_dictionaries(
        {
            "max_in_flight": st.integers(1, 6),
            "max_attempts": st.integers(1, 3),
            "max_rejections": st.integers(1, 3),
            "budget_tokens": st.one_of(st.none(), st.integers(1, 1500)),
        }
    ),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_request_ends_once_and_the_ledger_is_the_servers(scripts: list[list[Act]], changes: dict[str, Any]):
    def script(call: Call) -> Act:
        acts = scripts[int(call.asked)]
        return acts[min(call.nth, len(acts) - 1)]

    names = [str(number) for number in range(len(scripts))]
    with LlmServer(script) as server:
        outcomes, client = ask_all(
            settings_for(server, backoff_s=0.001, **changes), [a_request(name, reply_type=Colour) for name in names]
        )
    assert sorted(outcome.request_id for outcome in outcomes) == sorted(names)
    assert all(isinstance(outcome, Answered | Failed) for outcome in outcomes)
    total = client.total
    assert total.attempts == len(server.calls)
    assert (total.prompt_tokens, total.completion_tokens) == (server.prompt_tokens, server.completion_tokens)
    for name in ("attempts", "prompt_tokens", "completion_tokens", "assumed_tokens"):
        assert getattr(total, name) == sum(getattr(outcome.spending, name) for outcome in outcomes)
    assert changes["budget_tokens"] is None or total.tokens <= changes["budget_tokens"]
    assert server.peak_in_flight <= changes["max_in_flight"]


def test_rate_limited_server_answers_everything_with_few_rejections():
    window: list[float] = []

    def script(call: Call) -> Act:
        """Allows ten requests in half a second."""
        now = time.monotonic()
        window[:] = [at for at in window if now - at < 0.5]
        if len(window) >= 10:
            return Status(429, (("retry-after-ms", str(int(1000 * (0.5 - (now - window[0]))) + 1)),))
        window.append(now)
        return Say("ok", seconds=0.02)

    with LlmServer(script) as server:
        outcomes, client = ask_all(settings_for(server, max_in_flight=16), [a_request(str(n)) for n in range(50)])
    assert all(isinstance(outcome, Answered) for outcome in outcomes)
    assert client.total.attempts == len(server.calls) < 3 * 50
