"""The page in a real browser: it opens, filters, pages, reads well by machine, and hostile text stays text.

axe.min.js is axe-core 4.11 by Deque Systems, Mozilla Public License 2.0; it is used by these tests alone.
"""

from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.api.seed import BARE, BEST, HOSTILE_FEATURE, SECOND, SILENT_FEATURE, UNKNOWN_FEATURE, WEAK
from tests.api.seed_methods import CIRCUIT, IN_VAIN, NEURONS, REFUSAL
from tests.web.conftest import Complaints, opened, watched

pytestmark = pytest.mark.browser

AXE = Path(__file__).with_name("axe.min.js").read_text("utf-8")
PAGES = {
    "overview": "/",
    "concept": "/?concept=cult",
    "features": f"/saes/{BEST}",
    "filtered": f"/saes/{BEST}?concept=insult&min_rate_gap=0.2&sort=density",
    "nothing matches": f"/saes/{BEST}?q=zebra",
    "unscored SAE": f"/saes/{WEAK}",
    "published only": f"/saes/{BARE}?sort=published&domain=politics",
    "all features": "/features?specific=true",
    "compared": f"/compare?sae={BEST}&sae={SECOND}",
    "landscape": "/landscape",
    "directions": "/directions",
    "direction": f"/directions/{REFUSAL}",
    "no direction": f"/directions/{IN_VAIN}?show=induce",
    "neurons": "/neurons",
    "neuron set": f"/neurons/{NEURONS}",
    "circuits": "/circuits",
    "unit": "/circuits?unit=L1.H2",
    "circuit": f"/circuits/{CIRCUIT}",
    "jobs": "/jobs?kind=explain-features",
    "ask for a trace": "/prompts",
    "ask for a comparison": "/prompts?ask=compare",
    "ask for a steered answer": f"/prompts?ask=steer&sae={BEST}&feature=3",
    "no guard": "/prompts?ask=guard",
    "published feature": f"/saes/{BARE}/features/5",
    "feature": f"/saes/{BEST}/features/3",
    "hostile feature": f"/saes/{BEST}/features/{HOSTILE_FEATURE.index}",
    "silent feature": f"/saes/{BEST}/features/{SILENT_FEATURE.index}",
    "unknown feature": f"/saes/{BEST}/features/{UNKNOWN_FEATURE.index}",
}


def violations(page: Page) -> list[str]:
    """What axe finds wrong, one line each."""
    page.wait_for_load_state()  # a click may have led here
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{one['id']}: {node['html'][:160]} {node['failureSummary'][:200]}" for one in found for node in one["nodes"]
    ]


def answers(page: Page, site: str) -> dict[str, str]:
    """Pages of the live requests that are answered; of the trace with a token chosen."""
    found = page.request.get(f"{site}/v1/jobs?state=done").json()["items"]
    ids = {job["kind"]: job["job_id"] for job in found}
    assert sorted(ids) == ["compare-prompts", "guard-prompt", "steer-prompt", "trace-prompt"]
    return {kind: f"/prompts/{job_id}{'#token-1' if kind == 'trace-prompt' else ''}" for kind, job_id in ids.items()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_is_accessible_and_without_complaint(
    browser: Browser, site: str, complaints: Complaints, scheme: Literal["light", "dark"], width: int
):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = watched(context, complaints)
    wrong = {}
    for name, path in (PAGES | answers(page, site)).items():
        response = page.goto(site + path)
        assert response is not None
        assert response.status == 200, name
        wrong[name] = violations(page)
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wrong[name].append("wider than the screen")
    assert {name: found for name, found in wrong.items() if found} == {}
    assert complaints == []
    context.close()


def test_an_empty_store_says_what_to_type(page: Page, empty_site: str, complaints: Complaints):
    page.goto(empty_site)
    expect(page.locator("code.command")).to_have_text("safe-sail demo")
    assert violations(page) == []
    assert complaints == []


def test_overview_leads_to_the_ranking_and_on_to_a_feature(page: Page, site: str):
    page.goto(site)
    page.get_by_role("navigation", name="Concepts").get_by_role("link", name="cult").click()
    expect(page.get_by_role("heading", name="SAEs ranked for “cult”")).to_be_visible()
    first = page.locator("tbody tr").first
    expect(first.get_by_role("rowheader")).to_have_text(BEST)
    expect(first).to_contain_text("control 0.06 (−0.09 to 0.17), n = 20")
    first.get_by_role("link", name="11", exact=True).click()
    expect(page).to_have_url(f"{site}/saes/{BEST}/features/11")


def test_names_on_the_map_of_features_do_not_overlap(page: Page, site: str):
    page.goto(f"{site}/landscape")
    names = page.locator(".feature-map .place")
    boxes = names.evaluate_all("all => all.map(one => {const b = one.getBBox(); return [b.x, b.y, b.width, b.height]})")
    assert len(boxes) >= 3
    for n, (x, y, width, height) in enumerate(boxes):
        assert x >= 0
        assert x + width <= 760
        for other_x, other_y, other_width, other_height in boxes[:n]:
            apart_x = x + width <= other_x or other_x + other_width <= x
            assert apart_x or y + height <= other_y + 1 or other_y + other_height <= y + 1


def test_filters_narrow_the_list(page: Page, site: str, complaints: Complaints):
    page.goto(f"{site}/saes/{BEST}")
    expect(page.get_by_role("heading", name="41 of 512 features are known")).to_be_visible()
    page.get_by_label("Explanation holds the words").fill("insult")
    page.get_by_label("Explanation", exact=True).select_option("with")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("heading", name="7 features match")).to_be_visible()
    assert "min_rate_gap" not in page.url  # fields that were left empty stay out of the address
    expect(page.get_by_label("Explanation holds the words")).to_have_value("insult")
    page.get_by_role("link", name="Clear").click()
    expect(page.get_by_role("heading", name="41 of 512 features are known")).to_be_visible()
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Features").click()
    page.get_by_text("More filters").click()
    page.get_by_label("SAE", exact=True).select_option(BARE)
    page.get_by_label("Order").select_option("published score")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("heading", name="2 features match")).to_be_visible()
    expect(page.locator(".features > li").first).to_contain_text("0.62 correlation score")
    expect(page.get_by_label("SAE", exact=True)).to_be_visible()  # what is set is not folded away
    assert complaints == []


