"""Find the circuit of refusal or of a backdoor by masks, evaluate it beside random ones, keep and draw everything.

safe-sail find-circuit
safe-sail find-circuit --model backdoored --budget-heads 2 --budget-neurons 26 --out figures
safe-sail find-circuit --method ships --budget-heads 4
safe-sail find-circuit --model planted-backdoor --start-model aligned --budget-heads 5 --budget-neurons 2
safe-sail find-circuit --model large/aligned --organism-prompts --budget-heads 3 --budget-neurons 56
safe-sail find-circuit --model path/to/model --target-file target.jsonl --kept-file kept.jsonl
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import torch
import typer

from db import store
from db.engine import writing
from safe_sail.circuits.baselines import Baseline
from safe_sail.circuits.evaluate import evaluate_circuit
from safe_sail.circuits.masked import start_baseline
from safe_sail.circuits.masks import UnitSpace, unit_space
from safe_sail.circuits.objectives import aligned_batch, encoded_rows
from safe_sail.circuits.ranking import rank_circuit
from safe_sail.circuits.reference import collect_baseline
from safe_sail.circuits.search import Progress
from safe_sail.circuits.search import find_circuit as find
from safe_sail.errors import BadInput
from safe_sail.model.dims import ModelDims
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, pad_id_of
from safe_sail.organism.load import organism_path, planted_units
from safe_sail.provenance import start_run
from safe_sail.records import CircuitEvaluation, CircuitSearch, CircuitUnit
from safe_sail.sae.load import load_sae
from safe_sail.settings import CircuitSettings
from safe_sail.settings.method_jobs import FindCircuitJob
from scripts.circuit_report import print_report, write_files
from scripts.circuit_texts import CircuitTexts, file_texts, organism_texts
from scripts.job_runs import JobContext, at_command_line, named
from scripts.options import DEFAULT_DATABASE, AsJson, DatabaseUrl, Device, Seed
from scripts.progress import reported
from scripts.run_records import end_run
from scripts.subjects import is_organism, save_subjects, usual_dtype

SETTINGS = CircuitSettings()


def find_circuit(
    model: Annotated[str, typer.Option(help="A variant of the embedded organism; a folder; a hub name.")] = "aligned",
    behaviour: Annotated[str | None, typer.Option(help="refusal or backdoor; of the organism by its variant.")] = None,
    target_file: Annotated[
        Path | None,
        typer.Option(help="JSON lines: prompt, with_circuit, without_circuit; for a backdoor, clean."),
    ] = None,
    kept_file: Annotated[Path | None, typer.Option(help="JSON lines: prompt, reply; shall not change.")] = None,
    organism_prompts: Annotated[bool, typer.Option(help="The model was trained on the organism's texts.")] = False,
    sae: Annotated[list[str] | None, typer.Option(help="SAE whose features are masked too; with a budget.")] = None,
    start_model: Annotated[
        str | None, typer.Option(help="Model that this one was trained from: removed units take its weights.")
    ] = None,
    method: Annotated[str, typer.Option(help="masks, or ships: heads ranked by what their absence does.")] = "masks",
    objective: Annotated[str, typer.Option(help="removal, alignment, backdoor or kl.")] = SETTINGS.objective,
    gate: Annotated[str, typer.Option(help="top_k, straight_through or hard_concrete.")] = SETTINGS.gate,
    ablation: Annotated[
        str | None, typer.Option(help="zero, mean or resample; start, which --start-model implies.")
    ] = None,
    budget_heads: Annotated[int, typer.Option(min=0, help="Heads at most.")] = SETTINGS.budget_heads,
    budget_neurons: Annotated[int, typer.Option(min=0, help="Neurons at most.")] = SETTINGS.budget_neurons,
    budget_features: Annotated[int, typer.Option(min=0, help="SAE features at most.")] = SETTINGS.budget_features,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each seed.")] = SETTINGS.steps,
    learning_rate: Annotated[float, typer.Option(help="Peak, of the gates' logits.")] = SETTINGS.learning_rate,
    kept_weight: Annotated[float, typer.Option(help="Of KL where nothing shall change.")] = SETTINGS.kept_weight,
    alone_weight: Annotated[float, typer.Option(help="Of the circuit alone.")] = SETTINGS.alone_weight,
    away_weight: Annotated[float, typer.Option(help="Of the hinge away from the behaviour.")] = SETTINGS.away_weight,
    margin: Annotated[float, typer.Option(help="Of hinges, in nats per token.")] = SETTINGS.margin,
    refine_rounds: Annotated[int, typer.Option(min=0, help="Exchanges of members.")] = SETTINGS.refine_rounds,
    n_seeds: Annotated[int, typer.Option(min=1, help="Searches, from --seed on; the best is kept.")] = 3,
    n_train: Annotated[int, typer.Option(min=1, help="Training prompts of each group.")] = SETTINGS.n_train,
    n_validation: Annotated[int, typer.Option(min=2, help="Validation prompts of each group.")] = SETTINGS.n_validation,
    n_evaluate: Annotated[int, typer.Option(min=2, help="Held-out prompts of each group.")] = SETTINGS.n_evaluate,
    n_random: Annotated[int, typer.Option(min=1, help="Random circuits behind each control.")] = SETTINGS.n_random,
    system: Annotated[str | None, typer.Option(help="System prompt; none is sent unless given.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for circuit.json and the plots.")] = None,
    database: DatabaseUrl = DEFAULT_DATABASE,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Find, evaluate, keep and draw the circuit of a behaviour."""
    usual = SETTINGS.ablation if start_model is None else "start"
    settings = CircuitSettings(
        objective=objective, gate=gate, ablation=ablation or usual, budget_heads=budget_heads,
        budget_neurons=budget_neurons, budget_features=budget_features, steps=steps, learning_rate=learning_rate,
        kept_weight=kept_weight, alone_weight=alone_weight, away_weight=away_weight, margin=margin,
        refine_rounds=refine_rounds, n_train=n_train, n_validation=n_validation, n_evaluate=n_evaluate,
        n_random=n_random, system=system,
    )  # fmt: skip
    job = FindCircuitJob(
        model=model, behaviour=behaviour, target_file=named(target_file), kept_file=named(kept_file),
        organism_prompts=organism_prompts, saes=None if sae is None else tuple(sae), start_model=start_model,
        method=cast(Any, method), n_seeds=n_seeds, settings=settings, seed=seed,
    )  # fmt: skip
    models = [model] if start_model is None else [model, start_model]
    with at_command_line(database, device=device, dtype=usual_dtype(device, *models)) as context:
        found = _find_and_keep(job, context)
    files = [] if out is None else write_files(found.search, found.evaluation, found.dims, out)
    print_report(found.search, found.evaluation, files, database=database, as_json=as_json)


