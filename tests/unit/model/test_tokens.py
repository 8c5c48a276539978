"""Batches: padding, positions, masks, refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safe_sail.errors import BadText, SequenceTooLong
from safe_sail.model.tokens import (
    PaddingSide,
    TokenBatch,
    batch_of_ids,
    batch_of_texts,
    content_mask,
    pad_id_of,
    special_ids,
)
from tests.tiny import TEXTS, tiny_tokenizer

rows_of_ids = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=5)


def batch(rows: list[list[int]], side: PaddingSide = "left") -> TokenBatch:
    return batch_of_ids(rows, pad_id=0, padding_side=side, max_positions=16)


@given(rows_of_ids, st.sampled_from(["left", "right"]))
def test_rows_come_back_and_positions_count_their_own_tokens(rows: list[list[int]], side: PaddingSide) -> None:
    made = batch(rows, side)
    assert len(made) == len(rows)
    assert made.lengths.tolist() == [len(row) for row in rows]
    for index, row in enumerate(rows):
        real = made.is_real[index]
        assert made.token_ids[index, real].tolist() == row
        assert made.position_ids[index, real].tolist() == list(range(len(row)))
        assert made.token_ids[index, made.last_real[index]] == row[-1]
        assert not made.token_ids[index, ~real].any()
    assert (made.position_ids >= 0).all()
    assert made.source_ids == tuple(map(str, range(len(rows))))


@given(rows_of_ids)
def test_left_padding_is_reached_from_either_side(rows: list[list[int]]) -> None:
    left, right = batch(rows, "left"), batch(rows, "right")
    moved = right.left_padded()
    assert torch.equal(moved.token_ids, left.token_ids)
    assert torch.equal(moved.attention_mask, left.attention_mask)
    assert left.left_padded() is left


def test_an_extra_column_of_padding_on_both_sides_is_moved_too() -> None:
    made = TokenBatch(torch.tensor([[0, 5, 6, 0]]), torch.tensor([[0, 1, 1, 0]]), ("a",))
    assert made.last_real.tolist() == [2]
    assert made.left_padded().attention_mask.tolist() == [[0, 0, 1, 1]]
    assert made.left_padded().token_ids.tolist() == [[0, 0, 5, 6]]


@pytest.mark.parametrize(
    ("ids", "mask", "sources", "words"),
    [
        ([1, 2], [1, 1], ("a",), "shape"),
        ([[1, 2]], [[1, 1, 1]], ("a",), "shape"),
        ([[1, 2]], [[1, 1]], ("a", "b"), "source ids"),
        ([[1, 2], [3, 4]], [[1, 1], [0, 0]], ("a", "b"), "real token"),
        ([[1, 2, 3]], [[1, 0, 1]], ("a",), "between"),
        ([[1, 2, 3], [1, 2, 3]], [[0, 1, 1], [1, 0, 1]], ("a", "b"), "between"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused(ids: list[int], mask: list[int], sources: tuple[str], words: str):
    with pytest.raises(BadText, match=words):
        TokenBatch(torch.tensor(ids), torch.tensor(mask), sources)


def test_texts_become_batches_with_special_tokens_unless_turned_off() -> None:
    tokenizer = tiny_tokenizer()
    made = batch_of_texts(tokenizer, TEXTS, padding_side="right", max_positions=64, source_ids=["x", "y", "z"])
    assert (made.token_ids[:, 0] == tokenizer.bos_token_id).all()
    assert made.source_ids == ("x", "y", "z")
    for index, text in enumerate(TEXTS):
        assert tokenizer.decode(made.token_ids[index, made.is_real[index]][1:]) == text
    plain = batch_of_texts(tokenizer, TEXTS, padding_side="left", max_positions=64, add_special_tokens=False)
    assert torch.equal(plain.lengths, made.lengths - 1)


def test_content_is_neither_padding_nor_special() -> None:
    tokenizer = tiny_tokenizer()
    made = batch_of_texts(
        tokenizer, ["<|user|>hello there<|end|></s>", "a"], padding_side="left", max_positions=64
    )  # fmt: skip
    mask = content_mask(made, tokenizer)
    kept = [tokenizer.decode(made.token_ids[row, mask[row]]) for row in range(2)]
    assert kept == ["hello there", "a"]
    assert set(range(8)) <= special_ids(tokenizer)


@pytest.mark.parametrize("texts", [[], [""], ["fine", ""], ["</s>"], ["<|end|><|user|>"], ["fine", 7], "one str"])
def test_texts_without_content_are_refused(texts: list[str]) -> None:
    with pytest.raises(BadText):
        batch_of_texts(tiny_tokenizer(), texts, padding_side="left", max_positions=64)


def test_a_text_beyond_the_models_positions_is_refused_with_its_length() -> None:
    with pytest.raises(SequenceTooLong, match=r"text 1 has 17 tokens, the model accepts 16"):
        batch([[1], [2] * 17])
    text = "word " * 200
    with pytest.raises(SequenceTooLong, match="accepts 64"):
        batch_of_texts(tiny_tokenizer(), [text], padding_side="left", max_positions=64)


def test_a_tokenizer_without_padding_and_end_is_refused() -> None:
    class Bare:
        pad_token_id = None
        eos_token_id = None

    with pytest.raises(BadText, match="pad_token"):
        pad_id_of(Bare())


def test_a_mask_of_truth_values_serves_as_well() -> None:
    made = TokenBatch(torch.tensor([[0, 5, 6], [7, 8, 9]]), torch.tensor([[False, True, True], [True] * 3]), ("a", "b"))
    assert made.lengths.tolist() == [2, 3]
    assert made.last_real.tolist() == [2, 2]
    assert made.position_ids.tolist() == [[0, 0, 1], [0, 1, 2]]
