"""What a judge is shown: half of each kind, no context twice, and no place, length or number that tells."""

from collections import Counter

import pytest
import torch
from sklearn.metrics import roc_auc_score

from safe_sail.features.judge_items import MARKED_SHARE, Item, balanced, items_in_turn, marked_items
from safe_sail.features.prompts import Window
from safe_sail.records import Context
from tests.feature_samples import a_context

WINDOW = Window(before=8, after=4)


def long_text(number: int, generator: torch.Generator, active: bool) -> Context:
    """Forty words; an active one fires on one to three neighbouring words, the middle one most."""
    words = [f"w{int(w)}x{number}x{place}" for place, w in enumerate(torch.randint(99, (40,), generator=generator))]
    if not active:
        return a_context(" ".join(words), None, f"s{number}")
    peak = int(torch.randint(3, 37, (1,), generator=generator))
    n = int(torch.randint(1, 4, (1,), generator=generator))
    values = {words[peak]: 9.0} | {words[peak + shift]: 4.0 for shift in range(1, n)} | {words[peak - 2]: 1.0}
    return a_context(" ".join(words), values, f"a{number}")


def contexts(seed: int, n_active: int = 14, n_silent: int = 14) -> list[Context]:
    generator = torch.Generator().manual_seed(seed)
    return [long_text(n, generator, n < n_active) for n in range(n_active + n_silent)]


def many(build, **sizes: int) -> list[Item]:
    found: list[Item] = []
    for seed in range(60):
        found += build(contexts(seed, **sizes), WINDOW, torch.Generator().manual_seed(seed))
    return found


def tells(items: list[Item], of_item) -> float:
    """How well a number of an item tells the two kinds apart: AUROC, 0.5 if not at all."""
    return float(roc_auc_score([item.fits for item in items], [of_item(item) for item in items]))


def test_half_of_the_items_fit_and_no_context_comes_twice():
    for sizes in ({"n_active": 5, "n_silent": 20}, {"n_active": 20, "n_silent": 5}):
        shown = balanced(items_in_turn(contexts(0, **sizes), WINDOW, torch.Generator()))
        assert Counter(item.fits for item in shown) == {True: 5, False: 5}
        marked = marked_items(contexts(0, **sizes), WINDOW, torch.Generator())
        n_right = 5 if sizes["n_active"] == 5 else 12
        assert Counter(item.fits for item in marked) == {True: n_right, False: n_right}
        for items in (shown, marked):
            assert len({item.context.source_id for item in items}) == len(items)


def test_near_misses_come_before_random_ones():
    given = contexts(1, 3, 10)
    shown = balanced(items_in_turn(given, WINDOW, torch.Generator()))
    assert [item.context.source_id for item in shown if not item.fits] == ["s3", "s4", "s5"]


def test_windows_are_whole_and_hold_the_peak_in_their_last_two_thirds():
    items = [item for item in many(items_in_turn) if item.fits]
    length = WINDOW.before + 1 + WINDOW.after
    assert {len(item.context.tokens) for item in items} == {length}
    assert all(item.context.peak_activation == 9.0 for item in items)

    def is_cut(item: Item) -> bool:
        """Whether text is missing on either side: elsewhere the text's end decides where the peak stands."""
        return not item.context.tokens[0].endswith("x0") and not item.context.tokens[-1].endswith("x39")

    assert {item.context.peak for item in items if is_cut(item)} == set(range(length // 3, length))


def test_right_marks_are_active_tokens_and_wrong_ones_silent():
    for item in many(marked_items):
        values = [item.context.activations[place] for place in item.marked]
        assert item.marked
        assert all(value >= MARKED_SHARE * 9.0 for value in values) if item.fits else set(values) == {0.0}


def test_wrong_marks_stand_in_active_and_in_silent_contexts():
    wrong = Counter(item.context.peak_activation > 0 for item in many(marked_items) if not item.fits)
    assert min(wrong.values()) > 0.25 * wrong.total()


@pytest.mark.parametrize(
    "of_item",
    [
        lambda item: len(item.marked),
        lambda item: min(item.marked),
        lambda item: max(item.marked),
        lambda item: len(item.context.tokens),
        lambda item: int(item.context.tokens[0].split("x")[-1]),
    ],
    ids=["number", "first", "last", "length", "start of the window"],
)
def test_nothing_about_marks_tells_but_what_they_mark(of_item):
    items = many(marked_items)
    # four standard errors of an AUROC of 0.5 with this many of each kind
    n = len(items) // 2
    assert tells(items, of_item) == pytest.approx(0.5, abs=4 * (1 / (6 * n)) ** 0.5)


def test_where_a_window_starts_does_not_tell_active_contexts_from_silent_ones():
    items = many(items_in_turn)
    n = len(items) // 2
    start = tells(items, lambda item: int(item.context.tokens[0].split("x")[-1]))
    assert start == pytest.approx(0.5, abs=4 * (1 / (6 * n)) ** 0.5)


def test_a_mark_never_stands_on_a_special_token():
    texts = [a_context(f"kill w{n} w w w w", {"kill": 5.0}, str(n)) for n in range(8)]
    silent = [
        Context(tokens=("<|begin|>", *context.tokens[1:]), token_ids=context.token_ids, activations=(0.0,) * 6, peak=0,
                source_id=f"s{n}")
        for n, context in enumerate(texts)
    ]  # fmt: skip
    assert marked_items([*texts[:1], *silent], WINDOW, torch.Generator()) == [], "the right mark stands first"


def test_without_active_contexts_there_is_nothing_to_mark():
    assert marked_items(contexts(0, 0, 6), WINDOW, torch.Generator()) == []
