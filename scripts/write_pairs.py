"""Contrastive pairs from texts that have a concept: a language model rewrites each without it, a second call checks.

safe-sail write-pairs --texts organism --out pairs
safe-sail write-pairs --texts texts.jsonl --out pairs --base-url URL --model MODEL --budget-tokens 200000 --dry-run
safe-sail score-saes --concepts pairs/pairs.jsonl
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import urlsplit

import typer

from db.engine import writing
from safe_sail.data.concepts import ConceptText, read_concept_texts
from safe_sail.data.taxonomy import DEFAULT, read_taxonomy
from safe_sail.errors import BadInput
from safe_sail.features.pair_prompts import CHECK_VERSION, WRITE_VERSION
from safe_sail.features.pair_writer import WrittenPair, check_control, pair_requests, write_pairs
from safe_sail.llm.client import OpenAiClient
from safe_sail.llm.exchange import Spending
from safe_sail.llm.pricing import PriceTable, forecast, load_prices
from safe_sail.organism.concept_data import concept_pairs
from safe_sail.provenance import finish_run, start_run
from safe_sail.records import RunInfo
from safe_sail.settings import LlmSettings
from safe_sail.settings.method_jobs import WritePairsJob
from scripts import llm_runs
from scripts.job_runs import JobContext
from scripts.options import (
    AnswerCache,
    AsJson,
    BaseUrl,
    BudgetMoney,
    BudgetTokens,
    DryRun,
    InFlight,
    LlmModel,
    Prices,
    RetryFailed,
    Timeout,
    llm_key,
)  # fmt: skip
from scripts.progress import tqdm
from scripts.run_records import end_run, keep_run

ORGANISM: Final = "organism"
N_GRAMMAR_PAIRS: Final = 64
"""Pairs of each of the organism's concepts."""
PAIRS, REJECTED, RUN = "pairs.jsonl", "rejected.jsonl", "run.json"
_PASSING: Final = frozenset(
    {"budget_exhausted", "rate_limited", "quota_exhausted", "timeout", "connection", "server_error"}
)
"""Reasons that a second run may not meet again; the others are the text's own."""


@dataclass
class PairTally:
    """How the texts of a run ended so far."""

    n_pairs: int = 0
    n_there: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    control: tuple[int, int] = (0, 0)
    """(texts checked against themselves, of these called a pair)."""
    spent: Spending = llm_runs.FREE
    interrupted: bool = False


def write(
    texts: Annotated[
        list[str],
        typer.Option(help=".jsonl, .csv or hub data set of texts that have their concept; organism asks nobody."),
    ],
    out: Annotated[Path, typer.Option(help=f"Folder for {PAIRS}, {REJECTED} and {RUN}; it is continued.")],
    taxonomy: Annotated[Path | None, typer.Option(help="YAML or JSON of domains, categories and concepts.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Texts at most, in their order.")] = None,
    n_control: Annotated[int, typer.Option(min=0, help="Texts checked against themselves, as a control.")] = 20,
    base_url: BaseUrl = None,
    model: LlmModel = None,
    budget_tokens: BudgetTokens = None,
    budget_money: BudgetMoney = None,
    prices: Prices = None,
    cache: AnswerCache = None,
    in_flight: InFlight = 64,
    timeout: Timeout = 120.0,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    as_json: AsJson = False,
) -> None:
    """Write contrastive pairs for score-saes; a killed or interrupted run goes on where it was."""
    if list(texts) == [ORGANISM]:
        _write_from_grammar(PairFolder(out), limit, as_json=as_json)
        return
    llm = llm_runs.llm_settings(
        base_url, model, budget_tokens=budget_tokens, budget_money=budget_money, cache=cache, in_flight=in_flight,
        timeout=timeout,
    )  # fmt: skip
    table = load_prices(prices)
    asked = _Asked(texts, limit, n_control, llm, table, again=retry_failed)
    wanted = _texts(texts, taxonomy)[:limit]
    folder = PairFolder(out)
    if dry_run:
        left = folder.left(wanted, PairTally(), again=retry_failed)
        price = table.price_of(base_url=llm.base_url, model=llm.model)
        print(forecast(pair_requests(left + left[:n_control]), price))
        return
    _, tally = _write_left(asked, wanted, folder)
    print_tally(tally, llm, folder, as_json=as_json)
    if tally.interrupted:
        raise typer.Exit(llm_runs.INTERRUPTED)


