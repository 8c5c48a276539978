"""Settings of tuning with a circuit, and of finding the one that tuning makes a model forget."""

from dataclasses import dataclass

from safe_sail.errors import BadSettings
from safe_sail.settings.checks import at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningSettings:
    """How a model is tuned with a circuit alone, or with everything but it."""

    mode: str = "excluded"
    """excluded: everything but the circuit is trained; only: the circuit alone is."""
    kept: str = "weights"
    """Of excluded, what stays of the circuit: its weights; its inputs too, so that its values stay the same; or
    restored: everything is trained, and the circuit's weights are put back afterwards."""
    method: str = "rows"
    """rows: each allowed weight has a delta of its own; low_rank: matrices get mask * (B A)."""
    rank: int = 16
    """Of the low-rank change; the sequel of SafeSeek's."""
    alpha: float = 16.0
    """The low-rank change is multiplied by alpha / rank; the same source."""
    learning_rate: float = 5e-4
    """Peak rate of AdamW; the organism's alignment used it. SafeSeek's public script has 2e-4, for larger models."""
    n_steps: int = 120
    batch_rows: int = 16
    warm_up: float = 0.05
    """Share of the steps."""
    clip: float = 1.0
    """Norm of the gradient at most."""
    n_rows: int = 512
    """Training rows."""
    n_evaluate: int = 256
    """Held-out prompts of each class."""
    n_random: int = 3
    """Random circuits with as many units of each kind in each layer."""
    evaluate_rows: int = 64
    """Prompts in one generation."""
    max_new_tokens: int = 40
    """Length of a reply; longer than every reply of the organism."""

    def __post_init__(self) -> None:
        at_least(self, 1, "rank", "n_steps", "batch_rows", "n_rows", "n_random", "max_new_tokens", "evaluate_rows")
        at_least(self, 2, "n_evaluate")
        names = (
            ("mode", ("excluded", "only")),
            ("kept", ("weights", "inputs", "restored")),
            ("method", ("rows", "low_rank")),
        )
        for name, known in names:
            if getattr(self, name) not in known:
                raise BadSettings(f"TuningSettings.{name} is one of {', '.join(known)}; got {getattr(self, name)}.")
        if self.kept != "weights" and self.mode == "only":
            raise BadSettings("TuningSettings.kept is of mode excluded: with only, the circuit alone is trained.")
        for name in ("alpha", "learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise BadSettings(f"TuningSettings.{name} is positive; got {getattr(self, name)}.")
        if not 0 <= self.warm_up < 1:
            raise BadSettings(f"TuningSettings.warm_up is a share from 0 to below 1; got {self.warm_up}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgettingSettings:
    """How the units are found whose change in tuning cost refusals."""

    budget_heads: int = 5
    """Heads at most; with 0 for both budgets there is nothing to find."""
    budget_neurons: int = 288
    """Neurons at most; the two defaults are a tenth of the organism's units."""
    task_weight: float = 0.1
    """How much of what a unit's change took from the task's loss is held against putting it back."""
    n_points: int = 8
    """Points on the straight line between the two models at which gradients are taken."""
    n_prompts: int = 128
    """Harmful prompts whose refusals before tuning are compared, and rows of the task; both of the training split."""

    def __post_init__(self) -> None:
        at_least(self, 0, "budget_heads", "budget_neurons", "task_weight")
        at_least(self, 1, "n_points", "n_prompts")
        if self.budget_heads + self.budget_neurons == 0:
            raise BadSettings(
                "ForgettingSettings: a budget of no heads and no neurons leaves no circuit; expected at least one unit."
            )
