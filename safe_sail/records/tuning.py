"""What training with a circuit alone, or without it, does to safety and utility."""

from dataclasses import dataclass

from safe_sail.records.basics import Estimate
from safe_sail.records.checks import require, require_slug

TUNING_MODES = ("only", "excluded")
"""only: the circuit alone is trained; excluded: everything but the circuit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningArm:
    """One way of training on the same rows, and what the model does afterwards."""

    name: str
    """before, full, circuit, random circuit."""
    n_trained: int
    """Parameters that may change; 0 before training."""
    n_draws: int
    """Random circuits averaged over; 1 for every other arm."""
    safety: Estimate
    """Share of held-out harmful prompts that are refused: Wilson's interval; over draws n counts draws and the interval
    is their range."""
    over_refusal: Estimate
    """Share of held-out harmless prompts that are refused."""
    degenerate: Estimate
    """Share of broken replies over both."""
    loss: Estimate
    """Cross-entropy on held-out rows of the tuning task, nats per reply token; the interval is over rows."""
    unchanged: bool
    """Whether every parameter outside what was trained is bit-equal to before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningStudy:
    """Training with a circuit alone, or with everything but it, beside full training and random circuits."""

    slug: str
    model_id: str
    circuit: str
    """Slug of the circuit."""
    mode: str
    """only or excluded: what the circuit's arm trains."""
    method: str
    """rows: every weight of the chosen units; low_rank: W + mask * (B A)."""
    task: str
    """What the rows teach."""
    n_rows: int
    """Training rows."""
    n_steps: int
    learning_rate: float
    arms: tuple[TuningArm, ...]
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        require_slug("tuning study", self.slug)
        require(self.mode in TUNING_MODES, f"{self.slug}: mode is one of {TUNING_MODES}; got {self.mode}.")
        names = [arm.name for arm in self.arms]
        require(len(set(names)) == len(names), f"{self.slug}: each arm comes once; got {', '.join(names)}.")

    def arm(self, name: str) -> TuningArm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)
