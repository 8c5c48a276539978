"""Pages of comparisons, the landscape and directions: what they say against plain sums over the seed, and drawings."""

import math
import re
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np
import pytest
from fastapi.testclient import TestClient

from api.pages.charts import Point, Scale, Series, line_chart, nice_ticks
from api.pages.comparing import curves
from api.pages.directing import replies_with_controls, selection_map
from api.pages.mapping import feature_map
from db.store import FeatureGaps
from safe_sail.records import Concept, FeatureId, SaeSpecificity
from tests.api import seed_methods as methods
from tests.api.seed import BARE, BEST, CONCEPTS, SECOND, WEAK

HTML = {"accept": "text/html,application/xhtml+xml"}
REFUSAL = f"/directions/{methods.REFUSAL}"
NEURONS = f"/neurons/{methods.NEURONS}"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/compare", "Mean over 3 concepts"),
        (f"/compare?sae={BEST}&sae={WEAK}", "Specific features"),
        (f"/compare?sae={BEST}&sae={SECOND}&concept=cult", "for “cult”"),
        (f"/compare?sae={BEST}", "Choose two SAEs or more above."),
        ("/compare", "its own place"),
        ("/landscape", "specific features on a flat map"),
        (f"/landscape?sae={BEST}", "of 40 scored</span>"),
        (f"/landscape?sae={WEAK}", "No feature was scored on a concept yet."),
        ("/landscape", "terror · 3"),
        ("/directions", "one direction"),
        (REFUSAL, "Chosen and confirmed by replies: layer 1, token −1"),
        (REFUSAL, "random ablation 0.97 (0.92 to 1.02), 10 draws"),
        (REFUSAL, "words of insult"),
        (f"{REFUSAL}?show=kl", "How much its ablation changes harmless prompts"),
        (f"/directions/{methods.IN_VAIN}", "Why none was found"),
        ("/neurons", "40 for 0.90"),
        (NEURONS, "0.920 [0.870, 0.970]"),
        (NEURONS, "0.0400 [−0.0100, 0.0900]"),
        (NEURONS, "And windows of ranks alone?"),
        (NEURONS, '<th scope="row">2</th><td class="right h10">2</td>'),
        (NEURONS, '<th scope="row">0</th><td class="right h0">0</td>'),
        (NEURONS, "&lt;b&gt;replies&lt;/b&gt;"),
        (f"/directions/{methods.IN_VAIN}", "&lt;b&gt;few prompts&lt;/b&gt;"),
        (f"/directions/{methods.IN_VAIN}", "Refusals as the subspace by concepts grows"),
    ],
)
def test_pages_say_what_is_stored(client: TestClient, path: str, said: str):
    response = client.get(path, headers=HTML)
    assert response.status_code == 200
    assert said in response.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/compare?sae=nobody", 404), ("/compare?concept=nothing", 404), ("/landscape?sae=nobody", 404),
        ("/directions/nobody", 404), ("/neurons/nobody", 404), (f"{REFUSAL}?show=all", 422),
        (f"{REFUSAL}?show=kl&show=kl", 422),
        ("/compare?" + "&".join(f"sae={one}" for one in [BEST] * 51), 422),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said(client: TestClient, path: str, status: int):
    assert client.get(path, headers=HTML).status_code == status


@pytest.mark.parametrize("path", ["/compare", "/landscape", "/directions", "/features", "/neurons"])
def test_an_empty_store_says_which_command_is_next(empty_client: TestClient, path: str):
    text = empty_client.get(path, headers=HTML).text
    assert 'class="command">safe-sail ' in text


