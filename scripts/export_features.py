"""Write features of this database in the format of another tool; the file or folder appears when it is whole.

safe-sail export neuron_db.json --format safe-sail --sae qwen2.5-3b-instruct.mlp_out.17
safe-sail export folder --format parquet
"""

from pathlib import Path
from typing import Annotated

import typer

from db import store
from db.engine import make_engine, reading
from db.interchange import delphi, neuronpedia, parquet, safe_sail_json
from db.migrate import require_head
from safe_sail.errors import BadInput
from scripts.import_features import Format
from scripts.options import DEFAULT_DATABASE, DatabaseUrl


def export_features(
    target: Annotated[Path, typer.Argument(help="File (safe-sail) or folder (the others); must not exist.")],
    file_format: Annotated[Format, typer.Option("--format", help="What to write.")],
    sae: Annotated[list[str] | None, typer.Option(help="SAE to write; may be given again; all if absent.")] = None,
    explainer: Annotated[
        str, typer.Option(help="safe-sail, delphi: whose explanations; these formats hold one a feature.")
    ] = safe_sail_json.RELEASE,
    prompt_version: Annotated[str | None, typer.Option(help="Its prompt version, where it has several.")] = None,
    model: Annotated[
        str | None, typer.Option(help="neuronpedia: the SAE's model, where the database has none.")
    ] = None,
    database: DatabaseUrl = DEFAULT_DATABASE,
) -> None:
    """Export features, explanations and scores.

    Raises:
        ExportRefused: the target exists, or the format cannot hold what is asked; nothing was written.
        NotFound: no SAE has such a slug.
    """
    engine = make_engine(database, read_only=True)
    try:
        require_head(engine)
        with reading(engine) as session:
            saes = sae or [one.sae.slug for one in store.list_saes(session)]
            if file_format is Format.SAFE_SAIL:
                written = safe_sail_json.export_safe_sail(
                    session, saes, target, explainer=explainer, prompt_version=prompt_version
                )
                said = f"{written.n_features} features; {written.n_left_out} explained ones without a score left out"
            elif file_format is Format.PARQUET:
                said = str(parquet.export_parquet(session, saes, target))
            elif file_format is Format.NEURONPEDIA:
                lines = neuronpedia.export_neuronpedia(session, _only(saes), target, model_id=model)
                said = (
                    f"{lines.n_features} features, {lines.n_activations} contexts, {lines.n_explanations} explanations"
                )
            else:
                n = delphi.export_delphi(
                    session, _only(saes), target, explainer=explainer, prompt_version=prompt_version
                )
                said = f"{n} explanations"
    finally:
        engine.dispose()
    print(f"{said}; in {target}.")


def _only(saes: list[str]) -> str:
    if len(saes) != 1:
        raise BadInput(f"this format holds one SAE a folder; name it with --sae. Here are {len(saes)}.")
    return saes[0]