def test_saes_are_chosen_and_compared_without_javascript(browser: Browser, site: str):
    context = browser.new_context(java_script_enabled=False)
    page = opened(context)
    page.goto(f"{site}/compare")
    for box in page.get_by_role("checkbox").all():
        box.set_checked(False)
    page.get_by_role("checkbox", name=BEST).check()
    page.get_by_role("checkbox", name=SECOND).check()
    page.get_by_label("Concept", exact=True).select_option("cult")
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name="for “cult”")).to_be_visible()
    expect(page.locator(".charts > li")).to_have_count(2)
    page.get_by_text("Numbers", exact=True).click()
    expect(page.get_by_role("group", name="t, numbers of the chart").get_by_role("row")).to_have_count(4)
    context.close()


def test_a_direction_leads_to_the_features_that_write_it(page: Page, site: str, complaints: Complaints):
    page.goto(f"{site}/directions")
    page.get_by_role("link", name=REFUSAL).click()
    expect(page.locator(".cell.won").first).to_contain_text("chosen")
    page.get_by_role("navigation", name="What the map of raw shows").get_by_role("link", name="KL").click()
    expect(page.locator(".cell.won").first).to_contain_text("0.0400")
    page.locator(".aligned").get_by_role("link", name="3", exact=True).click()
    expect(page).to_have_url(f"{site}/saes/{BEST}/features/3")
    assert complaints == []


def test_a_job_is_asked_for_followed_and_cancelled(page: Page, site: str, complaints: Complaints):
    page.goto(f"{site}/jobs")
    page.get_by_role("button", name="Ask for it").click()
    expect(page.get_by_role("heading", name="Where it stands")).to_be_visible()
    assert violations(page) == []
    expect(page.locator("#state")).to_have_text("queued")
    answer = page.request.post(page.url.replace("/jobs/", "/v1/jobs/") + "/cancel")
    assert answer.ok
    expect(page.locator("#state")).to_have_text("cancelled")  # told by its events: nobody loaded the page again
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#state")).to_have_text("queued")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#state")).to_have_text("cancelled")
    assert complaints == []


