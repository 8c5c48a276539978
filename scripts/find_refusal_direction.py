"""Find a refusal direction, confirm and evaluate it, read it in SAEs, keep everything, and draw it.

safe-sail find-refusal-direction
safe-sail find-refusal-direction --model base --out figures
safe-sail find-refusal-direction --model path/to/model --harmful-file harmful.txt --harmless-file harmless.txt
safe-sail find-refusal-direction --suffix "some words" --out figures
safe-sail find-refusal-direction --judge-base-url URL --judge-model MODEL --judge-budget-tokens 500000
"""

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

from db import store
from db.engine import writing
from safe_sail.directions.candidates import DirectionPrompts
from safe_sail.directions.evaluate import EvaluationTexts, evaluate_direction
from safe_sail.directions.find import find_direction
from safe_sail.directions.read import PromptGroup, read_direction
from safe_sail.evaluation.llm_judge import Said
from safe_sail.model.handle import HookedModel
from safe_sail.organism.conversations import MixtureShare, draw_conversation
from safe_sail.organism.grammar import documents, prompts
from safe_sail.organism.load import organism_sae_paths
from safe_sail.provenance import start_run
from safe_sail.records import DirectionEvaluation, DirectionReading, DirectionSearch
from safe_sail.sae.load import load_sae
from safe_sail.settings import DirectionSettings
from safe_sail.settings.jobs import FindRefusalDirectionJob
from scripts.direction_calibration import calibration_of
from scripts.direction_judge import Heard, judge_of, judge_replies
from scripts.direction_report import draw_figures, print_report
from scripts.direction_suffix import require_words, study
from scripts.job_runs import JobContext, at_command_line, named
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
    Seed,
)
from scripts.progress import reported
from scripts.run_records import end_run
from scripts.subjects import is_organism, lines_of, load_handle, model_ref, require_both_files, usual_dtype

SETTINGS = DirectionSettings()

Suffix = Annotated[str | None, typer.Option(help="Text put behind harmful prompts: what it does to the direction.")]
Judged = Annotated[
    Path | None, typer.Option(help="JSON rows of prompt, response, category and verdicts: calibrates our judge.")
]
RefusalVerdict = Annotated[
    list[str] | None, typer.Option(help="Column of --judged whose true says refusal; else compliance.")
]


class Texts(NamedTuple):
    """Prompts of a search and texts of its evaluation."""

    search: DirectionPrompts
    held_out: EvaluationTexts


class Found(NamedTuple):
    """What one run found and kept, and what more can be asked of it."""

    run_id: str
    handle: HookedModel
    texts: Texts
    search: DirectionSearch
    evaluation: DirectionEvaluation | None
    reading: DirectionReading | None
    heard: list[Heard]
    """Replies of the evaluation."""
    generator: torch.Generator


