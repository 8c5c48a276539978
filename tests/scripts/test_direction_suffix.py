"""The suffix study as the command prints and draws it."""

import json
from pathlib import Path

import pytest

from safe_sail.errors import BadInput
from safe_sail.records import Estimate, HeadAttribution, SuffixStudy
from scripts.direction_suffix import draw_suffix, require_words, suffix_section

CONDITIONS = ("plain", "suffix", "random suffix")


def an_estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.1, high=value + 0.1, n=7)


def a_study() -> SuffixStudy:
    values = dict(zip(CONDITIONS, (0.6, 0.2, 0.5), strict=True))
    shares = dict.fromkeys(CONDITIONS, 0.25)
    return SuffixStudy(
        direction="x.refusal.1",
        n_suffix_tokens=3,
        cosines={name: (an_estimate(0.0), an_estimate(value)) for name, value in values.items()},
        refusal_metric={name: an_estimate(10 * value) for name, value in values.items()},
        heads=(
            HeadAttribution(
                layer=2,
                head=1,
                written={name: an_estimate(value) for name, value in values.items()},
                instruction=shares,
                suffix=shares,
            ),
        ),
    )


def test_every_condition_is_printed_with_its_curve_and_the_heads_with_where_they_look():
    section = suffix_section(a_study())
    said = "\n".join(section.lines)
    assert "3 tokens on n=7 held-out harmful prompts" in said
    assert "refusal metric +2.00 [+1.90, +2.10]  cosine by layer +0.00 +0.20" in said
    assert "head 2.1 writes plain +0.60 (instruction 0.25, suffix 0.25)" in said
    assert json.loads(json.dumps(section.plain))["refusal_metric"]["plain"]["value"] == 6


def test_the_curves_are_drawn(tmp_path: Path):
    path = draw_suffix(a_study(), tmp_path / "new")
    assert path.name == "x.refusal.1.suffix.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_blank_suffix_is_refused_before_the_search():
    require_words(None)
    require_words("so")
    for blank in ("", " \n"):
        with pytest.raises(BadInput, match="--suffix: expected a text with words"):
            require_words(blank)
