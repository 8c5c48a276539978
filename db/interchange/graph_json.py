"""Attribution graphs as JSON of circuit-tracer and Neuronpedia: written, and read with every node's number checked.

1. A node is named `layer_index_position`, and its `feature` is another number: of features the Cantor pairing of layer
   and index, of tokens the position, of logits the token's id, of errors -1. Reading decodes both and compares them.
2. Tokens have layer `E`. Heads, neurons and named ends of our own graphs have layers `H3`, `N3` and `X`, so that no
   name meets a feature's; their `feature` is the pairing too, of named nodes their place.
3. Links of features become edges into the feature (what it is written by) and out of it (what it writes to).

Source: safety-research/circuit-tracer, frontend/graph_models.py (format version 1); its issue 77 on the two numbers.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from db.interchange.files import finite, read_whole, refuse, staged
from safe_sail.errors import ExportRefused
from safe_sail.records import (
    AttributionGraph,
    FeatureLink,
    GraphEdge,
    GraphNode,
    LinkFlow,
    LinkKind,
    LinkStudy,
    NodeKind,
    parse_unit,
)
from safe_sail.sites import Site

TYPES: Final = {
    NodeKind.FEATURE: "cross layer transcoder",
    NodeKind.ERROR: "mlp reconstruction error",
    NodeKind.TOKEN: "embedding",
    NodeKind.LOGIT: "logit",
    NodeKind.HEAD: "attention head",
    NodeKind.NEURON: "mlp neuron",
    NodeKind.NAMED: "named",
}
KINDS: Final = {name: kind for kind, name in TYPES.items()}
PREFIX: Final = {NodeKind.TOKEN: "E", NodeKind.HEAD: "H", NodeKind.NEURON: "N", NodeKind.NAMED: "X"}
MAX_BYTES: Final = 512 * 2**20
"""A graph of a long prompt has some hundred thousand edges, of about 100 bytes each."""

# --------------------------------------------------------------------------------------------- numbers


def cantor_pair(layer: int, index: int) -> int:
    """One number for two, each at least 0."""
    return (layer + index) * (layer + index + 1) // 2 + index


def cantor_unpair(number: int) -> tuple[int, int]:
    """The two numbers that `cantor_pair` joined; exact at any size."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    index = number - diagonal * (diagonal + 1) // 2
    return diagonal - index, index


# --------------------------------------------------------------------------------------------- writing


def write_graph(graph: AttributionGraph, path: Path) -> None:
    """The graph as one JSON file, there when it is whole.

    Raises:
        ExportRefused: the file exists, cannot be written, or two nodes would have one name.
    """
    with staged(path, folder=False) as stage:
        stage.write_text(json.dumps(graph_json(graph), allow_nan=False), encoding="utf-8")


