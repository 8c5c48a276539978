"""Explaining and judging by OpenAI Batch files: requests out, results in, through the same steps as an endpoint."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from safe_sail.errors import BadInput
from safe_sail.llm.batch import BatchAnswers, write_batch
from safe_sail.llm.client import OpenAiClient
from safe_sail.llm.exchange import ChatRequest
from safe_sail.llm.pricing import PriceTable, forecast
from safe_sail.settings import LlmSettings
from scripts.options import llm_key


def client_of(llm: LlmSettings, table: PriceTable, answers: Sequence[Path] | None) -> OpenAiClient | BatchAnswers:
    """Who answers: the endpoint, or the result files of a batch; an async context manager."""
    if not answers:
        return OpenAiClient(llm, api_key=llm_key(), prices=table)
    price = table.price_of(base_url=llm.base_url, model=llm.model)
    return BatchAnswers(answers, model=llm.model, price=None if price is None else price.in_batch())


def write_requests(requests: Iterable[ChatRequest], folder: Path, llm: LlmSettings, table: PriceTable) -> str:
    """What was written, in a sentence.

    Raises:
        BudgetExhausted: the requests could cost more than the budget.
        BatchUnreadable: the folder holds request files already.
    """
    asked = list(requests)
    if not asked:
        return "nothing is left to ask; no file was written."
    price = table.price_of(base_url=llm.base_url, model=llm.model)
    batch_price = None if price is None else price.in_batch()
    files = write_batch(asked, folder, settings=llm, price=batch_price)
    return (
        f"{len(asked)} requests in {', '.join(map(str, files))}. {forecast(asked, batch_price)}\n"
        f"Hand them to {urlsplit(llm.base_url).hostname}; the same command with --batch-in reads the results."
    )


def require_one_way(llm: LlmSettings | None, batch_out: Path | None, batch_in: Sequence[Path] | None) -> None:
    """Nothing, where at most one of the two is given, and only with a language model.

    Raises:
        BadInput: both are given, or nobody would be asked.
    """
    if batch_out is not None and batch_in:
        raise BadInput("--batch-out writes requests and --batch-in reads their results: give one of them.")
    if llm is None and (batch_out is not None or batch_in):
        raise BadInput("--batch-out and --batch-in are for language models: words are explained without asking.")
