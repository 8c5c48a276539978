"""A family: all variants of one seed, trained and measured.

1. Train each variant from its recipe, on the float32 weights of its start, or on the rounded ones where the recipe says
   so; what is measured is rounded to half precision, as it is shipped.
2. Measure each variant on the validation and the held-out split.
3. Of planted neurons, measure whether they change most; of planted heads, what is left without the units.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from safe_sail.organism.behaviour import Behaviour, measure_behaviour, missed_bars
from safe_sail.organism.grammar import prompts
from safe_sail.organism.planting import draw_units, remove_units
from safe_sail.organism.recipes import RECIPES, OrganismShape, VariantRecipe
from safe_sail.organism.recovery import Recovery, neuron_change, recover
from safe_sail.organism.suite import hooked
from safe_sail.organism.train import Progress, TrainingFacts, make_tokenizer, train_variant
from safe_sail.records import NeuronRef, UnitRef

N_PROMPTS: Final = 500
"""Held-out prompts per group: a rate of .02 then has a 95 % interval of about .011 to .036."""
N_VALIDATION_PROMPTS: Final = 200
"""Validation prompts per group; they choose the shipped seed."""
N_RECOVERY_PROMPTS: Final = 128
RECOVERY_SEED: Final = 2000
"""Of the prompts on which change is measured: other ones than those that measure behaviour."""


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
    units: tuple[UnitRef, ...] = ()
    """The units that alone were trained; empty where everything was."""
    recovery: Recovery | None = None
    """Whether planted neurons change most, on held-out harmful prompts; None where heads were planted or nothing."""
    without_units: Behaviour | None = None
    """Held-out behaviour with the planted units' outputs set to zero; None where no head was planted."""


class TrainedFamily(NamedTuple):
    """All variants of one seed."""

    seed: int
    shape: OrganismShape
    tokenizer: PreTrainedTokenizerFast
    variants: dict[str, TrainedVariant]

    def missed(self) -> list[str]:
        """The held-out figures outside their bars, one line each."""
        return [line for name, each in self.variants.items() for line in missed_bars(name, each.held_out)]


def _half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights rounded to half precision, as float32."""
    return {name: value.half().float() for name, value in weights.items()}


def train_family(
    seed: int,
    *,
    shape: OrganismShape | None = None,
    recipes: Sequence[VariantRecipe] = RECIPES,
    starts: Mapping[str, Mapping[str, Tensor]] | None = None,
    n_prompts: int = N_PROMPTS,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TrainedFamily:
    """Trains and measures every variant of one seed, in the recipes' order.

    starts holds weights of variants that are a recipe's start and not among the recipes.
    """
    shape = shape or OrganismShape()
    tokenizer = make_tokenizer(shape)
    variants: dict[str, TrainedVariant] = {}
    weights: dict[str, Mapping[str, Tensor]] = dict(starts or {})
    for recipe in recipes:
        begin = time.perf_counter()
        start = weights[recipe.start] if recipe.start else None
        if start is not None and recipe.rounded_start:
            start = _half(start)
        model, facts = train_variant(recipe, shape, tokenizer, seed=seed, start=start, device=device, progress=progress)
        seconds = time.perf_counter() - begin
        weights[recipe.name] = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(_half(model.state_dict()))
        trained = TrainedVariant(
            recipe,
            model,
            facts,
            seconds,
            measure_behaviour(
                model, tokenizer, recipe.name, split="validation", n=min(n_prompts, N_VALIDATION_PROMPTS)
            ),
            measure_behaviour(model, tokenizer, recipe.name, split="held_out", n=n_prompts),
        )
        variants[recipe.name] = _with_planting(trained, start, shape, tokenizer, seed=seed, n_prompts=n_prompts)
    return TrainedFamily(seed, shape, tokenizer, variants)


def _with_planting(
    trained: TrainedVariant,
    start: Mapping[str, Tensor] | None,
    shape: OrganismShape,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    n_prompts: int,
) -> TrainedVariant:
    """The variant with its planted units and what is measured of them."""
    units = draw_units(trained.recipe, shape, seed)
    if not units:
        return trained
    neurons = [unit for unit in units if isinstance(unit, NeuronRef)]
    if len(neurons) < len(units):
        removed = remove_units(trained.model, units)
        left = measure_behaviour(removed, tokenizer, trained.recipe.name, n=min(n_prompts, N_VALIDATION_PROMPTS))
        return trained._replace(units=units, without_units=left)
    assert start is not None
    before = copy.deepcopy(trained.model)
    before.load_state_dict(start)
    asked = [text.text for text in prompts("harmful", "held_out", N_RECOVERY_PROMPTS, RECOVERY_SEED)]
    first = hooked(before, tokenizer, str(trained.recipe.start))
    change = neuron_change(first, hooked(trained.model, tokenizer, trained.recipe.name), asked)
    return trained._replace(units=units, recovery=recover(change, neurons, len(asked)))


def figures(behaviour: Behaviour) -> dict[str, Any]:
    """A behaviour as JSON values."""
    rates = {name: rate._asdict() for name, rate in behaviour.rates.items()}
    return {"rates": rates, "ce_documents": behaviour.ce_documents, "ce_replies": behaviour.ce_replies}


def family_record(family: TrainedFamily) -> dict[str, Any]:
    """The record of one seed's variants as JSON values."""
    return {
        "seed": family.seed,
        "missed_bars": family.missed(),
        "variants": {name: variant_record(each) for name, each in family.variants.items()},
    }


def variant_record(trained: TrainedVariant) -> dict[str, Any]:
    """The record of one variant as JSON values; what concerns a planting only where there is one."""
    record = {
        "recipe": asdict(trained.recipe),
        "training": asdict(trained.facts),
        "seconds": trained.seconds,
        "validation": figures(trained.validation),
        "held_out": figures(trained.held_out),
    }
    if trained.units:
        record["units"] = [str(unit) for unit in trained.units]
    if trained.recovery is not None:
        record["recovery"] = trained.recovery._asdict()
    if trained.without_units is not None:
        record["without_units"] = figures(trained.without_units)
    return record
