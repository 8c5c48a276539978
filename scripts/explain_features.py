"""Explain features from the contexts that the database holds: by a language model, or by the words they fire on.

safe-sail explain-features --sae SAE
safe-sail explain-features --sae SAE --explainer llm --base-url URL --model MODEL --budget-tokens 200000 --dry-run
"""

from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated

import typer
from sqlalchemy import Engine
from tqdm import tqdm

from db import store
from db.engine import reading, writing
from safe_sail.errors import BadInput
from safe_sail.features import explain, lexical
from safe_sail.features.baseline import lexical_explanation, write_lexically
from safe_sail.features.explain import NO_PROMPT, ExplainTask, LlmExplained, NotExplained
from safe_sail.features.prompts import EXPLANATION_VERSION, FeatureSamples
from safe_sail.llm.client import OpenAiClient
from safe_sail.llm.exchange import ChatRequest
from safe_sail.llm.pricing import PriceTable, forecast, load_prices
from safe_sail.provenance import start_run
from safe_sail.records import Explanation, FeatureId, LedgerEntry, RunInfo, Stage
from safe_sail.settings import ExplainSettings, LexicalSettings, LlmSettings
from scripts import llm_runs
from scripts.options import (
    DEFAULT_DATABASE,
    AnswerCache,
    AsJson,
    BaseUrl,
    BudgetMoney,
    BudgetTokens,
    DatabaseUrl,
    DryRun,
    InFlight,
    KeptSae,
    Limit,
    LlmModel,
    Prices,
    RetryFailed,
    Timeout,
    llm_key,
)

SETTINGS = ExplainSettings()
LEXICAL = LexicalSettings()


def explain_features(
    sae: KeptSae = None,
    explainer: Annotated[str, typer.Option(help="lexical, which asks nobody, or llm.")] = lexical.EXPLAINER,
    limit: Limit = llm_runs.N_FEATURES,
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
    database: DatabaseUrl = DEFAULT_DATABASE,
    as_json: AsJson = False,
) -> None:
    """Explain the best features of an SAE from half of their kept contexts; the others are left to judge.

    Features that have an explanation by this explainer are not asked for again; one that failed for good is asked for
    again with --retry-failed.
    """
    if explainer not in (lexical.EXPLAINER, "llm"):
        raise BadInput(f"--explainer: expected lexical or llm; got `{explainer}`.")
    llm = None
    if explainer == "llm":
        llm = llm_runs.llm_settings(
            base_url, model, budget_tokens=budget_tokens, budget_money=budget_money, cache=cache, in_flight=in_flight,
            timeout=timeout,
        )  # fmt: skip
    table = load_prices(prices)
    engine = llm_runs.open_kept(database, read_only=dry_run)
    tally = llm_runs.Tally()
    slug = llm_runs.choose_sae(engine, sae)
    todo = _left(engine, slug, limit, llm, tally, again=retry_failed)
    if dry_run:
        print(_forecast(engine, todo, llm, table))
        return
    settings = asdict(SETTINGS if llm else LEXICAL)
    job = settings | {"sae": slug, "limit": limit, "explainer": explainer, "llm": asdict(llm) if llm else None}
    run = start_run("explain-features", settings=job, seed=0, device="cpu")
    if todo:
        if llm is None:
            _explain_lexically(engine, run, todo, tally)
        else:
            _explain(engine, run, todo, llm, table, tally)
        if not tally.interrupted:
            llm_runs.end_run(engine, run)
    engine.dispose()
    llm_runs.print_tally(tally, "explained", llm, sae=slug, run=run, as_json=as_json)
    if tally.interrupted:
        raise typer.Exit(llm_runs.INTERRUPTED)


# which features, and what may be shown of them


def _left(
    engine: Engine, sae: str, limit: int, llm: LlmSettings | None, tally: llm_runs.Tally, *, again: bool
) -> list[FeatureId]:
    listed = [one.index for one in llm_runs.best_features(engine, sae, limit)]
    name, version = _key(llm)
    with reading(engine) as session:
        there = store.features_done(
            session, sae, store.FeatureKind.EXPLANATIONS, explainer=name, prompt_version=version
        )
        failed = store.features_failed(
            session, sae, Stage.EXPLAIN, reasons=llm_runs.LASTING, model=name, explainer=name, prompt_version=version
        )
    left = llm_runs.left_to_do(listed, there, failed, tally, again=again)
    return [FeatureId(sae=sae, index=index) for index in listed if index in left]


