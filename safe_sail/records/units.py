"""Units of a model that a method can point at: attention heads and MLP neurons, by name."""

import re
from dataclasses import dataclass

from safe_sail.errors import BadRecord
from safe_sail.records.checks import require
from safe_sail.sites import Site, SiteKind

_NAME = re.compile(r"L(0|[1-9][0-9]*)\.([HN])(0|[1-9][0-9]*)")


@dataclass(frozen=True, slots=True, order=True)
class HeadRef:
    """One attention head: a row of `head_out.L`, the input of the attention output projection."""

    layer: int
    index: int
    """Counted from 0 over query heads."""

    def __post_init__(self) -> None:
        require(self.layer >= 0 and self.index >= 0, f"a head has layer and index from 0; got {self}.")

    def __str__(self) -> str:
        return f"L{self.layer}.H{self.index}"

    @property
    def site(self) -> Site:
        """Where the head is read and edited."""
        return Site(SiteKind.HEAD_OUT, self.layer)


@dataclass(frozen=True, slots=True, order=True)
class NeuronRef:
    """One MLP neuron: a coordinate of `mlp_act.L`, the input of the MLP down projection."""

    layer: int
    index: int
    """Counted from 0 over d_mlp."""

    def __post_init__(self) -> None:
        require(self.layer >= 0 and self.index >= 0, f"a neuron has layer and index from 0; got {self}.")

    def __str__(self) -> str:
        return f"L{self.layer}.N{self.index}"

    @property
    def site(self) -> Site:
        """Where the neuron is read and edited."""
        return Site(SiteKind.MLP_ACT, self.layer)


UnitRef = HeadRef | NeuronRef


def parse_unit(text: str) -> UnitRef:
    """The unit that a name means: `L3.H5` is a head, `L3.N902` a neuron.

    Raises:
        BadRecord: the text is no such name.
    """
    found = _NAME.fullmatch(text)
    if found is None:
        raise BadRecord(f"expected the name of a head as `L3.H5` or of a neuron as `L3.N902`; got `{text}`.")
    kind = HeadRef if found[2] == "H" else NeuronRef
    return kind(int(found[1]), int(found[3]))
