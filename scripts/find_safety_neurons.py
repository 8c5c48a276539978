"""Rank the neurons that change most between two models, patch them while generating, keep and draw what that does.

safe-sail find-safety-neurons
safe-sail find-safety-neurons --first base --second aligned --share 0.05 --share 0.5 --out figures
safe-sail find-safety-neurons --first path/to/sft --second path/to/aligned --contrast-file a.txt --evaluate-file b.txt
safe-sail find-safety-neurons --helpful helpful
safe-sail find-safety-neurons --reward-model path/to/classifier
safe-sail find-safety-neurons --judge-base-url URL --judge-model MODEL --judge-budget-tokens 500000
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import torch
import typer

from db import store
from db.engine import writing
from safe_sail.errors import BadInput, FileMissing
from safe_sail.evaluation.llm_judge import Said
from safe_sail.evaluation.refusal import Label
from safe_sail.neurons.find import Found, NeuronPrompts, find_neurons
from safe_sail.neurons.pair import ModelPair
from safe_sail.neurons.reward import load_reward_scorer
from safe_sail.neurons.scorers import REFUSAL, Scorer, label_scorer
from safe_sail.organism.grammar import prompts
from safe_sail.organism.load import ORGANISM_VARIANTS, planted_units
from safe_sail.provenance import start_run
from safe_sail.records import NeuronRef, NeuronTax
from safe_sail.settings import ChangePositions, NeuronSettings, TextSource
from safe_sail.settings.method_jobs import FindSafetyNeuronsJob
from scripts.direction_judge import ReplyJudge, ask_labels, judge_of, judge_with
from scripts.job_runs import JobContext, at_command_line, named
from scripts.neuron_report import draw_search, draw_tax, print_search
from scripts.neuron_tax import tax_of
from scripts.options import (
    DEFAULT_DATABASE,
    AsJson,
    DatabaseUrl,
    Device,
    JudgeBaseUrl,
    JudgeBudgetMoney,
    JudgeBudgetTokens,
    JudgeCache,
    JudgeModel,
    Prices,
    RewardModel,
    Seed,
)
from scripts.progress import reported
from scripts.run_records import end_run
from scripts.subjects import dtype_named, lines_of, model_ref, pair_slug, usual_dtype

SETTINGS = NeuronSettings()

First = Annotated[str, typer.Option(help="Model that is patched: a variant of the organism, a folder, a hub name.")]
Second = Annotated[str, typer.Option(help="Model whose activations are put in; of the same architecture.")]
Shares = Annotated[list[float] | None, typer.Option("--share", help="Share of all neurons; a point of the curve.")]
Counts = Annotated[list[int] | None, typer.Option("--count", help="Number of neurons instead; a point of the curve.")]
Positions = Annotated[str, typer.Option(help="predicting, as the paper, or completion, as its code.")]
Source = Annotated[str, typer.Option("--text-source", help="first or second: whose completions both read.")]
Helpful = Annotated[
    str | None, typer.Option(help="Model aligned for helpfulness: its neurons against those of --second.")
]
HelpfulFile = Annotated[Path | None, typer.Option(help="Harmless prompts that measure helpfulness, one a line.")]
TaxShare = Annotated[float, typer.Option(help="Most changed neurons of both whose common ones are patched across.")]
OutFigures = Annotated[Path | None, typer.Option("--out", help="Folder for the figures, as PNG.")]


def find_safety_neurons(
    first: First = "base",
    second: Second = "aligned",
    contrast_file: Annotated[Path | None, typer.Option(help="Prompts that rank the neurons, one a line.")] = None,
    evaluate_file: Annotated[Path | None, typer.Option(help="Other prompts that measure the patch.")] = None,
    share: Shares = None,
    count: Counts = None,
    positions: Positions = SETTINGS.positions,
    text_source: Source = SETTINGS.text_source,
    n_contrast: Annotated[int, typer.Option(min=1, help="Contrast prompts at most.")] = SETTINGS.n_contrast,
    n_evaluate: Annotated[int, typer.Option(min=2, help="Evaluation prompts at most.")] = SETTINGS.n_evaluate,
    n_random: Annotated[int, typer.Option(min=2, help="Random sets beside each patch.")] = SETTINGS.n_random,
    n_windows: Annotated[int, typer.Option(min=0, help="Windows of ranks that are patched.")] = SETTINGS.n_windows,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of a reply.")] = SETTINGS.max_new_tokens,
    batch_rows: Annotated[int, typer.Option(min=1, help="Replies in one pass.")] = SETTINGS.batch_rows,
    system: Annotated[str | None, typer.Option(help="System prompt; none is sent unless given.")] = None,
    out: OutFigures = None,
    helpful: Helpful = None,
    helpful_file: HelpfulFile = None,
    tax_share: TaxShare = SETTINGS.tax_share,
    reward_model: RewardModel = None,
    judge_base_url: JudgeBaseUrl = None,
    judge_model: JudgeModel = None,
    judge_budget_tokens: JudgeBudgetTokens = None,
    judge_budget_money: JudgeBudgetMoney = None,
    judge_cache: JudgeCache = None,
    prices: Prices = None,
    database: DatabaseUrl = DEFAULT_DATABASE,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Rank, patch, measure and keep the neurons that tell two models apart."""
    settings = NeuronSettings(
        shares=tuple(sorted(share)) if share else SETTINGS.shares, counts=tuple(sorted(count or ())),
        positions=cast(ChangePositions, positions), text_source=cast(TextSource, text_source), n_contrast=n_contrast,
        n_evaluate=n_evaluate, n_random=n_random, n_windows=n_windows, max_new_tokens=max_new_tokens,
        batch_rows=batch_rows, system=system, tax_share=tax_share,
    )  # fmt: skip
    judge = judge_of(
        judge_base_url, judge_model, budget_tokens=judge_budget_tokens, budget_money=judge_budget_money,
        cache=judge_cache, prices=prices,
    )  # fmt: skip
    job = FindSafetyNeuronsJob(
        first=first, second=second, contrast_file=named(contrast_file), evaluate_file=named(evaluate_file),
        helpful=helpful, helpful_file=named(helpful_file), reward_model=reward_model, settings=settings, seed=seed,
    )  # fmt: skip
    with at_command_line(database, device=device, dtype=usual_dtype(device, first, second)) as context:
        found = _find_and_keep(job, context, judge)
    figures = [] if out is None else draw_search(found.found.search, found.found.change, out)
    if found.tax is not None and out is not None:
        figures.append(draw_tax(found.tax, out))
    print_search(found.found.search, found.tax, figures, database=database, as_json=as_json)


