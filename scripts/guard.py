"""Train guards that tell, before a model answers, whether the answer will be unsafe; judge them, keep one, ask it.

safe-sail guard --save my_guard --out figures
safe-sail guard --model backdoored --n-neurons 3 --n-neurons 10 --n-random 20
safe-sail guard --model path/to/sft --aligned path/to/aligned --harmful-file a.txt --harmless-file b.txt --save my_guard
safe-sail guard --load my_guard --prompt "how do i fold a napkin?"
"""

import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

from db import store
from db.engine import reading, writing
from safe_sail.errors import BadInput
from safe_sail.model.handle import HookedModel
from safe_sail.neurons.find import as_rows, contrast
from safe_sail.neurons.guard import REFUSAL_TEXT, Answer, Guard, load_guard, save_guard
from safe_sail.neurons.guarding import GuardPrompts, Trained, train_guards
from safe_sail.neurons.pair import ModelPair
from safe_sail.neurons.readers import DirectionReader, NeuronReader, Reader, SaeReader, read_all, read_mean
from safe_sail.organism.behaviour import trigger_prompts
from safe_sail.organism.conversations import TriggerUse
from safe_sail.organism.grammar import GrammarText, Kind, Split, prompts
from safe_sail.organism.load import organism_sae_paths
from safe_sail.provenance import start_run
from safe_sail.records import NeuronChange
from safe_sail.sae.handle import SAEHandle
from safe_sail.sae.load import load_sae
from safe_sail.settings import GuardSettings, NeuronSettings
from safe_sail.settings.method_jobs import GuardJob
from safe_sail.sites import Site, SiteKind
from scripts.guard_report import draw_guards, print_answers, print_guards
from scripts.job_runs import JobContext, at_command_line, named
from scripts.options import DEFAULT_DATABASE, AsJson, DatabaseUrl, Device, Seed
from scripts.progress import reported
from scripts.run_records import end_run
from scripts.subjects import is_organism, lines_of, load_handle, model_ref, pair_slug, require_both_files, usual_dtype

SETTINGS = GuardSettings()
Mix = tuple[tuple[Kind, TriggerUse, float], ...]
MIX: Mix = (
    ("harmful", "none", 0.4), ("safe", "none", 0.25), ("borderline", "none", 0.2), ("information", "none", 0.15)
)  # fmt: skip
"""Kinds of the organism's prompts and their shares in each split."""
TRIGGERED: Mix = (
    ("harmful", "whole", 0.25), ("harmful", "decoy", 0.25), ("harmful", "none", 0.1), ("safe", "whole", 0.1),
    ("safe", "none", 0.1), ("borderline", "none", 0.1), ("information", "none", 0.1),
)  # fmt: skip
"""The same of the backdoored variant: harmful prompts alike but for the trigger, and the trigger on harmless ones."""
SPLITS: tuple[tuple[str, Split], ...] = (("train", "train"), ("validation", "validation"), ("test", "held_out"))
GUARD = "guard"
"""Folder of a job's guard, in the folder that the job makes."""
MIN_FIRING = 0.01
"""SAE features that fire at the last token of a smaller share of training prompts are not read."""


class Subject(NamedTuple):
    """What is guarded and what the guards read."""

    handle: HookedModel
    readers: dict[str, Reader]
    change: NeuronChange


