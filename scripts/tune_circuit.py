"""Tune a model with a circuit alone, or with everything but it, beside full tuning and random circuits; all kept.

safe-sail tune-circuit
safe-sail tune-circuit --task helpful --kept inputs
safe-sail tune-circuit --model aligned --task helpful --find-heads 5 --find-neurons 288 --kept restored
safe-sail tune-circuit --mode only --model MODEL --units circuit.json --rows r.jsonl --harmful-file F --harmless-file F

The tuned weights stay in memory and are dropped when their figures are taken.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table

from db import store
from db.engine import writing
from db.interchange.files import read_lines, read_whole, refuse
from safe_sail.circuits.tuning_study import FoundStudy, TuningTexts, study_forgetting, study_tuning
from safe_sail.errors import BadInput, CorpusUnreadable
from safe_sail.model.handle import HookedModel
from safe_sail.organism.conversations import MixtureShare, draw_mixture
from safe_sail.organism.grammar import Split, prompts
from safe_sail.organism.load import planted_units
from safe_sail.organism.recipes import HELPFUL
from safe_sail.provenance import start_run
from safe_sail.records import Circuit, CircuitMember, Estimate, HeadRef, NeuronRef, TuningStudy, UnitRef, parse_unit
from safe_sail.settings import ForgettingSettings, TuningSettings
from safe_sail.settings.method_jobs import TuneCircuitJob
from scripts.job_runs import JobContext, at_command_line, named
from scripts.options import DEFAULT_DATABASE, AsJson, DatabaseUrl, Device, Seed
from scripts.progress import reported
from scripts.run_records import end_run
from scripts.subjects import Dtype, ModelId, ModelName, is_organism, lines_of, save_subjects

DEFAULTS = TuningSettings()
FIND_DEFAULTS = ForgettingSettings()
VARIANT = "planted-neurons"
"""The organism's variant whose refusal sits in known neurons: its circuit is the truth, not a finding."""
MAX_UNITS_BYTES = 64 * 2**20

Progress = Callable[[str], None]
PromptFile = Annotated[Path | None, typer.Option(help="Held-out prompts, one a line.")]