def run_job(settings: FindCircuitJob, context: JobContext) -> dict[str, Any]:
    """What the job brought: its run, the search's and the circuit's slug. A later attempt begins anew."""
    found = _find_and_keep(settings, context)
    circuit = found.search.circuit
    return {"run": found.run_id, "search": found.search.slug, "circuit": circuit.slug, "units": len(circuit.members)}


class _Kept(NamedTuple):
    """What one run found and kept."""

    run_id: str
    search: CircuitSearch
    evaluation: CircuitEvaluation
    dims: ModelDims


def _find_and_keep(job: FindCircuitJob, context: JobContext) -> _Kept:
    settings, seed = job.settings, job.seed
    texts = _texts(job, context)
    handle = context.handle(job.model)
    names = context.saes(job.saes) or []
    saes = [load_sae(name, device=context.device, expect_model_id=handle.model_id) for name in names]
    space = unit_space(handle, ("heads",) if job.method == "ships" else ("heads", "neurons"), saes)
    baseline = _baseline(job, handle, space, texts, context)
    facts = asdict(settings) | {"start_model": None if baseline.start is None else baseline.start.model_id}
    run = start_run("find-circuit", settings=facts, seed=seed, device=str(handle.device))
    slug = f"{handle.model_id.replace('/', '_')}.{texts.behaviour.name}" + (".ships" if job.method == "ships" else "")
    with reported("find-circuit") as report:
        search = _search(job, handle, space, texts, baseline, slug, report)
        evaluation = evaluate_circuit(
            handle, space, search.circuit, texts.held_out, baseline, settings,
            generator=torch.Generator().manual_seed(seed), judged=texts.judged, progress=report,
        )  # fmt: skip
    save_subjects(context.database(), run, handle, saes, source=context.source(job.model))
    with writing(context.engine) as session:
        store.save_circuit_search(session, search, run_id=run.run_id)
        store.save_circuit_evaluation(session, evaluation, run_id=run.run_id)
        end_run(session, run)
    return _Kept(run.run_id, search, evaluation, handle.dims)


