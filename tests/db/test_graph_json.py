"""Graphs of circuit-tracer: ours come back whole, theirs are read, a node whose two numbers disagree is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.interchange.graph_json import (
    cantor_pair,
    cantor_unpair,
    graph_json,
    graph_of_json,
    graph_of_links,
    read_graph,
    write_graph,
)
from safe_sail.errors import BadRecord, ExportRefused, ImportUnreadable
from safe_sail.records import AttributionGraph, GraphEdge, GraphNode, LinkFlow, LinkKind, NodeKind
from safe_sail.sites import Site
from tests.db.test_links import link, study

# written by hand after the format's own model: a feature, an error, a token and a logit of a prompt of three tokens
THEIRS: dict[str, Any] = {
    "metadata": {
        "slug": "tiny", "scan": "gemma-2-2b", "transcoder_list": ["a", "b"], "prompt_tokens": ["<bos>", "a", "b"],
        "prompt": "ab", "node_threshold": 0.8, "schema_version": 1,
    },
    "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
    "nodes": [
        # (20 + 15589) * (20 + 15589 + 1) / 2 + 15589
        {"node_id": "20_15589_2", "feature": 121843834, "layer": "20", "ctx_idx": 2, "jsNodeId": "20_15589-0",
         "feature_type": "cross layer transcoder", "influence": 0.25, "activation": 3.5, "clerp": "", "token_prob": 0.0,
         "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0},
        {"node_id": "20_-1_2", "feature": -1, "layer": "20", "ctx_idx": 2, "jsNodeId": "20_-1-2",
         "feature_type": "mlp reconstruction error"},
        {"node_id": "E_26865_1", "feature": 1, "layer": "E", "ctx_idx": 1, "jsNodeId": "E_26865-1",
         "feature_type": "embedding"},
        {"node_id": "27_22605_2", "feature": 22605, "layer": "27", "ctx_idx": 2, "jsNodeId": "L_22605-2",
         "feature_type": "logit", "token_prob": 0.42, "is_target_logit": True, "clerp": "Output"},
    ],
    "links": [
        {"source": "E_26865_1", "target": "20_15589_2", "weight": 1.5},
        {"source": "20_15589_2", "target": "27_22605_2", "weight": -0.5},
    ],
}  # fmt: skip


@given(st.integers(0, 10**6), st.integers(0, 10**12))
@settings(max_examples=200, derandomize=True, database=None)
def test_pairs_are_decoded_exactly(layer: int, index: int) -> None:
    assert cantor_unpair(cantor_pair(layer, index)) == (layer, index)


def test_pairing_counts_the_diagonals() -> None:
    expected = {(0, 0): 0, (1, 0): 1, (0, 1): 2, (2, 0): 3, (1, 1): 4, (0, 2): 5}
    assert {pair: cantor_pair(*pair) for pair in expected} == expected


def test_their_graph_is_read(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(THEIRS))
    found = read_graph(path)
    assert [(node.kind, node.layer, node.index, node.position) for node in found.nodes] == [
        (NodeKind.FEATURE, 20, 15589, 2), (NodeKind.ERROR, 20, -1, 2), (NodeKind.TOKEN, None, 26865, 1),
        (NodeKind.LOGIT, 27, 22605, 2),
    ]  # fmt: skip
    assert found.edges == (GraphEdge(source=2, target=0, weight=1.5), GraphEdge(source=0, target=3, weight=-0.5))
    assert (found.nodes[0].activation, found.nodes[3].probability, found.nodes[3].is_target) == (3.5, 0.42, True)
    assert (found.model, found.tokens, found.node_threshold) == ("gemma-2-2b", ("<bos>", "a", "b"), 0.8)
    again = graph_json(found)
    for ours, theirs in zip(again["nodes"], THEIRS["nodes"], strict=True):
        assert theirs.items() <= ours.items()
    assert (again["links"], again["metadata"]) == (THEIRS["links"], THEIRS["metadata"])


@st.composite
def graphs(draw: st.DrawFn) -> AttributionGraph:
    nodes: dict[tuple[Any, ...], GraphNode] = {}
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(NodeKind))
        node = GraphNode(
            kind=kind,
            layer=None if kind in (NodeKind.TOKEN, NodeKind.NAMED) else draw(st.integers(0, 100)),
            index=-1 if kind is NodeKind.ERROR else draw(st.integers(0, 10**9)),
            position=draw(st.integers(0, 3)),
            label=draw(st.text(min_size=1, max_size=5)),
            activation=draw(st.none() | st.floats(-1e9, 1e9)),
            influence=draw(st.none() | st.floats(0, 1)),
            probability=draw(st.floats(0, 1)),
            is_target=draw(st.booleans()),
        )
        nodes[(kind in (NodeKind.FEATURE, NodeKind.LOGIT), kind, node.layer, node.index, node.position)] = node
    # a feature and a logit of one layer, index and position would share a name, there as here
    by_name = {(node.kind is NodeKind.HEAD, node.kind is NodeKind.NEURON, node.kind is NodeKind.TOKEN,
                node.kind is NodeKind.NAMED, node.layer, node.index, node.position): node
               for node in nodes.values()}  # fmt: skip
    found = tuple(by_name.values())
    places = st.integers(0, max(0, len(found) - 1))
    some_edges = st.builds(GraphEdge, source=places, target=places, weight=st.floats(-1e9, 1e9))
    edges = draw(st.lists(some_edges, max_size=4)) if found else []
    return AttributionGraph(
        slug="g", model=draw(st.text(max_size=5)), sources=("s",), prompt=draw(st.text(max_size=5)),
        tokens=("a", "b", "c", "d"), nodes=found, edges=tuple(edges),
        node_threshold=draw(st.none() | st.floats(0, 1)),
    )  # fmt: skip


@given(graphs())
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
def test_every_graph_comes_back(graph: AttributionGraph) -> None:
    assert graph_of_json(json.loads(json.dumps(graph_json(graph))), place="g") == graph


def test_links_that_hold_become_edges_in_their_direction(tmp_path: Path) -> None:
    neuron = link(index=5, kind=LinkKind.NEURON, target="L0.N7", cause=-2.0)
    stronger = link(index=5, kind=LinkKind.NEURON, target="L0.N7", cause=3.0, concept="cult")
    circuit = link(index=5, kind=LinkKind.CIRCUIT, target="tiny.refusal", cause=1.5)
    out = link(index=5, kind=LinkKind.REFUSAL, target="refusal", cause=0.25)
    object.__setattr__(out, "flow", LinkFlow.OUT_OF_FEATURE)
    chance = link(index=9, linked=False)
    graph = graph_of_links(study(neuron, stronger, circuit, out, chance), Site.parse("resid_post.3"))
    labels = [node.label or f"{node.layer}/{node.index}" for node in graph.nodes]
    assert [(labels[edge.source], labels[edge.target], edge.weight) for edge in graph.edges] == [
        ("L0.N7", "3/5", 3.0), ("tiny.refusal", "3/5", 1.5), ("3/5", "refusal", 0.25),
    ]  # fmt: skip
    write_graph(graph, tmp_path / "links.json")
    assert read_graph(tmp_path / "links.json") == graph
    with pytest.raises(ExportRefused, match="exists already"):
        write_graph(graph, tmp_path / "links.json")


def changed(path: str, value: object) -> dict[str, Any]:
    found = copy.deepcopy(THEIRS)
    *steps, last = path.split(".")
    inner: Any = found
    for step in steps:
        inner = inner[int(step) if step.isdecimal() else step]
    inner[int(last) if last.isdecimal() else last] = value
    return found


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("nodes.0.feature", 121843835, r"nodes\[0\]\.feature: expected 121843834 by its node_id .*\(19, 15590\)"),
        ("nodes.0.feature", 15589, r"nodes\[0\]\.feature: expected 121843834"),
        ("nodes.0.feature", None, r"nodes\[0\]\.feature"),
        ("nodes.0.layer", "19", r"nodes\[0\]\.layer: expected '20'"),
        ("nodes.0.ctx_idx", 1, r"nodes\[0\]\.ctx_idx: expected 2"),
        ("nodes.0.node_id", "20_15589", r"nodes\[0\]\.node_id: expected `layer_index_position`"),
        ("nodes.0.node_id", "x_1_2", r"nodes\[0\]\.node_id"),
        ("nodes.0.node_id", "20_-4_2", r"an index and a position from 0"),
        ("nodes.0.feature_type", "other", r"nodes\[0\]\.feature_type: expected one of"),
        ("nodes.1.feature", 3, r"nodes\[1\]\.feature: expected -1"),
        ("nodes.2.feature", 2, r"nodes\[2\]\.feature: expected 1"),
        ("nodes.3.activation", "high", r"nodes\[3\]: expected `activation` to be a finite number"),
        ("nodes.1", THEIRS["nodes"][0], r"nodes\[1\]: expected a `node_id` that no earlier node has"),
        ("links.0.source", "1_1_1", r"links\[0\]: expected the `node_id` of a node"),
        ("links.1.weight", float("inf"), r"links\[1\]: expected `weight`"),
        ("links", {}, r"links: expected a list"),
        ("metadata.prompt", None, r"metadata\.prompt: expected a text"),
        ("metadata", [], r"metadata: expected an object"),
    ],
)  # fmt: skip
def test_a_graph_that_contradicts_itself_is_refused(path: str, value: object, says: str) -> None:
    with pytest.raises(ImportUnreadable, match=says):
        graph_of_json(changed(path, value), place="g")


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(ImportUnreadable, match="cannot be read"):
        read_graph(path)
    path.write_text("{")
    with pytest.raises(ImportUnreadable, match="expected JSON"):
        read_graph(path)
    with pytest.raises(BadRecord, match="no node at its end"):
        AttributionGraph(
            slug="g", model="m", sources=(), prompt="", tokens=(), nodes=(),
            edges=(GraphEdge(source=0, target=0, weight=1.0),),
        )  # fmt: skip
