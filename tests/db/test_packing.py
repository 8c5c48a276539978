"""Packed columns: any array and any text comes back; damaged bytes are found out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from db.packing import pack_array, pack_texts, to_array, unpack_array, unpack_texts
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
