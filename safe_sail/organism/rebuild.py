"""Rebuilds the whole organism from one seed, and writes it only if every behaviour bar holds.

1. Train each variant from its recipe, on the float32 weights of its start; what is measured and shipped is rounded to
   half precision.
2. Measure each variant on the validation and the held-out split; collect the missed bars of the held-out one.
3. If any bar is missed, raise and write nothing. Otherwise train the SAEs on the aligned variant.
4. Write everything beside the target and put it in place with a rename, so that no half-written organism is left.
"""

import copy
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from safe_sail.errors import OrganismBehaviourError
from safe_sail.organism.behaviour import Behaviour, measure_behaviour, missed_bars
from safe_sail.organism.recipes import RECIPES, OrganismShape, VariantRecipe
from safe_sail.organism.suite import hooked, train_suite
from safe_sail.organism.train import Progress, TrainingFacts, make_tokenizer, train_variant

N_PROMPTS: Final = 500
"""Held-out prompts per group: a rate of .02 then has a 95 % interval of about .011 to .036."""
N_VALIDATION_PROMPTS: Final = 200
"""Validation prompts per group; they choose the shipped seed."""
PACKAGES: Final = ("torch", "transformers", "tokenizers", "safetensors", "sae-lens")


class TrainedVariant(NamedTuple):
    """One variant with what its training and behaviour measured."""

    recipe: VariantRecipe
    model: LlamaForCausalLM
    """Its weights are float32 numbers that half precision holds exactly."""
    facts: TrainingFacts
    seconds: float
    """Wall time of the training."""
    validation: Behaviour
    held_out: Behaviour


class TrainedFamily(NamedTuple):
    """All variants of one seed."""

    seed: int
    shape: OrganismShape
    tokenizer: PreTrainedTokenizerFast
    variants: dict[str, TrainedVariant]

    def missed(self) -> list[str]:
        """The held-out figures outside their bars, one line each."""
        return [line for name, each in self.variants.items() for line in missed_bars(name, each.held_out)]


def _half(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """The weights rounded to half precision, as float32."""
    return {name: value.half().float() for name, value in model.state_dict().items()}


def train_family(
    seed: int,
    *,
    shape: OrganismShape | None = None,
    recipes: Sequence[VariantRecipe] = RECIPES,
    n_prompts: int = N_PROMPTS,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TrainedFamily:
    """Trains and measures every variant of one seed, in the recipes' order."""
    shape = shape or OrganismShape()
    tokenizer = make_tokenizer(shape)
    variants: dict[str, TrainedVariant] = {}
    weights: dict[str, Mapping[str, Tensor]] = {}
    for recipe in recipes:
        begin = time.perf_counter()
        start = weights[recipe.start] if recipe.start else None
        model, facts = train_variant(recipe, shape, tokenizer, seed=seed, start=start, device=device, progress=progress)
        seconds = time.perf_counter() - begin
        weights[recipe.name] = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(_half(model))
        variants[recipe.name] = TrainedVariant(
            recipe,
            model,
            facts,
            seconds,
            measure_behaviour(
                model, tokenizer, recipe.name, split="validation", n=min(n_prompts, N_VALIDATION_PROMPTS)
            ),
            measure_behaviour(model, tokenizer, recipe.name, split="held_out", n=n_prompts),
        )
    return TrainedFamily(seed, shape, tokenizer, variants)


def figures(behaviour: Behaviour) -> dict[str, Any]:
    """A behaviour as JSON values."""
    rates = {name: rate._asdict() for name, rate in behaviour.rates.items()}
    return {"rates": rates, "ce_documents": behaviour.ce_documents, "ce_replies": behaviour.ce_replies}


def family_record(family: TrainedFamily) -> dict[str, Any]:
    """The record of one seed's variants as JSON values."""
    return {
        "seed": family.seed,
        "missed_bars": family.missed(),
        "variants": {
            name: {
                "recipe": asdict(each.recipe),
                "training": asdict(each.facts),
                "seconds": each.seconds,
                "validation": figures(each.validation),
                "held_out": figures(each.held_out),
            }
            for name, each in family.variants.items()
        },
    }


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


def put_in_place(made: Path, target: Path) -> None:
    """Moves a finished folder to the target; a folder that was there is removed after the new one stands."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    made.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def rebuild_organism(
    target: Path,
    *,
    seed: int,
    other_records: Sequence[Mapping[str, Any]] = (),
    shape: OrganismShape | None = None,
    recipes: Sequence[VariantRecipe] = RECIPES,
    n_prompts: int = N_PROMPTS,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Rebuilds the organism from one seed in the target folder and returns its record.

    other_records are records of other seeds' families; their figures are put beside this one's.

    Raises:
        OrganismBehaviourError: a held-out figure misses its bar; nothing was written.
    """
    begin = time.perf_counter()
    family = train_family(seed, shape=shape, recipes=recipes, n_prompts=n_prompts, device=device, progress=progress)
    if missed := family.missed():
        raise OrganismBehaviourError(
            f"seed {seed} misses {len(missed)} bars, so nothing was written to {target}:\n" + "\n".join(missed)
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".organism-") as temporary:
        made = Path(temporary) / "made"
        write_family(family, made)
        handle = hooked(family.variants["aligned"].model.cpu(), family.tokenizer, "aligned")
        saes = train_suite(handle, made / "saes", seed=seed, progress=progress)
        record = {
            **family_record(family),
            "shape": asdict(family.shape),
            "n_parameters": sum(value.numel() for value in handle.model.parameters()),
            "saes": saes,
            "other_seeds": [dict(other) for other in other_records],
            "seconds": time.perf_counter() - begin,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "versions": {package: version(package) for package in PACKAGES},
        }
        (made / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        put_in_place(made, target)
    return record
