"""Explain features from the contexts that the database holds: by a language model, or by the words they fire on.

safe-sail explain-features --sae SAE
safe-sail explain-features --sae SAE --explainer llm --base-url URL --model MODEL --budget-tokens 200000 --dry-run
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import typer
from sqlalchemy import Engine

from db import store
from db.engine import reading, writing
from safe_sail.errors import BadInput
from safe_sail.features import explain, lexical
from safe_sail.features.baseline import lexical_explanation, write_lexically
from safe_sail.features.explain import NO_PROMPT, ExplainTask, LlmExplained, NotExplained
from safe_sail.features.output_tokens import OutputTokens
from safe_sail.features.output_tokens import output_tokens as output_tokens_of
from safe_sail.features.prompts import EXPLANATION_VERSION, FeatureSamples
from safe_sail.llm.batch import BatchAnswers
from safe_sail.llm.exchange import ChatRequest, FailureReason
from safe_sail.llm.pricing import PriceTable, forecast, load_prices
from safe_sail.organism.load import organism_sae_paths
from safe_sail.provenance import start_run
from safe_sail.records import Explanation, FeatureId, LedgerEntry, RunInfo, Stage
from safe_sail.settings import ExplainSettings, LexicalSettings, LlmSettings
from safe_sail.settings.jobs import ExplainFeaturesJob
from scripts import llm_runs
from scripts.batch_runs import Batch, batch_of, client_of, write_requests
from scripts.job_runs import JobContext
from scripts.options import (
    DEFAULT_DATABASE,
    AnswerCache,
    AsJson,
    BaseUrl,
    BatchIn,
    BatchOut,
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
)
from scripts.progress import tqdm
from scripts.run_records import end_run, keep_run
from scripts.subjects import load_handle, load_saes

LEXICAL = LexicalSettings()
"""The same for every run: judging finds by it which words were shown."""


class _Job(NamedTuple):
    """What one run explains, and how."""

    sae: str
    limit: int
    llm: LlmSettings | None
    """None explains by words."""
    settings: ExplainSettings = ExplainSettings()
    again: bool = False
    """Whether features are asked for again that failed for good."""
    written: Mapping[int, OutputTokens] = MappingProxyType({})
    """What features promote and suppress, where the language model is shown it."""
    batch: Batch = Batch()
    """Files that answer instead of the endpoint, and those that ask on."""

    @property
    def key(self) -> tuple[str, str]:
        """Explainer and prompt version."""
        return (lexical.EXPLAINER, lexical.VERSION) if self.llm is None else (self.llm.model, EXPLANATION_VERSION)

    def as_kept(self) -> dict[str, Any]:
        """What the run keeps of its settings."""
        settings = asdict(self.settings if self.llm else LEXICAL)
        llm = asdict(self.llm) if self.llm else None
        shown = max((len(one.promotes) for one in self.written.values()), default=0)
        return settings | {
            "sae": self.sae, "limit": self.limit, "explainer": "llm" if llm else lexical.EXPLAINER, "llm": llm,
            "n_output_tokens": shown,
        }  # fmt: skip


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
    batch_out: BatchOut = None,
    batch_in: BatchIn = None,
    retry_failed: RetryFailed = False,
    output_tokens: Annotated[
        int, typer.Option(min=0, help="Next tokens shown that a feature promotes, and suppresses; loads model and SAE.")
    ] = 0,
    subject: Annotated[
        str | None, typer.Option(help="Model of the SAE, for --output-tokens; the organism if absent.")
    ] = None,
    subject_sae: Annotated[
        str | None, typer.Option(help="The SAE's folder or registry name, for --output-tokens; else the organism's.")
    ] = None,
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
    batch = batch_of(llm, batch_out, batch_in)
    table = load_prices(prices)
    engine = llm_runs.open_kept(database, read_only=dry_run or batch.is_first)
    tally = llm_runs.Tally()
    slug = llm_runs.choose_sae(engine, sae)
    job = _Job(slug, limit, llm, again=retry_failed, batch=batch)
    if output_tokens:
        job = job._replace(written=_output_tokens(engine, job, subject, subject_sae, output_tokens))
    if dry_run:
        print(_forecast(engine, _left(engine, job, tally), job, table))
        return
    if batch_out is not None and batch.is_first and llm is not None:
        requests = explain.explanation_requests(
            _tasks(engine, _left(engine, job, tally), [], job.written), job.settings
        )
        print(write_requests((one for one in requests if isinstance(one, ChatRequest)), batch_out, llm, table))
        return
    run = _explain_left(engine, job, table, tally)
    engine.dispose()
    llm_runs.print_tally(tally, "explained", llm, sae=job.sae, run=run, as_json=as_json)
    if batch_out is not None and llm is not None:
        print(write_requests(tally.to_ask, batch_out, llm, table), file=sys.stderr if as_json else sys.stdout)
    if tally.interrupted:
        raise typer.Exit(llm_runs.INTERRUPTED)


def run_job(settings: ExplainFeaturesJob, context: JobContext) -> dict[str, Any]:
    """What the job brought: its run, counts and cost. A later attempt explains only what is missing."""
    llm = context.llm(settings.llm, budget_tokens=settings.budget_tokens, budget_money=settings.budget_money)
    slug = llm_runs.choose_sae(context.engine, settings.sae)
    job = _Job(slug, settings.limit, llm, settings.settings, again=settings.retry_failed)
    tally = llm_runs.Tally()
    run = _explain_left(context.engine, job, load_prices(None), tally)
    return llm_runs.report_of(tally, "explained", sae=slug, run=run)


def _explain_left(engine: Engine, job: _Job, table: PriceTable, tally: llm_runs.Tally) -> RunInfo:
    """The run that explained what earlier ones left; it is kept only if there was something."""
    todo = _left(engine, job, tally)
    run = start_run("explain-features", settings=job.as_kept(), seed=0, device="cpu")
    if todo:
        if job.llm is None:
            _explain_lexically(engine, run, todo, job, tally)
        else:
            _explain(engine, run, todo, job, job.llm, table, tally)
        if not tally.interrupted:
            with writing(engine) as session:
                end_run(session, run)
    return run


# which features, and what may be shown of them


def _left(engine: Engine, job: _Job, tally: llm_runs.Tally) -> list[FeatureId]:
    listed = [one.index for one in llm_runs.best_features(engine, job.sae, job.limit)]
    name, version = job.key
    with reading(engine) as session:
        there = store.features_done(
            session, job.sae, store.FeatureKind.EXPLANATIONS, explainer=name, prompt_version=version
        )
        failed = store.features_failed(
            session, job.sae, Stage.EXPLAIN, reasons=llm_runs.LASTING, model=name, explainer=name,
            prompt_version=version,
        )  # fmt: skip
    left = llm_runs.left_to_do(listed, there, failed, tally, again=job.again)
    return [FeatureId(sae=job.sae, index=index) for index in listed if index in left]


def _output_tokens(engine: Engine, job: _Job, model: str | None, sae: str | None, n: int) -> dict[int, OutputTokens]:
    """What the features that are left to explain promote and suppress, by index.

    Raises:
        BadInput: nobody would be shown it, or the SAE is another one than the database's.
    """
    if job.llm is None:
        raise BadInput("--output-tokens are shown to a language model: give --explainer llm.")
    left = [one.index for one in _left(engine, job, llm_runs.Tally())]
    names = [sae] if sae else [str(path) for slug, path in organism_sae_paths().items() if slug == job.sae]
    if not names:
        raise BadInput(f"--subject-sae: where is `{job.sae}`? It is none of the organism's; give its folder or name.")
    if not left:
        return {}
    handle = load_handle(model, None, device="cpu", dtype="float32")
    (found,) = load_saes(names, handle, device="cpu")
    if found.ref.slug != job.sae:
        raise BadInput(f"--subject-sae: expected `{job.sae}`, whose features are explained; got `{found.ref.slug}`.")
    return output_tokens_of(handle, found, left, n=n)


def _tasks(
    engine: Engine, features: Sequence[FeatureId], silent: list[FeatureId], written: Mapping[int, OutputTokens]
) -> Iterator[ExplainTask]:
    """The tasks of features that fire; the others are named in `silent`."""
    for feature in features:
        kept = llm_runs.kept_contexts(engine, feature)
        shown = kept.halves.explain
        if kept.scale > 0 and shown.active:
            promotes, suppresses = written.get(feature.index, ((), ()))
            samples = FeatureSamples(
                active=tuple(shown.active), silent=tuple(shown.silent), scale=kept.scale, promotes=promotes,
                suppresses=suppresses,
            )  # fmt: skip
            yield ExplainTask(feature, samples)
        else:
            silent.append(feature)


# explain


def _forecast(engine: Engine, todo: Sequence[FeatureId], job: _Job, table: PriceTable) -> str:
    if job.llm is None:
        return f"{len(todo)} features to explain by their words: nobody is asked, and it costs nothing."
    price = table.price_of(base_url=job.llm.base_url, model=job.llm.model)
    requests = explain.explanation_requests(_tasks(engine, todo, [], job.written), job.settings)
    return str(forecast((one for one in requests if isinstance(one, ChatRequest)), price))


def _keep(
    engine: Engine, run: RunInfo, explanation: Explanation | None, entry: LedgerEntry, tally: llm_runs.Tally
) -> None:
    with writing(engine) as session:
        if explanation is not None:
            store.save_explanations(session, [explanation], run_id=run.run_id)
        store.save_ledger_entries(session, [entry], run_id=run.run_id)
    tally.count(entry)


def _explain_lexically(
    engine: Engine, run: RunInfo, todo: Sequence[FeatureId], job: _Job, tally: llm_runs.Tally
) -> None:
    keep_run(engine, run)
    name, version = job.key
    for feature in tqdm(todo, desc="explaining", unit="feature", disable=None):
        shown = llm_runs.kept_contexts(engine, feature).halves.explain
        words = write_lexically(shown.all, n_words=LEXICAL.n_words)
        entry = llm_runs.ledger_entry(
            feature, llm_runs.FREE, explainer=name, prompt_version=version, model=name,
            reason=None if words else NO_PROMPT, message="" if words else "it fires in no context that may explain it.",
        )  # fmt: skip
        _keep(engine, run, lexical_explanation(feature, words) if words else None, entry, tally)


def _explain(
    engine: Engine,
    run: RunInfo,
    todo: Sequence[FeatureId],
    job: _Job,
    llm: LlmSettings,
    table: PriceTable,
    tally: llm_runs.Tally,
) -> None:
    silent: list[FeatureId] = []

    async def work() -> None:
        async with client_of(llm, table, job.batch) as client:
            keep_run(engine, run)  # only now: an endpoint that is down leaves no trace
            found = explain.explain_features(_tasks(engine, todo, silent, job.written), client, job.settings)
            bar = tqdm[Any](desc="explaining", total=len(todo), unit="feature", disable=None)
            try:
                async with aclosing(found) as outcomes:
                    async for outcome in outcomes:
                        _take(engine, run, outcome, job, tally)
                        bar.update()
            finally:
                bar.close()
                tally.spent = client.total
                if isinstance(client, BatchAnswers):
                    tally.to_ask = client.to_ask
        for feature in silent:
            never = NotExplained(feature, NO_PROMPT, "it never fired.", None, llm_runs.FREE)
            _take(engine, run, never, job, tally)

    llm_runs.run_until_interrupted(work, tally)


def _take(engine: Engine, run: RunInfo, outcome: LlmExplained | NotExplained, job: _Job, tally: llm_runs.Tally) -> None:
    name, version = job.key
    if isinstance(outcome, LlmExplained):
        explanation = outcome.explanation
        entry = llm_runs.ledger_entry(
            explanation.feature, outcome.spending, explainer=name, prompt_version=version, model=name
        )
        _keep(engine, run, explanation, entry, tally)
        return
    if outcome.reason == FailureReason.WAITING:
        tally.n_waiting += 1
        return
    entry = llm_runs.ledger_entry(
        outcome.feature, outcome.spending, explainer=name, prompt_version=version, model=name, reason=outcome.reason,
        message=outcome.message, raw=outcome.raw,
    )  # fmt: skip
    _keep(engine, run, None, entry, tally)
