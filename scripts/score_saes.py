"""Rank candidate SAEs by how much of them is about safety concepts, before any feature is explained.

safe-sail score-saes
safe-sail score-saes --model MODEL --sae FOLDER --sae RELEASE/ID --concepts pairs.jsonl --corpus texts.jsonl --out plots
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from sqlalchemy import Engine

from db import store
from db.engine import make_engine, writing
from db.migrate import upgrade
from safe_sail.data.corpus import Document, corpus_batches
from safe_sail.features.forecast import score_forecast
from safe_sail.features.ranking import rank_saes
from safe_sail.features.score import ConceptSplits, SaeConceptResult, concept_blocks, score_saes
from safe_sail.model.handle import HookedModel
from safe_sail.organism.grammar import documents
from safe_sail.provenance import start_run
from safe_sail.records import RunInfo, SaeFacts, SaeRanking
from safe_sail.sae.facts import measure_facts
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import ScoreSettings
from safe_sail.settings.jobs import ScoreSaesJob
from scripts.concept_texts import concept_splits, concepts_of
from scripts.corpora import CorpusName, TextField, fixed, read_corpus, starts_with_bos
from scripts.forecasts import NeedsOnly, say_forecast, sizes_of
from scripts.job_runs import JobContext
from scripts.options import DEFAULT_DATABASE, AsJson, DatabaseUrl, Device, Seed
from scripts.plots import draw_scores
from scripts.progress import tqdm
from scripts.run_records import end_run
from scripts.score_report import print_scores
from scripts.settings_file import SettingsFile
from scripts.subjects import Dtype, ModelId, ModelName, SaeNames, dtype_named, load_handle, load_saes, save_subjects

DEFAULTS = ScoreSettings()
N_FACT_DOCUMENTS = 256
"""Documents behind L0, explained variance and recovered cross-entropy: about 10,000 tokens of the organism's."""
FACT_WINDOW = 128
EMBEDDED = "the embedded organism"


class _Asked(NamedTuple):
    """What is scored, on which texts, and how."""

    model: HookedModel
    source: str
    """Where the model came from."""
    saes: Sequence[SAEHandle]
    splits: Sequence[ConceptSplits]
    fact_texts: Sequence[Document]
    settings: ScoreSettings
    seed: int
    as_chat: bool
    dtype: str


class _Scored(NamedTuple):
    """What one run found."""

    run: RunInfo
    facts: list[SaeFacts]
    results: list[SaeConceptResult]
    ranking: list[SaeRanking]


def score(
    model: ModelName = None,
    model_id: ModelId = None,
    sae: SaeNames = None,
    concepts: Annotated[
        list[str] | None,
        typer.Option(help=".jsonl, .csv or hub data set of labelled texts, paired or not; may be given again."),
    ] = None,
    taxonomy: Annotated[Path | None, typer.Option(help="YAML or JSON of domains, categories and concepts.")] = None,
    corpus: CorpusName = None,
    text_field: TextField = "text",
    plain: Annotated[bool, typer.Option("--plain", help="Texts as they are, without the chat template.")] = False,
    n_texts: Annotated[int, typer.Option(help="The organism's texts of each class and split.")] = DEFAULTS.n_judge,
    n_bootstrap: Annotated[int, typer.Option(help="Resamples behind each interval.")] = DEFAULTS.n_bootstrap,
    batch_size: Annotated[int, typer.Option(help="Texts in one forward pass.")] = DEFAULTS.batch_size,
    max_gib: Annotated[float, typer.Option(help="Memory for what is kept of the texts.")] = DEFAULTS.max_bytes / 2**30,
    out: Annotated[Path | None, typer.Option(help="Folder for the plots, as PNG.")] = None,
    settings_file: SettingsFile = None,
    database: DatabaseUrl = DEFAULT_DATABASE,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    dry_run: NeedsOnly = False,
    as_json: AsJson = False,
) -> None:
    """Rank SAEs by what they tell of safety concepts, before explaining a feature."""
    settings = ScoreSettings(
        n_choose=n_texts, n_judge=n_texts, n_bootstrap=n_bootstrap, batch_size=batch_size,
        max_bytes=int(max_gib * 2**30),
    )  # fmt: skip
    splits = concept_splits(concepts, taxonomy, n_choose=n_texts, n_judge=n_texts, seed=seed)
    need = _forecast(model, sae, splits, settings, device, dtype)
    if dry_run:
        print(need)
        return
    handle = load_handle(model, model_id, device=device, dtype=dtype)
    asked = _Asked(
        handle, model or EMBEDDED, load_saes(sae, handle, device=device), splits,
        _fact_documents(fixed(corpus), text_field, model, seed), settings, seed, not plain, dtype,
    )  # fmt: skip
    n_read = _n_read(asked)
    engine = make_engine(database)
    upgrade(engine)
    found = _score_and_rank(engine, asked, n_read)
    engine.dispose()
    plots = [] if out is None else draw_scores(found.results, found.ranking, found.facts, out)
    print_scores(found.ranking, found.results, found.facts, plots, database=database, as_json=as_json)


