"""Bring a feature database of another tool into this one; all of it or nothing.

safe-sail import neuron_db_en.json --format safe-sail --sae qwen2.5-3b-instruct.mlp_out
safe-sail import folder --format neuronpedia --sae SLUG --tokens-seen 2000000
"""

import hashlib
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.orm import Session

from db import store
from db.engine import make_engine, writing
from db.interchange import delphi, neuronpedia, parquet, safe_sail_json
from db.interchange.saes import GivenSae, require_sae
from db.migrate import upgrade
from safe_sail.errors import BadInput
from safe_sail.provenance import finish_run, start_run
from safe_sail.sites import Site, SiteKind
from scripts.options import DEFAULT_DATABASE, DatabaseUrl


class Format(StrEnum):
    """Formats that are read and written; docs/interchange.md has their fields."""

    SAFE_SAIL = "safe-sail"
    NEURONPEDIA = "neuronpedia"
    PARQUET = "parquet"
    DELPHI = "delphi"


def import_features(
    path: Annotated[Path, typer.Argument(help="File (safe-sail) or folder (the others).")],
    file_format: Annotated[Format, typer.Option("--format", help="What the files are.")],
    sae: Annotated[
        str | None, typer.Option(help="SAE the features belong to; for safe-sail the part before `.<layer>`.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Site of a new SAE; for safe-sail the kind alone: mlp_out.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Features of a new SAE; safe-sail: 20480.")] = None,
    d_in: Annotated[int | None, typer.Option(min=1, help="Input width of a new SAE; safe-sail: 2048.")] = None,
    architecture: Annotated[str | None, typer.Option(help="Of a new SAE; safe-sail: safe-sail-topk.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of a new SAE; it must be in the database.")] = None,
    tokens_seen: Annotated[
        int | None, typer.Option(min=1, help="neuronpedia: tokens behind the activations, where the files are silent.")
    ] = None,
    explainer: Annotated[str | None, typer.Option(help="delphi: who explained; `delphi` if absent.")] = None,
    database: DatabaseUrl = DEFAULT_DATABASE,
) -> None:
    """Import features, explanations and scores.

    Raises:
        BadInput: an option is missing, or the database knows the SAE otherwise.
        ImportUnreadable: a file is missing, damaged or of another format; nothing was kept.
    """
    facts = GivenSae(d_in=d_in, width=width, architecture=architecture, model_id=model)
    settings = {
        "path": str(path), "format": str(file_format), "sae": sae, "site": site, "width": width, "d_in": d_in,
        "architecture": architecture, "model": model, "tokens_seen": tokens_seen, "explainer": explainer,
        "sha256": _hashes(path),
    }  # fmt: skip
    run = start_run("import", settings=settings, seed=0, device="none")
    engine = make_engine(database)
    try:
        upgrade(engine)
        with writing(engine) as session:
            store.save_run(session, run)
            if file_format is Format.SAFE_SAIL:
                said = _safe_sail(session, path, sae, site, facts, run.run_id)
            else:
                said = _folder(session, file_format, path, sae, _site(site), facts, tokens_seen, explainer, run.run_id)
            store.save_run(session, finish_run(run))
    finally:
        engine.dispose()
    print(f"{said}\nThey are in {database}, under run {run.run_id}.")


def _safe_sail(session: Session, path: Path, prefix: str | None, site: str | None, facts: GivenSae, run_id: str) -> str:
    if prefix is None:
        raise BadInput("--sae is needed: the SAE of layer 17 will be called `<sae>.17`.")
    kind = SiteKind.MLP_OUT if site is None else _kind(site)
    known = safe_sail_json.PUBLISHED
    facts = GivenSae(
        d_in=facts.d_in or known.d_in,
        width=facts.width or known.width,
        architecture=facts.architecture or known.architecture,
        model_id=facts.model_id,
    )
    done = safe_sail_json.import_safe_sail(
        session, safe_sail_json.read_safe_sail(path), prefix=prefix, kind=kind, facts=facts, sae_id=path.name,
        run_id=run_id,
    )  # fmt: skip
    return (
        f"{done.n_features} features, {done.n_tagged} with tags, {done.n_masked} with a masked explanation, "
        f"{done.n_without_explanation} without one, in {', '.join(done.saes)}.\n"
        f"The file does not say what the SAEs are; they stand as {kind}, {facts.d_in} -> {facts.width}, "
        f"{facts.architecture}, of model {facts.model_id or 'unknown'}."
    )


def _folder(
    session: Session,
    file_format: Format,
    path: Path,
    sae: str | None,
    site: Site | None,
    facts: GivenSae,
    tokens_seen: int | None,
    explainer: str | None,
    run_id: str,
) -> str:
    if file_format is Format.PARQUET:
        return f"{parquet.import_parquet(session, path, run_id=run_id)}."
    if sae is None:
        raise BadInput("--sae is needed: the files do not say which SAE of the database the features belong to.")
    require_sae(session, sae, replace(facts, site=site), sae_id=path.name, run_id=run_id)
    if file_format is Format.DELPHI:
        read = delphi.import_delphi(session, path, sae=sae, explainer=explainer or delphi.DELPHI, run_id=run_id)
        return (
            f"{read.n_explanations} explanations, {read.n_scores} scores; {read.n_undefined} undefined ones left out."
        )
    done = neuronpedia.import_neuronpedia(session, path, sae=sae, tokens_seen=tokens_seen, run_id=run_id)
    return (
        f"{done.n_features} features with {done.n_activations} contexts and {done.n_explanations} explanations; left "
        f"out: {done.n_repeated} explanations of a feature, model and type already read, {done.n_empty} without text."
    )


def _kind(text: str) -> SiteKind:
    if text not in set(SiteKind) or text == SiteKind.EMBED:
        raise BadInput(f"--site: expected a kind of site without its layer, as mlp_out; got `{text}`.")
    return SiteKind(text)


def _site(text: str | None) -> Site | None:
    return None if text is None else Site.parse(text)


def _hashes(path: Path) -> dict[str, str]:
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    found = {}
    for file in files:
        if file.is_file():
            with file.open("rb") as data:
                found[str(file.relative_to(path) if file != path else file.name)] = hashlib.file_digest(
                    data, "sha256"
                ).hexdigest()
    return found
