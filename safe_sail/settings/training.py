"""How sparse autoencoders are trained."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from safe_sail.errors import BadSettings
from safe_sail.settings.checks import at_least

SaeArchitecture = Literal["topk", "batchtopk", "standard", "jumprelu"]
"""SAELens' names; standard is ReLU with an L1 penalty."""

_BY_K: Final = ("topk", "batchtopk")


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeRecipe:
    """How one SAE is trained."""

    slug: str
    """Its name and folder."""
    architecture: SaeArchitecture
    d_sae: int
    """Number of features."""
    k: int = 8
    """Active features per token, for topk; their mean, for batchtopk."""
    sparsity: float = 1.0
    """Coefficient of the L1 (standard) or L0 (jumprelu) penalty; the others do not use it."""
    steps: int = 600
    """Optimiser steps."""
    batch_rows: int = 1024
    """Activations per step."""
    learning_rate: float = 2e-3
    """Adam's rate; constant, then linearly to zero over the last fifth of the steps."""

    def __post_init__(self) -> None:
        at_least(self, 1, "d_sae", "k", "steps", "batch_rows")
        if self.architecture not in get_args(SaeArchitecture):
            raise BadSettings(
                f"SaeRecipe.architecture is one of {', '.join(get_args(SaeArchitecture))}; got {self.architecture!r}."
            )
        if self.architecture in _BY_K and self.k > self.d_sae:
            raise BadSettings(f"SaeRecipe.k is at most d_sae; got k={self.k}, d_sae={self.d_sae}.")
        if self.sparsity < 0 or self.learning_rate <= 0:
            raise BadSettings(
                f"SaeRecipe.sparsity is not negative and learning_rate is positive; got {self.sparsity} and "
                f"{self.learning_rate}."
            )

    @property
    def name(self) -> str:
        """What tells it from others of its site: `topk32-4096`, `relu0.5-4096`."""
        shown = "relu" if self.architecture == "standard" else self.architecture
        return f"{shown}{self.k if self.architecture in _BY_K else f'{self.sparsity:g}'}-{self.d_sae}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeTrainingSettings:
    """How activations come to SAEs in training."""

    window: int = 256
    """Tokens in one window of the corpus; the SAE's metadata says it."""
    batch_size: int = 32
    """Windows in one forward pass."""
    buffer_rows: int = 2**17
    """Activations of each site held and shuffled, half of them replaced at a time: 4 bytes x d_in each. Tokens of one
    document lie far apart in training so long as this is many windows."""
    n_held_out: int = 256
    """First documents of the corpus, which measure and never train."""

    def __post_init__(self) -> None:
        at_least(self, 2, "window", "buffer_rows")
        at_least(self, 1, "batch_size", "n_held_out")
