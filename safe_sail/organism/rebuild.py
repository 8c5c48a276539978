"""Rebuilds the whole organism from one seed, and writes it only if every behaviour bar holds.

1. Train and measure all variants (`family.py`); collect the missed bars of the held-out split.
2. If any bar is missed, raise and write nothing. Otherwise train the SAEs.
3. Write everything beside the target and put it in place with a rename, so that no half-written organism is left.

Variants with a rounded start and SAEs can also be renewed alone, in an organism that stands.
"""

import copy
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from safe_sail.errors import BadSettings, FileMissing, OrganismBehaviourError
from safe_sail.organism.family import N_PROMPTS, TrainedFamily, family_record, train_family
from safe_sail.organism.recipes import RECIPES, OrganismShape, VariantRecipe
from safe_sail.organism.suite import SAE_SUITES, hooked, train_suite
from safe_sail.organism.train import Progress

PACKAGES: Final = ("torch", "transformers", "tokenizers", "safetensors", "sae-lens")


def write_family(family: TrainedFamily, folder: Path) -> None:
    """Writes each variant as a Hugging Face folder in half precision, with the tokenizer."""
    for name, each in family.variants.items():
        # The embedding is tied to the unembedding, so it is stored once.
        weights = {key: value.half().cpu() for key, value in each.model.state_dict().items() if key != "lm_head.weight"}
        config = copy.deepcopy(each.model.config)
        config.architectures, config.dtype = ["LlamaForCausalLM"], torch.float16
        (folder / name).mkdir(parents=True)
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder / name)
        each.model.generation_config.save_pretrained(folder / name)
        family.tokenizer.save_pretrained(folder / name)
        if each.units:
            planted = {"start": each.recipe.start, "units": [str(unit) for unit in each.units]}
            (folder / name / "planted.json").write_text(json.dumps(planted, indent=1) + "\n", encoding="utf-8")


def put_in_place(made: Path, target: Path) -> None:
    """Moves a finished folder to the target; a folder that was there is removed after the new one stands."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    made.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _checked(family: TrainedFamily, target: Path) -> TrainedFamily:
    if missed := family.missed():
        raise OrganismBehaviourError(
            f"seed {family.seed} misses {len(missed)} bars, so nothing was written to {target}:\n" + "\n".join(missed)
        )
    return family


def _train_saes(
    folder: Path,
    models: Mapping[str, LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """Trains the suites of these variants into folder / saes; returns their record."""
    records: dict[str, Any] = {}
    for variant, model in models.items():
        handle = hooked(model.cpu(), tokenizer, variant)
        records |= train_suite(handle, folder / "saes", suite=SAE_SUITES[variant], seed=seed, progress=progress)
    return records


def rebuild_organism(
    target: Path,
    *,
    seed: int,
    other_records: Sequence[Mapping[str, Any]] = (),
    replant: Sequence[int] = (),
    shape: OrganismShape | None = None,
    recipes: Sequence[VariantRecipe] = RECIPES,
    with_saes: bool = True,
    n_prompts: int = N_PROMPTS,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Rebuilds the organism from one seed in the target folder and returns its record.

    other_records are records of other seeds' families, replant are seeds of other plantings in this seed's models;
    their figures are put beside this one's.

    Raises:
        OrganismBehaviourError: a held-out figure misses its bar; nothing was written.
    """
    begin = time.perf_counter()
    family = train_family(seed, shape=shape, recipes=recipes, n_prompts=n_prompts, device=device, progress=progress)
    _checked(family, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".organism-") as temporary:
        made = Path(temporary) / "made"
        write_family(family, made)
        models = {name: each.model for name, each in family.variants.items()}
        starts = {name: model.state_dict() for name, model in models.items()}
        suites = {name: models[name] for name in SAE_SUITES if name in models and with_saes}
        saes = _train_saes(made, suites, family.tokenizer, seed, progress)
        record = {
            **family_record(family),
            "shape": asdict(family.shape),
            "n_parameters": sum(value.numel() for value in models["base"].parameters()),
            "saes": saes,
            "other_seeds": [dict(other) for other in other_records],
            "other_plantings": _replanted(
                replant, starts, recipes, shape=shape, n_prompts=n_prompts, device=device, progress=progress
            ),
            "seconds": time.perf_counter() - begin,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "versions": {package: version(package) for package in PACKAGES},
        }
        _write_record(record, made)
        put_in_place(made, target)
    return record