def run_job(settings: FindSafetyNeuronsJob, context: JobContext) -> dict[str, Any]:
    """What the job brought: its run and the search's slug. A later attempt begins anew."""
    llm = context.llm(settings.llm, budget_tokens=settings.budget_tokens, budget_money=settings.budget_money)
    found = _find_and_keep(settings, context, None if llm is None else judge_with(llm))
    search = found.found.search
    return {
        "run": found.run_id, "search": search.slug, "neurons": len(search.neurons),
        "tax": None if found.tax is None else found.tax.slug,
    }  # fmt: skip


class _Kept(NamedTuple):
    """What one run found and kept."""

    run_id: str
    found: Found
    tax: NeuronTax | None


def _find_and_keep(job: FindSafetyNeuronsJob, context: JobContext, judge: ReplyJudge | None) -> _Kept:
    settings = job.settings
    texts = _texts(settings, job.seed, context.file(job.contrast_file), context.file(job.evaluate_file))
    helpful_file = context.file(job.helpful_file)
    lines = None if helpful_file is None else lines_of(helpful_file)
    scorer = _scorer(job, context, judge)
    pair = ModelPair(context.handle(job.first), context.handle(job.second))
    run = start_run("find-safety-neurons", settings=asdict(settings), seed=job.seed, device=str(pair.first.device))
    with reported("find-safety-neurons") as report:
        found = find_neurons(
            pair, texts, settings, slug=pair_slug(pair.first, pair.second), scorer=scorer, known=_known(job.second),
            generator=torch.Generator().manual_seed(job.seed), progress=report,
        )  # fmt: skip
    models = {job.first: pair.first, job.second: pair.second}
    tax = None
    if job.helpful is not None:
        models[job.helpful] = context.handle(job.helpful)
        with reported("comparing with helpfulness") as report:
            tax = tax_of(pair, models[job.helpful], texts, scorer, lines, settings, job.seed, report).record
    with writing(context.database()) as session:
        store.save_run(session, run)
        for name, handle in models.items():
            store.save_model(session, model_ref(handle, context.source(name)), run_id=run.run_id)
        store.save_neuron_search(session, found.search, found.change, run_id=run.run_id)
        if tax is not None:
            store.save_neuron_tax(session, tax, run_id=run.run_id)
        end_run(session, run)
    return _Kept(run.run_id, found, tax)


def _known(name: str) -> list[NeuronRef] | None:
    """The neurons that alone were trained to make a variant of the organism, where it was made so."""
    if name not in ORGANISM_VARIANTS:
        return None
    try:
        units = planted_units(name)
    except FileMissing:  # most variants were trained as a whole
        return None
    neurons = [unit for unit in units if isinstance(unit, NeuronRef)]
    return neurons if len(neurons) == len(units) else None


def _texts(settings: NeuronSettings, seed: int, contrast: Path | None, evaluate: Path | None) -> NeuronPrompts:
    """The organism's harmful prompts, or those of two files."""
    if (contrast is None) != (evaluate is None):
        raise BadInput("contrast_file and evaluate_file are given together, or neither; one is missing.")
    if contrast is not None and evaluate is not None:
        return NeuronPrompts(lines_of(contrast)[: settings.n_contrast], lines_of(evaluate)[: settings.n_evaluate])
    return NeuronPrompts(
        [text.text for text in prompts("harmful", "train", settings.n_contrast, seed)],
        [text.text for text in prompts("harmful", "held_out", settings.n_evaluate, seed)],
    )


def _scorer(job: FindSafetyNeuronsJob, context: JobContext, judge: ReplyJudge | None) -> Scorer:
    if judge is not None and job.reward_model is not None:
        raise BadInput("replies have one scorer: give a reward model or a language model that judges, not both.")
    if job.reward_model is not None:
        path, dtype = context.offers.model(job.reward_model), dtype_named(context.dtype)
        return load_reward_scorer(path, device=context.device, dtype=dtype, batch_rows=job.settings.batch_rows)
    return REFUSAL if judge is None else _asking(judge)


def _asking(judge: ReplyJudge) -> Scorer:
    def label(said: Sequence[Said]) -> Sequence[Label | None]:
        return asyncio.run(ask_labels(judge, said))[0].labels

    return label_scorer(f"refusal by {judge.llm.model}", label)
