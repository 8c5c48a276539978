"""Which heads, neurons, circuits and directions an SAE's features are linked with, by weights and by cause; all kept.

safe-sail link-features
safe-sail link-features --model MODEL --sae FOLDER --concepts pairs.jsonl --direction SLUG --refusal-token sorry
safe-sail link-features --units circuits.json --graph links.json
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import torch
import typer
from sqlalchemy import Engine

from db import store
from db.engine import reading, writing
from db.interchange.files import read_whole
from db.interchange.graph_json import graph_of_links, write_graph
from safe_sail.directions.refusal_tokens import first_token_probabilities, learn_refusal_tokens
from safe_sail.errors import BadInput, BadSettings, ExportRefused
from safe_sail.features.score import ConceptSplits
from safe_sail.links.choose import concepts_to_link
from safe_sail.links.connect import LinkTargets, link_features
from safe_sail.links.units import UnitSet
from safe_sail.model.handle import HookedModel
from safe_sail.organism.grammar import prompts
from safe_sail.organism.load import organism_sae_paths
from safe_sail.provenance import start_run
from safe_sail.records import Direction, FeatureId, LinkKind, LinkStudy, parse_unit
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import LinkSettings
from safe_sail.settings.method_jobs import LinkFeaturesJob
from scripts.concept_texts import concept_splits, concepts_of
from scripts.job_runs import JobContext, at_command_line, named
from scripts.link_report import print_links
from scripts.options import DEFAULT_DATABASE, AsJson, DatabaseUrl, Device, Seed
from scripts.progress import reported
from scripts.run_records import end_run
from scripts.subjects import Dtype, ModelId, ModelName, is_organism, load_saes, save_subjects

T = TypeVar("T")
DEFAULTS = LinkSettings()
ORGANISM_SAE = "organism.resid_post.3.topk4-1024"
"""The organism's SAE with the cleanest concept features, by the demo."""
MAX_UNITS_BYTES = 64 * 2**20
N_REFUSAL_PROMPTS = 64
"""Prompts of each class that the organism's refusal tokens are learnt from."""


