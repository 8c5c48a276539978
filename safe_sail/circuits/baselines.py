"""What a masked unit is replaced by: nothing, its mean over texts, its value in another text, or its former weights.

A baseline is passed to whatever masks a model; nothing here is global, so two threads may use two of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from safe_sail.errors import BadSettings

BaselineKind = Literal["zero", "mean", "resample", "start"]


@dataclass(frozen=True, slots=True)
class StartWeights:
    """Weights of a start model for the units of a model that was trained from it; `masked.start_baseline` makes them.

    Holds the parameters alone in which some unit differs.
    """

    model_id: str
    """Of the start model."""
    weights: Mapping[str, Tensor]
    """By full parameter name, as the start model has them."""
    owners: Mapping[str, Int[Tensor, "*shape"]]
    """Of the same shapes, whose number it is: a place in a mask, `n_units + i` for the i-th shared key-value head, and
    last of all numbers of no unit, which stay the model's own."""
    shared: tuple[tuple[int, ...], ...]
    """Places of the heads that each shared key-value head serves."""
    differs: Bool[Tensor, " units"]
    """Whether a unit has other weights than in the start model; one that has not does the same either way."""
    n_elsewhere: int
    """Numbers that differ and belong to no unit; they stay the model's own."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Replacements by the name of a group of units; the baselines zero and start hold none."""

    kind: BaselineKind
    values: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    """mean: [*unit axes]; resample: [texts, seq, *unit axes], right-padded."""
    lengths: Int[Tensor, " texts"] | None = None
    """resample: real tokens of each reference text."""
    shift: int = 0
    """resample: reference text that serves the first row of a batch; the next rows take the next texts."""
    start: StartWeights | None = None
    """start: the weights that a masked unit takes in place of its own."""

    def shifted(self, shift: int) -> "Baseline":
        """The same texts, given to other rows."""
        return replace(self, shift=shift)

    def replacement(self, group: str, x: Tensor, positions: Int[Tensor, "batch seq"] | None) -> Tensor | None:
        """What masked units of the group become, broadcastable to `x` [batch, seq, *unit axes]; None stands for zero.

        A resampled token takes the value at its own place in the reference text, or at that text's last token where
        the text is shorter. The choice depends on nothing but row, place and shift, so that a recomputation under
        gradient checkpointing sees the same values.

        Raises:
            BadSettings: the baseline was collected without this group, or it replaces weights.
        """
        if self.kind == "start":
            raise BadSettings(
                "a start baseline gives units other weights, so no value stands for a unit; take the model that "
                "`masked.masked` makes, or another ablation."
            )
        if self.kind == "zero":
            return None
        if group not in self.values:
            raise BadSettings(
                f"the {self.kind} baseline has no values of `{group}`; it was collected for "
                f"{', '.join(self.values) or 'nothing'}. Collect it for the same units that are masked."
            )
        values = self.values[group].to(x)
        if self.kind == "mean":
            return values
        assert self.lengths is not None
        assert positions is not None
        texts = (torch.arange(x.shape[0]) + self.shift) % len(self.lengths)
        places = torch.minimum(positions.cpu(), self.lengths[texts, None] - 1).to(x.device)
        return values[texts.to(x.device)[:, None], places]


ZERO = Baseline("zero")
