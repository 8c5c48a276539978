"""Every REST route's ordinary answer, against what the seed put in."""

from fastapi.testclient import TestClient

from tests.api.seed import BARE, BEST, CONCEPTS, HOSTILE_FEATURE, RUN, SECOND, UNKNOWN_FEATURE, WEAK, WIDTHS


def test_health_is_ok(client: TestClient):
    assert client.get("/livez").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}


def test_models_carry_their_sizes_and_run(client: TestClient):
    answer = client.get("/v1/models").json()
    assert [one["record"]["model_id"] for one in answer["items"]] == ["organism-aligned", "organism-base"]
    assert answer["items"][0]["record"]["d_model"] == 128
    assert answer["items"][0]["run_id"] == RUN
    assert answer["next_cursor"] is None


def test_saes_come_by_slug_with_site_as_text(client: TestClient):
    items = client.get("/v1/saes").json()["items"]
    assert [one["sae"]["slug"] for one in items] == sorted(WIDTHS)
    assert items[0]["sae"]["site"] == "mlp_out.0"
    assert items[0]["facts"] is None
    assert items[0]["scores"] == []


def test_saes_can_be_ranked_for_a_concept(client: TestClient):
    items = client.get("/v1/saes", params={"sort": "rate_gap", "concept": "cult"}).json()["items"]
    assert [one["sae"]["slug"] for one in items] == [BEST, SECOND, WEAK]
    assert [len(one["scores"]) for one in items] == [1, 1, 1]
    score = items[0]["scores"][0]["record"]
    assert score["concept"] == "cult"
    assert score["rate_gap"]["n"] == 128
    assert score["rate_gap"]["low"] < score["rate_gap"]["value"] < score["rate_gap"]["high"]
    assert score["control_rate_gap"]["n"] == 20


def test_saes_can_be_sorted_by_facts_with_unmeasured_last(client: TestClient):
    items = client.get("/v1/saes", params={"sort": "l0"}).json()["items"]
    assert [one["sae"]["slug"] for one in items] == [WEAK, SECOND, BEST, BARE]


def test_saes_can_be_narrowed_to_a_model(client: TestClient):
    items = client.get("/v1/saes", params={"model": "organism-base"}).json()["items"]
    assert [one["sae"]["slug"] for one in items] == [WEAK]


def test_one_sae_has_facts_scores_and_counts(client: TestClient):
    answer = client.get(f"/v1/saes/{BEST}").json()
    assert answer["facts"]["record"]["n_tokens"] == 98_304
    assert len(answer["scores"]) == len(CONCEPTS)
    assert answer["n_collected"] == 41
    assert answer["n_explained"] == 15


def test_features_are_paged_to_the_end_without_loss_or_repetition(client: TestClient):
    seen: list[int] = []
    address = f"/v1/saes/{BEST}/features?limit=7&sort=score&include=total"
    pages = 0
    while address:
        response = client.get(address)
        answer = response.json()
        seen += [item["index"] for item in answer["items"]]
        pages += 1
        link = response.headers.get("link")
        assert (link is None) == (answer["next_cursor"] is None)
        address = link.split(">")[0].strip("<") if link else ""
    assert pages == 6
    assert len(seen) == len(set(seen)) == answer["total"] == 41


def test_features_can_be_filtered(client: TestClient):
    def indices(**parameters: object) -> set[int]:
        answer = client.get(f"/v1/saes/{BEST}/features", params={"limit": 200, **parameters}).json()
        return {item["index"] for item in answer["items"]}

    everything = indices()
    assert indices(has_explanation="true") | indices(has_explanation="false") == everything
    assert not indices(has_explanation="true") & indices(has_explanation="false")
    assert indices(concept="insult", min_rate_gap=0.5) == {3, 27, 51, 75, 99}  # every sixth feature is of this concept
    assert indices(q="words insult brerok") == {3, 27, 51, 75, 99, 123, 147}
    assert indices(max_density=0.0) == {12}
    assert indices(min_density=0.0006 * 16.5) < everything
    assert indices(min_auroc=0.95) == {3, 7, 11}


def test_one_feature_has_everything_that_is_known(client: TestClient):
    answer = client.get(f"/v1/saes/{BEST}/features/3").json()
    assert answer["feature"] == {"sae": BEST, "index": 3}
    assert answer["sae"]["site"] == "resid_post.2"
    assert len(answer["contexts"]) == 10
    peaks = [context["activations"][context["peak"]] for context in answer["contexts"]]
    assert peaks == sorted(peaks, reverse=True)
    assert answer["contexts_run_id"] == RUN
    assert answer["concept_scores"][0]["record"]["concept"] == "insult"
    judged = answer["explanations"][0]
    assert judged["explanation"]["record"]["explainer"] == "lexical"
    assert judged["scores"][0]["record"]["control"]["n"] == 39
    assert len(answer["histogram"]["edges"]) == len(answer["histogram"]["counts"]) + 1


def test_a_feature_that_was_not_collected_is_empty_and_no_error(client: TestClient):
    response = client.get(f"/v1/saes/{BEST}/features/{UNKNOWN_FEATURE.index}")
    assert response.status_code == 200
    answer = response.json()
    assert answer["contexts"] == answer["concept_scores"] == answer["explanations"] == []
    assert answer["density"] is None
    assert answer["contexts_run_id"] is None


def test_hostile_tokens_survive_as_json(client: TestClient):
    response = client.get(f"/v1/saes/{BEST}/features/{HOSTILE_FEATURE.index}")
    assert response.headers["content-type"] == "application/json"
    tokens = response.json()["contexts"][0]["tokens"]
    assert "</script><img src=x onerror=alert(1)>" in tokens
    assert "\x00\x1b[31m" in tokens
    assert tokens[-1] == "\N{REPLACEMENT CHARACTER}"  # half a character has no UTF-8


def test_concepts_carry_their_place_in_the_taxonomy(client: TestClient):
    items = client.get("/v1/concepts").json()["items"]
    assert {one["name"] for one in items} == {row[0] for row in CONCEPTS}
    assert next(one for one in items if one["name"] == "cult")["harmful"] is True


def test_runs_say_how_to_run_again(client: TestClient):
    assert [run["run_id"] for run in client.get("/v1/runs").json()["items"]] == [RUN]
    run = client.get(f"/v1/runs/{RUN}").json()
    assert run["settings"] == {"n_features": 40, "contexts": {"window": 64}}
    assert run["started"] == "2026-11-21T08:00:00Z"


def test_an_empty_store_gives_empty_lists(empty_client: TestClient):
    for path in ("models", "saes", "concepts", "runs"):
        assert empty_client.get(f"/v1/{path}").json() == {"items": [], "next_cursor": None}