def tune(
    mode: Annotated[
        str, typer.Option(help="excluded: all but the circuit is trained; only: it alone.")
    ] = DEFAULTS.mode,
    kept: Annotated[
        str,
        typer.Option(
            help="Of excluded: weights; inputs: what the circuit reads stays too; restored: put back after tuning."
        ),
    ] = DEFAULTS.kept,
    method: Annotated[str, typer.Option(help="rows or low_rank.")] = DEFAULTS.method,
    model: ModelName = None,
    model_id: ModelId = None,
    units: Annotated[
        Path | None, typer.Option(help='The circuit, as JSON: {"name": ["L3.H5", "L4.N902"]}; else the planted one.')
    ] = None,
    find_heads: Annotated[
        int, typer.Option(help="Find the circuit by what full tuning makes the model forget: heads at most.")
    ] = 0,
    find_neurons: Annotated[int, typer.Option(help="The same: neurons at most.")] = 0,
    task_weight: Annotated[
        float, typer.Option(help="Of what is found: how much of its gain on the task is held against putting it back.")
    ] = FIND_DEFAULTS.task_weight,
    rows: Annotated[
        Path | None, typer.Option(help=".jsonl of prompt and reply: four fifths train, the rest is held out.")
    ] = None,
    harmful_file: PromptFile = None,
    harmless_file: PromptFile = None,
    task: Annotated[
        Literal["answers", "helpful"],
        typer.Option(help="What the organism learns where the circuit is kept; helpful: answers end with an offer."),
    ] = "answers",
    n_steps: Annotated[int, typer.Option(help="Optimiser steps.")] = DEFAULTS.n_steps,
    learning_rate: Annotated[float, typer.Option(help="Peak rate.")] = DEFAULTS.learning_rate,
    n_evaluate: Annotated[int, typer.Option(help="Held-out prompts of each class.")] = DEFAULTS.n_evaluate,
    n_random: Annotated[int, typer.Option(help="Random circuits of the same size.")] = DEFAULTS.n_random,
    database: DatabaseUrl = DEFAULT_DATABASE,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Tune with a circuit or without it, and say what became of safety, over-refusal and the task."""
    settings = TuningSettings(
        mode=mode, kept=kept, method=method, n_steps=n_steps, learning_rate=learning_rate, n_evaluate=n_evaluate,
        n_random=n_random,
    )  # fmt: skip
    job = TuneCircuitJob(
        model=model, units=named(units), find=_find(find_heads, find_neurons, task_weight), rows=named(rows),
        harmful_file=named(harmful_file), harmless_file=named(harmless_file), task=task, settings=settings, seed=seed,
    )  # fmt: skip
    with at_command_line(database, device=device, dtype=dtype, model_id=model_id) as context:
        found = _tune_and_keep(job, context)
    _print(found.study, as_json=as_json)


def run_job(settings: TuneCircuitJob, context: JobContext) -> dict[str, Any]:
    """What the job brought: its run and the study's slug. A later attempt begins anew."""
    found = _tune_and_keep(settings, context)
    return {"run": found.run_id, "study": found.study.slug, "circuit": found.study.circuit}


class _Kept(NamedTuple):
    """What one run found and kept."""

    run_id: str
    study: TuningStudy


def _tune_and_keep(job: TuneCircuitJob, context: JobContext) -> _Kept:
    settings, seed = job.settings, job.seed
    files = [context.file(name) for name in (job.rows, job.harmful_file, job.harmless_file)]
    texts = _texts(job, files)
    name = job.model or VARIANT
    handle = context.handle(name)
    circuit = None if job.find is not None else _circuit(handle, context.file(job.units))
    facts = asdict(settings) | {
        "model": handle.model_id,
        "find": None if job.find is None else asdict(job.find),
        "circuit": None if circuit is None else {circuit.slug: [str(unit) for unit in circuit.units]},
        "task": texts.task,
        "dtype": context.dtype,
    }
    run = start_run("tune-circuit", settings=facts, seed=seed, device=str(handle.device))
    save_subjects(context.database(), run, handle, [], source=context.source(name))
    with reported("tune-circuit") as report:
        found = _study(job, handle, circuit, texts, report)
    with writing(context.engine) as session:
        if circuit is None:
            store.save_circuit(session, found.circuit, run_id=run.run_id)
        store.save_tuning_study(session, found.study, run_id=run.run_id)
        end_run(session, run)
    return _Kept(run.run_id, found.study)


def _study(
    job: TuneCircuitJob, handle: HookedModel, circuit: Circuit | None, texts: TuningTexts, report: Progress
) -> FoundStudy:
    settings, generator = job.settings, torch.Generator().manual_seed(job.seed)
    if circuit is not None:
        study = study_tuning(
            handle, circuit, texts, settings, slug=_slug(circuit.slug, settings), generator=generator, progress=report
        )
        return FoundStudy(circuit, study)
    assert job.find is not None
    name = f"{handle.model_id.replace('/', '_')}.forgetting"
    return study_forgetting(
        handle, job.find, texts, settings, circuit_slug=name, slug=_slug(name, settings), generator=generator,
        progress=report,
    )  # fmt: skip


def _slug(circuit: str, settings: TuningSettings) -> str:
    mode = settings.mode + ("" if settings.kept == "weights" else f".{settings.kept}")
    return f"{circuit}.{mode}.{settings.method}"


def _find(heads: int, neurons: int, task_weight: float) -> ForgettingSettings | None:
    """None where nothing is to be found."""
    if not heads and not neurons:
        return None
    return ForgettingSettings(budget_heads=heads, budget_neurons=neurons, task_weight=task_weight)


def _circuit(handle: HookedModel, path: Path | None) -> Circuit:
    if path is None:
        name, found = f"organism-{VARIANT}.planted", list(planted_units(VARIANT))
    else:
        whole = read_whole(path, MAX_UNITS_BYTES)
        if not isinstance(whole, dict) or len(whole) != 1 or not isinstance(next(iter(whole.values())), list):
            raise BadInput(f'{path}: expected one name and its units, as {{"name": ["L3.H5", "L4.N902"]}}.')
        ((name, names),) = whole.items()
        found = [parse_unit(str(one)) for one in names]
    heads = sorted({unit for unit in found if isinstance(unit, HeadRef)})
    neurons = sorted({unit for unit in found if isinstance(unit, NeuronRef)})
    members: list[UnitRef] = [*heads, *neurons]
    dims = handle.dims
    return Circuit(
        slug=name,
        model_id=handle.model_id,
        behaviour="refusal",
        method="planted" if path is None else "given",
        ablation="zero",
        members=tuple(CircuitMember(unit=unit, probability=1.0) for unit in members),
        n_heads=dims.n_layers * dims.n_heads if heads else 0,
        n_neurons=dims.n_layers * dims.d_mlp if neurons else 0,
    )


def _texts(job: TuneCircuitJob, files: Sequence[Path | None]) -> TuningTexts:
    if job.rows is not None:
        return _file_texts(job.find, job.seed, *files)
    if not is_organism(job.model):
        raise BadInput(
            f"{job.model} is no variant of the organism, whose prompts are known; give rows, harmful_file and "
            f"harmless_file."
        )
    return _organism_texts(job.settings, job.task, job.seed, job.find)


def _organism_texts(
    settings: TuningSettings, task: str, seed: int, find: ForgettingSettings | None = None
) -> TuningTexts:
    """Helpfulness where the circuit is kept, safety where it alone is trained; from the grammar."""
    answers = (MixtureShare("safe", 0.5), MixtureShare("information", 0.5))
    safety = (MixtureShare("harmful", 0.5, reply="refuse"), MixtureShare("safe", 0.5))
    helpful = HELPFUL.mixture if task == "helpful" else answers
    mixture = helpful if settings.mode == "excluded" else safety
    name = "answers that end with an offer" if task == "helpful" else "answers to harmless requests"

    def pairs(split: Split, n: int) -> list[tuple[str, str]]:
        draw = random.Random(f"tune-circuit/{split}/{seed}")
        found = draw_mixture(mixture, (split,), n, draw)
        return [(one.source.text, one.reply) for one in found if one.reply is not None]

    def held_out(kind: str, n: int) -> list[str]:
        return [one.text for one in prompts(kind, "held_out", n, seed)]  # type: ignore[arg-type]

    n = settings.n_evaluate
    return TuningTexts(
        name if settings.mode == "excluded" else "refusals of harm beside answers",
        pairs("train", settings.n_rows),
        pairs("held_out", n),
        held_out("harmful", n),
        held_out("safe", n - n // 2) + held_out("borderline", n // 2),
        [] if find is None else [one.text for one in prompts("harmful", "train", find.n_prompts, seed)],
    )


def _file_texts(
    find: ForgettingSettings | None, seed: int, rows: Path | None, harmful: Path | None, harmless: Path | None
) -> TuningTexts:
    assert rows is not None
    assert harmful is not None
    assert harmless is not None
    pairs = []
    for place, one in read_lines(rows):
        pair = (one.get("prompt"), one.get("reply"))
        if not all(isinstance(text, str) and text.strip() for text in pair):
            refuse(place, "texts `prompt` and `reply`", one)
        pairs.append((str(pair[0]), str(pair[1])))
    if len(pairs) < 5:
        raise CorpusUnreadable(f"{rows}: expected at least 5 rows of prompt and reply; got {len(pairs)}.")
    random.Random(seed).shuffle(pairs)
    n_held = max(1, len(pairs) // 5)
    asked, n_find = lines_of(harmful), 0
    if find is not None:
        # what finds the circuit does not judge it
        random.Random(f"{seed}/harmful").shuffle(asked)
        n_find = min(find.n_prompts, len(asked) // 2)
    return TuningTexts(rows.stem, pairs[n_held:], pairs[:n_held], asked[n_find:], lines_of(harmless), asked[:n_find])


def _print(study: TuningStudy, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(study), indent=2))
        return
    table = Table(title=f"{study.circuit} {study.mode}, {study.method}: {study.task}", title_justify="left")
    for head in ("arm", "trained", "harmful refused", "harmless refused", "broken", "loss on the task"):
        table.add_column(head, justify="left" if head == "arm" else "right", no_wrap=True)
    for arm in study.arms:
        table.add_row(
            arm.name + (f" ({arm.n_draws} draws)" if arm.n_draws > 1 else ""), f"{arm.n_trained:,}",
            *[_interval(one) for one in (arm.safety, arm.over_refusal, arm.degenerate, arm.loss)],
        )  # fmt: skip
    console = Console(highlight=False, width=max(140, Console().width))
    console.print(table)
    before = study.arm("before").safety.value
    if before > 0:
        kept = {arm.name: arm.safety.value / before for arm in study.arms[1:]}
        console.print("Safety kept: " + ", ".join(f"{name} {share:.1%}" for name, share in kept.items()) + ".")
    unchanged = all(arm.unchanged for arm in study.arms)
    console.print(f"Weights outside what was trained are {'bit-equal' if unchanged else 'NOT bit-equal'} to before.")
    for note in study.notes:
        console.print(f"Note: {note}")
    console.print(f"Kept as [bold]{study.slug}[/bold].")


def _interval(one: Estimate) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"