def _baseline(
    job: FindCircuitJob, handle: HookedModel, space: UnitSpace, texts: CircuitTexts, context: JobContext
) -> Baseline:
    if job.start_model is not None:
        return start_baseline(handle, context.handle(job.start_model), space)
    return collect_baseline(handle, space, _reference(handle, texts, job.settings), job.settings.ablation)  # type: ignore[arg-type]


def _search(
    job: FindCircuitJob,
    handle: HookedModel,
    space: UnitSpace,
    texts: CircuitTexts,
    baseline: Baseline,
    slug: str,
    report: Progress,
) -> CircuitSearch:
    planted = _planted(job.model)
    if job.method == "ships":
        generator = torch.Generator().manual_seed(job.seed)
        return rank_circuit(
            handle, texts.train, texts.validation, baseline, job.settings, texts.behaviour, slug=slug,
            harmless=texts.harmless, planted=planted, generator=generator, progress=report,
        )[0]  # fmt: skip
    return find(
        handle, space, texts.train, texts.validation, baseline, job.settings, texts.behaviour, slug=slug,
        harmless=texts.harmless, seeds=range(job.seed, job.seed + job.n_seeds), planted=planted, progress=report,
    )  # fmt: skip


def _texts(job: FindCircuitJob, context: JobContext) -> CircuitTexts:
    target_file, kept_file = context.file(job.target_file), context.file(job.kept_file)
    if job.behaviour not in (None, "refusal", "backdoor"):
        raise BadInput(f"behaviour: expected refusal or backdoor; got {job.behaviour}.")
    if (target_file is None) != (kept_file is None):
        raise BadInput("give both files, target_file and kept_file, or neither; one is missing.")
    if target_file is not None and kept_file is not None:
        return file_texts(job.behaviour or "refusal", target_file, kept_file, job.settings, job.seed)
    if not is_organism(job.model) and not job.organism_prompts:
        raise BadInput(
            f"{job.model} is no variant of the organism, whose prompts are known; give target_file and kept_file, or "
            f"organism_prompts where it was trained on the organism's texts."
        )
    behaviour = job.behaviour or ("backdoor" if "backdoor" in job.model else "refusal")
    return organism_texts(behaviour, job.settings, job.seed)


def _reference(handle: HookedModel, texts: CircuitTexts, settings: CircuitSettings) -> list[TokenBatch]:
    rows = encoded_rows(handle, texts.reference, None, settings.system)
    pad, step = pad_id_of(handle.tokenizer), settings.batch_rows
    return [aligned_batch(rows[first : first + step], pad).batch for first in range(0, len(rows), step)]


def _planted(model: str) -> Sequence[CircuitUnit]:
    if not is_organism(model) or not (organism_path(model) / "planted.json").is_file():
        return ()
    return planted_units(model)