def link(
    model: ModelName = None,
    model_id: ModelId = None,
    sae: Annotated[
        list[str] | None,
        typer.Option("--sae", help="SAE folder or registry name; may be given again; else one of the organism's."),
    ] = None,
    concepts: Annotated[
        list[Path] | None, typer.Option(help=".jsonl or .csv of texts in pairs, with and without a concept.")
    ] = None,
    taxonomy: Annotated[Path | None, typer.Option(help="YAML or JSON of domains, categories and concepts.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Texts as they are, without the chat template.")] = False,
    concept: Annotated[list[str] | None, typer.Option(help="Only this concept; may be given again.")] = None,
    feature: Annotated[list[int] | None, typer.Option(help="Only among these features of the SAE.")] = None,
    direction: Annotated[
        list[str] | None, typer.Option(help="Direction in the database, by slug; else every one of the model.")
    ] = None,
    units: Annotated[
        Path | None, typer.Option(help='Circuits to link whole, as JSON: {"name": ["L3.H5", "L4.N902"]}.')
    ] = None,
    graph: Annotated[
        Path | None, typer.Option(help="File for the links as a graph of circuit-tracer and Neuronpedia.")
    ] = None,
    refusal_token: Annotated[
        list[str] | None, typer.Option(help="Word that refusals begin with; else those of the kept search.")
    ] = None,
    n_pairs: Annotated[
        int, typer.Option(help="Pairs that judge each concept; as many others choose.")
    ] = DEFAULTS.n_judge,
    n_features: Annotated[int, typer.Option(help="Features of each concept.")] = DEFAULTS.n_features,
    n_heads: Annotated[int, typer.Option(help="Heads tested for each feature.")] = DEFAULTS.n_heads,
    n_neurons: Annotated[int, typer.Option(help="Neurons tested for each feature.")] = DEFAULTS.n_neurons,
    ablation: Annotated[str, typer.Option(help="mean or zero: what ablated units are set to.")] = DEFAULTS.ablation,
    database: DatabaseUrl = DEFAULT_DATABASE,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Link features with heads, neurons and directions, by weights and by cause, beside controls."""
    settings = LinkSettings(
        n_choose=n_pairs, n_judge=n_pairs, n_features=n_features, n_heads=n_heads, n_neurons=n_neurons,
        ablation=ablation,
    )  # fmt: skip
    job = LinkFeaturesJob(
        model=model, saes=_tuple(sae), concepts=_tuple(None if concepts is None else list(map(str, concepts))),
        taxonomy=named(taxonomy), only=_tuple(concept), plain=plain, features=_tuple(feature),
        directions=_tuple(direction), units=named(units), refusal_tokens=_tuple(refusal_token), settings=settings,
        seed=seed,
    )  # fmt: skip
    with at_command_line(database, device=device, dtype=dtype, model_id=model_id) as context:
        asked = _asked(job, context)
        _require_new(graph, asked.saes)
        found = _link_and_keep(job, asked, context)
    if graph is not None:
        write_graph(graph_of_links(found.studies[0], asked.saes[0].site), graph)
    print_links(found.studies, database=database, as_json=as_json)


def run_job(settings: LinkFeaturesJob, context: JobContext) -> dict[str, Any]:
    """What the job brought: its run, the studies' slugs and how many links. A later attempt begins anew."""
    found = _link_and_keep(settings, _asked(settings, context), context)
    counts = {
        "tested": sum(one.n_tested for one in found.studies),
        "linked": sum(one.n_linked for one in found.studies),
    }
    return {"run": found.run_id, "studies": [one.slug for one in found.studies]} | counts


class _Asked(NamedTuple):
    """What is linked, on which texts."""

    splits: list[ConceptSplits]
    circuits: list[UnitSet]
    handle: HookedModel
    saes: list[SAEHandle]


class _Kept(NamedTuple):
    """What one run found and kept."""

    run_id: str
    studies: list[LinkStudy]


def _asked(job: LinkFeaturesJob, context: JobContext) -> _Asked:
    concepts = None if job.concepts is None else [context.offers.file(name) for name in job.concepts]
    # the organism gives half of its texts a twin without the concept
    n = 2 * job.settings.n_judge
    taxonomy = context.file(job.taxonomy)
    splits = concept_splits(concepts, taxonomy, n_choose=2 * job.settings.n_choose, n_judge=n, seed=job.seed)
    splits = _only(splits, job.only)
    circuits = _circuits(context.file(job.units))
    handle = context.handle(job.model)
    names = context.saes(job.saes)
    if names is None and is_organism(job.model):
        names = [str(organism_sae_paths()[ORGANISM_SAE])]
    return _Asked(splits, circuits, handle, load_saes(names, handle, device=context.device))


def _link_and_keep(job: LinkFeaturesJob, asked: _Asked, context: JobContext) -> _Kept:
    settings, handle = job.settings, asked.handle
    engine = context.database()
    targets = _targets(engine, handle, job.directions, job.refusal_tokens, learns=is_organism(job.model))
    targets = targets._replace(sets=sets_to_link(asked.circuits, engine, handle.model_id))
    facts = asdict(settings) | {
        "model": handle.model_id,
        "saes": [one.ref.slug for one in asked.saes],
        "concepts": {one.judge.concept: [part.sha256 for part in one] for one in asked.splits},
        "directions": [one.slug for one in targets.directions],
        "sets": {one.slug: [str(unit) for unit in one.units] for one in targets.sets},
        "as_chat": not job.plain,
        "dtype": context.dtype,
    }
    run = start_run("link-features", settings=facts, seed=job.seed, device=str(handle.device))
    save_subjects(engine, run, handle, asked.saes, concepts_of(asked.splits), source=context.source(job.model))
    studies = []
    for one in asked.saes:
        chosen = concepts_to_link(
            handle, one, asked.splits, settings, as_chat=not job.plain, features=job.features
        )  # fmt: skip
        with reported(one.ref.slug, total=len(chosen)) as report:
            study = link_features(
                handle, one, chosen, targets, settings, slug=f"{handle.model_id.replace('/', '_')}.{one.ref.slug}",
                generator=torch.Generator().manual_seed(job.seed), as_chat=not job.plain, progress=report,
            )  # fmt: skip
        studies.append(study)
        with writing(engine) as session:
            store.save_link_study(session, study, run_id=run.run_id)
    with writing(engine) as session:
        end_run(session, run)
    return _Kept(run.run_id, studies)


def _tuple(given: Sequence[T] | None) -> tuple[T, ...] | None:
    return None if given is None else tuple(given)


def _only(splits: list[ConceptSplits], names: Sequence[str] | None) -> list[ConceptSplits]:
    known = [one.judge.concept for one in splits]
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise BadSettings(f"--concept: expected some of {', '.join(known)}; got {', '.join(unknown)}.")
    return [one for one in splits if names is None or one.judge.concept in names]


def _circuits(path: Path | None) -> list[UnitSet]:
    """Sets of units by name, as a file gives them."""
    if path is None:
        return []
    found = read_whole(path, MAX_UNITS_BYTES)
    if not isinstance(found, dict) or not all(isinstance(names, list) and names for names in found.values()):
        raise BadInput(f'{path}: expected an object of names and lists of units, as {{"name": ["L3.H5", "L4.N902"]}}.')
    return [
        UnitSet(name, LinkKind.CIRCUIT, tuple(dict.fromkeys(parse_unit(str(one)) for one in names)))
        for name, names in found.items()
    ]


def sets_to_link(given: Sequence[UnitSet], engine: Engine, model_id: str) -> tuple[UnitSet, ...]:
    """The given sets, then the circuits and safety neurons that the database keeps of the model.

    SAE features of a circuit are no part of its set: what they write is linked as features.

    Raises:
        BadInput: two sets have one name.
    """
    with reading(engine) as session:
        circuits = [one.record for one in store.list_circuits(session, model_id=model_id)]
        neurons = [one.record for one in store.list_neuron_searches(session, model_id=model_id)]
    found = list(given)
    for circuit in circuits:
        units = tuple(unit for unit in circuit.units if not isinstance(unit, FeatureId))
        found += [UnitSet(circuit.slug, LinkKind.CIRCUIT, units)] if units else []
    found += [UnitSet(one.slug, LinkKind.NEURON_SET, one.neurons) for one in neurons if one.neurons]
    twice = sorted(slug for slug, n in Counter(one.slug for one in found).items() if n > 1)
    if twice:
        raise BadInput(f"sets of units need different names; got {', '.join(twice)} more than once: rename in --units.")
    return tuple(found)


def _require_new(graph: Path | None, saes: Sequence[SAEHandle]) -> None:
    """Refuses a graph that could not be written, before anything is computed."""
    if graph is not None and (graph.exists() or len(saes) > 1):
        reason = "exists already" if graph.exists() else f"would hold the links of {len(saes)} SAEs"
        raise ExportRefused(f"{graph} {reason}; a graph is a new file of one SAE.")


def _targets(
    engine: Engine,
    handle: HookedModel,
    directions: Sequence[str] | None,
    refusal_tokens: Sequence[str] | None,
    *,
    learns: bool,
) -> LinkTargets:
    """What the database knows of the model, and the first tokens of its refusals."""
    with reading(engine) as session:
        searches = [kept.record for kept in store.list_direction_searches(session, model_id=handle.model_id)]
        found: dict[str, Direction] = {}
        if directions is None:
            known = [one for search in searches for one in (search.direction, search.added) if one is not None]
            found = {one.slug: one for one in known}
        else:
            found = {slug: store.load_direction(session, slug).record for slug in directions}
    ids = {token.token_id for search in searches for token in search.refusal_tokens}
    if refusal_tokens is not None:
        ids = {_first_id(handle, text) for text in refusal_tokens}
    elif not ids and learns:
        ids = _learnt(handle)
    return LinkTargets(directions=tuple(found.values()), refusal_ids=tuple(sorted(ids)))


def _first_id(handle: HookedModel, text: str) -> int:
    row: list[int] = handle.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not row:
        raise BadSettings(f"--refusal-token: {text!r} has no token; name the words that refusals begin with.")
    return row[0]


def _learnt(handle: HookedModel) -> set[int]:
    harmful, harmless = (
        first_token_probabilities(
            handle, handle.chat_batch([one.text for one in prompts(kind, "train", N_REFUSAL_PROMPTS, 0)]), 32
        )
        for kind in ("harmful", "safe")
    )
    return {token.token_id for token in learn_refusal_tokens(handle.tokenizer, harmful, harmless)}