def run_job(settings: WritePairsJob, context: JobContext) -> dict[str, Any]:
    """What the job brought: the pairs by the name that later jobs use. A later attempt writes only what is missing."""
    llm = context.llm(settings.llm, budget_tokens=settings.budget_tokens, budget_money=settings.budget_money)
    assert llm is not None
    table = load_prices(None)
    sources = [str(context.offers.file(name)) for name in settings.texts]
    wanted = _texts(sources, context.file(settings.taxonomy))[: settings.limit]
    asked = _Asked(settings.texts, settings.limit, settings.n_control, llm, table, again=settings.retry_failed)
    folder = PairFolder(context.made(settings.name), context.holding)
    run, tally = _write_left(asked, wanted, folder)
    keep_run(context.engine, run)
    with writing(context.engine) as session:
        end_run(session, run)
    return {"run": run.run_id, "file": f"made/{settings.name}/{PAIRS}"} | _report(tally)


class _Asked(NamedTuple):
    """What one run writes, and how."""

    texts: Sequence[str]
    limit: int | None
    n_control: int
    llm: LlmSettings
    table: PriceTable
    again: bool
    """Whether texts are asked for again that failed for good."""


def _write_left(asked: _Asked, wanted: Sequence[ConceptText], folder: "PairFolder") -> tuple[RunInfo, PairTally]:
    """The run that wrote what earlier ones left."""
    tally = PairTally()
    left = folder.left(wanted, tally, again=asked.again)
    facts = {
        "texts": list(asked.texts), "limit": asked.limit, "n_control": asked.n_control, "llm": asdict(asked.llm),
        "prompts": [WRITE_VERSION, CHECK_VERSION],
    }  # fmt: skip
    run = start_run("write-pairs", settings=facts, seed=0, device="cpu")
    if left:
        _write(left, left[: asked.n_control], folder, asked.llm, asked.table, tally)
    folder.say(finish_run(run), tally)
    return run, tally


def _texts(sources: Sequence[str], taxonomy: Path | None) -> list[ConceptText]:
    places = DEFAULT if taxonomy is None else read_taxonomy(taxonomy)
    found = [one for source in sources for one in read_concept_texts(source, taxonomy=places)]
    return list({one.name: one for one in found}.values())


# what is kept


