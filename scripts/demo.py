"""The main job on the embedded model organism: score its SAEs, show what their best features fire on, keep it all.

Each step asks the database what this run has kept, and does the rest: a demo that was killed goes on where it was, and
ends in the same results. One transaction keeps the facts of all SAEs, an SAE's score on one concept, the contexts of
one SAE, one explanation with its score; an SAE with some scores missing is scored again.

safe-sail demo
safe-sail demo --database postgresql://localhost/safe_sail --seed 3
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Annotated, Any

import torch
import typer
from sqlalchemy import Engine
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from db import store
from db.engine import make_engine, writing
from db.migrate import current_revision, upgrade
from safe_sail.features.baseline import explain_lexically
from safe_sail.features.contexts import collect_contexts
from safe_sail.features.score import ConceptSplits, score_saes
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.organism.concept_data import concept_dataset, organism_concepts
from safe_sail.organism.grammar import documents
from safe_sail.organism.load import organism_sae_paths
from safe_sail.provenance import start_run
from safe_sail.records import RunInfo
from safe_sail.sae.facts import measure_facts
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import ContextSettings, DemoSettings
from scripts.demo_report import print_report
from scripts.demo_results import (
    chosen_features,
    explained_features,
    kept_contexts,
    left_of,
    load_results,
    run_to_continue,
    whole_run,
)
from scripts.options import DEFAULT_DATABASE, AsJson, DatabaseUrl, Device, Seed
from scripts.run_records import end_run
from scripts.subjects import load_handle, load_saes, save_subjects

N_FACT_DOCUMENTS = 256
"""Documents behind L0, explained variance and recovered cross-entropy: about 10,000 tokens."""


def demo(
    database: DatabaseUrl = DEFAULT_DATABASE,
    seed: Seed = 0,
    device: Device = "cpu",
    n_features: Annotated[int, typer.Option(min=1, help="Features explained per SAE.")] = DemoSettings().n_features,
    as_json: AsJson = False,
) -> None:
    """Score the organism's SAEs on its safety concepts, explain their best features, and store everything."""
    disable_progress_bar()  # transformers' own; ours says what is being done
    settings = DemoSettings(n_features=n_features)
    engine = make_engine(database)
    run = None
    if current_revision(engine) is not None:
        upgrade(engine)
        run = whole_run(engine, asdict(settings), seed=seed, device=device)
    if run is None:
        run = _run(engine, settings, seed=seed, device=device)
    else:
        print(f"all of this was done by run {run.run_id}; this is what it kept.", file=sys.stderr)
    found = load_results(engine, run)
    engine.dispose()
    print_report(found, database=database, as_json=as_json)


def _run(engine: Engine, settings: DemoSettings, *, seed: int, device: str) -> RunInfo:
    """The finished run; everything is in the database."""
    model = load_handle(None, None, device=device, dtype="float32")
    saes = load_saes(None, model, device=device)
    upgrade(engine)  # only now: a demo that cannot load its model leaves no database behind
    fresh = start_run("demo", settings=asdict(settings), seed=seed, device=str(model.device))
    run = run_to_continue(engine, fresh)
    if run is None:
        run = fresh
        save_subjects(engine, run, model, saes, organism_concepts(), source="the embedded organism")
    else:
        print(
            f"run {run.run_id} of this demo was not finished, or its results were replaced; it goes on.",
            file=sys.stderr,
        )
    _measure(engine, run, model, saes, settings.contexts)
    _score(engine, run, model, saes, settings)
    _collect(engine, run, model, saes, settings.contexts)
    _explain(engine, run, settings)
    with writing(engine) as session:
        return end_run(session, run)


def _document_batches(model: HookedModel, n: int, settings: ContextSettings, seed: int) -> Iterator[TokenBatch]:
    texts = sorted(
        ((f"document {place}", text.text) for place, text in enumerate(documents(n, seed))),
        key=lambda named: len(named[1]),
    )
    for first in range(0, n, settings.batch_size):
        part = texts[first : first + settings.batch_size]
        yield model.batch([text for _, text in part], source_ids=[name for name, _ in part])


def _measure(
    engine: Engine, run: RunInfo, model: HookedModel, saes: Sequence[SAEHandle], settings: ContextSettings
) -> None:
    todo = [sae for sae in saes if sae.ref.slug in left_of(engine, run).facts]
    if not todo:
        return
    # Another seed than the corpus of contexts, so that no figure is measured on texts that chose anything.
    batches = list(_document_batches(model, N_FACT_DOCUMENTS, settings, run.seed + 1))
    facts = measure_facts(model, todo, _watched(batches, "reconstruction"))
    with writing(engine) as session:
        for one in facts:
            store.save_sae_facts(session, one, run_id=run.run_id)


def _score(engine: Engine, run: RunInfo, model: HookedModel, saes: Sequence[SAEHandle], settings: DemoSettings) -> None:
    todo = [sae for sae in saes if sae.ref.slug in left_of(engine, run).scores]
    if not todo:
        return
    score, seed = settings.score, run.seed
    concepts = [
        ConceptSplits(
            concept_dataset(concept.name, "train", n=score.n_choose, seed=seed),
            concept_dataset(concept.name, "held_out", n=score.n_judge, seed=seed),
        )
        for concept in organism_concepts()
    ]
    generator = torch.Generator().manual_seed(seed)
    found = score_saes(model, todo, concepts, settings=score, generator=generator)
    for result in _watched(found, "scoring SAEs", total=len(todo) * len(concepts)):
        with writing(engine) as session:
            store.save_sae_scores(session, [result.score], run_id=run.run_id)
            store.save_concept_scores(session, result.features, run_id=run.run_id)
            if result.specificity is not None:
                store.save_sae_specificity(session, result.specificity, run_id=run.run_id)


def _collect(
    engine: Engine, run: RunInfo, model: HookedModel, saes: Sequence[SAEHandle], settings: ContextSettings
) -> None:
    todo = [sae for sae in saes if sae.ref.slug in left_of(engine, run).contexts]
    if not todo:
        return
    chosen = {sae.ref.slug: chosen_features(engine, run, sae.ref.slug) for sae in todo}
    batches = list(_document_batches(model, settings.n_documents, settings, run.seed))
    with tqdm(total=settings.n_documents, desc="collecting contexts", unit="text", disable=None) as bar:

        def seen(n: int) -> None:
            bar.update(n)

        found = collect_contexts(
            model,
            todo,
            batches,
            features=chosen,
            settings=settings,
            generator=torch.Generator().manual_seed(run.seed),
            progress=seen,
        )
        for _, of_sae in groupby(found, key=lambda one: one.top.feature.sae):
            collected = list(of_sae)
            with writing(engine) as session:
                store.save_top_contexts(session, [one.top for one in collected], run_id=run.run_id)
                store.save_context_samples(session, [one.sample for one in collected], run_id=run.run_id)


def _explain(engine: Engine, run: RunInfo, settings: DemoSettings) -> None:
    for slug in organism_sae_paths():
        collected, done = kept_contexts(engine, run, slug), explained_features(engine, run, slug)
        found = explain_lexically(collected, settings=settings.lexical, seed=run.seed, without=done)
        for one in _watched(found, f"explaining {slug}", total=len(collected) - len(done)):
            with writing(engine) as session:
                store.save_explanations(session, [one.explanation] if one.explanation else [], run_id=run.run_id)
                store.save_explanation_scores(session, [one.score] if one.score else [], run_id=run.run_id)


def _watched(items: Iterable[Any], says: str, total: int | None = None) -> Iterator[Any]:
    yield from tqdm(items, desc=says, total=total, leave=False, disable=None)
