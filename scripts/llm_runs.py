"""What commands that ask a language model share: which features, what is kept, how a run ends and what it cost."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sqlalchemy import Engine

from db import store
from db.engine import make_engine, reading
from db.lookup import MAX_PAGE
from db.migrate import current_revision, require_head, upgrade
from safe_sail.errors import BadInput
from safe_sail.features import lexical
from safe_sail.features.explain import NO_PROMPT
from safe_sail.features.held_out import Halves, divided
from safe_sail.features.judge import CONSTANT, NO_CONTEXT
from safe_sail.llm.exchange import ChatRequest, FailureReason, Spending
from safe_sail.records import LEDGER_TEXT_LIMIT, FeatureId, JudgeMethod, LedgerEntry, RunInfo, Stage
from safe_sail.settings import DemoSettings, LexicalSettings, LlmSettings

NOT_KEPT = "contexts_not_kept"
"""Reason of a lexical explanation made from contexts that the database does not hold any more: it cannot be
simulated."""
LASTING = frozenset(
    {
        FailureReason.INVALID_REPLY, FailureReason.TRUNCATED, FailureReason.MODEL_REFUSED, NO_PROMPT, CONSTANT,
        NO_CONTEXT, NOT_KEPT,
    }
)  # fmt: skip
"""Reasons that a second run would meet again, at the same price; the others pass (budget, rate, network)."""
N_FEATURES = DemoSettings().n_features
FREE = Spending(cost=Decimal(0))
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


@dataclass
class Tally:
    """How the features of a run ended so far; the only thing that a run changes."""

    n_done: int = 0
    n_there: int = 0
    """Features that earlier runs have done."""
    n_failed_before: int = 0
    """Features that failed in earlier runs for lasting reasons and are left alone."""
    failed: Counter[str] = field(default_factory=Counter)
    n_waiting: int = 0
    """Features that a further batch will decide; nothing is kept of them."""
    to_ask: list[ChatRequest] = field(default_factory=list)
    """The requests of that batch."""
    spent: Spending = FREE
    interrupted: bool = False

    def count(self, entry: LedgerEntry) -> None:
        """Takes in how one feature ended."""
        if entry.reason is None:
            self.n_done += 1
        else:
            self.failed[entry.reason] += 1


# which endpoint, database and features


def llm_settings(
    base_url: str | None,
    model: str | None,
    *,
    budget_tokens: int | None,
    budget_money: float | None,
    cache: Path | None,
    in_flight: int,
    timeout: float,
) -> LlmSettings:
    """Settings of the endpoint that the options name.

    Raises:
        BadInput: the endpoint or the model is missing, or the model has the name of the lexical explainer.
        BadSettings: an option is outside its range.
    """
    if base_url is None or model is None:
        raise BadInput("a language model is asked over an endpoint: give --base-url and --model.")
    if model == lexical.EXPLAINER:
        raise BadInput(f"--model: `{model}` names the explainer that needs no language model; expected another name.")
    return LlmSettings(
        base_url=base_url,
        model=model,
        budget_tokens=budget_tokens,
        budget_money=budget_money,
        cache_path=None if cache is None else str(cache),
        max_in_flight=in_flight,
        timeout_s=timeout,
    )


def open_kept(database: str, *, read_only: bool) -> Engine:
    """The database, brought to this program's schema unless it is only read; it must exist.

    Raises:
        SchemaOutOfDate: it holds no schema, or another program's.
    """
    engine = make_engine(database, read_only=read_only)
    if read_only or current_revision(engine) is None:
        require_head(engine)
    else:
        upgrade(engine)
    return engine


def choose_sae(engine: Engine, slug: str | None) -> str:
    """The named SAE, or the only one that has contexts.

    Raises:
        BadInput: it has no contexts, or none is named and not exactly one has some.
    """
    with reading(engine) as session:
        collected = {one.sae.slug: one.n_collected for one in store.list_saes(session)}
    able = [name for name, n in collected.items() if n > 0]
    if not able:
        raise BadInput("the database holds no contexts; run `safe-sail demo` or `safe-sail collect-contexts` first.")
    if slug is None and len(able) > 1:
        raise BadInput(f"--sae: several SAEs have contexts, name one of {', '.join(able)}.")
    chosen = slug or able[0]
    if chosen not in able:
        raise BadInput(f"--sae: `{chosen}` has no contexts in the database; those that have are {', '.join(able)}.")
    return chosen


def best_features(engine: Engine, sae: str, limit: int, *, explained: bool | None = None) -> list[store.FeatureListing]:
    """Features with contexts, by descending rate gap of their best concept (ties: index; unscored ones last)."""
    found: list[store.FeatureListing] = []
    cursor = None
    with reading(engine) as session:
        while len(found) < limit:
            page = store.list_features(
                session,
                sae,
                filters=store.FeatureFilter(collected=True, explained=explained),
                sort=store.FeatureSort.SCORE,
                cursor=cursor,
                limit=min(MAX_PAGE, limit - len(found)),
            )
            found += page.rows
            cursor = page.next_cursor
            if cursor is None:
                break
    return found


def left_to_do(features: Sequence[int], there: set[int], failed: set[int], tally: Tally, *, again: bool) -> set[int]:
    """Features that are neither done nor, unless `again`, known to fail; the tally counts the others."""
    failed = set() if again else failed - there
    tally.n_there += len(there.intersection(features))
    tally.n_failed_before += len(failed.intersection(features))
    return set(features) - there - failed


class KeptContexts(NamedTuple):
    """A feature's contexts in the database, divided into those that explain and those that judge."""

    halves: Halves
    scale: float
    """Its largest activation, which is level 10; 0 where it never fired."""


