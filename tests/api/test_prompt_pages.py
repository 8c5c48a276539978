"""Pages of live requests and of circuits: what they say against the records, and that a form leads to its answer."""

import re
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from api.pages.circuits import head_grid, kl_table, neuron_layers, reply_lines
from api.pages.prompting import chips, strips
from api.settings import ServiceSettings
from db import leases
from db.engine import reading
from db.store import load_model
from safe_sail.records import FeatureId, HeadRef, JobError
from tests.api import seed_methods as methods
from tests.api.seed import BEST
from tests.api.seed_live import answer, trace

HTML = {"accept": "text/html"}
FORM = {"content-type": "application/x-www-form-urlencoded", "sec-fetch-site": "same-origin", **HTML}


def answered(client: TestClient, kind: str) -> str:
    """Id of a live request that a worker has answered."""
    return answer(client.app.state.write_engine, kind)  # type: ignore[attr-defined]


def test_chips_and_strips_are_coloured_by_the_first_feature():
    record = trace()
    found = chips(record.text, record.layers[0], {FeatureId(sae=BEST, index=3): "note"})
    assert [chip.css for chip in found] == ["", "a5", "a1"]  # half of the maximum; faint where no scale is known
    assert [line.note for line in found[1].lines] == ["note", None]
    assert found[1].lines[0].value == "0.500 of its maximum"
    assert found[1].lines[1].value == "9.00, no stored scale"
    (strip,) = strips(record, {})
    assert strip.cells == ["a0", "a5", "a1"]
    bare = replace(record.layers[0], is_normalised=False)
    assert [chip.css for chip in chips(record.text, bare, {})] == ["", "a2", "a10"]  # 1 and 9 of 9


def test_a_trace_shows_every_token_with_its_features_and_hostile_text_as_text(own_client: TestClient):
    job_id = answered(own_client, "trace-prompt")
    text = own_client.get(f"/prompts/{job_id}", headers=HTML).text
    assert "<script>alert" not in text
    assert "\u202e" not in text
    assert text.count('class="chip ') == 6  # three tokens, and each once more over its features
    details = re.findall(r'<section class="token-detail" id="token-(\d)".*?</section>', text, re.DOTALL)
    assert details == ["0", "1", "2"]
    assert f'href="/saes/{BEST}/features/3"' in text
    assert "words of insult" in text  # what is said of feature 3
    assert "7 features are active; the first 2" in text
    assert "ask=steer&amp;sae" not in text  # the server does not offer this SAE
    assert own_client.get(f"/prompts/{job_id}?sae=nobody").status_code == 404


def test_a_steered_answer_and_a_verdict_show_what_was_found(own_client: TestClient):
    text = own_client.get(f"/prompts/{answered(own_client, 'steer-prompt')}", headers=HTML).text
    assert f'<a href="/saes/{BEST}/features/3">' in text
    assert "<script>alert" not in text
    for said in ("7.50", "0.250 nats", ">refusal<", ">compliance<", "words of insult"):
        assert said in text
    text = own_client.get(f"/prompts/{answered(own_client, 'guard-prompt')}", headers=HTML).text
    assert "Probability 0.75 that the answer would be unsafe; refused from 0.50 on" in text
    assert 'x1="240.0"' in text  # the threshold, in the middle
    text = own_client.get(f"/prompts/{answered(own_client, 'compare-prompts')}", headers=HTML).text
    assert "+0.500" in text
    assert "0.100 → 0.600" in text
    assert "beyond chance" in text
    assert "2 active features have no kept scale" in text


