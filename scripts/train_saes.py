"""Train SAEs at chosen sites of a model, over a sweep of architectures, widths and sparsities, and measure each.

safe-sail train-saes --out saes --site resid_post.3 --k 8 --width 512
safe-sail train-saes --out saes --model MODEL --corpus OWNER/NAME --site resid_post.12 --site mlp_out.12 \
    --architecture topk --architecture jumprelu --k 32 --k 64 --sparsity 1 --sparsity 3 --width 16384 --steps 30000
"""

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final, NamedTuple

import typer

from db import store
from db.engine import writing
from safe_sail.data.corpus import Document, corpus_batches
from safe_sail.errors import BadInput
from safe_sail.features.forecast import training_forecast
from safe_sail.model.handle import HookedModel
from safe_sail.model.size import model_size
from safe_sail.model.tokens import TokenBatch
from safe_sail.organism.grammar import documents
from safe_sail.provenance import start_run
from safe_sail.records import SaeFacts
from safe_sail.sae.facts import measure_facts
from safe_sail.sae.load import load_sae
from safe_sail.sae.metadata import slug_of
from safe_sail.sae.size import SaeSize
from safe_sail.sae.stream import StreamFacts, is_finished, store_trained, train_on_stream
from safe_sail.sae.train import Training
from safe_sail.settings import SaeRecipe, SaeTrainingSettings
from safe_sail.settings.method_jobs import TrainSaesJob
from safe_sail.sites import Site
from scripts.corpora import CorpusName, TextField, corpus_facts, fixed, read_corpus, starts_with_bos
from scripts.forecasts import NeedsOnly, say_forecast
from scripts.job_runs import JobContext, at_command_line
from scripts.options import DEFAULT_DATABASE, AsJson, DatabaseUrl, Device, Seed
from scripts.progress import tqdm
from scripts.run_records import end_run
from scripts.settings_file import SettingsFile
from scripts.subjects import Dtype, ModelId, ModelName, dtype_named, model_path, save_subjects

DEFAULTS = SaeTrainingSettings()
RECIPE = SaeRecipe(slug="default", architecture="topk", d_sae=1024)
UNFINISHED: Final = ".new-"
N_ORGANISM_DOCUMENTS: Final = 20_000
ARCHITECTURES: Final = {"topk": "topk", "batchtopk": "batchtopk", "relu": "standard", "jumprelu": "jumprelu"}
"""Our word -> SAELens'."""


