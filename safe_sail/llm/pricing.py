"""Prices by endpoint and model, and what a run would cost before it starts. An unknown price is unknown, never zero."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from safe_sail.errors import BadSettings
from safe_sail.llm.exchange import ChatRequest, Usage
from safe_sail.llm.tokens import estimate_prompt

_MILLION = Decimal(1_000_000)
_RE_ASKS = 2
"""Rounds of one request at most: the question and one re-ask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """List price of one model at one endpoint, in US dollars per million tokens."""

    input: Decimal
    """Prompt tokens; discounts for prompts that the vendor has cached are not counted."""
    output: Decimal
    """Completion tokens, thinking included."""
    batch_factor: Decimal | None
    """What the vendor's batch price is of this one; None where unknown."""
    as_of: date
    """Day on which the price was written down."""
    source: str

    def cost(self, usage: Usage) -> Decimal:
        """US dollars for so many tokens."""
        return (self.input * usage.prompt_tokens + self.output * usage.completion_tokens) / _MILLION

    def in_batch(self) -> "Price | None":
        """The price of the same in a batch; None where unknown."""
        if self.batch_factor is None:
            return None
        return Price(
            input=self.input * self.batch_factor,
            output=self.output * self.batch_factor,
            batch_factor=None,
            as_of=self.as_of,
            source=self.source,
        )


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices by host and model."""

    prices: Mapping[tuple[str, str], Price]

    def price_of(self, *, base_url: str, model: str) -> Price | None:
        """Price of a model at an endpoint; None where the table lacks it. The same name elsewhere is another price."""
        return self.prices.get((urlsplit(base_url).hostname or "", model))


def load_prices(path: Path | None = None) -> PriceTable:
    """The table that comes with the program, with the rows of another file over it.

    Raises:
        BadSettings: the file is missing or malformed.
    """
    shipped = _read(files("safe_sail.llm").joinpath("prices.yaml").read_text(encoding="utf-8"), "the shipped prices")
    if path is None:
        return PriceTable(shipped)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadSettings(f"price table {path}: expected a readable YAML file; {error.strerror}.") from error
    return PriceTable({**shipped, **_read(text, str(path))})


def _read(text: str, name: str) -> dict[tuple[str, str], Price]:
    form = "expected `host: {model: {input, output, batch_factor, as_of, source}}`"
    try:
        document = yaml.safe_load(text)
        rows = {(host, model): row for host, models in document.items() for model, row in models.items()}
        return {key: _price(row) for key, row in rows.items()}
    except (yaml.YAMLError, AttributeError, TypeError, KeyError, InvalidOperation, ValueError) as error:
        raise BadSettings(f"price table {name}: {form}; {type(error).__name__}: {error}.") from error


def _price(row: Mapping[str, object]) -> Price:
    factor = row.get("batch_factor")
    as_of = row["as_of"]
    if not isinstance(as_of, date):
        raise ValueError(f"as_of is a date as in 2026-03-31, got {as_of}")
    price = Price(
        input=Decimal(str(row["input"])),
        output=Decimal(str(row["output"])),
        batch_factor=None if factor is None else Decimal(str(factor)),
        as_of=as_of,
        source=str(row["source"]),
    )
    if not (price.input.is_finite() and price.output.is_finite() and min(price.input, price.output) >= 0):
        raise ValueError(f"a price is a number of at least 0, got {price.input} and {price.output}")
    return price


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What requests would cost, before any is sent."""

    n_requests: int
    prompt_tokens: int
    """Estimated to the high side, one call a request."""
    completion_tokens: int
    """All of max_tokens, one call a request."""
    cost: Decimal | None
    """US dollars for that; None where the price is unknown."""
    cost_worst: Decimal | None
    """The same where every answer is asked for again once."""
    price: Price | None

    def __str__(self) -> str:
        tokens = f"{self.n_requests} requests, {self.prompt_tokens} prompt and at most {self.completion_tokens} "
        if self.price is None or self.cost is None or self.cost_worst is None:
            return f"{tokens}completion tokens; the price is unknown."
        return (
            f"{tokens}completion tokens: at most {self.cost:.4f} US dollars, {self.cost_worst:.4f} if every answer "
            f"is asked for again ({self.price.source}, {self.price.as_of})."
        )


def forecast(requests: Iterable[ChatRequest], price: Price | None) -> Forecast:
    """Forecast of these requests at this price, none of them answered from the cache."""
    n = prompt = completion = 0
    for request in requests:
        n += 1
        prompt += estimate_prompt(request.messages)
        completion += request.max_tokens
    cost = None if price is None else price.cost(Usage(prompt, completion))
    # the re-ask sends the question, the first answer and a sentence again: at most prompt + completion
    again = None if price is None else price.cost(Usage(_RE_ASKS * prompt + completion, _RE_ASKS * completion))
    return Forecast(
        n_requests=n,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost=cost,
        cost_worst=again,
        price=price,
    )
