"""What SAE features fire on: one pass over a corpus, kept in the database.

safe-sail collect-contexts
safe-sail collect-contexts --model MODEL --sae FOLDER --corpus texts.jsonl --features 0-99,512 --state state
safe-sail collect-contexts --model MODEL --sae RELEASE/ID --corpus OWNER/NAME --executor ray --workers 4 --device cuda
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Engine

from db import store
from db.engine import make_engine, writing
from db.migrate import upgrade
from safe_sail.data.corpus import Document, corpus_batches
from safe_sail.errors import BadInput
from safe_sail.execution.executors import RayExecutor
from safe_sail.features.context_buffers import ContextBuffers
from safe_sail.features.contexts import Collected, collected
from safe_sail.features.forecast import context_forecast
from safe_sail.features.near_misses import find_near_misses
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.organism.grammar import documents
from safe_sail.provenance import start_run
from safe_sail.records import RunInfo
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import ContextSettings
from safe_sail.settings.jobs import CollectContextsJob
from scripts.context_runs import StateFolder, Subjects, fill_here, fill_on_workers
from scripts.corpora import CorpusName, TextField, corpus_facts, fixed, read_corpus, starts_with_bos
from scripts.forecasts import NeedsOnly, say_forecast, sizes_of
from scripts.job_runs import JobContext
from scripts.options import DEFAULT_DATABASE, DatabaseUrl, Device, Seed
from scripts.progress import tqdm
from scripts.run_records import end_run
from scripts.settings_file import SettingsFile
from scripts.subjects import Dtype, ModelId, ModelName, SaeNames, dtype_named, load_handle, load_saes, save_subjects
from scripts.twins import TwinNames, twins_of

DEFAULTS = ContextSettings()
SAVE_EVERY = 10_000
"""Windows between two saves of the state."""
N_AT_ONCE = 256
"""Features saved in one transaction: about a megabyte, and a kill loses no more than the last one."""


def collect_contexts(
    model: ModelName = None,
    model_id: ModelId = None,
    sae: SaeNames = None,
    corpus: CorpusName = None,
    text_field: TextField = "text",
    features: Annotated[str | None, typer.Option(help="Features of every SAE, as 0-99,512; all if absent.")] = None,
    settings_file: SettingsFile = None,
    database: DatabaseUrl = DEFAULT_DATABASE,
    state: Annotated[Path | None, typer.Option(help="Folder from which a killed run goes on.")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Windows between two saves of the state.")] = SAVE_EVERY,
    n_documents: Annotated[int, typer.Option(help="Documents of the organism's corpus.")] = DEFAULTS.n_documents,
    max_documents: Annotated[int | None, typer.Option(min=1, help="Documents of --corpus that are read.")] = None,
    n_contexts: Annotated[int, typer.Option(help="Top contexts kept per feature.")] = DEFAULTS.n_contexts,
    twins: TwinNames = None,
    window: Annotated[int, typer.Option(help="Tokens in one context.")] = DEFAULTS.window,
    batch_size: Annotated[int, typer.Option(help="Windows in one forward pass.")] = DEFAULTS.batch_size,
    executor: Annotated[str, typer.Option(help="inline, in this process; or ray, on workers.")] = "inline",
    workers: Annotated[int, typer.Option(min=1, help="Ray workers; each loads the model.")] = 1,
    worker_cpus: Annotated[int, typer.Option(min=1, help="CPUs, and so threads, of each worker.")] = 1,
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster, HOST:PORT or auto; else Ray runs on this machine alone.")
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    dry_run: NeedsOnly = False,
) -> None:
    """Collect what SAE features fire on, and store it."""
    crew = _executor(executor, workers, worker_cpus, ray_address, device)
    corpus = fixed(corpus)
    settings = ContextSettings(n_documents=n_documents, n_contexts=n_contexts, window=window, batch_size=batch_size)
    need = _forecast(model, sae, features, settings, device, dtype, is_here=crew is None)
    if dry_run:
        print(need)
        return
    # workers have the devices; what is here only tells them apart
    device_here = "cpu" if crew else device
    handle = load_handle(model, model_id, device=device_here, dtype=dtype)
    saes = load_saes(sae, handle, device=device_here)
    chosen = {one.ref.slug: parse_features(features, one.ref.slug, one.d_sae) for one in saes}
    batches = _batches(_documents(corpus, text_field, max_documents, settings, seed), handle, saes, settings)
    job = _job(
        handle, saes, settings, corpus=corpus, text_field=text_field, max_documents=max_documents, features=features,
        dtype=dtype, seed=seed,
    )  # fmt: skip
    folder = StateFolder(state, job, save_every=save_every)
    buffers = folder.load() or ContextBuffers(chosen, settings=settings, seed=seed)
    engine = make_engine(database)
    upgrade(engine)
    # asked before the corpus is read: what is amiss with them is said now
    tried = None if twins is None else twins_of(engine, handle, chosen, twins, settings, seed)
    job |= {} if twins is None else {"twins": list(twins)}
    run = start_run("collect-contexts", settings=job, seed=seed, device=f"{workers} x {device}" if crew else device)
    save_subjects(engine, run, handle, saes, source=model or "the embedded organism")
    if crew is None:
        fill_here(buffers, handle, saes, batches, folder)
    else:
        load = Subjects(
            model=model, model_id=model_id, sae=None if sae is None else tuple(sae), device=device, dtype=dtype,
            features=chosen, settings=settings, seed=seed, threads=worker_cpus,
        )  # fmt: skip
        fill_on_workers(buffers, crew, load, batches, folder)
    n_features = sum(map(len, chosen.values()))
    near = find_near_misses(buffers, handle, saes, twins=tried)
    n_fired = _save_contexts(engine, run, collected(buffers, handle.tokenizer, near), n_features)
    engine.dispose()
    print(
        f"{n_fired} of {n_features} features fired on {buffers.n_tokens} tokens in {buffers.n_windows} windows; "
        f"their contexts are in {database}"
    )


def run_job(settings: CollectContextsJob, context: JobContext) -> dict[str, Any]:
    """What the job brought: its run and counts. A later attempt goes on from the windows that were saved."""
    how, corpus, seed = settings.settings, context.file_name(settings.corpus), settings.seed
    handle = context.handle(settings.model)
    saes = load_saes(context.saes(settings.saes), handle, device=context.device)
    chosen = {one.ref.slug: parse_features(settings.features, one.ref.slug, one.d_sae) for one in saes}
    batches = _batches(_documents(corpus, settings.text_field, None, how, seed), handle, saes, how)
    job = _job(
        handle, saes, how, corpus=corpus, text_field=settings.text_field, features=settings.features,
        dtype=context.dtype, seed=seed,
    )  # fmt: skip
    folder = StateFolder(context.work, job, save_every=SAVE_EVERY)
    buffers = folder.load() or ContextBuffers(chosen, settings=how, seed=seed)
    run = start_run("collect-contexts", settings=job, seed=seed, device=context.device)
    source, _ = context.model(settings.model)
    save_subjects(context.engine, run, handle, saes, source=source or "the embedded organism")
    fill_here(buffers, handle, saes, batches, folder)
    n_features = sum(map(len, chosen.values()))
    near = find_near_misses(buffers, handle, saes)
    n_fired = _save_contexts(context.engine, run, collected(buffers, handle.tokenizer, near), n_features)
    counts = {"features": n_features, "fired": n_fired, "tokens": buffers.n_tokens, "windows": buffers.n_windows}
    return {"run": run.run_id, "saes": list(chosen)} | counts


def _job(
    model: HookedModel,
    saes: Sequence[SAEHandle],
    settings: ContextSettings,
    *,
    corpus: str | None,
    text_field: str,
    max_documents: int | None = None,
    features: str | None,
    dtype: str,
    seed: int,
) -> dict[str, Any]:
    """What tells this run from others."""
    return {
        "model": model.model_id,
        "saes": [one.ref.slug for one in saes],
        "corpus": {"organism_documents": settings.n_documents} if corpus is None else corpus_facts(corpus, text_field),
        "max_documents": max_documents,
        "features": "all" if features is None else features,
        "dtype": dtype,
        "settings": asdict(settings),
        "seed": seed,
    }


def parse_features(text: str | None, slug: str, d_sae: int) -> list[int]:
    """Features named as `0-99,512`, each once; all of the SAE's for None.

    Raises:
        BadInput: the text is no such list, or names a feature that the SAE lacks.
    """
    if text is None:
        return list(range(d_sae))
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise BadInput(f"--features: expected numbers and ranges as in 0-99,512; got {part.strip()!r}.")
        start, stop = int(first), int(last or first)
        if start > stop or stop >= d_sae:
            raise BadInput(f"--features: SAE {slug} has features 0 to {d_sae - 1}; got {part.strip()!r}.")
        found += range(start, stop + 1)
    return list(dict.fromkeys(found))


def _forecast(
    model: str | None,
    sae: Sequence[str] | None,
    features: str | None,
    settings: ContextSettings,
    device: str,
    dtype: str,
    *,
    is_here: bool,
) -> str:
    size, saes = sizes_of(model, sae)
    n_features = [len(parse_features(features, str(one.site), one.d_sae)) for one in saes]
    found = context_forecast(
        size, saes, n_features, settings=settings, dtype=dtype_named(dtype), on_cpu=device == "cpu"
    )  # fmt: skip
    return say_forecast(found, device=device, dtype=dtype_named(dtype), is_here=is_here)


def _executor(name: str, workers: int, cpus: int, address: str | None, device: str) -> RayExecutor | None:
    """The workers asked for; None to stay in this process."""
    if name == "inline":
        if (workers, cpus, address) != (1, 1, None):
            raise BadInput("--workers, --worker-cpus and --ray-address belong to --executor ray.")
        return None
    if name != "ray":
        raise BadInput(f"--executor: expected inline or ray; got {name!r}.")
    if device not in ("cpu", "cuda"):
        raise BadInput(f"--device: Ray gives each worker its GPU, which is `cuda` to it; got {device!r}.")
    return RayExecutor(workers=workers, address=address, cpus=cpus, gpus=float(device == "cuda"))


# corpus


def _batches(
    texts: Iterable[Document], model: HookedModel, saes: Sequence[SAEHandle], settings: ContextSettings
) -> Iterable[TokenBatch]:
    found = corpus_batches(
        texts,
        model.tokenizer,
        window=settings.window,
        batch_size=settings.batch_size,
        max_positions=model.dims.max_positions,
        prepend_bos=_prepend_bos(saes, model),
    )
    # read now, so that a missing corpus or a bad window shows before anything is kept
    return chain([next(found)], found)


def _prepend_bos(saes: Sequence[SAEHandle], model: HookedModel) -> bool:
    """As the SAEs were trained; where none of them says, as the tokenizer does by itself."""
    said = {sae.prepend_bos for sae in saes} - {None}
    if model.tokenizer.bos_token_id is None:
        # metadata may ask for one all the same: SAELens then trained without, as there is none
        return False
    if len(said) == 2:
        raise BadInput("some of the SAEs were trained with a start token and some without; collect in two runs.")
    if said:
        return bool(said.pop())
    return starts_with_bos(model)


def _documents(
    corpus: str | None, text_field: str, at_most: int | None, settings: ContextSettings, seed: int
) -> Iterable[Document]:
    if corpus is not None:
        return islice(read_corpus(corpus, text_field), at_most)
    texts = documents(settings.n_documents, seed)
    return (Document(f"document {place}", text.text) for place, text in enumerate(texts))


# save


def _save_contexts(engine: Engine, run: RunInfo, found: Iterator[Collected], n_features: int) -> int:
    """Number of features that fired; all are kept."""
    n_fired = 0
    bar = tqdm[Any](total=n_features, desc="saving contexts", unit="feature", disable=None)
    while portion := list(islice(found, N_AT_ONCE)):
        with writing(engine) as session:
            store.save_top_contexts(session, [one.top for one in portion], run_id=run.run_id)
            store.save_context_samples(session, [one.sample for one in portion], run_id=run.run_id)
        n_fired += sum(one.top.density > 0 for one in portion)
        bar.update(len(portion))
    bar.close()
    with writing(engine) as session:
        end_run(session, run)
    return n_fired
