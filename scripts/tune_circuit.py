"""Tune a model with a circuit alone, or with everything but it, beside full tuning and random circuits; all kept.

safe-sail tune-circuit
safe-sail tune-circuit --mode only --model MODEL --units circuit.json --rows r.jsonl --harmful-file F --harmless-file F

The tuned weights stay in memory and are dropped when their figures are taken.
"""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from db import store
from db.engine import make_engine, writing
from db.interchange.files import read_lines, read_whole, refuse
from db.migrate import upgrade
from safe_sail.circuits.tuning_study import TuningTexts, study_tuning
from safe_sail.errors import BadInput, CorpusUnreadable
from safe_sail.model.handle import HookedModel
from safe_sail.organism.conversations import MixtureShare, draw_mixture
from safe_sail.organism.grammar import Split, prompts
from safe_sail.organism.load import organism_path, planted_units
from safe_sail.organism.recipes import HELPFUL
from safe_sail.provenance import finish_run, start_run
from safe_sail.records import Circuit, CircuitMember, Estimate, HeadRef, NeuronRef, TuningStudy, UnitRef, parse_unit
from safe_sail.settings import TuningSettings
from scripts.options import DEFAULT_DATABASE, AsJson, DatabaseUrl, Device, Seed
from scripts.subjects import Dtype, ModelId, ModelName, load_handle, save_subjects

DEFAULTS = TuningSettings()
VARIANT = "planted-neurons"
"""The organism's variant whose refusal sits in known neurons: its circuit is the truth, not a finding."""
MAX_UNITS_BYTES = 64 * 2**20

PromptFile = Annotated[Path | None, typer.Option(help="Held-out prompts, one a line.")]


def tune(
    mode: Annotated[
        str, typer.Option(help="excluded: all but the circuit is trained; only: it alone.")
    ] = DEFAULTS.mode,
    method: Annotated[str, typer.Option(help="rows or low_rank.")] = DEFAULTS.method,
    model: ModelName = None,
    model_id: ModelId = None,
    units: Annotated[
        Path | None, typer.Option(help='The circuit, as JSON: {"name": ["L3.H5", "L4.N902"]}; else the planted one.')
    ] = None,
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
        mode=mode, method=method, n_steps=n_steps, learning_rate=learning_rate, n_evaluate=n_evaluate,
        n_random=n_random,
    )  # fmt: skip
    given = (model, units, rows, harmful_file, harmless_file)
    if any(one is not None for one in given) and any(one is None for one in given):
        raise typer.BadParameter("give --model, --units, --rows, --harmful-file and --harmless-file, or none of them.")
    if task == "helpful" and (rows is not None or mode == "only"):
        raise typer.BadParameter("--task helpful is of the organism's own rows and of --mode excluded.")
    texts = _organism_texts(settings, task, seed) if rows is None else _file_texts(settings, seed, *given[2:])
    name = str(organism_path(VARIANT)) if model is None else model
    handle = load_handle(
        name, model_id or (f"organism-{VARIANT}" if model is None else None), device=device, dtype=dtype
    )
    circuit = _circuit(handle, units, settings)
    engine = make_engine(database)
    upgrade(engine)
    job = asdict(settings) | {
        "model": handle.model_id,
        "circuit": {circuit.slug: [str(unit) for unit in circuit.units]},
        "task": texts.task,
        "dtype": dtype,
    }
    run = start_run("tune-circuit", settings=job, seed=seed, device=str(handle.device))
    save_subjects(engine, run, handle, [], source=model or "the embedded organism")
    with tqdm(total=3 + n_random, desc="tune-circuit", unit="arm", leave=False, disable=None) as bar:

        def report(arm: str) -> None:
            bar.set_postfix_str(arm)
            bar.update()

        study = study_tuning(
            handle, circuit, texts, settings, slug=f"{circuit.slug}.{mode}.{method}",
            generator=torch.Generator().manual_seed(seed), progress=report,
        )  # fmt: skip
    done = finish_run(run)
    with writing(engine) as session:
        store.save_tuning_study(session, study, run_id=run.run_id)
        assert done.finished is not None
        store.finish_run(session, run.run_id, done.finished)
    engine.dispose()
    _print(study, as_json=as_json)


def _circuit(handle: HookedModel, path: Path | None, settings: TuningSettings) -> Circuit:
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


def _organism_texts(settings: TuningSettings, task: str, seed: int) -> TuningTexts:
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
    )


def _file_texts(
    settings: TuningSettings, seed: int, rows: Path | None, harmful: Path | None, harmless: Path | None
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
    return TuningTexts(rows.stem, pairs[n_held:], pairs[:n_held], _lines(harmful), _lines(harmless))


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusUnreadable(f"{path}: expected a UTF-8 text file, one prompt a line ({error}).") from error


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
    console = Console(highlight=False, width=max(120, Console().width))
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
