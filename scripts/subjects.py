"""The model and the SAEs that a command is about: loaded, checked against each other, and kept in the database."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, NamedTuple, get_args
from urllib.parse import parse_qsl

import torch
import typer
from sqlalchemy import Engine
from tqdm import tqdm

from db import store
from db.engine import writing
from safe_sail.errors import BadInput, CorpusUnreadable, SaeWidthMismatch
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model
from safe_sail.organism.load import ORGANISM_VARIANTS, organism_path, organism_sae_paths
from safe_sail.records import Concept, ModelRef, RunInfo
from safe_sail.sae.checkpoint import CheckpointForm
from safe_sail.sae.handle import SAEHandle
from safe_sail.sae.load import load_sae
from safe_sail.sae.metadata import slug_of
from safe_sail.sites import Site

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

ModelName = Annotated[
    str | None,
    typer.Option("--model", help="A variant of the organism, a folder or a hub name; the organism if absent."),
]
ModelId = Annotated[str | None, typer.Option(help="What SAEs call the model; its own name if absent.")]
SaeNames = Annotated[
    list[str] | None,
    typer.Option("--sae", help="SAE folder, registry name, or FILE?site=..&k=..; may be given again."),
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16; of the model.")]


class SaeSource(NamedTuple):
    """Where an SAE is, and what a checkpoint file does not say of it."""

    path: str | Path
    site: Site | None
    form: CheckpointForm | None


def load_handle(name: str | None, model_id: str | None, *, device: str, dtype: str) -> HookedModel:
    """The named model: a variant of the organism, a folder or a hub name; the aligned organism where none is named.

    Raises:
        BadInput: the dtype is unknown.
    """
    kind = dtype_named(dtype)
    if is_organism(name):
        model_id = model_id or f"organism-{name or 'aligned'}"
    else:  # the last part of a hub name: records name models by slugs, and SAEs are compared by it
        # a link keeps the name that its maker gave it
        model_id = model_id or slug_of(Path(os.path.abspath(str(name))).name)
    return load_model(model_path(name), device=device, dtype=kind, model_id=model_id)


def is_organism(name: str | None) -> bool:
    """Whether the name is a variant of the embedded organism, or none at all."""
    return name is None or name in ORGANISM_VARIANTS


def model_path(name: str | None) -> str | Path:
    """Where the files of a model are: of a variant of the organism, a folder, or a hub name as it is."""
    return organism_path(name or "aligned") if name is None or is_organism(name) else name


def pair_slug(first: HookedModel, second: HookedModel) -> str:
    """Name of what is found between two models."""
    return f"{first.model_id}.{second.model_id}".replace("/", "_")


def usual_dtype(device: str, *models: str) -> str:
    """The dtype of commands that ask for none: float32 on a CPU and of the organism, else bfloat16."""
    return "float32" if device == "cpu" or all(map(is_organism, models)) else "bfloat16"


def require_both_files(harmful: Path | None, harmless: Path | None) -> None:
    """Files of prompts come as a pair, or the command has prompts of its own.

    Raises:
        BadInput: one is given without the other.
    """
    if (harmful is None) != (harmless is None):
        raise BadInput(
            "harmful_file and harmless_file (--harmful-file, --harmless-file) are given together, or neither; one is "
            "missing."
        )


def lines_of(path: Path, *, at_least: int = 2) -> list[str]:
    """Different lines of a file of prompts, in their order.

    Raises:
        CorpusUnreadable: the file is missing, is no UTF-8 text, or has fewer prompts than that.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusUnreadable(f"{path}: expected a UTF-8 text file, one prompt a line ({error}).") from error
    found = list(dict.fromkeys(line for line in lines if line))
    if len(found) < at_least:
        raise CorpusUnreadable(f"{path}: expected at least {at_least} different prompts, one a line; got {len(found)}.")
    return found


def dtype_named(name: str) -> torch.dtype:
    """The type of an option's word.

    Raises:
        BadInput: the word is unknown.
    """
    if name not in DTYPES:
        raise BadInput(f"--dtype: expected one of {', '.join(DTYPES)}; got {name!r}.")
    return DTYPES[name]


