"""How features are changed to see what that does."""

from dataclasses import dataclass

from safe_sail.settings.checks import at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class InterventionSettings:
    """How features are ablated and boosted, and what that is compared with."""

    n_prompts: int = 64
    """Prompts of each set."""
    n_controls: int = 20
    """Random features of equal activity; the range of 20 is what 19 in 20 of them reach."""
    n_bootstrap: int = 1000
    """Resamples of prompts behind each 95 % interval."""
    batch_size: int = 64
    """Prompts in one forward pass."""

    def __post_init__(self) -> None:
        at_least(self, 2, "n_prompts", "n_controls", "n_bootstrap")
        at_least(self, 1, "batch_size")