def train_saes(
    out: Annotated[Path, typer.Option(help="Folder of the SAEs, one folder each; whole ones are not trained again.")],
    site: Annotated[list[str], typer.Option(help="Where to read, as resid_post.12; may be given again.")],
    model: ModelName = None,
    model_id: ModelId = None,
    corpus: CorpusName = None,
    text_field: TextField = "text",
    architecture: Annotated[
        list[str] | None, typer.Option(help="topk, batchtopk, relu or jumprelu; may be given again; topk if absent.")
    ] = None,
    width: Annotated[list[int] | None, typer.Option(help="Features; may be given again; 1024 if absent.")] = None,
    k: Annotated[
        list[int] | None, typer.Option(help="Active features a token, of topk and batchtopk; again; 8 if absent.")
    ] = None,
    sparsity: Annotated[
        list[float] | None, typer.Option(help="Penalty of relu (L1) and jumprelu (L0); again; 1 if absent.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = RECIPE.steps,
    batch_rows: Annotated[int, typer.Option(help="Activations in a step.")] = RECIPE.batch_rows,
    learning_rate: Annotated[float, typer.Option(help="Adam's; to zero over the last fifth.")] = RECIPE.learning_rate,
    window: Annotated[int, typer.Option(help="Tokens in one window of the corpus.")] = DEFAULTS.window,
    batch_size: Annotated[int, typer.Option(help="Windows in one forward pass.")] = DEFAULTS.batch_size,
    buffer_rows: Annotated[int, typer.Option(help="Activations of a site that are shuffled.")] = DEFAULTS.buffer_rows,
    held_out: Annotated[int, typer.Option(help="First documents; they measure and never train.")] = DEFAULTS.n_held_out,
    at_once: Annotated[int, typer.Option(min=1, help="SAEs trained in one pass; fewer need less memory.")] = 64,
    settings_file: SettingsFile = None,
    database: DatabaseUrl = DEFAULT_DATABASE,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    dry_run: NeedsOnly = False,
    as_json: AsJson = False,
) -> None:
    """Train SAEs through SAELens' trainers, store them as its folders, and measure them on held-out text."""
    settings = SaeTrainingSettings(window=window, batch_size=batch_size, buffer_rows=buffer_rows, n_held_out=held_out)
    job = TrainSaesJob(
        name=str(out), sites=tuple(site), model=model, corpus=corpus, text_field=text_field,
        architectures=tuple(architecture or ["topk"]), widths=tuple(width or [RECIPE.d_sae]),
        k=None if k is None else tuple(k), sparsity=None if sparsity is None else tuple(sparsity), steps=steps,
        batch_rows=batch_rows, learning_rate=learning_rate, at_once=at_once, settings=settings, seed=seed,
    )  # fmt: skip
    with at_command_line(database, device=device, dtype=dtype, model_id=model_id) as context:
        handle = context.handle(model)
        recipes = _sweep(job, handle)
        need = _forecast(model, handle, recipes, settings, at_once, device, dtype)
        if dry_run:
            print(need)
            return
        found = _train_and_keep(job, handle, recipes, context)
    print_facts(found.facts, out, n_trained=found.n_trained, as_json=as_json)


def run_job(settings: TrainSaesJob, context: JobContext) -> dict[str, Any]:
    """What the job brought: its run, and the SAEs by the names that later jobs use. An attempt trains what is left."""
    handle = context.handle(settings.model)
    found = _train_and_keep(settings, handle, _sweep(settings, handle), context)
    names = [f"made/{settings.name}/{one.sae}" for one in found.facts]
    return {"run": found.run_id, "saes": names, "trained": found.n_trained}


class _Kept(NamedTuple):
    """What one run trained and measured."""

    run_id: str
    facts: list[SaeFacts]
    n_trained: int


def _sweep(job: TrainSaesJob, handle: HookedModel) -> list[tuple[Site, SaeRecipe]]:
    training = {"steps": job.steps, "batch_rows": job.batch_rows, "learning_rate": job.learning_rate}
    return sweep(handle, job.sites, job.architectures, job.widths, k=job.k, sparsity=job.sparsity, training=training)


def _train_and_keep(
    job: TrainSaesJob, handle: HookedModel, recipes: Sequence[tuple[Site, SaeRecipe]], context: JobContext
) -> _Kept:
    settings = job.settings
    texts = Texts(handle, fixed(context.file_name(job.corpus)), job.text_field, settings, job.seed)
    facts = {
        "model": handle.model_id, "dtype": context.dtype, "seed": job.seed, "settings": asdict(settings),
        "corpus": texts.facts, "prepend_bos": texts.prepend_bos,
    }  # fmt: skip
    out = context.made(job.name)
    for old in out.glob(f"{UNFINISHED}*"):  # of an attempt that was killed
        shutil.rmtree(old, ignore_errors=True)
    left = [one for one in recipes if not is_finished(one[1], out, facts)]
    texts.require()
    engine = context.database()
    run = start_run(
        "train-saes", settings=facts | {"recipes": [asdict(one) for _, one in recipes]}, seed=job.seed,
        device=context.device,
    )  # fmt: skip
    save_subjects(engine, run, handle, [], source=context.source(job.model))
    for first in range(0, len(left), job.at_once):
        trained, read = _train(handle, texts, left[first : first + job.at_once], settings)
        _store(trained, out, {"job": facts, "read": read._asdict()}, context)
    saes = [load_sae(out / one.slug, device=context.device, expect_model_id=handle.model_id) for _, one in recipes]
    batches = tqdm(texts.held_out(), desc="measuring", unit="batch", disable=None)
    measured = list(measure_facts(handle, saes, batches))
    with writing(engine) as session:
        for sae, one in zip(saes, measured, strict=True):
            store.save_sae(session, sae.ref, run_id=run.run_id)
            store.save_sae_facts(session, one, run_id=run.run_id)
        end_run(session, run)
    return _Kept(run.run_id, measured, len(left))


# what to train


def sweep(
    model: HookedModel,
    sites: Sequence[str],
    architectures: Sequence[str] | None,
    widths: Sequence[int] | None,
    *,
    k: Sequence[int] | None,
    sparsity: Sequence[float] | None,
    training: Mapping[str, Any],
) -> list[tuple[Site, SaeRecipe]]:
    """Every architecture in every width and sparsity, at every site.

    Raises:
        BadSite: a text names no site, or not of this model.
        BadInput: an architecture is unknown, an option belongs to none of them, or something is named twice.
    """
    named = list(architectures or ["topk"])
    if unknown := sorted(set(named) - set(ARCHITECTURES)):
        raise BadInput(f"--architecture: expected some of {', '.join(ARCHITECTURES)}; got {', '.join(unknown)}.")
    by_k, by_penalty = {"topk", "batchtopk"} & set(named), {"relu", "jumprelu"} & set(named)
    if (k and not by_k) or (sparsity and not by_penalty):
        raise BadInput(f"--k belongs to topk and batchtopk, --sparsity to relu and jumprelu; got {', '.join(named)}.")
    prefix = slug_of(model.model_id.rpartition("/")[2])
    found = []
    for text, name, width in product(sites, named, widths or [RECIPE.d_sae]):
        site = Site.parse(text)
        model.site_shape(site)
        key, values = ("k", k or [RECIPE.k]) if name in by_k else ("sparsity", sparsity or [RECIPE.sparsity])
        for value in values:
            words: dict[str, Any] = {"architecture": ARCHITECTURES[name], "d_sae": width, key: value, **training}
            short = SaeRecipe(slug="unnamed", **words).name
            found.append((site, SaeRecipe(slug=f"{prefix}.{site}.{short}", **words)))
    slugs = [one.slug for _, one in found]
    if len(set(slugs)) < len(slugs):
        raise BadInput(f"every SAE is named once; got {', '.join(sorted(slugs))}.")
    return found


def _forecast(
    name: str | None,
    model: HookedModel,
    recipes: Sequence[tuple[Site, SaeRecipe]],
    settings: SaeTrainingSettings,
    at_once: int,
    device: str,
    dtype: str,
) -> str:
    sized = []
    for site, recipe in recipes:
        d_in = math.prod(model.site_shape(site))
        numbers = 2 * d_in * recipe.d_sae + 2 * recipe.d_sae + d_in
        sized.append((SaeSize(d_in, recipe.d_sae, numbers, site), recipe))
    size = model_size(model_path(name))
    found = training_forecast(size, sized, settings=settings, dtype=dtype_named(dtype), at_once=at_once)
    return say_forecast(found, device=device, dtype=dtype_named(dtype))


class Texts:
    """The corpus in two parts: the first documents measure, the others train."""

    def __init__(
        self, model: HookedModel, corpus: str | None, text_field: str, settings: SaeTrainingSettings, seed: int
    ) -> None:
        self._model, self._corpus, self._text_field = model, corpus, text_field
        self._settings, self.seed = settings, seed
        self.prepend_bos = starts_with_bos(model)
        self.facts = (
            {"organism_documents": N_ORGANISM_DOCUMENTS} if corpus is None else corpus_facts(corpus, text_field)
        )

    def train(self) -> Iterator[TokenBatch]:
        """Batches of all documents but the first."""
        return self._batches(islice(self._documents(), self._settings.n_held_out, None))

    def held_out(self) -> Iterator[TokenBatch]:
        """Batches of the first documents."""
        return self._batches(islice(self._documents(), self._settings.n_held_out))

    def require(self) -> None:
        """Raises what is wrong with the corpus, or that one part of it is empty, before anything is kept."""
        if next(islice(self._documents(), self._settings.n_held_out, None), None) is None:
            raise BadInput(
                f"the corpus has no more documents than the {self._settings.n_held_out} that are held out; give a "
                f"larger one, or fewer with --held-out."
            )
        next(self.held_out())

    def _documents(self) -> Iterator[Document]:
        if self._corpus is not None:
            return read_corpus(self._corpus, self._text_field)
        texts = documents(N_ORGANISM_DOCUMENTS, self.seed)
        return (Document(f"document {place}", text.text) for place, text in enumerate(texts))

    def _batches(self, texts: Iterable[Document]) -> Iterator[TokenBatch]:
        return corpus_batches(
            texts,
            self._model.tokenizer,
            window=min(self._settings.window, self._model.dims.max_positions),
            batch_size=self._settings.batch_size,
            max_positions=self._model.dims.max_positions,
            prepend_bos=self.prepend_bos,
        )


# train


def _train(
    model: HookedModel, texts: Texts, portion: Sequence[tuple[Site, SaeRecipe]], settings: SaeTrainingSettings
) -> tuple[list[Training], StreamFacts]:
    """These SAEs, trained in one pass, and what of the corpus that read."""
    recipes: dict[Site, list[SaeRecipe]] = {}
    for site, recipe in portion:
        recipes.setdefault(site, []).append(recipe)
    n_steps = sum(recipe.steps for _, recipe in portion)
    with tqdm[Any](total=n_steps, desc=f"training {len(portion)} SAEs", unit="step", disable=None) as bar:

        def stepped(slug: str, step: int, loss: float) -> None:
            bar.update()

        return train_on_stream(
            model, texts.train, recipes, settings=settings, prepend_bos=texts.prepend_bos, seed=texts.seed,
            progress=stepped,
        )  # fmt: skip


def _store(trained: Sequence[Training], out: Path, record: Mapping[str, object], context: JobContext) -> None:
    """Stores what was trained; of a job, each SAE appears only while the job is this worker's."""
    if context.job_id is None:
        for one in trained:
            store_trained(one, out, record)
        return
    with TemporaryDirectory(prefix=UNFINISHED, dir=out) as fresh:
        paths = [store_trained(one, Path(fresh), record) for one in trained]
        with context.holding():
            for path in paths:
                path.rename(out / path.name)


# what a person reads


def print_facts(facts: Sequence[SaeFacts], out: Path, *, n_trained: int, as_json: bool) -> None:
    """Prints what each SAE measures."""
    if as_json:
        print(json.dumps({"trained": n_trained, "facts": [asdict(one) for one in facts]}, indent=2))
        return
    wide = max(len(one.sae) for one in facts)
    print(f"{'SAE':<{wide}}     L0     EV     CE   dead")
    for one in facts:
        print(
            f"{one.sae:<{wide}}  {one.l0:5.1f}  {one.explained_variance:5.2f}  {one.ce_recovered:5.3f}  "
            f"{one.dead_share:5.0%}"
        )
    print(f"EV: explained variance. CE: share of the cross-entropy recovered. On {facts[0].n_tokens} held-out tokens.")
    print(f"{n_trained} trained now, {len(facts) - n_trained} were there; each is a folder of {out}")
