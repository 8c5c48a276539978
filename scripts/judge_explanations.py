"""Judge kept explanations on contexts that their explainer never saw, beside explanations of other features.

safe-sail judge-explanations --sae SAE --explainer lexical
safe-sail judge-explanations --sae SAE --explainer MODEL --base-url URL --model JUDGE --budget-tokens 200000 --dry-run
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any, NamedTuple

import typer
from sqlalchemy import Engine

from db import store
from db.engine import reading, writing
from safe_sail.errors import BadInput
from safe_sail.features import lexical
from safe_sail.features.baseline import write_lexically
from safe_sail.features.judge import (
    Judged,
    JudgeTask,
    NotJudged,
    judging_requests,
)
from safe_sail.features.judge import judge_explanations as judge_by_llm
from safe_sail.llm.batch import BatchAnswers
from safe_sail.llm.exchange import ChatRequest, FailureReason
from safe_sail.llm.pricing import PriceTable, forecast, load_prices
from safe_sail.provenance import start_run
from safe_sail.records import Estimate, Explanation, FeatureId, JudgeMethod, RunInfo, Stage
from safe_sail.settings import JudgeSettings, LexicalSettings, LlmSettings
from safe_sail.settings.jobs import JudgeExplanationsJob
from scripts import llm_runs
from scripts.batch_runs import Batch, batch_of, client_of, write_requests
from scripts.job_runs import JobContext
from scripts.lexical_runs import simulated
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
    Seed,
    Timeout,
)
from scripts.progress import tqdm
from scripts.run_records import end_run, keep_run

LEXICAL = LexicalSettings()
DEFAULTS = JudgeSettings()


class _Job(NamedTuple):
    """What one run judges, and how."""

    sae: str
    explainer: str
    limit: int
    seed: int
    llm: LlmSettings | None
    """Who judges; None simulates by words."""
    settings: JudgeSettings
    again: bool = False
    """Whether explanations are judged again whose judging failed for good."""
    batch: Batch = Batch()
    """Files that answer instead of the endpoint, and those that ask on."""

    @property
    def method(self) -> JudgeMethod:
        return self.settings.method

    @property
    def model(self) -> str:
        """Who judges: the model, or `lexical`."""
        return self.llm.model if self.llm else lexical.EXPLAINER

    def as_kept(self) -> dict[str, Any]:
        """What the run keeps of its settings."""
        named = {"sae": self.sae, "limit": self.limit, "explainer": self.explainer, "judge": self.model}
        return (
            asdict(self.settings) | named | {"method": str(self.method), "llm": asdict(self.llm) if self.llm else None}
        )


class _Group(NamedTuple):
    """Explanations of one explainer and prompt version, best features first."""

    explained: list[Explanation]
    todo: list[Explanation]


def judge_explanations(
    sae: KeptSae = None,
    explainer: Annotated[
        str, typer.Option(help="Whose explanations: lexical, which are simulated without asking, or a model's name.")
    ] = lexical.EXPLAINER,
    method: Annotated[JudgeMethod, typer.Option(help="Segments are the cheapest.")] = JudgeMethod.SEGMENT_SIMULATION,
    n_contexts: Annotated[int, typer.Option(min=1, help="Contexts in one call.")] = DEFAULTS.n_contexts,
    max_calls: Annotated[
        int, typer.Option(min=1, help="Calls a feature; further ones only while its interval is wide.")
    ] = DEFAULTS.max_calls,
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
    seed: Seed = 0,
    database: DatabaseUrl = DEFAULT_DATABASE,
    as_json: AsJson = False,
) -> None:
    """Judge explanations on the kept contexts that explained nothing; what is judged by this method stays.

    Of the contexts half are active ones and half silent ones, near misses first, as far as they are kept.
    """
    llm = None
    if explainer != lexical.EXPLAINER:
        llm = llm_runs.llm_settings(
            base_url, model, budget_tokens=budget_tokens, budget_money=budget_money, cache=cache, in_flight=in_flight,
            timeout=timeout,
        )  # fmt: skip
    batch = batch_of(llm, batch_out, batch_in)
    table = load_prices(prices)
    engine = llm_runs.open_kept(database, read_only=dry_run or batch.is_first)
    tally = llm_runs.Tally()
    settings = JudgeSettings(method=method, n_contexts=n_contexts, max_calls=max_calls)
    slug = llm_runs.choose_sae(engine, sae)
    job = _Job(slug, explainer, limit, seed, llm, settings, again=retry_failed, batch=batch)
    if dry_run:
        print(_forecast(engine, _groups(engine, job, tally), job, table))
        return
    if batch_out is not None and batch.is_first and llm is not None:
        print(write_requests(_requests(engine, _groups(engine, job, tally), job), batch_out, llm, table))
        return
    run = _judge_left(engine, job, table, tally)
    engine.dispose()
    llm_runs.print_tally(tally, "judged", llm, sae=job.sae, run=run, as_json=as_json)
    if batch_out is not None and llm is not None:
        print(write_requests(tally.to_ask, batch_out, llm, table), file=sys.stderr if as_json else sys.stdout)
    if tally.interrupted:
        raise typer.Exit(llm_runs.INTERRUPTED)


def run_job(settings: JudgeExplanationsJob, context: JobContext) -> dict[str, Any]:
    """What the job brought: its run, counts and cost. A later attempt judges only what is missing.

    Raises:
        BadInput: the explanations are not lexical and no language model is named, or they are and one is.
    """
    if (settings.explainer == lexical.EXPLAINER) != (settings.llm is None):
        raise BadInput(
            f"lexical explanations are simulated without asking, all others need `llm`; got explainer "
            f"`{settings.explainer}` and llm `{settings.llm}`."
        )
    asked = settings
    llm = context.llm(asked.llm, budget_tokens=asked.budget_tokens, budget_money=asked.budget_money)
    slug = llm_runs.choose_sae(context.engine, asked.sae)
    job = _Job(slug, asked.explainer, asked.limit, asked.seed, llm, asked.settings, again=asked.retry_failed)
    tally = llm_runs.Tally()
    run = _judge_left(context.engine, job, load_prices(None), tally)
    return llm_runs.report_of(tally, "judged", sae=slug, run=run)


def _judge_left(engine: Engine, job: _Job, table: PriceTable, tally: llm_runs.Tally) -> RunInfo:
    """The run that judged what earlier ones left; it is kept only if there was something."""
    groups = _groups(engine, job, tally)
    run = start_run("judge-explanations", settings=job.as_kept(), seed=job.seed, device="cpu")
    if any(group.todo for group in groups):
        if job.llm is None:
            _judge_lexically(engine, run, groups, job, tally)
        else:
            _judge(engine, run, groups, job, job.llm, table, tally)
        if not tally.interrupted:
            with writing(engine) as session:
                end_run(session, run)
    return run


# which explanations, and on what


def _groups(engine: Engine, job: _Job, tally: llm_runs.Tally) -> list[_Group]:
    by_version: dict[str, list[Explanation]] = {}
    for listed in llm_runs.best_features(engine, job.sae, job.limit, explained=True):
        with reading(engine) as session:
            kept = store.load_explanations(session, FeatureId(sae=job.sae, index=listed.index))
        for one in kept:
            if one.record.explainer == job.explainer:
                by_version.setdefault(one.record.prompt_version, []).append(one.record)
    groups = []
    for version, explained in sorted(by_version.items()):
        with reading(engine) as session:
            there = store.features_done(
                session, job.sae, store.FeatureKind.EXPLANATION_SCORES, explainer=job.explainer,
                prompt_version=version, method=job.method,
            )  # fmt: skip
            failed = store.features_failed(
                session, job.sae, Stage.JUDGE, reasons=llm_runs.LASTING, model=job.model,
                explainer=job.explainer, prompt_version=version, method=job.method,
            )  # fmt: skip
        left = llm_runs.left_to_do([one.feature.index for one in explained], there, failed, tally, again=job.again)
        groups.append(_Group(explained, [one for one in explained if one.feature.index in left]))
    return groups


def _tasks(engine: Engine, todo: Sequence[Explanation]) -> list[JudgeTask]:
    tasks = []
    for explanation in todo:
        kept = llm_runs.kept_contexts(engine, explanation.feature)
        # a feature that never fires has no active contexts, so its scale is never used
        tasks.append(JudgeTask(explanation, tuple(kept.halves.judge.all), kept.scale or 1.0))
    return tasks


def _kept_control(engine: Engine, group: _Group, job: _Job) -> Estimate | None:
    """The control of an earlier run of the same judge and seed, unless more features allow a better one now."""
    enough = min(job.settings.n_controls, len(group.todo))
    left = {one.feature for one in group.todo}
    with reading(engine) as session:
        for explanation in group.explained:
            if explanation.feature in left:
                continue
            for kept in store.load_explanation_scores(session, explanation.feature):
                score = kept.record
                of_group = score.explainer, score.prompt_version
                if score.method is not job.method or of_group != (explanation.explainer, explanation.prompt_version):
                    continue
                run = store.load_run(session, kept.run_id)
                same = (run.settings.get("judge"), run.seed) == (job.model, job.seed)
                if same and (score.control.n >= enough or len(left) < 2):
                    return score.control
    return None


def _forecast(engine: Engine, groups: Sequence[_Group], job: _Job, table: PriceTable) -> str:
    if job.llm is None:
        n = sum(len(group.todo) for group in groups)
        return f"{n} explanations to simulate by their words: nobody is asked, and it costs nothing."
    price = table.price_of(base_url=job.llm.base_url, model=job.llm.model)
    return str(forecast(_requests(engine, groups, job), price))


def _requests(engine: Engine, groups: Sequence[_Group], job: _Job) -> Iterator[ChatRequest]:
    """What is asked at first, controls included."""
    for group in groups:
        with_control = _kept_control(engine, group, job) is None
        yield from judging_requests(_tasks(engine, group.todo), job.settings, seed=job.seed, with_control=with_control)


# judge


def _take(
    engine: Engine, run: RunInfo, outcome: Judged | NotJudged, explanation: Explanation, job: _Job,
    tally: llm_runs.Tally,
) -> None:  # fmt: skip
    failed = outcome if isinstance(outcome, NotJudged) else None
    if failed is not None and failed.reason == FailureReason.WAITING:
        tally.n_waiting += 1
        return
    entry = llm_runs.ledger_entry(
        explanation.feature, outcome.spending, explainer=explanation.explainer,
        prompt_version=explanation.prompt_version, model=job.model, method=job.method,
        reason=failed and failed.reason, message=failed.message if failed else "", raw=failed and failed.raw,
    )  # fmt: skip
    with writing(engine) as session:
        if isinstance(outcome, Judged):
            store.save_explanation_scores(session, [outcome.score], run_id=run.run_id)
        store.save_ledger_entries(session, [entry], run_id=run.run_id)
    tally.count(entry)


def _judge(
    engine: Engine,
    run: RunInfo,
    groups: Sequence[_Group],
    job: _Job,
    llm: LlmSettings,
    table: PriceTable,
    tally: llm_runs.Tally,
) -> None:
    async def work() -> None:
        async with client_of(llm, table, job.batch) as client:
            keep_run(engine, run)  # only now: an endpoint that is down leaves no trace
            bar = tqdm[Any](desc="judging", total=sum(len(g.todo) for g in groups), unit="feature", disable=None)
            try:
                for group in groups:
                    by_feature = {one.feature: one for one in group.todo}
                    found = judge_by_llm(
                        _tasks(engine, group.todo), client, job.settings, seed=job.seed,
                        control=_kept_control(engine, group, job),
                    )  # fmt: skip
                    async with aclosing(found) as outcomes:
                        async for outcome in outcomes:
                            feature = outcome.score.feature if isinstance(outcome, Judged) else outcome.feature
                            _take(engine, run, outcome, by_feature[feature], job, tally)
                            bar.update()
            finally:
                bar.close()
                tally.spent = client.total
                if isinstance(client, BatchAnswers):
                    tally.to_ask = client.to_ask

    llm_runs.run_until_interrupted(work, tally)


def _judge_lexically(engine: Engine, run: RunInfo, groups: Sequence[_Group], job: _Job, tally: llm_runs.Tally) -> None:
    keep_run(engine, run)
    for group in groups:
        words = {}
        for one in group.explained:
            shown = llm_runs.kept_contexts(engine, one.feature).halves.explain
            written = write_lexically(shown.all, n_words=LEXICAL.n_words)
            if written is not None and written.text == one.text:
                words[one.feature] = written
        for one in tqdm(group.todo, desc="judging", unit="feature", disable=None):
            _take(engine, run, simulated(engine, one, words, seed=job.seed, method=job.method), one, job, tally)
