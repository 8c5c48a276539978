"""Settings of the client refuse what cannot be asked, and hold no key."""

import json
from dataclasses import asdict, fields

import pytest

from safe_sail.errors import BadSettings
from safe_sail.settings import ExplainSettings, JudgeSettings, LlmSettings

URL = "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1",
        "host/v1",
        "http:///v1",
        "file:///etc/passwd",
        "http://user:word@host/v1",
        "http://h/v1?key=1",
        "",
    ],
)
def test_url_that_is_no_endpoint_is_refused_without_showing_its_password(url: str):
    with pytest.raises(BadSettings, match="base_url") as refused:
        LlmSettings(base_url=url, model="m")
    assert "word@" not in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        {"model": ""},
        {"max_in_flight": 0},
        {"max_attempts": 0},
        {"timeout_s": 0.0},
        {"backoff_s": -1.0},
        {"budget_tokens": 0},
        {"budget_money": 0.0},
        {"requests_per_minute": 0},
        {"completion_field": "tokens"},
    ],
)
def test_settings_out_of_range_name_the_field(change: dict[str, object]):
    with pytest.raises(BadSettings, match=next(iter(change))):
        LlmSettings(**{"base_url": URL, "model": "m", **change})  # type: ignore[arg-type]


def test_settings_become_json_and_have_no_place_for_a_key():
    settings = LlmSettings(base_url=URL, model="m", budget_money=1.5)
    assert json.loads(json.dumps(asdict(settings)))["budget_money"] == 1.5
    assert not [field.name for field in fields(LlmSettings) if "key" in field.name or "secret" in field.name]


def test_two_calls_stay_within_three_thousand_prompt_tokens_by_default():
    assert ExplainSettings().max_prompt_tokens + JudgeSettings().max_prompt_tokens == 3000
    assert JudgeSettings().max_calls == 1
    with pytest.raises(BadSettings, match="n_contexts"):
        JudgeSettings(n_contexts=0)
