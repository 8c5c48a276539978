"""Safety circuits: which units, the search behind them, and what removing or isolating them does."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from safe_sail.records.basics import Estimate
from safe_sail.records.checks import require, require_slug
from safe_sail.records.directions import UtilityCost
from safe_sail.records.subjects import FeatureId
from safe_sail.records.units import HeadRef, NeuronRef

CircuitUnit = HeadRef | NeuronRef | FeatureId
"""What a circuit is made of."""

ABLATIONS = ("zero", "mean", "resample", "start")
"""What an ablated unit is replaced by: nothing, its mean over reference texts, its value in another text, or itself
with the weights of a start model."""

_PLACE = {HeadRef: 0, NeuronRef: 1, FeatureId: 2}


def unit_order(unit: CircuitUnit) -> tuple[int, str, int, int]:
    """Key that sorts heads before neurons before SAE features, each by layer or SAE and then by index."""
    sae, layer = (unit.sae, 0) if isinstance(unit, FeatureId) else ("", unit.layer)
    return (_PLACE[type(unit)], sae, layer, unit.index)


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitMember:
    """One unit of a circuit."""

    unit: CircuitUnit
    probability: float
    """Gate probability at the end of the search; 1 where no gate decided."""

    def __post_init__(self) -> None:
        require(0 <= self.probability <= 1, f"{self.unit}: a probability lies in 0..1; got {self.probability}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Circuit:
    """Units of one model that carry one behaviour."""

    slug: str
    """Our name of it, as `organism-aligned.refusal`."""
    model_id: str
    behaviour: str
    """What it carries: refusal, backdoor, ..."""
    method: str
    """How it was found: masks, ships, forgetting, planted, given, random."""
    ablation: str
    """zero, mean, resample or start: what its units were replaced by while it was sought."""
    members: tuple[CircuitMember, ...]
    """Heads, neurons, SAE features; each by layer or SAE, then by index."""
    n_heads: int
    """Heads it was sought among; 0 where heads were not."""
    n_neurons: int
    """Neurons it was sought among."""
    n_features: int = 0
    """SAE features it was sought among."""
    start_model: str | None = None
    """Of a start ablation: the model whose weights its units took; None of the others."""

    def __post_init__(self) -> None:
        require_slug("circuit", self.slug)
        require(self.ablation in ABLATIONS, f"{self.slug}: ablation is one of {ABLATIONS}; got {self.ablation}.")
        require(
            (self.ablation == "start") == (self.start_model is not None),
            f"{self.slug}: a start ablation names its start model, others have none; got {self.ablation} and "
            f"{self.start_model}.",
        )
        keys = [unit_order(member.unit) for member in self.members]
        require(keys == sorted(set(keys)), f"{self.slug}: members come once each, heads, neurons, features in order.")
        for name, kind in (("n_heads", HeadRef), ("n_neurons", NeuronRef), ("n_features", FeatureId)):
            found, among = len(self.of_kind(kind)), getattr(self, name)
            require(found <= among, f"{self.slug}: {found} members of {name} {among}.")

    def of_kind(self, kind: type[CircuitUnit]) -> tuple[CircuitMember, ...]:
        """Its heads, its neurons, or its SAE features."""
        return tuple(member for member in self.members if isinstance(member.unit, kind))

    @property
    def units(self) -> tuple[CircuitUnit, ...]:
        """Its units, in order."""
        return tuple(member.unit for member in self.members)

    @property
    def share(self) -> float:
        """Members over all units that it was sought among."""
        return len(self.members) / max(1, self.n_heads + self.n_neurons + self.n_features)


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitReplies:
    """What a model replies to prompts of one group under one intervention, judged over whole replies."""

    intervention: str
    """none, removed, alone, null mask, random removed, random alone."""
    prompts: str
    """Group of prompts, as `harmful` or `triggered`, with the split."""
    ablation: str
    """zero, mean, resample or start."""
    n_units: int
    """Units that are replaced; of random circuits the circuit's own number."""
    n_prompts: int
    n_draws: int
    """Random circuits averaged over; 1 for an intervention that is not drawn."""
    refusal: Estimate
    """n counts prompts and the interval is Wilson's; of random circuits n counts draws and the interval is Student's.
    """
    compliance: Estimate
    degenerate: Estimate
    """Broken text; neither refusal nor compliance."""

    def __post_init__(self) -> None:
        total = self.refusal.value + self.compliance.value + self.degenerate.value
        require(abs(total - 1) < 1e-6, f"shares of {self.intervention} on {self.prompts} sum to {total}, not 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitEvaluation:
    """What a circuit does on prompts that neither made nor chose it."""

    circuit: str
    """Slug of the circuit."""
    ablation: str
    """zero, mean, resample or start: what replaced units here, which may differ from the search's."""
    replies: tuple[CircuitReplies, ...]
    answers: Mapping[str, Estimate]
    """Share of harmless prompts that are answered, by intervention."""
    answers_rule: str
    """What counts as answered."""
    utility: tuple[UtilityCost, ...]
    kl: Mapping[str, Estimate]
    """KL(full || masked) in nats on the first reply token, by intervention and prompts as `removed on safe`."""
    null_gap: float
    """Largest difference of logits between no mask and a mask that keeps everything; 0 when both are the same."""
    n_random: int
    """Random circuits with the same number of units of each kind in each layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitSize:
    """One point of a size-faithfulness curve, on validation prompts: the best circuit of this size is removed."""

    n_heads: int
    n_neurons: int
    n_features: int
    removed: Estimate
    """Share of target prompts that behave as wanted with the circuit removed."""
    random: Estimate
    """The same for random circuits of the same number of units of each kind in each layer."""
    harmless_refused: Estimate
    """Share of harmless prompts refused with the circuit removed."""
    kl: Estimate
    """KL(full || removed) in nats on harmless prompts, first reply token."""
    loss: float
    """The objective on validation rows, without the price of size."""

    @property
    def n_units(self) -> int:
        """Members of every kind."""
        return self.n_heads + self.n_neurons + self.n_features


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitNeed:
    """What one member is needed for: the circuit is removed without it."""

    unit: CircuitUnit
    removed: Estimate
    """Share of target prompts that behave as wanted when this member stays in the model."""
    loss_increase: float
    """Of the objective on validation rows; about 0 or less for a member that nothing needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitStability:
    """How far searches from different seeds find the same units."""

    seeds: tuple[int, ...]
    jaccard: tuple[float, ...]
    """Overlap of each pair of seeds: common units over units in either; pairs in the order of the seeds."""
    chance: float
    """Mean overlap of random circuits with the same number of units of each kind in each layer."""
    core: tuple[CircuitUnit, ...]
    """Units that every seed found."""

    def __post_init__(self) -> None:
        pairs = len(self.seeds) * (len(self.seeds) - 1) // 2
        require(len(self.jaccard) == pairs, f"{len(self.seeds)} seeds make {pairs} pairs; got {len(self.jaccard)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitRecovery:
    """A found circuit against units into which the behaviour was trained."""

    kind: str
    """heads, neurons or units."""
    n_planted: int
    n_found: int
    precision: Estimate
    """Share of found units that were planted, with Wilson's interval."""
    recall: Estimate
    """Share of planted units that were found."""
    random_precision: float
    """The same for random circuits with the same number of units in each layer."""
    random_recall: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitSearch:
    """Everything a search for a circuit saw and concluded."""

    slug: str
    model_id: str
    objective: str
    """alignment, backdoor, kl or removal: what the masks were trained for."""
    circuit: Circuit
    """The circuit that is removed: the best of the seeds on all validation rows."""
    alone: Circuit | None
    """The circuit of the second mask, where the objective trains one to work alone."""
    curve: tuple[CircuitSize, ...]
    """Sizes from small to large."""
    losses: Mapping[str, tuple[float, ...]]
    """Validation loss at each check, by seed; the smallest chose the mask."""
    stability: CircuitStability | None
    """None where one seed was searched."""
    needs: tuple[UnitNeed, ...]
    """Drop-one of each member, where the circuit is small enough."""
    recovery: tuple[CircuitRecovery, ...]
    """Where the planted units are known."""
    n_prompts: Mapping[str, int]
    """Rows used, by group and split."""
    notes: tuple[str, ...]
    """What a reader of the numbers must know, as sentences."""

    def __post_init__(self) -> None:
        require_slug("circuit search", self.slug)
        require(self.circuit.model_id == self.model_id, f"{self.slug}: the circuit is of {self.circuit.model_id}.")
        for values in self.losses.values():
            require(all(math.isfinite(value) for value in values), f"{self.slug}: a validation loss is not finite.")
