"""What directions, neurons and links found, over REST: the records as they are kept, with sites as text."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from db import store
from db.engine import make_engine, writing
from db.migrate import upgrade
from db.store.cursors import write_place
from db.store.whole import to_json
from safe_sail.records import HeadRef, LinkKind, NeuronRef
from tests.api.conftest import client_of
from tests.api.seed import BEST
from tests.db import builders as a
from tests.db import test_circuits as of_circuits
from tests.db import test_directions as of_directions
from tests.db import test_links as of_links
from tests.db import test_neurons as of_neurons

CIRCUIT = of_circuits.circuit(HeadRef(0, 1), NeuronRef(1, 3))
DIRECTION, SEARCH = of_directions.direction(), of_directions.search(of_directions.direction())


@pytest.fixture(scope="module")
def methods_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    url = f"sqlite:///{tmp_path_factory.mktemp('methods') / 'store.db'}"
    engine = make_engine(url)
    upgrade(engine)
    a.catalogue(engine)
    with writing(engine) as session:
        store.save_direction_search(session, SEARCH, run_id=a.RUN)
        store.save_direction_evaluation(session, of_directions.evaluation(), run_id=a.RUN)
        store.save_neuron_search(session, of_neurons.one_search(), of_neurons.one_change(), run_id=a.RUN)
        found = dataclasses.replace(of_circuits.a_search(CIRCUIT, None), slug=CIRCUIT.slug)  # as find-circuit names it
        store.save_circuit_search(session, found, run_id=a.RUN)
        store.save_circuit_evaluation(session, of_circuits.an_evaluation(CIRCUIT), run_id=a.RUN)
        study = of_links.study(of_links.link(), of_links.link(index=5, linked=False))
        store.save_link_study(session, study, run_id=a.RUN)
    engine.dispose()
    with client_of(url) as client:
        yield client


def get(client: TestClient, path: str) -> Any:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_directions_are_answered_as_they_are_kept(methods_client: TestClient):
    found = get(methods_client, f"/v1/directions/{DIRECTION.slug}")
    assert found["run_id"] == a.RUN
    assert found["record"]["site"] == str(DIRECTION.site)
    assert found["record"]["vectors"] == [list(row) for row in DIRECTION.vectors]
    (search,) = get(methods_client, "/v1/directions?model=tiny")["items"]
    assert search["record"]["direction"] == found["record"]
    assert search["record"]["outcome"] == SEARCH.outcome
    assert get(methods_client, "/v1/directions?model=other")["items"] == []
    judged = get(methods_client, f"/v1/directions/{DIRECTION.slug}/evaluation")
    assert judged == {"record": json.loads(to_json(of_directions.evaluation())), "run_id": a.RUN}
    assert "no reading yet" in methods_client.get(f"/v1/directions/{DIRECTION.slug}/reading").json()["detail"]


def test_neuron_sets_name_their_members(methods_client: TestClient):
    (listed,) = get(methods_client, "/v1/neuron-sets?model=tiny")["items"]
    assert listed == get(methods_client, "/v1/neuron-sets/tiny.tiny")
    assert listed["record"]["neurons"] == ["L1.N0"]
    assert listed["record"]["second_score"]["n"] == a.estimate(1.0).n
    assert get(methods_client, "/v1/neuron-taxes")["items"] == get(methods_client, "/v1/guards")["items"] == []


def test_links_are_found_by_study_and_by_feature(methods_client: TestClient):
    (study,) = get(methods_client, f"/v1/links?sae={a.SAE}")["items"]
    assert (study["n_tested"], study["n_linked"]) == (2, 1)
    whole = get(methods_client, f"/v1/links/{study['slug']}")["record"]
    assert [one["target"] for one in whole["links"]] == ["L1.H0", "L1.H0"]
    address = f"/v1/saes/{a.SAE}/features"
    assert len(get(methods_client, f"{address}/3/links")["items"]) == 1
    assert get(methods_client, f"{address}/5/links")["items"] == []
    (tested,) = get(methods_client, f"{address}/5/links?all=true&kind=head")["items"]
    assert tested["link"]["is_linked"] is False


def test_links_are_walked_along_with_ties_from_both_ends(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    engine = make_engine(url)
    upgrade(engine)
    a.catalogue(engine)
    causes = (1.0, 0.1 + 0.2, -2.0, 1.0, 1.0)  # ties, a number that decimals do not hold, one below zero
    with writing(engine) as session:
        store.save_circuit_search(session, of_circuits.a_search(CIRCUIT, None), run_id=a.RUN)
        for slug in ("tiny.b", "tiny.a"):
            found = [of_links.link(3, LinkKind.CIRCUIT, CIRCUIT.slug, cause, linked=cause != 1.0) for cause in causes]
            store.save_link_study(session, of_links.study(*found, slug=slug), run_id=a.RUN)
    engine.dispose()
    places = [(study, place) for study in ("tiny.a", "tiny.b") for place in range(5)]
    expected = sorted(places, key=lambda one: (-abs(causes[one[1]]), one))
    with client_of(url) as client:
        for address in (f"/v1/saes/{a.SAE}/features/3/links", f"/v1/circuits/{CIRCUIT.slug}/features"):
            for limit in (1, 3, 5):
                found, following = [], f"{address}?all=true&limit={limit}"
                while following:
                    answer = client.get(following)
                    items = answer.json()["items"]
                    assert 0 < len(items) <= limit
                    found += [(one["study"], one["place"]) for one in items]
                    following = answer.links.get("next", {}).get("url")
                    assert (following is None) == (answer.json()["next_cursor"] is None)
                assert found == expected
            (last,) = client.get(address, params={"limit": 1}).json()["items"]
            assert last["link"]["cause"]["value"]["value"] == -2.0
            for cursor in ("x", client.get("/v1/links?limit=1").json()["next_cursor"], word("nan"), word("1", "-1")):
                answer = client.get(address, params={"cursor": cursor})
                assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (422, "invalid")


def word(strength: str, place: str = "0") -> str:
    """A cursor of the list of links with a place that is none."""
    return write_place("links of a feature", strength, "tiny.a", place)


def test_features_are_listed_for_a_direction_and_a_set_of_neurons_too(methods_client: TestClient, tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    engine = make_engine(url)
    upgrade(engine)
    a.catalogue(engine)
    slugs = {LinkKind.DIRECTION: DIRECTION.slug, LinkKind.NEURON_SET: "tiny.tiny"}
    with writing(engine) as session:
        store.save_direction_search(session, SEARCH, run_id=a.RUN)
        store.save_neuron_search(session, of_neurons.one_search(), of_neurons.one_change(), run_id=a.RUN)
        model = store.load_neuron_search(session, "tiny.tiny").record.second_model
        links = [of_links.link(n, kind, slug, n, linked=n > 1) for kind, slug in slugs.items() for n in (1, 2, 3)]
        links += [of_links.link(9, LinkKind.HEAD, "L1.H0"), of_links.link(8, LinkKind.DIRECTION, "other")]
        store.save_link_study(session, of_links.study(*links), run_id=a.RUN)
    engine.dispose()
    assert model == DIRECTION.model_id == "tiny"
    with client_of(url) as client:
        for address in (f"/v1/directions/{DIRECTION.slug}/features", "/v1/neuron-sets/tiny.tiny/features"):
            found = get(client, address)["items"]
            assert [one["link"]["feature"]["index"] for one in found] == [3, 2]
            assert len(get(client, f"{address}?all=true&limit=2")["items"]) == 2
            assert len(get(client, f"{address}?all=true")["items"]) == 3
            assert get(client, f"{address}?concept=cult")["items"] == []
    for address in ("/v1/directions/nobody/features", "/v1/neuron-sets/nobody/features"):
        assert methods_client.get(address).status_code == 404


def test_circuits_name_their_units_and_are_found_by_one(methods_client: TestClient):
    (listed,) = get(methods_client, "/v1/circuits?model=tiny&unit=L0.H1")["items"]
    assert listed == get(methods_client, f"/v1/circuits/{CIRCUIT.slug}")
    assert [one["unit"] for one in listed["record"]["members"]] == ["L0.H1", "L1.N3"]
    assert get(methods_client, "/v1/circuits?unit=L0.H2")["items"] == []
    assert methods_client.get("/v1/circuits?unit=L0").status_code == 422
    search = get(methods_client, f"/v1/circuits/{CIRCUIT.slug}/search")["record"]
    assert search["circuit"] == listed["record"]
    (judged,) = get(methods_client, f"/v1/circuits/{CIRCUIT.slug}/evaluations")["items"]
    assert judged["record"]["circuit"] == CIRCUIT.slug
    assert get(methods_client, f"/v1/circuits/{CIRCUIT.slug}/features?all=true")["items"] == []
    assert methods_client.get("/v1/circuits/nobody/features").status_code == 404
    assert get(methods_client, "/v1/tunings")["items"] == []


@pytest.mark.parametrize("path", ["directions", "neuron-sets", "circuits", "links"])
def test_an_unknown_slug_is_404(methods_client: TestClient, path: str):
    answer = methods_client.get(f"/v1/{path}/nobody")
    assert answer.status_code == 404
    assert "`nobody`" in answer.json()["detail"]


def test_the_export_has_every_known_feature_as_its_own_address_answers(client: TestClient):
    answer = client.get(f"/v1/saes/{BEST}/export")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert f'filename="{BEST}.ndjson"' in answer.headers["content-disposition"]
    lines = [json.loads(line) for line in answer.text.splitlines()]
    total = client.get(f"/v1/saes/{BEST}/features?limit=1&include=total").json()["total"]
    indices = [line["feature"]["index"] for line in lines]
    assert len(lines) == total > 0
    assert indices == sorted(indices)
    for line in (lines[0], lines[-1]):
        assert line == client.get(f"/v1/saes/{BEST}/features/{line['feature']['index']}").json()
    some = client.get(f"/v1/saes/{BEST}/export?explained=true").text.splitlines()
    assert 0 < len(some) < total
    assert client.get("/v1/saes/nobody/export").status_code == 404


def test_the_export_crosses_pages(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    whole = client.get(f"/v1/saes/{BEST}/export").text
    monkeypatch.setattr("api.routes.exports._AT_ONCE", 3)
    assert client.get(f"/v1/saes/{BEST}/export").text == whole
