"""What a masked unit is replaced by: nothing, its mean over reference texts, or its value in another text.

A baseline is passed to whatever masks a model; nothing here is global, so two threads may use two of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from safe_sail.errors import BadSettings

BaselineKind = Literal["zero", "mean", "resample"]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Replacements by the name of a group of units; the zero baseline holds none."""

    kind: BaselineKind
    values: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    """mean: [*unit axes]; resample: [texts, seq, *unit axes], right-padded."""
    lengths: Int[Tensor, " texts"] | None = None
    """resample: real tokens of each reference text."""
    shift: int = 0
    """resample: reference text that serves the first row of a batch; the next rows take the next texts."""

    def shifted(self, shift: int) -> "Baseline":
        """The same texts, given to other rows."""
        return replace(self, shift=shift)

    def replacement(self, group: str, x: Tensor, positions: Int[Tensor, "batch seq"] | None) -> Tensor | None:
        """What masked units of the group become, broadcastable to `x` [batch, seq, *unit axes]; None stands for zero.

        A resampled token takes the value at its own place in the reference text, or at that text's last token where
        the text is shorter. The choice depends on nothing but row, place and shift, so that a recomputation under
        gradient checkpointing sees the same values.

        Raises:
            BadSettings: the baseline was collected without this group.
        """
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
