"""The main job on the embedded model organism: score its SAEs, show what their best features fire on, keep it all.

safe-sail demo
safe-sail demo --database postgresql://localhost/safe_sail --seed 3
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import torch
import typer
from sqlalchemy import Engine
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from db import store
from db.engine import make_engine, writing
from db.migrate import current_revision, upgrade
from safe_sail.features.baseline import Explained, explain_lexically
from safe_sail.features.contexts import collect_contexts
from safe_sail.features.score import ConceptSplits, SaeConceptResult, score_saes
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.organism.concept_data import concept_dataset, organism_concepts
from safe_sail.organism.grammar import documents
from safe_sail.provenance import start_run
from safe_sail.records import RunInfo
from safe_sail.sae.facts import measure_facts
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import ContextSettings, DemoSettings
from scripts.demo_report import print_report
from scripts.demo_results import load_results, whole_run
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
    run = start_run("demo", settings=asdict(settings), seed=seed, device=str(model.device))
    save_subjects(engine, run, model, saes, organism_concepts(), source="the embedded organism")
    _measure(engine, run, model, saes, settings.contexts)
    results = _score(engine, run, model, saes, settings)
    _explain(engine, run, model, saes, results, settings)
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
    # Another seed than the corpus of contexts, so that no figure is measured on texts that chose anything.
    batches = list(_document_batches(model, N_FACT_DOCUMENTS, settings, run.seed + 1))
    facts = measure_facts(model, saes, _watched(batches, "reconstruction"))
    with writing(engine) as session:
        for one in facts:
            store.save_sae_facts(session, one, run_id=run.run_id)


def _score(
    engine: Engine, run: RunInfo, model: HookedModel, saes: Sequence[SAEHandle], settings: DemoSettings
) -> list[SaeConceptResult]:
    score, seed = settings.score, run.seed
    concepts = [
        ConceptSplits(
            concept_dataset(concept.name, "train", n=score.n_choose, seed=seed),
            concept_dataset(concept.name, "held_out", n=score.n_judge, seed=seed),
        )
        for concept in organism_concepts()
    ]
    generator = torch.Generator().manual_seed(seed)
    found = score_saes(model, saes, concepts, settings=score, generator=generator)
    results = []
    for result in _watched(found, "scoring SAEs", total=len(saes) * len(concepts)):
        with writing(engine) as session:
            store.save_sae_scores(session, [result.score], run_id=run.run_id)
            store.save_concept_scores(session, result.features, run_id=run.run_id)
            if result.specificity is not None:
                store.save_sae_specificity(session, result.specificity, run_id=run.run_id)
        results.append(result)
    return results


def _explain(
    engine: Engine,
    run: RunInfo,
    model: HookedModel,
    saes: Sequence[SAEHandle],
    results: Sequence[SaeConceptResult],
    settings: DemoSettings,
) -> None:
    chosen = {sae.ref.slug: _chosen_features(sae.ref.slug, results, settings.n_features) for sae in saes}
    generator = torch.Generator().manual_seed(run.seed)
    batches = list(_document_batches(model, settings.contexts.n_documents, settings.contexts, run.seed))

    def seen(n: int) -> None:
        bar.update(n)

    bar = tqdm(total=settings.contexts.n_documents, desc="collecting contexts", unit="text", disable=None)
    collected = list(
        collect_contexts(
            model,
            saes,
            batches,
            features=chosen,
            settings=settings.contexts,
            generator=generator,
            progress=seen,
        )
    )
    bar.close()
    explained: list[Explained] = []
    for sae in saes:
        of_sae = [one for one in collected if one.top.feature.sae == sae.ref.slug]
        found = explain_lexically(of_sae, settings=settings.lexical, generator=generator)
        explained += _watched(found, f"explaining {sae.ref.slug}", total=len(of_sae))
    with writing(engine) as session:
        store.save_top_contexts(session, [one.top for one in collected], run_id=run.run_id)
        store.save_context_samples(session, [one.sample for one in collected], run_id=run.run_id)
        store.save_explanations(session, [e.explanation for e in explained if e.explanation], run_id=run.run_id)
        store.save_explanation_scores(session, [e.score for e in explained if e.score], run_id=run.run_id)


def _chosen_features(slug: str, results: Sequence[SaeConceptResult], n: int) -> list[int]:
    """The best feature of every concept first, then every concept's second best, and so on; at most n."""
    lists = [result.features for result in results if result.score.sae == slug]
    by_place = [features[place].feature.index for place in range(max(map(len, lists))) for features in lists]
    return list(dict.fromkeys(by_place))[:n]


def _watched(items: Iterable[Any], says: str, total: int | None = None) -> Iterator[Any]:
    yield from tqdm(items, desc=says, total=total, leave=False, disable=None)
