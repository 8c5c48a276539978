"""Every list goes on by cursor to its end; the taxonomy's counts and a comparison's curves against plain sums."""

import dataclasses
import math
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from db import store
from db.engine import make_engine, writing
from tests.api.seed import BARE, BEST, CONCEPTS, RUN, SECOND, WEAK
from tests.api.seed_methods import COUNTS, NEURONS, THRESHOLDS


def save_neurons(session, record, *, run_id: str) -> None:
    change = store.load_neuron_change(session, NEURONS).record
    store.save_neuron_search(session, record, dataclasses.replace(change, slug=record.slug), run_id=run_id)


LISTS = {
    "directions": (store.list_direction_searches, store.save_direction_search),
    "neuron-sets": (store.list_neuron_searches, save_neurons),
    "circuits": (store.list_circuits, store.save_circuit),
    "links": (lambda session: [store.load_link_study(session, store.list_link_studies(session)[0].slug)],
              store.save_link_study),
}  # fmt: skip


def pages(client: TestClient, address: str) -> list[dict]:
    found: list[dict] = []
    n_pages = 0
    while address:
        answer = client.get(address)
        assert answer.status_code == 200, answer.text
        found += answer.json()["items"]
        assert len(answer.json()["items"]) <= 2
        link = answer.headers.get("link")
        assert (link is None) == (answer.json()["next_cursor"] is None)
        address = link.split(">")[0].strip("<") if link else ""
        n_pages += 1
    assert n_pages == math.ceil(len(found) / 2) > 1
    return found


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_walked_along_to_its_end(own_client: TestClient, tmp_path: Path, name: str):
    engine = make_engine(f"sqlite:///{tmp_path / 'store.db'}")
    find, save = LISTS[name]
    with writing(engine) as session:
        kept = find(session)
        slugs = {"z", "a.b", "middle", "Upper"}
        for slug in slugs:
            changed = {"direction": None, "added": None} if name == "directions" else {}
            changed = {field: value for field, value in changed.items() if hasattr(kept[0].record, field)}
            save(session, dataclasses.replace(kept[-1].record, slug=slug, **changed), run_id=RUN)
    engine.dispose()
    whole = own_client.get(f"/v1/{name}?limit=200").json()
    assert whole["next_cursor"] is None
    found = pages(own_client, f"/v1/{name}?limit=2")
    assert found == whole["items"]
    names = [(one.get("record") or one)["slug"] for one in found]
    assert names == sorted({*names, *slugs})
    assert len(names) == len(slugs) + len({one.record.slug for one in kept})


@pytest.mark.parametrize("name", ["neuron-taxes", "guards", "tunings"])
def test_the_other_lists_take_a_cursor_of_theirs_alone(client: TestClient, name: str):
    assert client.get(f"/v1/{name}").json()["next_cursor"] is None
    theirs = client.get("/v1/directions?limit=1").json()["next_cursor"]
    assert theirs is not None
    for cursor in (theirs, "x", "é", "W10", "WyJydW5zIiwgImEiLCAiYiJd"):
        answer = client.get(f"/v1/{name}", params={"cursor": cursor})
        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (422, "invalid")


def test_runs_are_walked_along_newest_first(own_client: TestClient, tmp_path: Path):
    engine = make_engine(f"sqlite:///{tmp_path / 'store.db'}")
    with writing(engine) as session:
        run = store.load_run(session, RUN)
        for number in range(6):  # in pairs that started at the same moment
            later = run.started + timedelta(microseconds=number // 2)
            store.save_run(session, dataclasses.replace(run, run_id=f"r{number}", started=later))
    engine.dispose()
    found = pages(own_client, "/v1/runs?limit=2")
    assert [one["run_id"] for one in found] == ["r5", "r4", "r3", "r2", "r1", "r0", RUN]
    for cursor in ("x", "WyJydW5zIiwgImEiLCAiYiJd"):  # the second is a word of the list with a start that is none
        assert own_client.get("/v1/runs", params={"cursor": cursor}).status_code == 422


@pytest.mark.parametrize("sae", [None, BEST, BARE])
def test_the_taxonomy_counts_what_the_features_say(client: TestClient, sae: str | None):
    answer = client.get("/v1/taxonomy", params={} if sae is None else {"sae": sae}).json()
    flat = {
        one["name"]: (domain["name"], category["name"], one)
        for domain in answer["domains"] for category in domain["categories"] for one in category["concepts"]
    }  # fmt: skip
    assert {name: (d, c, one["harmful"]) for name, (d, c, one) in flat.items()} == {
        name: (domain, category, harmful) for name, category, domain, harmful in CONCEPTS
    }
    for name, (_, _, one) in flat.items():
        scored = specific = 0
        for slug in [BEST, SECOND, WEAK, BARE] if sae is None else [sae]:
            for row in client.get(f"/v1/saes/{slug}/features?limit=200").json()["items"]:
                detail = client.get(f"/v1/saes/{slug}/features/{row['index']}").json()
                mine = [kept["record"] for kept in detail["concept_scores"] if kept["record"]["concept"] == name]
                scored += len(mine)
                specific += sum(score["rate_gap"]["value"] > 0.5 and score["q_value"] < 0.05 for score in mine)
        assert (one["n_scored"], one["n_specific"]) == (scored, specific), name
    assert (sae == BARE) == all(one["n_scored"] == 0 for _, _, one in flat.values())
    assert client.get("/v1/taxonomy", params={"sae": "nobody"}).status_code == 404


def test_saes_are_compared_by_their_curves_and_rankings(client: TestClient):
    answer = client.get("/v1/compare", params={"sae": [WEAK, BEST, BARE, BEST]}).json()
    assert [one["sae"]["sae"]["slug"] for one in answer["saes"]] == [WEAK, BEST, BARE]
    weak, best, bare = answer["saes"]
    assert bare["curve"] == bare["specificity"] == []
    assert best["sae"] == client.get(f"/v1/saes/{BEST}").json()
    for one, position in ((best, 0), (weak, 2)):
        assert [point["t"] for point in one["curve"]] == list(THRESHOLDS)
        for i, point in enumerate(one["curve"]):
            counts = [max(n[i] - position, 0) for n in COUNTS.values()]
            mean = sum(counts) / 3
            half = 1.96 * math.sqrt(sum((n - mean) ** 2 for n in counts) / 2 / 3)
            assert point["mean"] == pytest.approx(mean)
            assert point["high"] == pytest.approx(mean + half)
            assert point["low"] == pytest.approx(max(mean - half, 0))
        assert [point["mean"] for point in one["curve_swapped"]] == [1, 0, 0]
        assert {kept["record"]["concept"] for kept in one["specificity"]} == set(COUNTS)
        assert all(kept["run_id"] == RUN for kept in one["specificity"])
    (ranking,) = answer["rankings"]
    assert [place["sae"] for place in ranking["ranking"]] == [BEST, SECOND, WEAK]
    one = client.get("/v1/compare", params={"sae": [BEST, WEAK], "concept": "cult"}).json()["saes"][0]
    assert [point["mean"] for point in one["curve"]] == list(COUNTS["cult"])
    assert one["curve"][0]["low"] is None
    assert client.get("/v1/compare", params={"sae": [BARE, "nobody"]}).status_code == 404
    assert client.get("/v1/compare", params={"sae": [BEST]}).status_code == 422
    assert client.get("/v1/compare", params={"sae": [BEST, WEAK], "concept": "nobody"}).status_code == 404
