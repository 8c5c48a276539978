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
from typing import Annotated, NamedTuple, cast

import torch
import typer
from tqdm import tqdm

from db import store
from db.engine import make_engine, writing
from db.migrate import upgrade
from safe_sail.errors import BadInput, CorpusUnreadable, FileMissing
from safe_sail.evaluation.llm_judge import Said
from safe_sail.evaluation.refusal import Label
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model
from safe_sail.neurons.find import Found, NeuronPrompts, find_neurons
from safe_sail.neurons.pair import ModelPair
from safe_sail.neurons.reward import load_reward_scorer
from safe_sail.neurons.scorers import REFUSAL, Scorer, label_scorer
from safe_sail.organism.grammar import prompts
from safe_sail.organism.load import ORGANISM_VARIANTS, organism_path, planted_units
from safe_sail.provenance import finish_run, start_run
from safe_sail.records import NeuronRef, NeuronTax
from safe_sail.settings import ChangePositions, NeuronSettings, TextSource
from scripts.direction_judge import ReplyJudge, ask_labels, judge_of
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
from scripts.subjects import model_ref

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
    scorer = _scorer(judge, reward_model, device, batch_rows)
    texts = texts_of(settings, seed, contrast_file, evaluate_file)
    engine = make_engine(database)
    upgrade(engine)
    pair = ModelPair(load_named(first, device), load_named(second, device))
    run = start_run("find-safety-neurons", settings=asdict(settings), seed=seed, device=str(pair.first.device))
    found = _find(pair, texts, settings, seed, scorer, known_of(second))
    tax = None if helpful is None else _tax(pair, helpful, texts, scorer, helpful_file, settings, seed, device)
    done = finish_run(run)
    with writing(engine) as session:
        store.save_run(session, run)
        for handle, source in ((pair.first, first), (pair.second, second)):
            store.save_model(session, model_ref(handle, source_of(source)), run_id=run.run_id)
        store.save_neuron_search(session, found.search, found.change, run_id=run.run_id)
        if tax is not None:
            store.save_model(session, model_ref(tax.helpful, source_of(str(helpful))), run_id=run.run_id)
            store.save_neuron_tax(session, tax.record, run_id=run.run_id)
        assert done.finished is not None
        store.finish_run(session, run.run_id, done.finished)
    engine.dispose()
    figures = [] if out is None else draw_search(found.search, found.change, out)
    if tax is not None and out is not None:
        figures.append(draw_tax(tax.record, out))
    print_search(found.search, None if tax is None else tax.record, figures, database=database, as_json=as_json)


class _Compared(NamedTuple):
    """A helpful model, and what it shares with the safe one."""

    helpful: HookedModel
    record: NeuronTax


def _tax(
    pair: ModelPair,
    helpful: str,
    texts: NeuronPrompts,
    scorer: Scorer,
    helpful_file: Path | None,
    settings: NeuronSettings,
    seed: int,
    device: str,
) -> _Compared:
    handle = load_named(helpful, device)
    lines = None if helpful_file is None else lines_of(helpful_file)
    with tqdm(desc="comparing with helpfulness", unit=" step", disable=None) as bar:

        def report(message: str) -> None:
            bar.set_postfix_str(message)
            bar.update()

        return _Compared(handle, tax_of(pair, handle, texts, scorer, lines, settings, seed, report).record)


def load_named(name: str, device: str) -> HookedModel:
    """A variant of the organism, a folder or a hub name."""
    if name in ORGANISM_VARIANTS:
        return load_model(organism_path(name), device=device, dtype=torch.float32, model_id=f"organism-{name}")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return load_model(name, device=device, dtype=dtype, model_id=Path(name).name)


def source_of(name: str) -> str:
    """Where a model of that name comes from, as records say it."""
    return "the embedded organism" if name in ORGANISM_VARIANTS else name


def slug_of(first: HookedModel, second: HookedModel) -> str:
    """Name of what is found between two models."""
    return f"{first.model_id}.{second.model_id}".replace("/", "_")


def known_of(name: str) -> list[NeuronRef] | None:
    """The neurons that alone were trained to make a variant of the organism, where it was made so."""
    if name not in ORGANISM_VARIANTS:
        return None
    try:
        units = planted_units(name)
    except FileMissing:  # most variants were trained as a whole
        return None
    neurons = [unit for unit in units if isinstance(unit, NeuronRef)]
    return neurons if len(neurons) == len(units) else None


def texts_of(settings: NeuronSettings, seed: int, contrast: Path | None, evaluate: Path | None) -> NeuronPrompts:
    """The organism's harmful prompts, or those of two files."""
    if (contrast is None) != (evaluate is None):
        raise typer.BadParameter("give both --contrast-file and --evaluate-file, or neither.")
    if contrast is not None and evaluate is not None:
        return NeuronPrompts(lines_of(contrast)[: settings.n_contrast], lines_of(evaluate)[: settings.n_evaluate])
    return NeuronPrompts(
        [text.text for text in prompts("harmful", "train", settings.n_contrast, seed)],
        [text.text for text in prompts("harmful", "held_out", settings.n_evaluate, seed)],
    )


def lines_of(path: Path) -> list[str]:
    """Different lines of a file of prompts, in their order.

    Raises:
        CorpusUnreadable: the file is missing, is no UTF-8 text, or has fewer than two prompts.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusUnreadable(f"{path}: expected a UTF-8 text file, one prompt a line ({error}).") from error
    found = list(dict.fromkeys(line for line in lines if line))
    if len(found) < 2:
        raise CorpusUnreadable(f"{path}: expected at least 2 different prompts, one a line; got {len(found)}.")
    return found


def _scorer(judge: ReplyJudge | None, reward_model: str | None, device: str, batch_rows: int) -> Scorer:
    if judge is not None and reward_model is not None:
        raise BadInput("replies have one scorer: give --reward-model or a judge's endpoint, not both.")
    if reward_model is not None:
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        return load_reward_scorer(reward_model, device=device, dtype=dtype, batch_rows=batch_rows)
    return REFUSAL if judge is None else _asking(judge)


def _asking(judge: ReplyJudge) -> Scorer:
    def label(said: Sequence[Said]) -> Sequence[Label | None]:
        return asyncio.run(ask_labels(judge, said))[0].labels

    return label_scorer(f"refusal by {judge.llm.model}", label)


def _find(
    pair: ModelPair,
    texts: NeuronPrompts,
    settings: NeuronSettings,
    seed: int,
    scorer: Scorer,
    known: list[NeuronRef] | None,
) -> Found:
    with tqdm(desc="find-safety-neurons", unit=" step", disable=None) as bar:

        def report(message: str) -> None:
            bar.set_postfix_str(message)
            bar.update()

        return find_neurons(
            pair, texts, settings, slug=slug_of(pair.first, pair.second), scorer=scorer, known=known,
            generator=torch.Generator().manual_seed(seed), progress=report,
        )  # fmt: skip
