"""The table: look-up by class name, places, and agreement with the page that says how to add a row."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers

from safe_sail.errors import BadSite, UnknownArchitecture
from safe_sail.model.architectures import ARCHITECTURES, Architecture, architecture_of
from safe_sail.sites import SiteKind

PAGE = Path(__file__).parents[3] / "docs" / "adding_an_architecture.md"


@pytest.mark.parametrize("class_name", ARCHITECTURES)
def test_every_row_names_a_class_of_transformers(class_name: str) -> None:
    assert hasattr(transformers, class_name)


def test_an_unknown_class_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownArchitecture) as refusal:
        architecture_of("BloomForCausalLM", SimpleNamespace())
    assert "`BloomForCausalLM`" in str(refusal.value)
    assert all(class_name in str(refusal.value) for class_name in ARCHITECTURES)
    assert PAGE.name in str(refusal.value)


def test_every_kind_but_the_derived_one_has_a_place() -> None:
    row = ARCHITECTURES["Gemma2ForCausalLM"]
    places = {kind: row.place(kind) for kind in SiteKind if kind is not SiteKind.RESID_MID}
    assert places[SiteKind.EMBED] == places[SiteKind.RESID_PRE] == ("", "input")
    assert places[SiteKind.HEAD_OUT] == ("self_attn.o_proj", "input")
    assert places[SiteKind.ATTN_OUT] == ("post_attention_layernorm", "output")
    with pytest.raises(BadSite, match="sum"):
        row.place(SiteKind.RESID_MID)


def test_the_page_explains_every_field_of_a_row() -> None:
    page = PAGE.read_text()
    assert [field for field in Architecture.__dataclass_fields__ if f"`{field}`" not in page] == ["class_name"]
    assert 'class_name="' in page
