"""Packed columns: any array and any text comes back; damaged bytes are found out."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import TypeAdapter

from api.schemas import encodable
from db.packing import (
    pack_array,
    pack_contexts,
    pack_texts,
    plain_json,
    to_array,
    unpack_array,
    unpack_contexts,
    unpack_texts,
)
from safe_sail.errors import BadRecord, DatabaseUnreachable
from safe_sail.records import Context

quick = settings(derandomize=True, deadline=None, database=None)


@quick
@given(arrays.arrays(st.sampled_from(["<f4", "<f8", "<i4", ">i8"]), arrays.array_shapes(min_dims=0, min_side=0)))
def test_arrays_come_back_with_type_and_shape(array: np.ndarray) -> None:
    back = unpack_array(pack_array(array))
    assert back.dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(back, array, strict=False)
    assert back.shape == array.shape


def test_the_form_of_a_packed_array_is_fixed() -> None:
    assert pack_array(np.array([[1, 2]], ">i4")).hex(" ") == (
        "3c 69 34 02 01 00 00 00 02 00 00 00 01 00 00 00 02 00 00 00"  # "<i4", 2 axes, 1 x 2, the values
    )


@quick
@given(st.lists(st.text(st.characters(exclude_categories=()))))
def test_texts_of_any_character_come_back(texts: list[str]) -> None:
    assert unpack_texts(pack_texts(texts)) == texts


awkward = st.sampled_from(['"', "\\", ",", '",', "\n", "\x00", "\ud800", "\udfff", "\ud83d\ude00", "é", "[", "]", ""])
texts = st.lists(awkward, max_size=4).map("".join) | st.text()


@st.composite
def contexts(draw: st.DrawFn) -> Context:
    tokens = draw(st.lists(texts, min_size=1, max_size=5))
    activations = [draw(st.floats(allow_nan=False, allow_infinity=False, width=32)) for _ in tokens]
    return Context(
        tokens=tuple(tokens),
        token_ids=tuple(draw(st.integers(-(2**31), 2**31 - 1)) for _ in tokens),
        activations=tuple(activations),
        peak=activations.index(max(activations)),
        source_id=draw(texts),
    )


@quick
@given(st.lists(contexts(), max_size=3))
def test_contexts_come_back_and_are_passed_on_as_pydantic_writes_them(some: list[Context]) -> None:
    packed = pack_contexts(some)
    assert unpack_contexts(packed) == tuple(some)
    assert plain_json(packed) == TypeAdapter(list[Context]).dump_json([encodable(one) for one in some])


def test_activations_are_kept_in_float32() -> None:
    one = Context(tokens=("a",), token_ids=(1,), activations=(0.1,), peak=0, source_id="d")
    assert unpack_contexts(pack_contexts([one]))[0].activations == (0.10000000149011612,)
    for wrong in ({"token_ids": (2**31,)}, {"activations": (3.5e38,)}):
        with pytest.raises(BadRecord, match="32"):
            pack_contexts([dataclasses.replace(one, **wrong)])


@pytest.mark.parametrize("data", [b"", b"[", b"[\xff]", b'[{"tokens":["a"'])
def test_what_is_not_whole_is_not_passed_on(data: bytes) -> None:
    for read in (plain_json, unpack_contexts):
        with pytest.raises(DatabaseUnreachable, match="damaged"):
            read(data)


@pytest.mark.parametrize("data", [b"1", b"[1]", b'[{"tokens":["a"]}]'])
def test_a_list_that_holds_no_contexts_is_found_out(data: bytes) -> None:
    with pytest.raises(DatabaseUnreachable, match="damaged"):
        unpack_contexts(data)


@pytest.mark.parametrize("cut", [0, 2, 3, 6, 11, 13])
def test_a_cut_array_is_found_out(cut: int) -> None:
    with pytest.raises(DatabaseUnreachable, match="damaged"):
        unpack_array(pack_array(np.array([[1, 2]], "<i4"))[:cut])


@pytest.mark.parametrize("data", [b"", b"[", b"\xff", b'["a"'])
def test_cut_texts_are_found_out(data: bytes) -> None:
    with pytest.raises(DatabaseUnreachable, match="damaged"):
        unpack_texts(data)


def test_numbers_that_do_not_fit_are_refused() -> None:
    assert to_array([], "<i4").shape == (0,)
    with pytest.raises(BadRecord, match="32 bits"):
        to_array([1, -(2**31) - 1], "<i4")
    with pytest.raises(BadRecord, match="32-bit float"):
        to_array([3.5e38], "<f4")