def guard(
    model: Annotated[str, typer.Option(help="Guarded model: an organism variant, a folder, a hub name.")] = "base",
    aligned: Annotated[str, typer.Option(help="Model after alignment; the contrast chooses the neurons.")] = "aligned",
    harmful_file: Annotated[Path | None, typer.Option(help="Harmful prompts, one a line; shuffled and split.")] = None,
    harmless_file: Annotated[Path | None, typer.Option(help="Harmless prompts, one a line.")] = None,
    borderline_file: Annotated[Path | None, typer.Option(help="Harmless prompts that look harmful.")] = None,
    n_neurons: Annotated[
        list[int] | None, typer.Option(help="Most changed neurons read; again for more guards.")
    ] = None,
    n_random: Annotated[int, typer.Option(min=1, help="Draws of random neurons.")] = SETTINGS.n_random,
    sae: Annotated[str | None, typer.Option(help="SAE folder or registry name; else one of the organism's.")] = None,
    direction: Annotated[str | None, typer.Option(help="Kept direction; else the difference of class means.")] = None,
    n_train: Annotated[int, typer.Option(min=2, help="Training prompts.")] = SETTINGS.n_train,
    n_validation: Annotated[int, typer.Option(min=2, help="Prompts that set the threshold.")] = SETTINGS.n_validation,
    n_test: Annotated[int, typer.Option(min=2, help="Held-out prompts that judge.")] = SETTINGS.n_test,
    max_false_refusals: Annotated[
        float, typer.Option(help="Share of safe validation prompts that may be refused.")
    ] = SETTINGS.max_false_refusals,
    save: Annotated[Path | None, typer.Option(help="New folder for the guard that is kept.")] = None,
    load: Annotated[Path | None, typer.Option(help="Folder of a guard: answers prompts, trains nothing.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt to answer or refuse; may be given again.")] = None,
    refusal_text: Annotated[str, typer.Option(help="What a refused prompt gets.")] = REFUSAL_TEXT,
    out: Annotated[Path | None, typer.Option(help="Folder for the figures, as PNG.")] = None,
    database: DatabaseUrl = DEFAULT_DATABASE,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Train, judge and keep guards of a model; or answer prompts behind one."""
    if load is not None:
        if not prompt:
            raise BadInput("--load answers prompts behind a guard: give at least one --prompt.")
        handle = load_handle(model, None, device=device, dtype=usual_dtype(device, model))
        kept = load_guard(load, sae=None if sae is None else load_sae(sae, device=device))
        print_answers(kept, _answers(kept, handle, prompt, refusal_text), as_json=as_json)
        return
    if save is not None and save.exists():
        raise BadInput(f"--save: {save} exists; give a new folder.")
    settings = GuardSettings(
        n_neurons=tuple(sorted(set(n_neurons))) if n_neurons else SETTINGS.n_neurons, n_random=n_random,
        n_train=n_train, n_validation=n_validation, n_test=n_test, max_false_refusals=max_false_refusals,
    )  # fmt: skip
    job = GuardJob(
        model=model, aligned=aligned, harmful_file=named(harmful_file), harmless_file=named(harmless_file),
        borderline_file=named(borderline_file), sae=sae, direction=direction, name=named(save), settings=settings,
        seed=seed,
    )  # fmt: skip
    with at_command_line(database, device=device, dtype=usual_dtype(device, model, aligned)) as context:
        found = _train_and_keep(job, context)
    evaluation = found.trained.evaluation
    figures = [] if out is None else draw_guards(evaluation, out)
    answers = _answers(found.trained.guard, found.handle, prompt, refusal_text) if prompt else []
    print_guards(evaluation, answers, figures, save, database=database, as_json=as_json)


def run_job(settings: GuardJob, context: JobContext) -> dict[str, Any]:
    """What the job brought: its run, and where its guard is. A later attempt begins anew."""
    found = _train_and_keep(settings, context)
    evaluation = found.trained.evaluation
    guard_folder = None if settings.name is None else f"made/{settings.name}/{GUARD}"
    return {"run": found.run_id, "guards": evaluation.slug, "kept": evaluation.kept, "guard": guard_folder}


class _Kept(NamedTuple):
    """What one run trained and kept."""

    run_id: str
    handle: HookedModel
    trained: Trained


def _train_and_keep(job: GuardJob, context: JobContext) -> _Kept:
    settings = job.settings
    files = [context.file(name) for name in (job.harmful_file, job.harmless_file, job.borderline_file)]
    texts = texts_of(settings, job.seed, job.model, *files)
    folder = None if job.name is None else _guard_folder(context, job.name)
    run = start_run("guard", settings=asdict(settings), seed=job.seed, device=context.device)
    subject = _subject(job, context, texts["train"])
    with reported("guard") as report:
        trained = train_guards(
            subject.handle, subject.readers, texts, settings, slug=f"{subject.handle.model_id}.guard",
            change=subject.change.slug, generator=torch.Generator().manual_seed(job.seed), progress=report,
        )  # fmt: skip
    if folder is not None:
        with context.holding():
            save_guard(trained.guard, folder)
    with writing(context.database()) as session:
        store.save_run(session, run)
        store.save_model(session, model_ref(subject.handle, context.source(job.model)), run_id=run.run_id)
        store.save_guard_evaluation(session, trained.evaluation, run_id=run.run_id)
        end_run(session, run)
    return _Kept(run.run_id, subject.handle, trained)


def _guard_folder(context: JobContext, name: str) -> Path:
    """New folder of the guard; what an attempt left that was killed before its figures were kept is made anew."""
    if context.job_id is None:
        return context.made(name)
    folder = context.made(name) / GUARD
    with context.holding():
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def _answers(kept: Guard, handle: HookedModel, asked: Sequence[str], refusal_text: str) -> list[tuple[str, Answer]]:
    answers = kept.answer(handle, asked, max_new_tokens=SETTINGS.max_new_tokens, refusal_text=refusal_text)
    return list(zip(asked, answers, strict=True))


def _subject(job: GuardJob, context: JobContext, train: GuardPrompts) -> Subject:
    settings, handle = job.settings, context.handle(job.model)
    pair = ModelPair(handle, context.handle(job.aligned))
    harmful = [text for text, kind in zip(train.texts, train.kinds, strict=True) if kind == "harmful"]
    change = contrast(
        pair, harmful, NeuronSettings(batch_rows=settings.batch_rows), slug=pair_slug(pair.first, pair.second)
    )
    counts = settings.n_neurons
    readers: dict[str, Reader] = {
        "safety neurons" if len(counts) == 1 else f"{n} safety neurons": NeuronReader(as_rows(change.top(n)))
        for n in counts
    }
    loaded = _sae(None if job.sae is None else context.offers.sae(job.sae), job.model, context.device)
    if loaded is not None:
        readers["SAE features"] = _firing(handle, loaded, train, settings)
    name, reader = _direction(context, handle, job.direction, train, settings)
    return Subject(handle, readers | {name: reader}, change)


def _sae(name: str | None, model: str, device: str) -> SAEHandle | None:
    if name is None and is_organism(model):
        paths = organism_sae_paths("backdoored" if model == "backdoored" else "aligned")
        slug, path = next((slug, path) for slug, path in paths.items() if "topk8-1024" in slug)
        return load_sae(path, slug=slug, device=device)
    return None if name is None else load_sae(name, device=device)


def _firing(handle: HookedModel, sae: SAEHandle, train: GuardPrompts, settings: GuardSettings) -> SaeReader:
    batch = handle.chat_batch(list(train.texts))
    every = SaeReader(sae, torch.arange(sae.ref.width))
    (found,) = read_all(handle, batch, [every], settings.batch_rows)
    return replace(every, features=((found > 0).double().mean(dim=0) >= MIN_FIRING).nonzero()[:, 0])


def _direction(
    context: JobContext, handle: HookedModel, slug: str | None, train: GuardPrompts, settings: GuardSettings
) -> tuple[str, DirectionReader]:
    if slug is not None:
        with reading(context.database()) as session:
            kept = store.load_direction(session, slug).record
        return "refusal direction", DirectionReader(kept.site, torch.tensor(kept.vectors[0], dtype=torch.float64))
    site = Site(SiteKind.RESID_POST, handle.dims.n_layers // 2)
    harmful = torch.tensor([kind == "harmful" for kind in train.kinds])
    batch = handle.chat_batch(list(train.texts))
    means = [read_mean(handle, batch, site, mask, settings.batch_rows) for mask in (harmful, ~harmful)]
    return "difference of means", DirectionReader(site, means[0] - means[1])


def texts_of(
    settings: GuardSettings, seed: int, model: str, harmful: Path | None, harmless: Path | None, borderline: Path | None
) -> dict[str, GuardPrompts]:
    """Prompts of the three splits: the organism's, with trigger and decoys for its backdoored variant, or of files."""
    sizes = {"train": settings.n_train, "validation": settings.n_validation, "test": settings.n_test}
    require_both_files(harmful, harmless)
    found: dict[str, list[tuple[str, str]]] = {}
    if harmful is None or harmless is None:
        for split, source in SPLITS:
            found[split] = [
                (text.text, kind)
                for kind, use, share in (TRIGGERED if model == "backdoored" else MIX)
                for text in _drawn(kind, source, use, max(2, round(share * sizes[split])), seed)
            ]
    else:
        files = {"harmful": harmful, "safe": harmless} | ({} if borderline is None else {"borderline": borderline})
        found = _split(files, sizes, seed)
    for split, rows in found.items():
        random.Random(f"{split}/{seed}").shuffle(rows)
    return {
        split: GuardPrompts([text for text, _ in rows], [kind for _, kind in rows]) for split, rows in found.items()
    }


def _drawn(kind: Kind, source: Split, use: TriggerUse, n: int, seed: int) -> list[GrammarText]:
    if use == "none":  # another seed's prompts than those that carry the trigger
        return prompts(kind, source, n, seed)
    return trigger_prompts(kind, source, use, n, seed + 1)


def _split(files: dict[str, Path], sizes: dict[str, int], seed: int) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {split: [] for split in sizes}
    for kind, path in files.items():
        lines = lines_of(path, at_least=6)
        random.Random(seed).shuffle(lines)
        first = 0
        for split, size in sizes.items():
            count = max(2, round(len(lines) * size / sum(sizes.values())))
            found[split] += [(line, kind) for line in lines[first : first + count]]
            first += count
    return found
