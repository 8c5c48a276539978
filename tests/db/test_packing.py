"""Packed columns: any array and any text comes back; damaged bytes are found out."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from db.packing import pack_array, pack_texts, split_texts, to_array, unpack_array, unpack_texts
from safe_sail.errors import BadRecord, DatabaseUnreachable

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


awkward = st.sampled_from(['"', "\\", ",", '",', '","', '\\"', "\n", "\x00", "\ud800", "\udfff", "é", "[", "]", ""])


@quick
@given(st.lists(st.lists(st.lists(awkward, max_size=4).map("".join) | st.text(), min_size=1)))
def test_texts_are_cut_into_the_lists_they_were(lists: list[list[str]]) -> None:
    packed = pack_texts([text for part in lists for text in part])
    whole = [[re.sub("[\ud800-\udfff]", "\ufffd", text) for text in part] for part in lists]
    assert [json.loads(part.decode()) for part in split_texts(packed, list(map(len, lists)))] == whole


@pytest.mark.parametrize(
    "data",
    [b"", b"[", b"[]", b"\xff", b'["a","b"', b'["a"]', b'["a","b","c"]', b'["a";"b"]', b'["a","b\n"]', b'["a","\xff"]'],
)
def test_other_texts_are_not_cut(data: bytes) -> None:
    with pytest.raises(DatabaseUnreachable, match="damaged"):
        split_texts(data, [1, 1])


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
