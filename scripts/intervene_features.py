"""What an SAE's best features do to the model: ablated and boosted, beside random features as active; all kept.

safe-sail intervene-features
safe-sail intervene-features --model MODEL --sae FOLDER --harmful-file bad.txt --harmless-file good.txt
"""

import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine

from db import store
from db.engine import reading, writing
from safe_sail.directions.refusal_tokens import (
    first_token_probabilities,
    learn_refusal_tokens,
    named_refusal_tokens,
)
from safe_sail.errors import BadInput
from safe_sail.features.intervene import intervene
from safe_sail.model.handle import HookedModel
from safe_sail.organism.grammar import prompts as organism_prompts
from safe_sail.organism.load import organism_sae_paths
from safe_sail.provenance import start_run
from safe_sail.records import Estimate, FeatureId, InterventionScore
from safe_sail.settings import InterventionSettings
from safe_sail.settings.method_jobs import InterveneFeaturesJob
from scripts import llm_runs
from scripts.job_runs import JobContext, at_command_line, named
from scripts.options import DEFAULT_DATABASE, AsJson, DatabaseUrl, Device, Limit, Seed
from scripts.progress import tqdm
from scripts.run_records import end_run, keep_run
from scripts.subjects import Dtype, ModelId, ModelName, is_organism, lines_of, load_saes

SETTINGS = InterventionSettings()
ORGANISM_SAE = "organism.resid_post.3.topk4-1024"
PromptFile = Annotated[Path | None, typer.Option(help="One prompt a line; the organism has its own.")]