def _replanted(
    seeds: Sequence[int],
    starts: Mapping[str, Mapping[str, Tensor]],
    recipes: Sequence[VariantRecipe],
    *,
    shape: OrganismShape | None,
    n_prompts: int,
    device: str,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Records of the planted recipes with other units and texts, from the same starts."""
    planted = [recipe for recipe in recipes if recipe.planting is not None]
    return [
        family_record(
            train_family(
                seed, shape=shape, recipes=planted, starts=starts, n_prompts=n_prompts, device=device, progress=progress
            )
        )
        for seed in (seeds if planted else ())
    ]


def _write_record(record: Mapping[str, Any], folder: Path) -> None:
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _read_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return record


def _check_parts(what: str, names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise BadSettings(
                f"{what} `{name}` cannot be made alone: expected one of {', '.join(known)}. "
                f"The others are made by a rebuild of the whole organism."
            )


def renew_parts(
    target: Path,
    *,
    seed: int,
    variants: Sequence[str] = (),
    sae_variants: Sequence[str] = (),
    replant: Sequence[int] = (),
    n_prompts: int = N_PROMPTS,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Makes some variants and SAE suites anew in an organism that stands, and returns its record; the rest stays.

    replant are seeds of other plantings of these variants, or of all planted ones where no variant is named.

    Raises:
        BadSettings: a variant's recipe starts from weights that were not shipped, or nothing has this name.
        FileMissing: no organism stands in the folder, or it lacks a variant that is needed.
        OrganismBehaviourError: a held-out figure misses its bar; nothing was written.
    """
    known = {recipe.name: recipe for recipe in RECIPES if recipe.rounded_start}
    _check_parts("variant", variants, known)
    _check_parts("SAE suite's variant", sae_variants, SAE_SUITES)
    chosen = [known[name] for name in known if name in variants]
    replanted = [recipe for recipe in (chosen if variants else known.values()) if replant and recipe.planting]
    needed = {str(recipe.start) for recipe in [*chosen, *replanted]} | (set(sae_variants) - set(variants))
    lacking = [name for name in ("record.json", *sorted(needed)) if not (target / name).exists()]
    if lacking:
        raise FileMissing(
            f"{target} has no `{lacking[0]}`: a part is made anew in a folder where an organism stands. Make the whole "
            f"there first (neither --variant nor --saes), or copy the shipped one there."
        )
    models = {name: LlamaForCausalLM.from_pretrained(target / name, dtype=torch.float32) for name in sorted(needed)}
    starts = {name: model.state_dict() for name, model in models.items()}
    shape = OrganismShape(**_read_record(target)["shape"])
    family = train_family(
        seed, shape=shape, recipes=chosen, starts=starts, n_prompts=n_prompts, device=device, progress=progress
    )
    _checked(family, target)
    others = _replanted(replant, starts, replanted, shape=shape, n_prompts=n_prompts, device=device, progress=progress)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".organism-") as temporary:
        made = Path(temporary) / "made"
        shutil.copytree(target, made)
        for name in variants:
            shutil.rmtree(made / name, ignore_errors=True)
        write_family(family, made)
        models |= {name: each.model for name, each in family.variants.items()}
        suites = {name: models[name] for name in sae_variants}
        saes = _train_saes(made, suites, family.tokenizer, seed, progress)
        record = _read_record(made)
        record["variants"] |= family_record(family)["variants"]
        record["saes"] |= saes
        for other in others:
            put_planting(record.setdefault("other_plantings", []), other)
        _write_record(record, made)
        put_in_place(made, target)
    return record


def put_planting(plantings: list[dict[str, Any]], other: dict[str, Any]) -> None:
    """Puts a seed's plantings into the list; variants that the seed has already are replaced."""
    same = next((each for each in plantings if each["seed"] == other["seed"]), None)
    if same is None:
        plantings.append(other)
    else:
        kept = [line for line in same["missed_bars"] if line.split()[0] not in other["variants"]]
        same["missed_bars"] = kept + other["missed_bars"]
        same["variants"] |= other["variants"]
