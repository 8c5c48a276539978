"""The command from options to database, on two concepts of the organism."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from db import store
from db.engine import make_engine, reading, writing
from db.interchange.graph_json import read_graph
from db.migrate import upgrade
from safe_sail.errors import BadInput, BadSettings, ExportRefused, NotFound
from safe_sail.links.units import UnitSet
from safe_sail.records import Circuit, CircuitMember, FeatureId, HeadRef, LinkFlow, LinkKind, LinkStudy, NeuronRef
from scripts.link_features import ORGANISM_SAE, link, sets_to_link
from scripts.link_report import print_links
from tests.api import seed_methods
from tests.db import builders as a


@pytest.mark.slow
def test_the_command_links_keeps_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    database = f"sqlite:///{tmp_path / 'x.db'}"
    units, graph = tmp_path / "units.json", tmp_path / "graph.json"
    units.write_text('{"some": ["L1.H7", "L0.N237", "L5.H0"]}')
    link(
        concept=["weapon"], n_pairs=8, n_features=1, n_heads=2, n_neurons=3, units=units, graph=graph,
        database=database, as_json=True,
    )  # fmt: skip
    (said,) = json.loads(capsys.readouterr().out)
    assert said["n_tested"] == len(said["links"]) == 2 * (2 + 3 + 1) + 1  # before and behind the feature; refusal
    assert any("some: 2 of 3 units stand before" in note for note in said["notes"])
    assert said["n_pairs"] == {"weapon": 8}
    engine = make_engine(database)
    with reading(engine) as session:
        kept = store.load_link_study(session, f"organism-aligned.{ORGANISM_SAE}").record
        assert [one.target for one in kept.links] == [one["target"] for one in said["links"]]
        feature = FeatureId(sae=ORGANISM_SAE, index=said["links"][0]["feature"]["index"])
        # a set may be stronger than each of its units, so units are asked for alone
        units_linked = store.links_of_feature(session, feature, kinds=[LinkKind.HEAD, LinkKind.NEURON])
        strongest = next(one.link for one in units_linked if one.link.flow is LinkFlow.INTO_FEATURE)
        assert strongest.kind is LinkKind.NEURON
        assert store.links_of_target(session, LinkKind.NEURON, strongest.target, model_id="organism-aligned")
        circuits = store.links_of_feature(session, feature, kinds=[LinkKind.CIRCUIT], linked_only=False)
        assert [one.link.target for one in circuits] == ["some", "some"]
        assert {one.link.flow for one in circuits} == {LinkFlow.INTO_FEATURE, LinkFlow.OUT_OF_FEATURE}
    engine.dispose()
    drawn = read_graph(graph)
    assert len(drawn.edges) == kept.n_linked
    assert strongest.target in {node.label for node in drawn.nodes}
    # a concept feature is written by few neurons, by both measures; chance links nothing
    assert kept.n_linked > 0
    assert strongest.is_direct
    assert kept.n_linked_shuffled == 0
    shown = capsys_text(kept, capsys)
    assert f"<- {strongest.target}*" in shown
    assert "-> refusal" in shown or not any(one.kind is LinkKind.REFUSAL and one.is_linked for one in kept.links)


def capsys_text(study: LinkStudy, capsys: pytest.CaptureFixture[str]) -> str:
    print_links([study], database="sqlite:///x.db", as_json=False)
    return capsys.readouterr().out


def test_names_of_sets_are_folded_before_a_number_is_cut(capsys: pytest.CaptureFixture[str]):
    study = seed_methods.link_study("some-sae")
    wide = replace(study.links[0].cause, q_value=3e-14, value=a.estimate(-123.456))
    one = replace(
        study.links[0], target="organism-base." * 3 + "organism-aligned", concept="a concept of many words",
        weights=wide, cause=wide,
    )  # fmt: skip
    row = capsys_text(replace(study, links=(one,)), capsys).partition("a concept of many words")[2].splitlines()
    assert re.search(r"│ +3e-14 │", row[0])
    assert "…" not in "".join(row)
    assert row[0].count("[") == 2 == row[0].count("]")


def test_what_is_not_there_is_named(tmp_path: Path):
    database = f"sqlite:///{tmp_path / 'x.db'}"
    with pytest.raises(BadSettings, match=r"--concept: expected some of .*weapon.*; got nothing"):
        link(concept=["nothing"], database=database)
    with pytest.raises(NotFound, match="no direction is called `away`"):
        link(concept=["weapon"], n_pairs=2, direction=["away"], database=database)
    (tmp_path / "units.json").write_text('["L1.H7"]')
    with pytest.raises(BadInput, match="expected an object of names and lists of units"):
        link(units=tmp_path / "units.json", database=database)
    with pytest.raises(ExportRefused, match="exists already"):
        link(graph=tmp_path / "units.json", n_pairs=2, database=database)


def test_circuits_that_the_database_keeps_are_linked_without_their_sae_features(tmp_path: Path):
    engine = make_engine(f"sqlite:///{tmp_path / 'x.db'}")
    upgrade(engine)
    units = (HeadRef(1, 0), NeuronRef(0, 3), FeatureId(sae="some", index=7))
    kept = Circuit(
        slug="tiny.refusal", model_id="tiny", behaviour="refusal", method="masks", ablation="mean",
        members=tuple(CircuitMember(unit=unit, probability=1.0) for unit in units), n_heads=4, n_neurons=9,
        n_features=8,
    )  # fmt: skip
    with writing(engine) as session:
        store.save_run(session, a.run())
        store.save_model(session, a.model(), run_id=a.RUN)
        store.save_circuit(session, kept, run_id=a.RUN)
    mine = UnitSet("mine", LinkKind.CIRCUIT, (HeadRef(0, 0),))
    assert sets_to_link([mine], engine, "tiny") == (mine, UnitSet("tiny.refusal", LinkKind.CIRCUIT, units[:2]))
    assert sets_to_link([mine], engine, "another") == (mine,)
    with pytest.raises(BadInput, match=r"tiny\.refusal more than once"):
        sets_to_link([mine._replace(slug="tiny.refusal")], engine, "tiny")
    engine.dispose()