def test_tokens_of_a_trace_show_their_features_by_keyboard(page: Page, site: str, complaints: Complaints):
    page.goto(site + answers(page, site)["trace-prompt"].partition("#")[0])
    expect(page.get_by_text("No token is chosen.")).to_be_visible()
    chips = page.get_by_role("list", name="Prompt, token by token").get_by_role("link")
    chips.first.focus()
    page.keyboard.press("ArrowRight")
    expect(chips.nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    detail = page.get_by_role("region", name="Token 2")
    expect(detail.get_by_role("link", name="3", exact=True)).to_be_visible()
    expect(detail).to_contain_text("0.500 of its maximum")
    expect(page.locator(".token-detail:visible")).to_have_count(1)
    expect(chips.nth(1)).to_have_attribute("aria-current", "true")
    assert page.locator("main script, main img").count() == 0  # the token's text is text
    assert complaints == []


def test_a_circuit_leads_to_a_head_and_its_features_and_back(page: Page, site: str, complaints: Complaints):
    page.goto(f"{site}/circuits")
    page.get_by_role("link", name=CIRCUIT).click()
    page.locator(".circuit-map summary").first.click()
    expect(page.get_by_role("link", name="L1.N902")).to_be_visible()
    page.get_by_role("link", name="probability of L1.H2").click()
    page.get_by_role("region", name="Which features").get_by_role("link", name=f"{BEST} 3").click()
    page.get_by_role("link", name=CIRCUIT).click()
    expect(page.get_by_role("heading", name="Where does it lie?")).to_be_visible()
    assert complaints == []


def test_a_prompt_is_asked_and_waited_for_without_javascript(browser: Browser, site: str):
    context = browser.new_context(java_script_enabled=False)
    page = opened(context)
    page.goto(f"{site}/prompts?ask=steer")
    page.get_by_label("Prompt").fill("how do i fold a napkin?")
    page.get_by_label("or a direction").select_option(REFUSAL)
    page.get_by_label("Tokens of the answer").fill("3")
    page.get_by_role("button", name="Answer twice").click()
    expect(page.get_by_role("heading", name="The model is at work")).to_be_visible()
    told = page.request.get(f"{site}/v1/jobs?kind=steer-prompt").json()["items"][0]["settings"]
    assert (told["direction"], told["sae"], told["max_new_tokens"]) == (REFUSAL, None, 3)
    context.close()


def test_page_works_without_javascript(browser: Browser, site: str):
    context = browser.new_context(java_script_enabled=False)
    page = opened(context)
    page.goto(f"{site}/saes/{BEST}")
    page.get_by_label("Concept", exact=True).select_option("insult")
    page.get_by_label("Order").select_option("index")
    page.get_by_role("button", name="Show").click()
    rows = page.locator(".features > li")
    expect(rows).to_have_count(40)  # waits for the page that the form leads to
    expect(rows.first).to_contain_text("insult")
    page.get_by_role("link", name="3", exact=True).click()
    expect(page.get_by_role("heading", name="Where does it fire most?")).to_be_visible()
    expect(page.locator(".contexts > li")).to_have_count(10)
    context.close()


def test_token_values_show_on_focus_and_arrow_keys_move(page: Page, site: str):
    page.goto(f"{site}/saes/{BEST}/features/3")
    context = page.locator(".contexts > li").first
    peak = context.locator(".t.peak")
    peak.focus()
    shown = peak.evaluate("token => getComputedStyle(token, '::after').content")
    assert shown == f'"{peak.get_attribute("data-value")}"'
    page.keyboard.press("ArrowLeft")
    moved = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert moved != peak.get_attribute("aria-label")
    assert "activation" in moved
    assert context.locator(".t[tabindex='0']").count() == 1  # one stop of the Tab key for each context


def test_hostile_tokens_stay_text(page: Page, site: str, complaints: Complaints):
    page.goto(f"{site}/saes/{BEST}/features/{HOSTILE_FEATURE.index}")
    text = page.locator(".tokens").first.inner_text()
    assert "</script><img·src=x".replace("·", " ") in text
    assert "{{7*7}}" in text
    assert "⟨U+202E⟩evil" in text
    assert "␀␛[31m" in text
    assert "⟨U+D800⟩" in text
    assert page.locator("main img").count() == 0
    assert page.locator("main b").count() == len(page.locator(".score b").all())
    assert complaints == []


def test_copied_text_is_the_text_of_the_tokens(page: Page, site: str):
    page.goto(f"{site}/saes/{BEST}/features/3")
    answer = page.request.get(f"{site}/v1/saes/{BEST}/features/3").json()
    text = page.locator(".tokens").first.evaluate("element => element.textContent")
    assert text.replace("↵", "") == "".join(answer["contexts"][0]["tokens"])


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/saes/nobody", 404), (f"/saes/{BEST}?sort=x", 422)])
def test_problems_are_pages_for_a_browser(page: Page, site: str, path: str, status: int):
    response = page.goto(site + path)
    assert response is not None
    assert response.status == status
    expect(page.get_by_role("link", name="Back to the SAEs")).to_be_visible()
    assert violations(page) == []