def intervene_features(
    model: ModelName = None,
    model_id: ModelId = None,
    sae: Annotated[str | None, typer.Option("--sae", help="SAE folder or registry name; else the organism's.")] = None,
    harmful_file: PromptFile = None,
    harmless_file: PromptFile = None,
    refusal_token: Annotated[list[str] | None, typer.Option(help="Word that refusals begin with; else learnt.")] = None,
    n_prompts: Annotated[int, typer.Option(help="Prompts of each set.")] = SETTINGS.n_prompts,
    n_controls: Annotated[int, typer.Option(help="Random features of equal activity.")] = SETTINGS.n_controls,
    limit: Limit = 10,
    database: DatabaseUrl = DEFAULT_DATABASE,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Ablate and boost the best features of an SAE that has contexts; a feature that was changed before is left."""
    settings = InterventionSettings(n_prompts=n_prompts, n_controls=n_controls)
    job = InterveneFeaturesJob(
        model=model, sae=sae, harmful_file=named(harmful_file), harmless_file=named(harmless_file),
        refusal_tokens=None if refusal_token is None else tuple(refusal_token), limit=limit, settings=settings,
        seed=seed,
    )  # fmt: skip
    with at_command_line(database, device=device, dtype=dtype, model_id=model_id) as context:
        found = _change_and_keep(job, context)
        kept = [score for one in found.features for score in _scores(context.engine, one)]
    _report(kept, as_json=as_json)


def run_job(settings: InterveneFeaturesJob, context: JobContext) -> dict[str, Any]:
    """What the job brought: its run and counts. A later attempt changes only the features that are missing."""
    found = _change_and_keep(settings, context)
    sae = found.features[0].sae if found.features else None
    there = len(found.features) - found.n_changed
    return {"run": found.run_id, "sae": sae, "changed": found.n_changed, "there_before": there}


class _Kept(NamedTuple):
    """What one run did."""

    run_id: str | None
    """None where nothing was left to do."""
    features: list[FeatureId]
    n_changed: int


def _change_and_keep(job: InterveneFeaturesJob, context: JobContext) -> _Kept:
    settings = job.settings
    files = context.file(job.harmful_file), context.file(job.harmless_file)
    sets = _prompts(job.model, *files, settings.n_prompts, job.seed)
    engine = context.database(must_exist=True)
    handle = context.handle(job.model)
    names = context.saes(None if job.sae is None else [job.sae])
    if names is None and is_organism(job.model):
        names = [str(organism_sae_paths()[ORGANISM_SAE])]
    (found,) = load_saes(names, handle, device=context.device)
    slug = llm_runs.choose_sae(engine, found.ref.slug)
    listed = [FeatureId(sae=slug, index=one.index) for one in llm_runs.best_features(engine, slug, job.limit)]
    todo = {one.index: llm_runs.kept_contexts(engine, one).scale for one in listed if not _scores(engine, one)}
    if not todo:
        return _Kept(None, listed, 0)
    words = None if job.refusal_tokens is None else list(job.refusal_tokens)
    refusal_ids = _refusal_ids(handle, job.model, sets, words, settings.batch_size)
    facts = asdict(settings) | {"sae": slug, "model": handle.model_id, "refusal_ids": refusal_ids, "limit": job.limit}
    run = start_run("intervene-features", settings=facts, seed=job.seed, device=str(handle.device))
    scores = intervene(
        handle, found, todo, sets, refusal_ids=refusal_ids, settings=settings,
        generator=torch.Generator().manual_seed(job.seed),
    )  # fmt: skip
    keep_run(engine, run)
    # a feature's scores come one after another and are kept together, so that a killed run leaves no half
    by_feature = groupby(scores, key=lambda score: score.feature)
    bar = tqdm[Any](by_feature, desc="changing features", total=len(todo), unit="feature", disable=None)
    for _, of_feature in bar:
        whole = list(of_feature)
        with writing(engine) as session:
            store.save_intervention_scores(session, whole, run_id=run.run_id)
    with writing(engine) as session:
        end_run(session, run)
    return _Kept(run.run_id, listed, len(todo))


def _scores(engine: Engine, feature: FeatureId) -> list[InterventionScore]:
    with reading(engine) as session:
        return [kept.record for kept in store.load_intervention_scores(session, feature)]


def _prompts(model: str | None, harmful: Path | None, harmless: Path | None, n: int, seed: int) -> dict[str, list[str]]:
    if (harmful is None or harmless is None) and not is_organism(model):
        raise BadInput(
            "harmful_file and harmless_file (--harmful-file, --harmless-file): another model than the organism needs "
            "prompts of both sets, one a line."
        )
    found = {}
    for name, path, kind in (("harmful", harmful, "harmful"), ("harmless", harmless, "safe")):
        if path is None:
            found[name] = [one.text for one in organism_prompts(kind, "held_out", n, seed)]  # type: ignore[arg-type]
        else:
            found[name] = lines_of(path, at_least=1)[:n]
    return found


def _refusal_ids(
    handle: HookedModel, model: str | None, sets: dict[str, list[str]], named: list[str] | None, batch_rows: int
) -> list[int]:
    """First tokens of refusals: learnt on prompts that are not judged where the organism gives more of them."""
    texts = sets
    if is_organism(model):
        kinds = {"harmful": "harmful", "harmless": "safe"}
        texts = {
            name: [one.text for one in organism_prompts(kind, "train", len(sets[name]), 0)]  # type: ignore[arg-type]
            for name, kind in kinds.items()
        }
    harmful, harmless = (
        first_token_probabilities(handle, handle.chat_batch(texts[name]), batch_rows)
        for name in ("harmful", "harmless")
    )
    if named is None:
        tokens = learn_refusal_tokens(handle.tokenizer, harmful, harmless)
    else:
        tokens = named_refusal_tokens(handle.tokenizer, named, harmful, harmless)
    return [token.token_id for token in tokens]


def _report(scores: list[InterventionScore], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(one) | {"feature": str(one.feature)} for one in scores], indent=2))
        return
    table = Table(title="What changing a feature does, beside random features", title_justify="left", box=SIMPLE_HEAD)
    for head in ("feature", "done", "prompts", "active on", "refusal, logits", "random", "KL, nats", "random"):
        table.add_column(head, no_wrap=True, justify="left" if head in ("feature", "done", "prompts") else "right")
    for one in scores:
        table.add_row(
            f"#{one.feature.index}", str(one.intervention), one.prompts, f"{one.active_share:.0%}",
            _shown(one.refusal_change), _shown(one.refusal_control), _shown(one.kl), _shown(one.kl_control),
        )  # fmt: skip
    console = Console(highlight=False, width=150)
    console.print(table)
    console.print(
        "refusal: change of the log odds that the reply begins as a refusal. In brackets 95 %: over prompts, and for\n"
        "random features over those that write as much on these prompts. KL: how much the first reply token changes."
    )


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"
