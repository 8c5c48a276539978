"""What changing one feature does to a model: to its refusals and to what it says next."""

from dataclasses import dataclass
from enum import StrEnum

from safe_sail.records.basics import Estimate
from safe_sail.records.checks import require
from safe_sail.records.subjects import FeatureId


class Intervention(StrEnum):
    """What is done to a feature."""

    ABLATE = "ablate"
    """Its activation times its decoder row is taken away, wherever it is active."""
    BOOST = "boost"
    """Its decoder row times a fixed activation is added at every token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InterventionScore:
    """What one intervention on one feature does on one set of prompts, beside the same with random features."""

    feature: FeatureId
    intervention: Intervention
    prompts: str
    """Name of the set: harmful, harmless, or a file's."""
    strength: float
    """Activation added by a boost, in SAE units; 0 for an ablation."""
    active_share: float
    """Share of the prompts on which the feature is active."""
    refusal_change: Estimate
    """Refusal metric with the intervention minus without, in logits; mean over prompts, which n counts."""
    refusal_control: Estimate
    """The same for random features of equal activity: mean and the range of 95 % of them; n counts features."""
    kl: Estimate
    """KL(plain || changed) of the first reply token, in nats; mean over prompts, which n counts."""
    kl_control: Estimate
    """The same for these random features."""

    def __post_init__(self) -> None:
        require(0 <= self.active_share <= 1, f"{self.feature}: a share lies in [0, 1]; got {self.active_share}.")
        is_boost = self.intervention is Intervention.BOOST
        require(
            self.strength > 0 if is_boost else self.strength == 0,
            f"{self.feature}: a boost is positive and an ablation has none; got {self.strength}.",
        )
        require(bool(self.prompts), f"{self.feature}: name the prompts.")