def graph_json(graph: AttributionGraph) -> dict[str, Any]:
    """The graph in the format's own fields.

    Raises:
        ExportRefused: two nodes have one name, as a logit and a feature of one layer may.
    """
    names = [_name(node) for node in graph.nodes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ExportRefused(f"{graph.slug}: two nodes would be named `{twice}`; the format tells nodes by these names.")
    return {
        "metadata": {
            "slug": graph.slug,
            "scan": graph.model,
            "transcoder_list": list(graph.sources),
            "prompt_tokens": list(graph.tokens),
            "prompt": graph.prompt,
            "node_threshold": graph.node_threshold,
            "schema_version": 1,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [_node(node, name) for node, name in zip(graph.nodes, names, strict=True)],
        "links": [
            {"source": names[edge.source], "target": names[edge.target], "weight": edge.weight} for edge in graph.edges
        ],
    }


def _layer(node: GraphNode) -> str:
    return PREFIX.get(node.kind, "") + ("" if node.layer is None else str(node.layer))


def _name(node: GraphNode) -> str:
    return f"{_layer(node)}_{node.index}_{node.position}"


def _number(node: GraphNode) -> int:
    match node.kind:
        case NodeKind.ERROR:
            return -1
        case NodeKind.TOKEN:
            return node.position
        case NodeKind.LOGIT | NodeKind.NAMED:
            return node.index
    return cantor_pair(node.layer or 0, node.index)


def _node(node: GraphNode, name: str) -> dict[str, Any]:
    last = 0 if node.kind is NodeKind.FEATURE else node.position
    shown = "L" if node.kind is NodeKind.LOGIT else _layer(node)
    return {
        "node_id": name,
        "feature": _number(node),
        "layer": _layer(node),
        "ctx_idx": node.position,
        "feature_type": TYPES[node.kind],
        "token_prob": node.probability,
        "is_target_logit": node.is_target,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{shown}_{node.index}-{last}",
        "clerp": node.label,
        "influence": node.influence,
        "activation": node.activation,
    }


# --------------------------------------------------------------------------------------------- reading


def read_graph(path: Path) -> AttributionGraph:
    """The graph of a file of circuit-tracer, Neuronpedia or ours.

    Raises:
        ImportUnreadable: the file is missing, too large or no such graph, a node's two numbers disagree, or an edge has
            no node at its end; the message names the place.
    """
    return graph_of_json(read_whole(path, MAX_BYTES), place=str(path))


def graph_of_json(found: object, *, place: str) -> AttributionGraph:
    """The graph of parsed JSON.

    Raises:
        ImportUnreadable: it is no such graph; the message names the place.
    """
    whole = _object(found, place)
    metadata = _object(whole.get("metadata"), f"{place}: metadata")
    nodes = [_read_node(one, f"{place}: nodes[{n}]") for n, one in enumerate(_list(whole, "nodes", place))]
    places: dict[str, int] = {}
    for n, one in enumerate(whole["nodes"]):
        if places.setdefault(one["node_id"], n) != n:
            refuse(f"{place}: nodes[{n}]", "a `node_id` that no earlier node has", one["node_id"])
    edges = [_read_edge(one, places, f"{place}: links[{n}]") for n, one in enumerate(_list(whole, "links", place))]
    tokens = [
        _text({"token": one}, "token", f"{place}: prompt_tokens") for one in _list(metadata, "prompt_tokens", place)
    ]
    threshold = metadata.get("node_threshold")
    return AttributionGraph(
        slug=_text(metadata, "slug", f"{place}: metadata"),
        model=_text(metadata, "scan", f"{place}: metadata"),
        sources=tuple(str(one) for one in metadata.get("transcoder_list") or ()),
        prompt=_text(metadata, "prompt", f"{place}: metadata"),
        tokens=tuple(tokens),
        nodes=tuple(nodes),
        edges=tuple(edges),
        node_threshold=None
        if threshold is None
        else finite(f"{place}: metadata", metadata.get("node_threshold"), "node_threshold"),
    )


def _read_node(found: object, place: str) -> GraphNode:
    one = _object(found, place)
    type_name = _text(one, "feature_type", place)
    if type_name not in KINDS:
        refuse(f"{place}.feature_type", f"one of {', '.join(KINDS)}", type_name)
    kind, name = KINDS[type_name], _text(one, "node_id", place)
    parts = name.split("_")
    prefix = PREFIX.get(kind, "")
    if len(parts) != 3 or not parts[0].startswith(prefix) or not all(map(_is_whole, parts[1:])):
        refuse(f"{place}.node_id", f"`{prefix}layer_index_position`", name)
    layer_text = parts[0].removeprefix(prefix)
    has_layer = kind not in (NodeKind.TOKEN, NodeKind.NAMED)
    if has_layer != layer_text.isdecimal() or (not has_layer and layer_text):
        refuse(f"{place}.node_id", f"`{prefix}{'layer' if has_layer else ''}_index_position`", name)
    node = GraphNode(
        kind=kind,
        layer=int(layer_text) if has_layer else None,
        index=_index(parts[1], kind, place),
        position=_index(parts[2], NodeKind.FEATURE, place),
        label=str(one.get("clerp") or ""),
        activation=None if one.get("activation") is None else finite(place, one.get("activation"), "activation"),
        influence=None if one.get("influence") is None else finite(place, one.get("influence"), "influence"),
        probability=finite(place, one.get("token_prob"), "token_prob") if one.get("token_prob") is not None else 0.0,
        is_target=bool(one.get("is_target_logit")),
    )
    number = one.get("feature")
    if number != _number(node) or isinstance(number, bool):
        meant = f" (that is layer and index {cantor_unpair(number)})" if isinstance(number, int) and number >= 0 else ""
        refuse(f"{place}.feature", f"{_number(node)} by its node_id `{name}`", f"{number}{meant}")
    for field, expected in (("layer", _layer(node)), ("ctx_idx", node.position)):
        if one.get(field) != expected:
            refuse(f"{place}.{field}", f"{expected!r} by its node_id `{name}`", one.get(field))
    return node


def _read_edge(found: object, places: Mapping[str, int], place: str) -> GraphEdge:
    one = _object(found, place)
    ends = [_text(one, end, place) for end in ("source", "target")]
    for end in ends:
        if end not in places:
            refuse(place, "the `node_id` of a node at both ends", end)
    return GraphEdge(source=places[ends[0]], target=places[ends[1]], weight=finite(place, one.get("weight"), "weight"))


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _index(text: str, kind: NodeKind, place: str) -> int:
    number = int(text)
    if number < 0 and not (kind is NodeKind.ERROR and number == -1):
        refuse(f"{place}.node_id", "an index and a position from 0", text)
    return number


def _object(found: object, place: str) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        refuse(place, "an object", found)
    return found


def _list(found: Mapping[str, Any], key: str, place: str) -> list[Any]:
    if not isinstance(found.get(key), list):
        refuse(f"{place}: {key}", "a list", found.get(key))
    values: list[Any] = found[key]
    return values


def _text(found: Mapping[str, Any], key: str, place: str) -> str:
    value = found.get(key)
    if not isinstance(value, str):
        refuse(f"{place}.{key}", "a text", value)
    return value


# --------------------------------------------------------------------------------------------- links as a graph


def graph_of_links(study: LinkStudy, site: Site, *, slug: str | None = None) -> AttributionGraph:
    """The links of a study that hold, as a graph of means over texts; edges weigh the cause, or the direct share.

    Features stand in the layer of their SAE's site.
    """
    nodes: dict[GraphNode, int] = {}
    edges: list[GraphEdge] = []
    named: dict[str, int] = {}
    for (feature, target, flow), link in _strongest(study.links).items():
        ours = GraphNode(kind=NodeKind.FEATURE, layer=site.layer or 0, index=feature, position=0)
        ends = [_end(link, target, named), ours]
        places = [nodes.setdefault(node, len(nodes)) for node in ends]
        source, end = places if flow is LinkFlow.INTO_FEATURE else reversed(places)
        measure = link.cause or link.weights
        assert measure is not None
        edges.append(GraphEdge(source=source, target=end, weight=measure.value.value))
    return AttributionGraph(
        slug=slug or study.slug,
        model=study.model_id,
        sources=(study.sae,),
        prompt="",
        tokens=(f"mean over texts with and without {', '.join(study.n_pairs)}",),
        nodes=tuple(nodes),
        edges=tuple(edges),
    )


def _strongest(links: Sequence[FeatureLink]) -> dict[tuple[int, str, LinkFlow], FeatureLink]:
    """Links that hold, by feature, target and flow: where several concepts show one, the strongest."""
    found: dict[tuple[int, str, LinkFlow], FeatureLink] = {}
    for link in links:
        key = (link.feature.index, link.target, link.flow)
        if link.is_linked and (key not in found or link.strength > found[key].strength):
            found[key] = link
    return found


def _end(link: FeatureLink, target: str, named: dict[str, int]) -> GraphNode:
    if link.kind in (LinkKind.HEAD, LinkKind.NEURON):
        unit = parse_unit(target)
        kind = NodeKind.HEAD if link.kind is LinkKind.HEAD else NodeKind.NEURON
        return GraphNode(kind=kind, layer=unit.layer, index=unit.index, position=0, label=target)
    place = named.setdefault(target, len(named))
    return GraphNode(kind=NodeKind.NAMED, layer=None, index=place, position=0, label=target)
