"""What is spent and what is claimed never exceed the budget, in whatever order attempts claim and settle."""

import asyncio
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_sail.errors import BudgetExhausted, PriceUnknown
from safe_sail.llm.budget import Amount, Budget, Claim
from safe_sail.llm.exchange import Usage
from safe_sail.llm.pricing import Price

PRICE = Price(input=Decimal("2"), output=Decimal("8"), batch_factor=None, as_of=date(2026, 1, 1), source="test")
TOKENS = st.integers(0, 400)


@given(
    limit=st.integers(1, 1000),
    money=st.one_of(st.none(), st.decimals("0.0001", "0.01", places=4)),
    steps=st.lists(st.tuples(TOKENS, TOKENS, st.floats(0, 1), st.integers(0, 5)), max_size=40),
)
def test_budget_is_never_exceeded(limit: int, money: Decimal | None, steps: list[tuple[int, int, float, int]]):
    budget = Budget(tokens=limit, money=money, price=PRICE)
    claims: list[Claim] = []
    naive_tokens = 0
    for prompt, completion, used_share, settle_at in steps:
        try:
            claim = budget.try_claim(Usage(prompt, completion))
        except BudgetExhausted:
            claim = None
        if claim is not None:
            claims.append(claim)
        if claims and settle_at < len(claims):
            settled = claims.pop(settle_at)
            used = Usage(
                int(settled.bound.prompt_tokens * used_share), int(settled.bound.completion_tokens * used_share)
            )
            budget.settle(settled, used)
            naive_tokens += sum(used)
        assert budget.spent.tokens == naive_tokens
        assert budget.spent.tokens + budget.held.tokens <= limit
        assert budget.held.tokens == sum(sum(claim.bound) for claim in claims)
        assert budget.spent.money is not None
        assert budget.held.money is not None
        assert money is None or budget.spent.money + budget.held.money <= money


def test_claim_waits_for_others_that_may_settle_for_less():
    async def run() -> list[str]:
        budget = Budget(tokens=100, money=None, price=None)
        first = await budget.claim(Usage(40, 40))
        events = []

        async def second() -> None:
            await budget.claim(Usage(40, 40))
            events.append("claimed")

        task = asyncio.create_task(second())
        await asyncio.sleep(0)
        events.append("settled")
        budget.settle(first, Usage(10, 10))
        await task
        return events

    assert asyncio.run(run()) == ["settled", "claimed"]


def test_claim_that_can_never_fit_is_refused_without_waiting():
    budget = Budget(tokens=100, money=None, price=None)
    claim = budget.try_claim(Usage(10, 10))
    assert claim is not None
    budget.settle(claim, Usage(10, 10))
    with pytest.raises(BudgetExhausted, match="20 of 100 tokens are spent, it may take 90"):
        budget.try_claim(Usage(50, 40))


def test_money_is_exact():
    budget = Budget(tokens=None, money=Decimal("0.000010"), price=PRICE)
    claim = budget.try_claim(Usage(1, 1))  # 2 + 8 millionths of a dollar
    assert claim is not None
    assert budget.settle(claim, Usage(1, 1)) == Decimal("0.000010")
    with pytest.raises(BudgetExhausted, match="US dollars"):
        budget.try_claim(Usage(1, 0))


def test_unknown_price_leaves_money_unknown():
    budget = Budget(tokens=None, money=None, price=None)
    claim = budget.try_claim(Usage(5, 5))
    assert claim is not None
    assert budget.settle(claim, Usage(5, 5)) is None
    assert budget.spent == Amount(10, None)


def test_money_without_a_price_is_refused():
    with pytest.raises(PriceUnknown):
        Budget(tokens=None, money=Decimal(1), price=None)
