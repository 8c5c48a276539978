"""A hard limit on tokens and money, held before anything is sent.

1. Every attempt claims its worst case (bound of the prompt, all of max_tokens) before it is sent.
2. It settles with what the endpoint reports; an attempt that may be billed but reported nothing keeps its claim.
3. What is spent and what is claimed together never exceed the limit. A claim that does not fit now but may fit once
   others settle waits; one that cannot fit any more is refused.
"""

import asyncio
from decimal import Decimal
from typing import NamedTuple, Self

from safe_sail.errors import BudgetExhausted, PriceUnknown
from safe_sail.llm.exchange import Usage
from safe_sail.llm.pricing import Price
from safe_sail.settings import LlmSettings


class Amount(NamedTuple):
    """Tokens and, where the price is known, money."""

    tokens: int
    money: Decimal | None


class Claim(NamedTuple):
    """Worst case of one attempt, held until it settles."""

    bound: Usage
    amount: Amount


class Budget:
    """What all requests of a run may cost together."""

    def __init__(self, *, tokens: int | None, money: Decimal | None, price: Price | None) -> None:
        """A budget of so many tokens and US dollars; None is no limit.

        Raises:
            PriceUnknown: money is limited and the price is not known.
        """
        if money is not None and price is None:
            raise PriceUnknown(
                f"a budget of {money} US dollars needs the model's price, which the price table lacks: "
                "add the price to a table of your own, or set a budget in tokens."
            )
        self._limit_tokens = tokens
        self._limit_money = money
        self._price = price
        self._spent = Amount(0, None if price is None else Decimal(0))
        self._held = self._spent
        self._changed = asyncio.Event()

    @classmethod
    def of(cls, settings: LlmSettings, price: Price | None) -> Self:
        """The budget that the settings name.

        Raises:
            PriceUnknown: money is limited and the price is not known.
        """
        money = None if settings.budget_money is None else Decimal(str(settings.budget_money))
        return cls(tokens=settings.budget_tokens, money=money, price=price)

    @property
    def spent(self) -> Amount:
        """Reported and assumed so far."""
        return self._spent

    @property
    def held(self) -> Amount:
        """Claimed by attempts that have not settled."""
        return self._held

    async def claim(self, bound: Usage) -> Claim:
        """Holds the worst case of one attempt, after waiting for others to settle where that can help.

        Raises:
            BudgetExhausted: it does not fit, whatever the open attempts turn out to cost.
        """
        while (claim := self.try_claim(bound)) is None:
            await self._changed.wait()
        return claim

    def try_claim(self, bound: Usage) -> Claim | None:
        """Claim of the worst case; None where it only fits once others settle for less.

        Raises:
            BudgetExhausted: it does not fit, whatever the open attempts turn out to cost.
        """
        amount = self._amount(bound)
        if not self._fits(_sum(self._spent, amount)):
            raise BudgetExhausted(self._refusal(amount))
        if not self._fits(_sum(_sum(self._spent, self._held), amount)):
            return None
        self._held = _sum(self._held, amount)
        return Claim(bound, amount)

    def settle(self, claim: Claim, usage: Usage) -> Decimal | None:
        """Cost of one attempt that used so many tokens; `Usage(0, 0)` gives the claim back, its bound keeps it."""
        amount = self._amount(usage)
        self._held = _difference(self._held, claim.amount)
        self._spent = _sum(self._spent, amount)
        self._changed.set()
        self._changed = asyncio.Event()
        return amount.money

    def _amount(self, usage: Usage) -> Amount:
        money = None if self._price is None else self._price.cost(usage)
        return Amount(usage.prompt_tokens + usage.completion_tokens, money)

    def _fits(self, amount: Amount) -> bool:
        tokens_fit = self._limit_tokens is None or amount.tokens <= self._limit_tokens
        money_fits = self._limit_money is None or (amount.money is not None and amount.money <= self._limit_money)
        return tokens_fit and money_fits

    def _refusal(self, amount: Amount) -> str:
        parts = []
        if self._limit_tokens is not None:
            parts.append(f"{self._spent.tokens} of {self._limit_tokens} tokens are spent, it may take {amount.tokens}")
        if self._limit_money is not None:
            parts.append(f"{self._spent.money} of {self._limit_money} US dollars are spent, it may take {amount.money}")
        return f"the next attempt does not fit the budget: {'; '.join(parts)}. Raise the budget and run again."


def _sum(a: Amount, b: Amount) -> Amount:
    return Amount(a.tokens + b.tokens, None if a.money is None or b.money is None else a.money + b.money)


def _difference(a: Amount, b: Amount) -> Amount:
    return Amount(a.tokens - b.tokens, None if a.money is None or b.money is None else a.money - b.money)
