"""Prices are exact, dated and told apart by endpoint; what is unknown stays unknown."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from safe_sail.errors import BadSettings
from safe_sail.llm.exchange import ChatRequest, Message, Usage
from safe_sail.llm.pricing import Price, forecast, load_prices
from safe_sail.llm.tokens import estimate_prompt

PRICE = Price(
    input=Decimal("0.15"), output=Decimal("0.60"), batch_factor=Decimal("0.5"), as_of=date(2026, 1, 2), source="a page"
)


def test_shipped_prices_are_dated_and_positive():
    table = load_prices()
    assert len(table.prices) >= 5
    for price in table.prices.values():
        assert price.input > 0
        assert price.output > 0
        assert date(2024, 1, 1) < price.as_of
        assert "compare with the vendor" in price.source


def test_price_belongs_to_an_endpoint():
    table = load_prices()
    known = table.price_of(base_url="https://api.openai.com/v1", model="gpt-4o-mini")
    assert known is not None
    assert known.cost(Usage(1_000_000, 1_000_000)) == Decimal("0.75")
    assert table.price_of(base_url="http://127.0.0.1:8000/v1", model="gpt-4o-mini") is None
    assert table.price_of(base_url="https://api.openai.com/v1", model="gpt-99") is None


def test_cost_is_exact():
    assert PRICE.cost(Usage(1, 1)) == Decimal("0.00000075")
    batch = PRICE.in_batch()
    assert batch is not None
    assert batch.cost(Usage(2, 2)) == Decimal("0.00000075")
    assert batch.in_batch() is None


def test_users_rows_stand_over_the_shipped_ones(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("127.0.0.1:\n  m: {input: 0, output: 0.1, as_of: 2026-05-01, source: my electricity}\n")
    table = load_prices(path)
    mine = table.price_of(base_url="http://127.0.0.1:8000/v1", model="m")
    assert mine is not None
    assert (mine.cost(Usage(10, 10)), mine.batch_factor) == (Decimal("0.000001"), None)
    assert table.price_of(base_url="https://api.openai.com/v1", model="gpt-4o") is not None


@pytest.mark.parametrize(
    "text",
    [
        "- a list",
        "host: {m: {input: 1}}",
        "host: {m: {input: x, output: 1, as_of: 2026-01-01, source: s}}",
        "host: {m: {input: .nan, output: 1, as_of: 2026-01-01, source: s}}",
        "host: {m: {input: -1, output: 1, as_of: 2026-01-01, source: s}}",
        "host: {m: {input: 1, output: 1, as_of: yesterday, source: s}}",
        "host: {m: [",
        "",
    ],
)
def test_malformed_table_is_refused(text: str, tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(BadSettings, match=r"bad\.yaml"):
        load_prices(path)


def test_missing_table_is_refused(tmp_path: Path):
    with pytest.raises(BadSettings, match="No such file"):
        load_prices(tmp_path / "none.yaml")


def test_forecast_says_what_a_run_would_cost():
    requests = [
        ChatRequest(request_id=str(n), messages=(Message("user", "word " * 100),), prompt_version="1", max_tokens=50)
        for n in range(3)
    ]
    prompt = 3 * estimate_prompt(requests[0].messages)
    known, unknown = forecast(requests, PRICE), forecast(requests, None)
    assert (known.n_requests, known.prompt_tokens, known.completion_tokens) == (3, prompt, 150)
    assert known.cost == (Decimal("0.15") * prompt + Decimal("0.60") * 150) / 1_000_000
    assert known.cost_worst is not None
    assert known.cost_worst > 2 * known.cost
    assert "(a page, 2026-01-02)" in str(known)
    assert (unknown.cost, unknown.prompt_tokens) == (None, prompt)
    assert str(unknown).endswith("the price is unknown.")