def run_job(settings: ScoreSaesJob, context: JobContext) -> dict[str, Any]:
    """What the job brought: its run, and the SAEs in their order. A later attempt begins anew."""
    concepts = None if settings.concepts is None else [context.offers.file(name) for name in settings.concepts]
    how = settings.settings
    splits = concept_splits(
        concepts, context.file(settings.taxonomy), n_choose=how.n_choose, n_judge=how.n_judge, seed=settings.seed
    )
    handle = context.handle(settings.model)
    model, _ = context.model(settings.model)
    asked = _Asked(
        handle, model or EMBEDDED, load_saes(context.saes(settings.saes), handle, device=context.device), splits,
        _fact_documents(context.file_name(settings.corpus), settings.text_field, model, settings.seed), how,
        settings.seed, not settings.plain, context.dtype,
    )  # fmt: skip
    found = _score_and_rank(context.engine, asked, _n_read(asked))
    return {"run": found.run.run_id, "saes": [one.sae for one in found.ranking], "scores": len(found.results)}


def _n_read(asked: _Asked) -> int:
    """Texts that are read; what is missing or too large shows here, before anything is kept."""
    blocks = concept_blocks(asked.splits, asked.saes, max_bytes=asked.settings.max_bytes)
    return sum(len(block.texts) for block in blocks)


def _score_and_rank(engine: Engine, asked: _Asked, n_read: int) -> _Scored:
    settings, handle = asked.settings, asked.model
    job = asdict(settings) | {
        "model": handle.model_id,
        "saes": [one.ref.slug for one in asked.saes],
        "concepts": {one.judge.concept: [part.sha256 for part in one] for one in asked.splits},
        "as_chat": asked.as_chat,
        "dtype": asked.dtype,
    }
    run = start_run("score-saes", settings=job, seed=asked.seed, device=str(handle.device))
    save_subjects(engine, run, handle, asked.saes, concepts_of(asked.splits), source=asked.source)
    facts = _facts(engine, run, handle, asked.saes, asked.fact_texts, settings.batch_size)
    results = _score(engine, run, asked, n_read)
    generator = torch.Generator().manual_seed(asked.seed)
    evidence = [one.evidence for one in results]
    ranking = rank_saes(evidence, n_bootstrap=settings.n_bootstrap, generator=generator)
    _finish(engine, run, ranking)
    return _Scored(run, facts, results, list(ranking))


# texts


def _forecast(
    model: str | None, sae: Sequence[str] | None, splits: Sequence[ConceptSplits], settings: ScoreSettings, device: str,
    dtype: str,
) -> str:  # fmt: skip
    size, saes = sizes_of(model, sae)
    texts = {text for one in splits for part in one for text in part.texts}
    # a token has three letters or more in any text that people wrote; a chat template adds a few tokens
    longest = max(map(len, texts)) // 3 + 32
    found = score_forecast(
        size, saes, n_texts=len(texts), longest=min(longest, size.dims.max_positions), batch_size=settings.batch_size,
        max_bytes=settings.max_bytes, dtype=dtype_named(dtype),
    )  # fmt: skip
    return say_forecast(found, device=device, dtype=dtype_named(dtype))


def _fact_documents(corpus: str | None, text_field: str, model: str | None, seed: int) -> list[Document]:
    """The corpus' first documents; the organism's own; none for another model without a corpus."""
    if corpus is not None:
        return list(islice(read_corpus(corpus, text_field), N_FACT_DOCUMENTS))
    if model is not None:
        return []
    # the demo's seed for these texts: the two commands give an SAE the same facts
    return [Document(str(place), text.text) for place, text in enumerate(documents(N_FACT_DOCUMENTS, seed + 1))]


# steps


def _facts(
    engine: Engine,
    run: RunInfo,
    model: HookedModel,
    saes: Sequence[SAEHandle],
    texts: Sequence[Document],
    batch_size: int,
) -> list[SaeFacts]:
    able = [sae for sae in saes if sae.has_decoder]
    if not texts or not able:
        return []
    batches = corpus_batches(
        texts,
        model.tokenizer,
        window=min(FACT_WINDOW, model.dims.max_positions or FACT_WINDOW),
        batch_size=batch_size,
        max_positions=model.dims.max_positions,
        prepend_bos=starts_with_bos(model),
    )
    found = measure_facts(model, able, tqdm(batches, desc="reconstruction", unit="batch", leave=False, disable=None))
    with writing(engine) as session:
        for one in found:
            store.save_sae_facts(session, one, run_id=run.run_id)
    return found


def _score(engine: Engine, run: RunInfo, asked: _Asked, n_read: int) -> list[SaeConceptResult]:
    with tqdm[Any](total=n_read, desc="reading texts", unit="text", leave=False, disable=None) as bar:

        def seen(n: int) -> None:
            bar.update(n)

        found = score_saes(
            asked.model,
            asked.saes,
            asked.splits,
            settings=asked.settings,
            generator=torch.Generator().manual_seed(run.seed),
            as_chat=asked.as_chat,
            progress=seen,
        )
        return list(_saved(engine, run, found, total=len(asked.saes) * len(asked.splits)))


def _saved(
    engine: Engine, run: RunInfo, found: Iterator[SaeConceptResult], *, total: int
) -> Iterator[SaeConceptResult]:
    for one in tqdm(found, desc="scoring", total=total, leave=False, disable=None):
        with writing(engine) as session:
            store.save_sae_scores(session, [one.score], run_id=run.run_id)
            store.save_concept_scores(session, one.features, run_id=run.run_id)
            if one.specificity is not None:
                store.save_sae_specificity(session, one.specificity, run_id=run.run_id)
        yield one


def _finish(engine: Engine, run: RunInfo, ranking: Sequence[SaeRanking]) -> None:
    with writing(engine) as session:
        store.save_sae_rankings(session, ranking, run_id=run.run_id)
        end_run(session, run)