def _key(llm: LlmSettings | None) -> tuple[str, str]:
    return (lexical.EXPLAINER, lexical.VERSION) if llm is None else (llm.model, EXPLANATION_VERSION)


def _tasks(engine: Engine, features: Sequence[FeatureId], silent: list[FeatureId]) -> Iterator[ExplainTask]:
    """The tasks of features that fire; the others are named in `silent`."""
    for feature in features:
        kept = llm_runs.kept_contexts(engine, feature)
        shown = kept.halves.explain
        if kept.scale > 0 and shown.active:
            samples = FeatureSamples(active=tuple(shown.active), silent=tuple(shown.silent), scale=kept.scale)
            yield ExplainTask(feature, samples)
        else:
            silent.append(feature)


# explain


def _forecast(engine: Engine, todo: Sequence[FeatureId], llm: LlmSettings | None, table: PriceTable) -> str:
    if llm is None:
        return f"{len(todo)} features to explain by their words: nobody is asked, and it costs nothing."
    price = table.price_of(base_url=llm.base_url, model=llm.model)
    requests = explain.explanation_requests(_tasks(engine, todo, []), SETTINGS)
    return str(forecast((one for one in requests if isinstance(one, ChatRequest)), price))


def _keep(
    engine: Engine, run: RunInfo, explanation: Explanation | None, entry: LedgerEntry, tally: llm_runs.Tally
) -> None:
    with writing(engine) as session:
        if explanation is not None:
            store.save_explanations(session, [explanation], run_id=run.run_id)
        store.save_ledger_entries(session, [entry], run_id=run.run_id)
    tally.count(entry)


def _explain_lexically(engine: Engine, run: RunInfo, todo: Sequence[FeatureId], tally: llm_runs.Tally) -> None:
    llm_runs.keep_run(engine, run)
    name, version = _key(None)
    for feature in tqdm(todo, desc="explaining", unit="feature", disable=None):
        shown = llm_runs.kept_contexts(engine, feature).halves.explain
        words = write_lexically(shown.all, n_words=LEXICAL.n_words)
        entry = llm_runs.ledger_entry(
            feature, llm_runs.FREE, explainer=name, prompt_version=version, model=name,
            reason=None if words else NO_PROMPT, message="" if words else "it fires in no context that may explain it.",
        )  # fmt: skip
        _keep(engine, run, lexical_explanation(feature, words) if words else None, entry, tally)


def _explain(
    engine: Engine, run: RunInfo, todo: Sequence[FeatureId], llm: LlmSettings, table: PriceTable, tally: llm_runs.Tally
) -> None:
    silent: list[FeatureId] = []

    async def work() -> None:
        async with OpenAiClient(llm, api_key=llm_key(), prices=table) as client:
            llm_runs.keep_run(engine, run)  # only now: an endpoint that is down leaves no trace
            found = explain.explain_features(_tasks(engine, todo, silent), client, SETTINGS)
            bar = tqdm(desc="explaining", total=len(todo), unit="feature", disable=None)
            try:
                async with aclosing(found) as outcomes:
                    async for outcome in outcomes:
                        _take(engine, run, outcome, llm, tally)
                        bar.update()
            finally:
                bar.close()
                tally.spent = client.total
        for feature in silent:
            never = NotExplained(feature, NO_PROMPT, "it never fired.", None, llm_runs.FREE)
            _take(engine, run, never, llm, tally)

    llm_runs.run_until_interrupted(work, tally)


def _take(
    engine: Engine, run: RunInfo, outcome: LlmExplained | NotExplained, llm: LlmSettings, tally: llm_runs.Tally
) -> None:
    name, version = _key(llm)
    if isinstance(outcome, LlmExplained):
        explanation = outcome.explanation
        entry = llm_runs.ledger_entry(
            explanation.feature, outcome.spending, explainer=name, prompt_version=version, model=name
        )
        _keep(engine, run, explanation, entry, tally)
        return
    entry = llm_runs.ledger_entry(
        outcome.feature, outcome.spending, explainer=name, prompt_version=version, model=name, reason=outcome.reason,
        message=outcome.message, raw=outcome.raw,
    )  # fmt: skip
    _keep(engine, run, None, entry, tally)