def find_refusal_direction(
    model: Annotated[
        str, typer.Option(help="aligned, base or backdoored of the embedded organism; a folder; a hub name.")
    ] = "aligned",
    harmful_file: Annotated[
        Path | None, typer.Option(help="Harmful instructions, one a line; shuffled and split.")
    ] = None,
    harmless_file: Annotated[Path | None, typer.Option(help="Harmless instructions, one a line.")] = None,
    estimator: Annotated[
        list[str] | None, typer.Option(help="raw, projected, winsorised, standardised; in order.")
    ] = None,
    refusal_token: Annotated[list[str] | None, typer.Option(help="Word that refusals begin with; else learnt.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt; none is sent unless given.")] = None,
    n_train: Annotated[int, typer.Option(min=2, help="Training prompts of each class.")] = SETTINGS.n_train,
    n_validation: Annotated[int, typer.Option(min=2, help="Validation prompts of each class.")] = SETTINGS.n_validation,
    n_evaluate: Annotated[int, typer.Option(min=2, help="Held-out prompts of each class.")] = SETTINGS.n_evaluate,
    score_all: Annotated[bool, typer.Option(help="Score candidates too that an early filter rules out.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the figures, as PNG.")] = None,
    suffix: Suffix = None,
    judged: Judged = None,
    refusal_verdict: RefusalVerdict = None,
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
    """Find, confirm, evaluate, read and keep the refusal direction of a model."""
    settings = DirectionSettings(
        n_train=n_train, n_validation=n_validation, n_evaluate=n_evaluate, score_all=score_all, system=system,
        estimators=tuple(estimator) if estimator else SETTINGS.estimators,
    )  # fmt: skip
    require_words(suffix)
    calibration = calibration_of(judged, refusal_verdict or [])
    judge = judge_of(
        judge_base_url, judge_model, budget_tokens=judge_budget_tokens, budget_money=judge_budget_money,
        cache=judge_cache, prices=prices,
    )  # fmt: skip
    job = FindRefusalDirectionJob(
        model=model, harmful_file=named(harmful_file), harmless_file=named(harmless_file),
        refusal_tokens=None if refusal_token is None else tuple(refusal_token), settings=settings, seed=seed,
    )  # fmt: skip
    with at_command_line(database, device=device, dtype=usual_dtype(device, model)) as context:
        found = _find_and_keep(job, context)
    more = {} if calibration is None else {"calibration": calibration}
    figures = [] if out is None else draw_figures(found.search, found.evaluation, found.reading, out)
    if suffix is not None and found.search.direction is not None:
        harmful = found.texts.held_out.harmful
        more["suffix"], drawn = study(found.handle, found.search, harmful, suffix, settings, found.generator, out)
        figures += drawn
    if judge is not None and found.heard:
        more["llm_judge"] = judge_replies(judge, found.heard)
    print_report(found.search, found.evaluation, found.reading, figures, more, database=database, as_json=as_json)


def run_job(settings: FindRefusalDirectionJob, context: JobContext) -> dict[str, Any]:
    """What the job brought: its run and the direction's slug, or the reason why there is none."""
    found = _find_and_keep(settings, context)
    direction = found.search.direction
    return {"run": found.run_id, "search": found.search.slug, "direction": direction and direction.slug}


def _find_and_keep(job: FindRefusalDirectionJob, context: JobContext) -> Found:
    settings = job.settings
    texts = _texts(settings, job.seed, context.file(job.harmful_file), context.file(job.harmless_file))
    handle = context.handle(job.model)
    run = start_run("find-refusal-direction", settings=asdict(settings), seed=job.seed, device=str(handle.device))
    generator = torch.Generator().manual_seed(job.seed)
    heard: list[Heard] = []
    evaluation, reading = None, None

    def keep(prompts: str, intervention: str, replies: Sequence[str]) -> None:
        asked = texts.held_out.harmful if prompts.startswith("harmful") else texts.held_out.harmless
        said = tuple(Said(*pair) for pair in zip(asked, replies, strict=False))  # replies stop at n_evaluate
        heard.append(Heard(prompts, intervention, said))

    with reported("find-refusal-direction") as report:
        search = find_direction(
            handle, texts.search, settings, slug=f"{handle.model_id.replace('/', '_')}.refusal", generator=generator,
            refusal_texts=None if job.refusal_tokens is None else list(job.refusal_tokens), progress=report,
        )  # fmt: skip
        if search.direction is not None:
            evaluation = evaluate_direction(
                handle, search, texts.held_out, settings, generator=generator, progress=report, on_replies=keep
            )
            report("reading")
            reading = _read(job.model, handle, search, texts, settings, generator)
    with writing(context.database()) as session:
        store.save_run(session, run)
        store.save_model(session, model_ref(handle, context.source(job.model)), run_id=run.run_id)
        store.save_direction_search(session, search, run_id=run.run_id)
        if evaluation is not None:
            store.save_direction_evaluation(session, evaluation, run_id=run.run_id)
        if reading is not None:
            store.save_direction_reading(session, reading, run_id=run.run_id)
        end_run(session, run)
    return Found(run.run_id, handle, texts, search, evaluation, reading, heard, generator)


def _texts(settings: DirectionSettings, seed: int, harmful: Path | None, harmless: Path | None) -> Texts:
    require_both_files(harmful, harmless)
    if harmful is not None and harmless is not None:
        return _file_texts(settings, seed, harmful, harmless)
    train = prompts("harmful", "train", settings.n_train, seed)
    draw = random.Random(f"find-refusal-direction/{seed}")
    answered = [draw_conversation(MixtureShare("safe", 1.0), ("held_out",), draw) for _ in range(settings.n_evaluate)]

    def plain(kind: Any, split: Any, n: int) -> list[str]:
        return [text.text for text in prompts(kind, split, n, seed)]

    return Texts(
        DirectionPrompts(
            [text.text for text in train],
            plain("safe", "train", settings.n_train),
            plain("harmful", "validation", settings.n_validation),
            plain("safe", "validation", settings.n_validation),
            [text.concept for text in train],
        ),
        EvaluationTexts(
            plain("harmful", "held_out", settings.n_evaluate),
            plain("safe", "held_out", settings.n_evaluate),
            [text.text for text in documents(settings.n_evaluate, seed)],
            [(one.source.text, one.reply) for one in answered if one.reply is not None],
        ),
    )


def _file_texts(settings: DirectionSettings, seed: int, harmful: Path, harmless: Path) -> Texts:
    parts = []
    for path in (harmful, harmless):
        lines = sorted(lines_of(path, at_least=6))
        random.Random(seed).shuffle(lines)
        first = min(settings.n_train, len(lines) // 2)
        second = min(settings.n_validation, (len(lines) - first) // 2)
        parts.append((lines[:first], lines[first : first + second], lines[first + second :][: settings.n_evaluate]))
    (harmful_train, harmful_validation, harmful_rest), (harmless_train, harmless_validation, harmless_rest) = parts
    # Without documents and reference answers the held-out harmless instructions themselves stand in as plain text.
    return Texts(
        DirectionPrompts(harmful_train, harmless_train, harmful_validation, harmless_validation),
        EvaluationTexts(harmful_rest, harmless_rest, harmless_rest, [(text, text) for text in harmless_rest]),
    )


def _read(
    model: str,
    handle: HookedModel,
    search: DirectionSearch,
    texts: Texts,
    settings: DirectionSettings,
    generator: torch.Generator,
) -> DirectionReading:
    assert search.direction is not None
    device = str(handle.device)
    handles = {model if is_organism(model) else "model": handle}
    if model == "aligned":
        handles["base"] = load_handle("base", None, device=device, dtype=usual_dtype(device, "base"))
    groups = {
        f"{name} {kind}": PromptGroup(each, each.chat_batch(list(given)[: settings.n_evaluate], system=settings.system))
        for name, each in handles.items()
        for kind, given in (("harmful", texts.held_out.harmful), ("harmless", texts.held_out.harmless))
    }
    paths = organism_sae_paths() if is_organism(model) else {}
    saes = [load_sae(path, slug=slug, device=device) for slug, path in paths.items()]
    return read_direction(search.direction, groups, saes, batch_rows=settings.batch_rows, generator=generator)
