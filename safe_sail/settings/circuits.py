"""How a safety circuit is sought and evaluated."""

from dataclasses import dataclass

from safe_sail.errors import BadSettings
from safe_sail.settings.checks import at_least

OBJECTIVES = ("removal", "alignment", "backdoor", "kl")
GATES = ("straight_through", "hard_concrete", "top_k")
ABLATIONS = ("zero", "mean", "resample", "start")


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitSettings:
    """How a safety circuit is sought and evaluated."""

    objective: str = "removal"
    """removal, alignment, backdoor or kl; docs/methods/safety_circuits.md has their terms."""
    gate: str = "top_k"
    """straight_through and hard_concrete pay a price for size; top_k holds a budget at every step."""
    ablation: str = "mean"
    """What a removed unit is replaced by: zero, as published, mean, resample, or start: itself with a start model's
    weights."""
    budget_heads: int = 1
    """Heads in the circuit at most; with 0 for both budgets there is nothing to find."""
    budget_neurons: int = 22
    """Neurons in the circuit at most."""
    budget_features: int = 0
    """SAE features in the circuit at most."""
    steps: int = 100
    """Optimiser steps; published 50 epochs of 100 rows, 8 a step."""
    learning_rate: float = 0.1
    """Peak, on the logits: of momentum with top_k gates, else of AdamW; published 1e-2 of AdamW."""
    initial_logit: float = -2.0
    """Membership logit before the search; published alignment -1: the circuit begins empty."""
    temperature: float = 1.0
    """Of the gates' sigmoid; published 1."""
    price_heads: float = 0.1
    """Of straight_through and hard_concrete: price of the share of heads in the circuit, summed over layers."""
    price_neurons: float = 0.1
    """The same of neurons; both as published for alignment."""
    removed_weight: float = 1.0
    """Of the terms with the circuit removed."""
    alone_weight: float = 1.0
    """Of the terms with the circuit alone."""
    kept_weight: float = 0.3
    """Of KL to the full model on prompts where nothing shall change; published 0."""
    away_weight: float = 0.0
    """Removal: of the hinge that pushes target prompts away from what the circuit makes of them; published 0."""
    overlap_weight: float = 1.0
    """Of the overlap of the backdoor objective's two masks; published 1."""
    unbounded: bool = False
    """Use the published negative cross-entropy, which has no floor, in place of the hinge."""
    margin: float = 5.0
    """Of the hinge, in nats per token."""
    first_tokens: int | None = 4
    """Reply tokens that count; None counts all."""
    n_train: int = 256
    """Prompts of each group that train the masks."""
    n_validation: int = 128
    """Prompts of each group that choose the mask, all of them at each check."""
    n_evaluate: int = 256
    """Held-out prompts of each group; the paper's shares are exact over 256."""
    n_reference: int = 64
    """Texts behind a mean or resample baseline."""
    n_random: int = 5
    """Random circuits behind each control."""
    n_bootstrap: int = 1000
    """Resamples behind each 95 % interval of a mean."""
    check_every: int = 25
    """Steps between checks on all validation rows."""
    step_rows: int = 16
    """Rows of each term in one step."""
    batch_rows: int = 64
    """Rows in one pass without gradient."""
    refine_rounds: int = 0
    """Exchanges of each kind's members after the gates' search at most; 0 leaves the gates' circuit."""
    refine_candidates: int = 24
    """Units that each exchange tries to add."""
    refine_rows: int = 128
    """Training rows of each term behind an exchange."""
    max_new_tokens: int = 40
    """Length of a reply."""
    max_need: int = 32
    """Members of a circuit up to which each one's need is measured by dropping it."""
    n_need: int = 64
    """Prompts on which a member's need is measured."""
    system: str | None = None
    """System prompt; None sends none."""

    def __post_init__(self) -> None:
        for name, known in (("objective", OBJECTIVES), ("gate", GATES), ("ablation", ABLATIONS)):
            if getattr(self, name) not in known:
                raise BadSettings(
                    f"CircuitSettings.{name}: expected one of {', '.join(known)}; got {getattr(self, name)}."
                )
        at_least(self, 0, "budget_heads", "budget_neurons", "budget_features", "max_need", "refine_rounds")
        at_least(
            self,
            0,
            "away_weight",
            "price_heads",
            "price_neurons",
            "removed_weight",
            "alone_weight",
            "kept_weight",
            "overlap_weight",
        )
        at_least(
            self,
            1,
            "steps",
            "n_train",
            "n_random",
            "n_need",
            "check_every",
            "step_rows",
            "refine_candidates",
            "refine_rows",
            "batch_rows",
            "max_new_tokens",
        )
        at_least(self, 2, "n_validation", "n_evaluate", "n_reference", "n_bootstrap")
        if self.budget_heads + self.budget_neurons + self.budget_features == 0:
            raise BadSettings(
                "CircuitSettings: a budget of no heads, no neurons and no features leaves no circuit; expected at "
                "least one unit of one kind."
            )
        if self.first_tokens is not None and self.first_tokens < 1:
            raise BadSettings(f"CircuitSettings.first_tokens: at least 1, or None for all; got {self.first_tokens}.")
        if not (self.learning_rate > 0 and self.temperature > 0 and self.margin > 0):
            raise BadSettings("CircuitSettings: learning_rate, temperature and margin lie above 0.")
