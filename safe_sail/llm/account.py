"""Adds up what attempts cost."""

from dataclasses import dataclass
from decimal import Decimal

from safe_sail.llm.exchange import Spending, Usage


@dataclass(kw_only=True, slots=True)
class Account:
    """A running sum of attempts; the only mutable thing of the ledger."""

    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    assumed_tokens: int = 0
    cost: Decimal | None = Decimal(0)
    cache_hits: int = 0

    def add_attempt(self, used: Usage, *, reported: bool, cost: Decimal | None) -> None:
        """Adds one attempt; its tokens count as assumed where the endpoint reported none."""
        self.attempts += 1
        if reported:
            self.prompt_tokens += used.prompt_tokens
            self.completion_tokens += used.completion_tokens
        else:
            self.assumed_tokens += sum(used)
        if sum(used):  # an attempt that used nothing costs nothing, also at an unknown price
            self.cost = None if self.cost is None or cost is None else self.cost + cost

    def spending(self) -> Spending:
        """The sum so far."""
        return Spending(
            attempts=self.attempts,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            assumed_tokens=self.assumed_tokens,
            cost=self.cost,
            cache_hits=self.cache_hits,
        )
