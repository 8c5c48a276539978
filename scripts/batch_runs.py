"""Explaining and judging by OpenAI Batch files: requests out, results in, through the same steps as an endpoint.

1. `--batch-out FOLDER` writes what is asked at first.
2. `--batch-in FILE ... --batch-out NEXT` reads results, keeps what they decide, and writes what is to be asked then:
   later calls of the judge, re-asks, what the vendor failed to do. Files of all batches so far are read each time.
3. The last step is one that writes nothing, or `--batch-in` alone, which ends what is left as failures.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from safe_sail.errors import BadInput
from safe_sail.llm.batch import BatchAnswers, require_no_requests, write_batch
from safe_sail.llm.client import OpenAiClient
from safe_sail.llm.exchange import ChatRequest
from safe_sail.llm.pricing import PriceTable, forecast
from safe_sail.settings import LlmSettings
from scripts.options import llm_key


class Batch(NamedTuple):
    """Files instead of an endpoint."""

    results: tuple[Path, ...] = ()
    """What came of earlier batches; nothing asks the endpoint."""
    next_folder: Path | None = None
    """Where the next requests go."""

    @property
    def is_first(self) -> bool:
        """Whether requests are written before any result is there."""
        return self.next_folder is not None and not self.results


def client_of(llm: LlmSettings, table: PriceTable, batch: Batch) -> OpenAiClient | BatchAnswers:
    """Who answers: the endpoint, or the result files of batches; an async context manager."""
    if not batch.results:
        return OpenAiClient(llm, api_key=llm_key(), prices=table)
    price = table.price_of(base_url=llm.base_url, model=llm.model)
    return BatchAnswers(
        batch.results, model=llm.model, price=None if price is None else price.in_batch(),
        asks_on=batch.next_folder is not None,
    )  # fmt: skip


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
        f"Hand them to {urlsplit(llm.base_url).hostname}; the same command with --batch-in reads the results, "
        f"with --batch-out for another folder if it is to ask on."
    )


def batch_of(llm: LlmSettings | None, batch_out: Path | None, batch_in: Sequence[Path] | None) -> Batch:
    """The files that the options name, where there is a language model to answer them.

    Raises:
        BadInput: nobody would be asked.
        BatchUnreadable: the folder for requests holds some already.
    """
    if llm is None and (batch_out is not None or batch_in):
        raise BadInput("--batch-out and --batch-in are for language models: words are explained without asking.")
    if batch_out is not None:
        require_no_requests(batch_out)  # now: results are kept before requests are written
    return Batch(tuple(batch_in or ()), batch_out)