def test_a_form_leads_to_the_page_that_waits_and_what_failed_keeps_what_was_typed(
    own_client: TestClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("api.routes.pages_prompts.WAIT_SECONDS", 0.0)
    form = "prompt=fold+a+napkin&model=aligned&sae=&scale=quantile_999&max_new_tokens=5"
    posted = own_client.post("/prompts/trace", content=form, headers=FORM, follow_redirects=False)
    assert posted.status_code == 303, posted.text
    page = own_client.get(posted.headers["location"], headers=HTML).text
    assert "The model is at work" in page
    engine = own_client.app.state.write_engine  # type: ignore[attr-defined]
    held = leases.claim(engine, "w", kinds=["trace-prompt"])
    assert held is not None
    assert held.job.settings["settings"] == {"n_top": 8, "n_strongest": 12, "scale": "quantile_999", "normalise": None}
    assert held.job.settings["max_new_tokens"] == 5
    leases.fail(engine, held, JobError(type="SequenceTooLong", message="<b>too</b> long"))
    page = own_client.get(posted.headers["location"], headers=HTML).text
    assert "&lt;b&gt;too&lt;/b&gt; long" in page
    assert ">fold a napkin</textarea>" in page
    assert 'value="quantile_999" selected' in page


@pytest.mark.parametrize(
    ("path", "form", "status", "said"),
    [
        ("/prompts/trace", "prompt=+", 422, "a prompt has words"),
        ("/prompts/trace", "prompt=a&max_new_tokens=many", 422, "max_new_tokens"),
        ("/prompts/steer", "prompt=a&feature=3", 422, "neither, both or a half"),
        ("/prompts/guard", "prompt=a", 422, "guard"),
        ("/prompts/nothing", "prompt=a", 422, "ask"),
    ],
)
def test_what_cannot_be_asked_is_said(own_client: TestClient, path: str, form: str, status: int, said: str):
    posted = own_client.post(path, content=form, headers=FORM)
    assert posted.status_code == status
    assert said in posted.text


def test_a_feature_leads_to_steering_where_its_sae_is_offered(database_url: str):
    for saes, offered in (({}, False), ({BEST: "folder"}, True)):
        app = create_app(ServiceSettings(database_url=database_url, saes=saes))
        with TestClient(app, base_url="http://127.0.0.1:8420") as client:
            text = client.get(f"/saes/{BEST}/features/3", headers=HTML).text
            assert (f'href="/prompts?ask=steer&amp;sae={BEST}&amp;feature=3"' in text) == offered
            if offered:
                form = client.get(f"/prompts?ask=steer&sae={BEST}&feature=3", headers=HTML).text
                assert f'value="{BEST}" selected' in form


def test_forms_of_other_sites_ask_nothing(own_client: TestClient):
    headers = {**FORM, "sec-fetch-site": "cross-site"}
    assert own_client.post("/prompts/trace", content="prompt=a", headers=headers).status_code == 403
    assert own_client.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/circuits", methods.CIRCUIT),
        ("/circuits?unit=L1.H2", "Which circuits hold"),
        ("/circuits?unit=L1.H2", "words of insult"),
        ("/circuits?unit=L0.H0", "No kept circuit holds L0.H0"),
        (f"/circuits/{methods.CIRCUIT}", "random 0.94 (0.89 to 0.99), 5 draws"),
        (f"/circuits/{methods.CIRCUIT}", "0.75, chance 0.01"),
        (f"/circuits/{methods.CIRCUIT}", "6 of 2592"),
        (f"/circuits/{methods.CIRCUIT}", "needed 0.35"),
        (f"/circuits/{methods.CIRCUIT}", "What does tuning all but it leave of safety?"),
        (f"/circuits/{methods.CIRCUIT}", "<b>0.88</b>"),
        (f"/circuits/{methods.CIRCUIT}", "&lt;b&gt;put&lt;/b&gt; back"),
        (f"/circuits/{methods.CIRCUIT}", "&lt;b&gt;two&lt;/b&gt; seeds"),
        (f"/circuits/{methods.CIRCUIT}", "Which features are linked with the whole circuit?"),
        (f"/saes/{BEST}/features/3", f'href="/circuits/{methods.CIRCUIT}"'),
        (f"/saes/{BEST}/features/3", 'href="/circuits?unit=L1.H2&amp;model=organism-aligned"'),
        ("/prompts?ask=compare", "Second prompt"),
        ("/prompts?ask=guard", "SAFE_SAIL_GUARDS"),
        (f"/prompts?ask=steer&feature=7&direction={methods.REFUSAL}", f'value="{methods.REFUSAL}" selected'),
    ],
)
def test_pages_say_what_is_stored(client: TestClient, path: str, said: str):
    response = client.get(path, headers=HTML)
    assert response.status_code == 200
    assert said in response.text


def test_the_map_has_a_cell_for_every_head_and_all_neurons_of_the_circuit(client: TestClient):
    circuit = methods.circuit_search(BEST).circuit
    with reading(client.app.state.engine) as session:  # type: ignore[attr-defined]
        model = load_model(session, "organism-aligned")
    grid = head_grid(circuit, model)
    assert [(layer, len(cells)) for layer, cells in grid] == [(layer, model.n_heads) for layer in range(model.n_layers)]
    inside = {cell.head: cell.member.probability for _, cells in grid for cell in cells if cell.member}
    assert inside == {one.unit: one.probability for one in circuit.members if isinstance(one.unit, HeadRef)}
    layers = neuron_layers(circuit, model)
    assert [len(one.members) for one in layers] == [1, 2, 0, 0]
    assert sum(one.share for one in layers) == pytest.approx(1)
    text = client.get(f"/circuits/{methods.CIRCUIT}", headers=HTML).text
    assert text.count("not in the circuit") == model.n_layers * model.n_heads - 2
    lines = reply_lines(methods.circuit_evaluation())
    assert [(one.replies.intervention, one.control is not None) for one in lines] == [
        ("none", False),
        ("removed", True),
    ]


def test_costs_of_a_circuit_are_a_table_with_a_gap_where_nothing_was_measured(client):
    record = methods.circuit_evaluation()
    near, far = record.kl["removed on safe"], replace(record.kl["removed on safe"], value=3.5, low=3.25, high=3.75)
    both = replace(record, kl={"removed on safe": near, "alone on safe": far, "removed on harmful": far})
    assert kl_table(both) == (["removed", "alone"], [("safe", [near, far]), ("harmful", [far, None])])
    assert kl_table(replace(record, kl={})) == ([], [])
    text = client.get(f"/circuits/{methods.CIRCUIT}", headers=HTML).text
    row = re.search(r"KL on the first reply token.*?<tbody>(.*?)</tbody>", text, re.DOTALL)
    assert row is not None
    assert re.sub(r"<[^>]+>| +", " ", row[1]).split()[:2] == ["safe", f"{near.value:.4f}"]