class PairFolder:
    """Pairs and rejected texts, one JSON object a line; a line that a kill cut off is dropped."""

    def __init__(self, folder: Path, holding: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.folder = folder
        self._holding = holding
        """Inside it the folder may be written: a worker whose job another one has writes nothing."""

    def left(self, wanted: Sequence[ConceptText], tally: PairTally, *, again: bool) -> list[ConceptText]:
        """Texts that have neither a pair nor, unless `again`, a lasting reason for having none.

        Raises:
            BadInput: a line is not of our making.
        """
        pairs = Counter(self._value(row, "pair", PAIRS) for row in self._rows(PAIRS))
        done = {name for name, n in pairs.items() if n == 2}
        tally.n_there = len(done.intersection(one.name for one in wanted))
        if not again:
            rows = self._rows(REJECTED)
            done |= {self._value(row, "pair", REJECTED) for row in rows if row.get("reason") not in _PASSING}
        return [one for one in wanted if one.name not in done]

    def tidy(self) -> None:
        """Makes both files whole: half of a pair and half of a line go."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._holding():
            for name in (PAIRS, REJECTED):
                rows = self._rows(name)
                count = Counter(row.get("pair") for row in rows)
                whole = [row for row in rows if name == REJECTED or count[row.get("pair")] == 2]
                fresh = self.folder / f"{name}.new"
                fresh.write_text("".join(_line(row) for row in whole), encoding="utf-8")
                fresh.replace(self.folder / name)

    def add(self, found: WrittenPair) -> None:
        """Keeps how a text ended, at once."""
        one = found.source
        words = {"concept": one.concept, "domain": one.domain, "category": one.category, "pair": one.name}
        if found.reason is None:
            text = _line({"text": one.text, "label": 1, **words}) + _line({"text": found.rewrite, "label": 0, **words})
            name = PAIRS
        else:
            name = REJECTED
            text = _line(
                {"text": one.text, **words, "rewrite": found.rewrite, "reason": found.reason, "message": found.message}
                | {"raw": found.raw, "tokens": found.spending.tokens}
            )
        with self._holding(), (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(text)

    def say(self, run: Any, tally: PairTally) -> None:
        """Writes settings, versions and what came of them, of the last run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        report = {"run": asdict(run), "result": _report(tally)}
        with self._holding():
            (self.folder / RUN).write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")

    def _rows(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        if not path.exists():
            return []
        rows = []
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, start=1):
            try:
                if line:
                    rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number < len(lines):
                    raise BadInput(f"`{path}` line {number} is not JSON: {error}. Give another folder.") from error
        return rows

    def _value(self, row: Mapping[str, Any], key: str, name: str) -> str:
        if not isinstance(row, dict) or not isinstance(row.get(key), str):
            raise BadInput(f"`{self.folder / name}` holds a line without `{key}`; give another folder.")
        return str(row[key])


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


# write


def _write(
    left: Sequence[ConceptText],
    control: Sequence[ConceptText],
    folder: PairFolder,
    llm: LlmSettings,
    table: PriceTable,
    tally: PairTally,
) -> None:
    async def work() -> None:
        async with OpenAiClient(llm, api_key=llm_key(), prices=table) as client:
            folder.tidy()  # only now: an endpoint that is down leaves no trace
            try:
                tally.control = await check_control(control, client)
                async with aclosing(write_pairs(left, client, at_once=llm.max_in_flight)) as outcomes:
                    with tqdm[Any](desc="writing pairs", total=len(left), unit="text", disable=None) as bar:
                        async for found in outcomes:
                            folder.add(found)
                            tally.n_pairs += found.reason is None
                            tally.rejected.update([found.reason] if found.reason else [])
                            bar.update()
            finally:
                tally.spent = client.total

    try:
        asyncio.run(work())
    except KeyboardInterrupt:
        tally.interrupted = True


def _write_from_grammar(folder: PairFolder, limit: int | None, *, as_json: bool) -> None:
    """The organism's pairs, which its grammar makes without a language model; those that are there stay."""
    made = dict(islice(concept_pairs(n=N_GRAMMAR_PAIRS, seed=0), limit))
    tally = PairTally()
    left = folder.left(list(made), tally, again=False)
    run = start_run("write-pairs", settings={"texts": [ORGANISM], "limit": limit}, seed=0, device="cpu")
    folder.tidy()
    for source in left:
        pair = WrittenPair(
            source=source, rewrite=made[source], reason=None, message="", raw=None, spending=llm_runs.FREE
        )  # fmt: skip
        folder.add(pair)
        tally.n_pairs += 1
    folder.say(finish_run(run), tally)
    print_tally(tally, None, folder, as_json=as_json)


# what a person reads


def _report(tally: PairTally) -> dict[str, Any]:
    spent = tally.spent
    return {
        "pairs": tally.n_pairs, "there_before": tally.n_there, "rejected": dict(sorted(tally.rejected.items())),
        "control_checked": tally.control[0], "control_called_pairs": tally.control[1], "attempts": spent.attempts,
        "prompt_tokens": spent.prompt_tokens, "completion_tokens": spent.completion_tokens,
        "assumed_tokens": spent.assumed_tokens, "cost": None if spent.cost is None else float(spent.cost),
        "interrupted": tally.interrupted,
    }  # fmt: skip


def print_tally(tally: PairTally, llm: LlmSettings | None, folder: PairFolder, *, as_json: bool) -> None:
    """Prints how the texts ended and what it cost."""
    if as_json:
        print(json.dumps(_report(tally), indent=2))
        return
    print(f"{tally.n_pairs} pairs written, {tally.n_there} were written before; in {folder.folder / PAIRS}")
    if llm is None:
        print("made by the grammar: nobody was asked")
        return
    reasons = ", ".join(f"{reason} {n}" for reason, n in tally.rejected.most_common())
    print(f"{tally.rejected.total()} without a pair{': ' + reasons if reasons else ''}; see {folder.folder / REJECTED}")
    n_checked, n_called = tally.control
    print(f"control: of {n_checked} texts checked against themselves, {n_called} were called a pair; 0 is right")
    spent = tally.spent
    print(
        f"asked {llm.model} {spent.attempts} times, {spent.cache_hits} answers came from the cache: "
        f"{spent.prompt_tokens} prompt and {spent.completion_tokens} completion tokens, at most "
        f"{spent.assumed_tokens} more that nobody reported"
    )
    unknown = f"unknown: no price of {llm.model} at {urlsplit(llm.base_url).hostname}; --prices takes a table"
    print(f"cost: {unknown if spent.cost is None else f'{spent.cost:.4f} US dollars at the list price'}")
    if tally.interrupted:
        print("interrupted; what came is kept, and the same command goes on from there")
