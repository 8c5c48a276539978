"""Attribution graphs: features, heads, neurons and tokens of one text or of many, and what flows between them."""

import math
from dataclasses import dataclass
from enum import StrEnum

from safe_sail.records.checks import require, require_slug


class NodeKind(StrEnum):
    """What a node of a graph is."""

    FEATURE = "feature"
    ERROR = "error"
    """What the features of a layer do not explain."""
    TOKEN = "token"
    LOGIT = "logit"
    HEAD = "head"
    NEURON = "neuron"
    NAMED = "named"
    """A circuit, a set of neurons, a direction, or the refusal metric; its label is the name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphNode:
    """One node."""

    kind: NodeKind
    layer: int | None
    """None for tokens and named nodes; of logits one more than the number of layers."""
    index: int
    """Of the feature, head or neuron; of the vocabulary for tokens and logits; -1 for errors; of named nodes their
    place among them."""
    position: int
    """Column of the prompt, from 0; 0 for a mean over texts."""
    label: str = ""
    activation: float | None = None
    influence: float | None = None
    probability: float = 0.0
    """Of logits."""
    is_target: bool = False

    def __post_init__(self) -> None:
        no_layer = self.kind in (NodeKind.TOKEN, NodeKind.NAMED)
        require((self.layer is None) == no_layer, f"a {self.kind} node has {'no' if no_layer else 'a'} layer.")
        require((self.layer or 0) >= 0 and self.position >= 0, f"layer and position count from 0; got {self}.")
        least = -1 if self.kind is NodeKind.ERROR else 0
        require(self.index >= least, f"the index of a {self.kind} node is at least {least}; got {self.index}.")
        require(self.kind is not NodeKind.NAMED or bool(self.label), "a named node needs a label.")


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphEdge:
    """What flows from one node to another."""

    source: int
    """Place of the node in the graph."""
    target: int
    weight: float

    def __post_init__(self) -> None:
        require(math.isfinite(self.weight), f"an edge has a finite weight; got {self.weight}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class AttributionGraph:
    """Nodes and edges, as circuit-tracer and Neuronpedia show them."""

    slug: str
    model: str
    sources: tuple[str, ...]
    """SAEs or transcoders of the features."""
    prompt: str
    tokens: tuple[str, ...]
    """Of the prompt; one column that says what was averaged where there is none."""
    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]
    node_threshold: float | None = None

    def __post_init__(self) -> None:
        require_slug("graph", self.slug)
        require(len(set(self.nodes)) == len(self.nodes), f"{self.slug}: each node comes once.")
        ends = {place for edge in self.edges for place in (edge.source, edge.target)}
        require(all(0 <= place < len(self.nodes) for place in ends), f"{self.slug}: an edge has no node at its end.")
        for node in self.nodes:
            require(
                node.position < max(1, len(self.tokens)),
                f"{self.slug}: a node stands at column {node.position} of {len(self.tokens)} tokens.",
            )