def kept_contexts(engine: Engine, feature: FeatureId) -> KeptContexts:
    """The contexts of a feature that has some."""
    with reading(engine) as session:
        top = store.load_top_contexts(session, feature)
        sample = store.load_context_sample(session, feature)
    assert top is not None, "only features with contexts are listed"
    halves = divided(top.record, None if sample is None else sample.record, judged_share=LexicalSettings().judged_share)
    return KeptContexts(halves, max(0.0, top.record.max_activation))


# one feature's end


def ledger_entry(
    feature: FeatureId,
    spending: Spending,
    *,
    explainer: str,
    prompt_version: str,
    model: str,
    method: JudgeMethod | None = None,
    reason: str | None = None,
    message: str = "",
    raw: str | None = None,
) -> LedgerEntry:
    """How one feature ended, with its texts cut to what an entry keeps."""
    return LedgerEntry(
        feature=feature,
        stage=Stage.EXPLAIN if method is None else Stage.JUDGE,
        explainer=explainer,
        prompt_version=prompt_version,
        method=method,
        model=model,
        reason=None if reason is None else str(reason),
        message=message[:LEDGER_TEXT_LIMIT],
        raw=None if raw is None else raw[:LEDGER_TEXT_LIMIT],
        attempts=spending.attempts,
        prompt_tokens=spending.prompt_tokens,
        completion_tokens=spending.completion_tokens,
        assumed_tokens=spending.assumed_tokens,
        cost=None if spending.cost is None else float(spending.cost),
    )


# a run


def run_until_interrupted(work: Callable[[], Coroutine[Any, Any, None]], tally: Tally) -> None:
    """Runs the work to its end or to Ctrl-C, which the tally then says; what was saved before stays."""
    try:
        asyncio.run(work())
    except KeyboardInterrupt:
        tally.interrupted = True


# what a person reads


def report_of(tally: Tally, verb: str, *, sae: str, run: RunInfo) -> dict[str, Any]:
    """How the features ended and what it cost, as JSON values."""
    spent = tally.spent
    return {
        "sae": sae, "run": run.run_id, verb: tally.n_done, "there_before": tally.n_there,
        "failed_before": tally.n_failed_before, "failed": dict(sorted(tally.failed.items())),
        "waiting": tally.n_waiting, "attempts": spent.attempts, "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens, "assumed_tokens": spent.assumed_tokens,
        "cost": None if spent.cost is None else float(spent.cost), "interrupted": tally.interrupted,
    }  # fmt: skip


def print_tally(tally: Tally, verb: str, llm: LlmSettings | None, *, sae: str, run: RunInfo, as_json: bool) -> None:
    """Prints how the features ended and what it cost."""
    spent = tally.spent
    if as_json:
        print(json.dumps(report_of(tally, verb, sae=sae, run=run), indent=2))
        return
    print(f"{tally.n_done} {verb}, {tally.n_there} were {verb} before; of {sae}")
    reasons = ", ".join(f"{reason} {n}" for reason, n in tally.failed.most_common())
    print(f"{tally.failed.total()} failed{': ' + reasons if reasons else ''}")
    if tally.n_waiting:
        print(f"{tally.n_waiting} wait for the next batch")
    if tally.n_failed_before:
        print(f"{tally.n_failed_before} had failed before and were left alone; --retry-failed asks for them again")
    if llm is not None:
        unknown = f"unknown: no price of {llm.model} at {urlsplit(llm.base_url).hostname}; --prices takes a table"
        print(
            f"asked {llm.model} {spent.attempts} times, {spent.cache_hits} answers came from the cache: "
            f"{spent.prompt_tokens} prompt and {spent.completion_tokens} completion tokens, at most "
            f"{spent.assumed_tokens} more that nobody reported"
        )
        print(f"cost: {unknown if spent.cost is None else f'{spent.cost:.4f} US dollars at the list price'}")
    if tally.interrupted:
        print("interrupted; what came is kept, and the same command goes on from there")
