"""The page as HTML text: what it says, what it never says, and the drawings and numbers behind it."""

import re
from datetime import UTC, datetime

import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from api.pages import numbers
from api.pages.figures import HISTOGRAM_HEIGHT, axis_start, histogram_figure, interval_figure
from api.pages.render import FOLDER
from api.pages.tokens import step, text_parts, token_views
from api.settings import ServiceSettings
from safe_sail.records import Context, Estimate, Histogram
from tests.api.seed import BARE, BEST, HOSTILE_FEATURE, SILENT_FEATURE, WEAK

HTML = {"accept": "text/html,application/xhtml+xml"}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/", "Best rate gap by concept"),
        ("/?concept=food", "SAEs ranked for “food”"),
        (f"/saes/{BEST}", "41 of 512 features are known"),
        (f"/saes/{BEST}?q=&concept=&sort=score", "41 of 512 features are known"),
        (f"/saes/{BEST}?q=zebra", "No feature passes all of these filters."),
        (f"/saes/{WEAK}", "Nothing is known of this SAE's features yet"),
        ("/features", "43 features are known"),
        (f"/features?sae={BARE}", "2 features match"),
        ("/features?tag=terror", "3 features match"),
        ("/features?domain=politics&specific=true&sort=explanation", "features match"),
        (f"/features?sae={BARE}&sort=published", '0.62 <span class="muted small">correlation score'),
        (f"/saes/{BARE}/features/2", "its n and interval were not published"),
        (f"/saes/{BARE}/features/5", "&lt;b&gt;politics&lt;/b&gt;"),
        (f"/saes/{BEST}/features/3", "words of insult"),
        (f"/saes/{BEST}/features/3", "n = 10 contexts, 1 left out as constant; control 0.03 (−0.05 to 0.12), n = 39"),
        (f"/saes/{BEST}/features/{SILENT_FEATURE.index}", "It may be dead"),
        (f"/saes/{BEST}/features/500", "Nothing is known of this feature yet"),
    ],
)
def test_pages_say_what_is_stored(client: TestClient, path: str, said: str):
    response = client.get(path, headers=HTML)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert said in response.text


def test_hostile_text_is_escaped(client: TestClient):
    text = client.get(f"/saes/{BEST}/features/{HOSTILE_FEATURE.index}", headers=HTML).text
    assert "<img src=x" not in text
    assert "&lt;/script&gt;&lt;img" in text
    assert "{{7*7}}" in text
    assert "\u202e" not in text
    assert "\x00" not in text


def test_intervals_stand_beside_the_scores_of_a_list(client: TestClient):
    answer = client.get(f"/v1/saes/{BEST}/features/3").json()
    gap = answer["concept_scores"][0]["record"]["rate_gap"]
    judged = answer["explanations"][0]["scores"][0]["record"]["score"]
    text = client.get(f"/saes/{BEST}?q=insult", headers=HTML).text
    row = re.search(r"<li>(?:(?!</li>).)*features/3\".*?</li>", text, re.S)
    assert row
    for estimate in (gap, judged):
        assert f"<b>{estimate['value']:.2f}</b>" in row[0]
        assert f"{estimate['low']:.2f}–{estimate['high']:.2f}".replace("-", "−") in row[0]


def test_a_hostile_search_is_escaped(client: TestClient):
    text = client.get(f"/saes/{BEST}", params={"q": '"><script>alert(1)</script>'}, headers=HTML).text
    assert "<script>alert" not in text


def test_no_page_has_inline_style_or_script():
    for template in (FOLDER / "templates").glob("*.html"):
        text = template.read_text("utf-8")
        assert not re.search(r"\sstyle=|\son[a-z]+=|<style|<script(?! src=)|\|\s*safe", text), template.name


def test_the_list_pages_on_and_back(database_url: str):
    client = TestClient(create_app(ServiceSettings(database_url=database_url, default_limit=30)), "http://127.0.0.1")
    first = client.get(f"/saes/{BEST}?concept=insult", headers=HTML).text
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following
    second = client.get(following[1].replace("&amp;", "&"), headers=HTML).text
    assert "First page" in second
    assert "Next page" not in second
    listed = [re.findall(rf'href="/saes/{re.escape(BEST)}/features/(\d+)"', page) for page in (first, second)]
    assert [len(found) for found in listed] == [30, 10]
    assert not set(listed[0]) & set(listed[1])


@pytest.mark.parametrize(("path", "status"), [("/none", 404), ("/saes/nobody", 404), (f"/saes/{BEST}?x=1", 422)])
def test_a_browser_gets_problems_as_a_page_and_a_program_as_json(client: TestClient, path: str, status: int):
    page = client.get(path, headers=HTML)
    assert page.status_code == status
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "Back to the SAEs" in page.text
    assert client.get(path).headers["content-type"] == "application/problem+json"


def test_pages_answer_head(client: TestClient):
    for path in ("/", f"/saes/{BEST}", f"/saes/{BEST}/features/3", "/static/base.css"):
        assert client.head(path).status_code == 200


def test_an_empty_store_says_which_command_is_next(empty_client: TestClient):
    text = empty_client.get("/", headers=HTML).text
    assert "The database is empty" in text
    assert "safe-sail demo" in text