def test_a_mean_curve_is_the_mean_over_concepts_with_its_standard_errors(client: TestClient):
    text = client.get(f"/compare?sae={BEST}&sae={SECOND}", headers=HTML).text
    rows = re.findall(r'<tr><th scope="row">0\.\d+</th>(.*?)</tr>', text, re.S)
    assert len(rows) == len(methods.THRESHOLDS)
    for place, row in enumerate(rows):
        values = [counts[place] for counts in methods.COUNTS.values()]
        half = 1.96 * stdev(values) / math.sqrt(len(values))
        shown = re.search(r">([\d.]+) \[([\d.]+), ([\d.]+)\]", row)
        assert shown is not None
        expected = (fmean(values), max(fmean(values) - half, 0), fmean(values) + half)
        assert tuple(map(float, shown.groups())) == pytest.approx(expected, rel=0.01, abs=1e-3)


def test_curves_meet_on_shared_thresholds_and_one_concept_has_no_interval():
    assert curves([], "x") == []
    zero = methods.about(0.0)
    first = SaeSpecificity(
        sae="x", concept="a", n_features=8, thresholds=(0.25, 0.5), l0=(4, 2), l0_null=(1, 0), i_cdf=zero,
        i_cdf_null=zero, specific=zero, n_specific=0,
    )  # fmt: skip
    found = [first, replace(first, concept="b", thresholds=(0.5, 0.75), l0=(2, 1))]
    one = curves(found[:1], "x")
    assert [point.y for point in one[0].points] == [4.0, 2.0]
    assert one[0].points[0].low is None
    both = curves(found, "x")
    assert [(point.x, point.y) for point in both[0].points] == [(0.5, 2.0)]
    assert both[1].is_control


def test_the_landscape_counts_what_the_features_say(client: TestClient):
    text = client.get(f"/landscape?sae={BEST}", headers=HTML).text
    scores = [
        one["record"]
        for index in {3 + 4 * i if i != 1 else 7 for i in range(40)}
        for one in client.get(f"/v1/saes/{BEST}/features/{index}").json()["concept_scores"]
    ]
    for name, *_ in CONCEPTS:
        mine = [one for one in scores if one["concept"] == name]
        specific = [one for one in mine if one["rate_gap"]["value"] > 0.5 and one["q_value"] < 0.05]
        block = text[text.index(f"<b>{name}</b>") :]
        assert f'>{len(specific)} specific</a> <span class="small muted">of {len(mine)} scored' in block[:600]
        best = sorted(mine, key=lambda one: (-one["rate_gap"]["value"], one["feature"]["index"]))[:3]
        listed = re.findall(r"features/(\d+)\"", block[: block.index("</ol>")])
        assert [int(index) for index in listed] == [one["feature"]["index"] for one in best]


def test_a_map_has_the_axes_of_the_covariance_and_says_what_they_hold():
    draw = np.random.default_rng(3)
    gaps = draw.normal(size=(30, 4)) * [3.0, 2.0, 0.5, 0.1]
    concepts = [Concept(name=f"c{i}", category="x", domain=f"d{i % 2}", harmful=True) for i in range(4)]
    found = [FeatureGaps(feature=FeatureId(sae="x", index=i), gaps=tuple(row)) for i, row in enumerate(gaps.tolist())]
    drawn = feature_map(found, concepts)
    assert drawn is not None
    values, vectors = np.linalg.eigh(np.cov(gaps.T))
    assert drawn.held == pytest.approx(values[-2:].sum() / values.sum())
    for axis, place in ((vectors[:, -1], 1), (vectors[:, -2], 2)):
        correlation = np.corrcoef((gaps - gaps.mean(0)) @ axis, [spot[place] for spot in drawn.spots])[0, 1]
        assert abs(correlation) == pytest.approx(1, abs=1e-4)
    assert drawn.spots[0].concept == f"c{int(gaps[0].argmax())}"
    assert feature_map(found[:5], concepts) is None
    crowded = [
        FeatureGaps(feature=one.feature, gaps=tuple(0.9 if i == n % 12 else 0.8 for i in range(12)))
        for n, one in enumerate(found * 9)
    ]
    many = [Concept(name=f"concept {i:02d}", category="c", domain="d", harmful=True) for i in range(12)]
    packed = feature_map(crowded, many)
    assert packed is not None
    assert {place.name for place in packed.places} == {one.name for one in many}
    assert any(place.anchor for place in packed.places)
    assert len({(place.x, place.y) for place in packed.places}) == 12
    assert feature_map([found[0]] * 8, concepts) is None