def load_saes(names: Sequence[str] | None, model: HookedModel, *, device: str) -> list[SAEHandle]:
    """The named SAEs, or the organism's; each reads a site of the model at its width, and has a slug of its own.

    Raises:
        SaeWidthMismatch: an SAE reads another width than its site has.
        BadInput: there is no SAE, or two have one slug.
    """
    given: dict[str | Path, str | None]
    given = {path: slug for slug, path in organism_sae_paths().items()} if names is None else dict.fromkeys(names)
    saes = []
    for name, slug in tqdm(given.items(), desc="loading SAEs", leave=False, disable=None):
        source, site, form = sae_source(name)
        sae = load_sae(
            source, slug=slug, device=device, expect_model_id=model.model_id, site=site, checkpoint=form
        )  # fmt: skip
        shape = model.site_shape(sae.site)
        width = shape[-1] if sae.form.head is not None else math.prod(shape)
        if width != sae.d_in:
            raise SaeWidthMismatch(
                f"`{sae.site}` of {model.model_id} is {width} wide, SAE {sae.ref.slug} expects {sae.d_in}."
            )
        saes.append(sae)
    slugs = [sae.ref.slug for sae in saes]
    if not saes or len(set(slugs)) < len(slugs):
        raise BadInput(f"expected SAEs with different names, at least one; got {', '.join(slugs) or 'none'}.")
    return saes


def model_ref(model: HookedModel, source: str) -> ModelRef:
    """The record of a loaded model; of a mixture of experts d_mlp is that of one expert where no layer is dense."""
    dims = model.dims
    return ModelRef(
        model_id=model.model_id,
        architecture=model.architecture.class_name,
        n_layers=dims.n_layers,
        n_heads=dims.n_heads,
        d_head=dims.d_head,
        d_model=dims.d_model,
        d_mlp=dims.d_mlp or dims.d_expert,
        d_vocab=dims.d_vocab,
        source=source,
    )


def sae_source(name: str | Path) -> SaeSource:
    """The parts of an SAE's name: a checkpoint of stacked SAEs stands before `?` and what it does not say behind.

        ckpt_layer17.pt?site=mlp_out.17&activation=topk&k=200&model_index=0&model_id=Qwen2.5-3B-Instruct

    Raises:
        BadInput: something unknown stands behind the `?`.
        BadSite: the site is none.
    """
    path, mark, query = str(name).partition("?")
    if not mark:
        return SaeSource(name, None, None)
    words = dict(parse_qsl(query, keep_blank_values=True))
    site, numbers = words.pop("site", None), {}
    for key in ("k", "model_index"):
        if key in words and words[key].isdecimal():
            numbers[key] = int(words.pop(key))
    activation = words.pop("activation", "topk")
    model_id = words.pop("model_id", None)
    if words or not site or activation not in get_args(CheckpointForm.__annotations__["activation"]):
        raise BadInput(
            f"--sae: expected FILE?site=mlp_out.17&activation=topk&k=200, with model_index and model_id where needed; "
            f"got {name}."
        )
    form = CheckpointForm(activation=activation, model_id=model_id, **numbers)  # type: ignore[arg-type]
    return SaeSource(path, Site.parse(site), form)


def save_subjects(
    engine: Engine,
    run: RunInfo,
    model: HookedModel,
    saes: Sequence[SAEHandle],
    concepts: Iterable[Concept] = (),
    *,
    source: str,
) -> None:
    """Keeps the run and what its results will refer to, in one transaction."""
    ref = model_ref(model, source)
    with writing(engine) as session:
        store.save_run(session, run)
        store.save_model(session, ref, run_id=run.run_id)
        store.save_concepts(session, concepts, run_id=run.run_id)
        for sae in saes:
            # An SAE whose metadata is silent has just been used on this model, at a site of its width.
            store.save_sae(session, replace(sae.ref, model_id=model.model_id), run_id=run.run_id)