def test_static_files_are_served_with_their_types(client: TestClient):
    for name, kind in (("base.css", "text/css"), ("comfort.js", "javascript"), ("icon.svg", "image/svg+xml")):
        response = client.get(f"/static/{name}")
        assert response.status_code == 200
        assert kind in response.headers["content-type"]
    assert client.get("/static/../render.py").status_code == 404
    assert client.get("/static/%2e%2e/render.py").status_code == 404


# ----------------------------------------------------------------------------------------------------- tokens


def test_parts_of_a_token_lose_no_visible_character():
    parts = list(text_parts(" a\n\tb\u200bc\u202e"))
    assert [(part.kind, part.text) for part in parts] == [
        ("space", " "), ("text", "a"), ("newline", "↵"), ("mark", "⇥"), ("text", "b"), ("mark", "⟨U+200B⟩"),
        ("text", "c"), ("mark", "⟨U+202E⟩"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("activation", "scale", "expected"),
    [(10, 10, 10), (0.01, 10, 1), (5, 10, 5), (5.1, 10, 6), (-10, 10, 10), (3, 0, 10)],
)
def test_colour_steps_rise_with_the_activation(activation: float, scale: float, expected: int):
    assert step(activation, scale) == expected


def test_silent_runs_are_joined_and_firing_tokens_stand_alone():
    context = Context(
        tokens=(" a", " b", " c", " d", "\n"), token_ids=(1, 2, 3, 4, 5), activations=(0.0, 0.0, 4.0, -2.0, 0.0),
        peak=2, source_id="x",
    )  # fmt: skip
    views = list(token_views(context, 4.0))
    assert [view.css for view in views] == ["", "a10", "n5", ""]
    assert [view.is_peak for view in views] == [False, True, False, False]
    assert views[1].label == "c, activation 4.00"


def test_equal_neighbours_are_not_joined():
    context = Context(tokens=("a", "b"), token_ids=(1, 2), activations=(2.0, 2.0), peak=0, source_id="x")
    assert [view.label for view in token_views(context, 2.0)] == ["a, activation 2.00", "b, activation 2.00"]


# ---------------------------------------------------------------------------------------------------- figures


def test_interval_figure_keeps_order_and_cuts_at_the_axis():
    estimate = Estimate(value=0.5, low=-3.0, high=2.0, n=5)
    figure = interval_figure(estimate, start=0.0, end=1.0)
    assert (figure.low, figure.value, figure.high) == (5.0, 66.0, 127.0)
    assert figure.control is None


def test_axis_starts_below_zero_and_lower_where_needed():
    near = Estimate(value=0.1, low=-0.1, high=0.2, n=5)
    far = Estimate(value=-0.6, low=-0.8, high=-0.4, n=5)
    assert axis_start([near]) == -0.25
    assert axis_start([near, far]) == -1.0


def test_histogram_heights_are_proportional_and_small_counts_visible():
    figure = histogram_figure(Histogram(edges=(0.0, 1.0, 2.0, 3.0, 4.0), counts=(1000, 500, 1, 0)))
    heights = [bar.height for bar in figure.bars]
    assert heights == [HISTOGRAM_HEIGHT, HISTOGRAM_HEIGHT / 2, 1.5, 0.0]
    assert all(bar.y + bar.height == HISTOGRAM_HEIGHT for bar in figure.bars)


# ---------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.score(0.5), "0.50"), (numbers.score(0.9964), "0.996"), (numbers.score(0.9999), ">0.999"),
        (numbers.score(1.0), "1.00"), (numbers.score(-0.25), "−0.25"), (numbers.score(-0.001), "0.00"),
        (numbers.bound(0.9999), "1.00"), (numbers.bound(-0.004), "0.00"), (numbers.share(0.0), "0\u202f%"),
        (numbers.share(0.00004), "<0.01\u202f%"), (numbers.share(0.0024), "0.24\u202f%"),
        (numbers.share(0.031), "3.1\u202f%"),
        (numbers.share(0.42), "42\u202f%"), (numbers.share(0.9996), ">99.9\u202f%"), (numbers.share(1.0), "100\u202f%"),
        (numbers.share(-0.31), "−31\u202f%"), (numbers.count(9_999), "9999"), (numbers.count(98_304), "98\u202f304"),
        (numbers.number(0.0), "0"), (numbers.number(12.345), "12.3"), (numbers.number(-0.01234), "−0.0123"),
        (numbers.number(123456.0), "123\u202f456"), (numbers.number(1e9), "1.0e+09"),
        (numbers.number(float("nan")), "–"), (numbers.p_value(0.0001), "<0.001"),
        (numbers.p_value(0.31), "0.310"),
        (numbers.moment(datetime(2026, 11, 1, 8, 5, tzinfo=UTC)), "1 Nov 2026, 08:05 UTC"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(written: str, expected: str):
    assert written == expected


def test_heat_is_cut_to_its_scale():
    assert [numbers.heat(value) for value in (-0.5, 0.0, 0.5, 1.0, 7.0)] == [0, 0, 5, 10, 10]