def test_the_map_of_candidates_names_what_was_ruled_out():
    selection = methods.selection("raw", (-1, 1))
    found = selection_map(selection, "bypass")
    assert found.layers == [0, 1, 2]
    assert [position for position, _ in found.rows] == [-2, -1]
    last = found.rows[1][1]
    assert [cell and cell.text for cell in last] == ["–", "−1.75", "−3.25"]
    assert [cell and cell.css for cell in last] == ["", "d9", "d0"]
    assert (found.low, found.high) == (-3.25, -1.5)
    assert last[2] is not None
    assert "layer 2 is too late" in last[2].title


def test_replies_stand_beside_random_interventions_of_their_own_kind():
    pairs = [(a.intervention, b and b.intervention) for a, b in replies_with_controls(methods.evaluation())]
    assert pairs == [
        ("none", None), ("ablation", "random ablation"), ("addition", "random addition"), ("random subspace", None),
    ]  # fmt: skip


def test_a_chart_places_values_where_the_ticks_say():
    series = [Series("a", [Point(0, 0.0, -1.0, 1.0), Point(10, 4.0, 3.0, 5.0)]), Series("c", [Point(5, 2.0)], True)]
    chart = line_chart(series, x_label="x", y_label="y")
    places = {float(tick.label.replace("−", "-")): tick.place for tick in chart.y_ticks}
    assert chart.lines[0].marks[1].y == places[4]
    assert chart.lines[1].marks[0].x == pytest.approx((chart.left + chart.right) / 2)
    assert chart.lines[1].marks[0].y == places[2]
    assert [line.css for line in chart.lines] == ["s1", "control"]
    assert chart.lines[0].band.count(",") == 4
    assert chart.lines[1].band == ""


def test_counts_are_drawn_by_their_logarithm():
    chart = line_chart([Series("a", [Point(0, 0), Point(1, 9), Point(2, 99)])], x_label="", y_label="",
                       scale=Scale.LOG_COUNT)  # fmt: skip
    low, middle, high = (mark.y for mark in chart.lines[0].marks)
    assert low - middle == pytest.approx(middle - high, abs=0.2)  # log 10 each
    assert [tick.label for tick in chart.y_ticks] == ["0", "1", "3", "10", "30", "100"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.23, 0.71), (3, 12_000), (1e-7, 3e-7), (-5, -4.2)])
def test_ticks_are_round_few_and_enclose(low: float, high: float):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
    assert 2 <= len(ticks) <= 8
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    assert float(f"{steps[0]:.2g}") == pytest.approx(steps[0])


def test_a_feature_shows_its_links_with_both_measures_and_leads_to_the_direction(client: TestClient):
    text = client.get(f"/saes/{BEST}/features/3", headers=HTML).text
    block = text[text.index('id="links"') : text.index('id="runs"')]
    rows = [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", row)) for row in block.split("<tr>")[2:]]
    targets = ["L1.H2", methods.CIRCUIT, methods.REFUSAL, "refusal"]
    assert [target in row for target, row in zip(targets, rows, strict=True)] == [True] * 4  # the neuron is not linked
    assert "0.610" in rows[0]
    assert "0.560 to 0.660; random 0.110, swapped 0.0200" in rows[0]
    assert "0.305" in rows[0]
    assert "direct" in rows[0]
    assert "not measured" in rows[3]
    assert f'href="{REFUSAL}"' in block
    assert 'id="links"' not in client.get(f"/saes/{BEST}/features/11", headers=HTML).text


def test_published_features_without_scores_are_no_part_of_the_landscape(client: TestClient):
    assert BARE not in client.get("/landscape", headers=HTML).text.split("Tags that others published")[0]
