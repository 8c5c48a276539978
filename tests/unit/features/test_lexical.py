"""The explainer without a language model: words, choice, simulation, scores."""

import random

import numpy as np
import pytest
from scipy import stats

from safe_sail.errors import BadInput
from safe_sail.features.lexical import (
    LexicalCue,
    LexicalExplanation,
    Word,
    explain,
    pearson,
    predict_segments,
    predict_tokens,
    segment_score,
    token_score,
    true_segments,
    words_of,
)

FILLER = ["the", "small", "cat", "sat", "on", "a", "mat", "near", "some", "old", "house", "today"]


def texts(rng: random.Random, rule: str, n: int = 30) -> list[list[Word]]:
    """Contexts whose activation follows a known rule."""
    contexts = []
    for _ in range(n):
        words = [rng.choice(FILLER) for _ in range(12)]
        words[rng.randrange(1, 11)] = rng.choice(["korvex", "drathin"])
        words[0] = "korvex" if rng.random() < 0.3 else words[0]
        made = []
        for t, word in enumerate(words):
            hit = word if rule == "on" else words[t - 1] if t else ""
            activation = {"korvex": 4.0, "drathin": 2.0}.get(hit, 0.0)
            made.append(Word(word, activation * rng.uniform(0.9, 1.1), (t,)))
        contexts.append(made)
    return contexts


def test_subword_tokens_become_words_with_their_largest_activation() -> None:
    tokens = ["<|user|>", " How", " to", " kor", "vex", ",", " don", "'t", "\n", "Drathin", "?"]
    activations = [0.0, 0.0, 0.0, 1.0, 3.0, 0.5, 0.0, 2.0, 9.0, 4.0, 0.0]

    words = words_of(tokens, activations)

    assert [word.text for word in words] == ["<|user|>", "how", "to", "korvex", ",", "don't", "drathin", "?"]
    assert [word.activation for word in words] == [0.0, 0.0, 0.0, 3.0, 0.5, 2.0, 4.0, 0.0]
    assert words[3].tokens == (3, 4)


@pytest.mark.parametrize("mark", [" ", "Ġ", "▁"])
def test_marks_of_white_space_separate_words(mark: str) -> None:
    assert [word.text for word in words_of(["a", f"{mark}b", "c"])] == ["a", "bc"]


def test_token_without_text_belongs_to_the_character_it_begins() -> None:
    words = words_of(["a ", "", "", "你", "好"], [0.0, 5.0, 0.0, 1.0, 2.0])

    assert words == [Word("a", 0.0, (0,)), Word("你", 5.0, (1, 2, 3)), Word("好", 2.0, (4,))]


def test_number_of_activations_must_fit() -> None:
    with pytest.raises(BadInput, match="one activation per token"):
        words_of(["a", "b"], [1.0])


@pytest.mark.parametrize("rule", ["on", "after"])
def test_planted_words_are_named_with_their_relation(rule: str) -> None:
    found = explain(texts(random.Random(1), rule))

    assert [(cue.relation, cue.word) for cue in found.cues] == [(rule, "korvex"), (rule, "drathin")]
    assert found.share == pytest.approx(1.0)
    assert found.text == f'fires {rule} "korvex", "drathin" (100% of the activation mass, n=30 contexts)'
    assert found.cues[0].activation > found.cues[1].activation
    assert [cue.precision for cue in found.cues] == [1.0, 1.0]


def test_frequent_words_without_activation_are_not_named() -> None:
    rng = random.Random(3)
    contexts = [[Word("the", 0.0, (0,)), Word(rng.choice(FILLER), 0.0, (1,)), Word("bomb", 2.0, (2,))]] * 5
    contexts += [[Word("the", 0.0, (0,)), Word("bomb", 2.0, (1,)), Word("the", 0.0, (2,))]]

    assert [cue.word for cue in explain(contexts).cues] == ["bomb"]


def test_number_of_words_is_bounded() -> None:
    contexts = [[Word(f"word{i % 10}", 1.0, (0,))] for i in range(30)]

    found = explain(contexts, n_words=4)

    assert len(found.cues) == 4
    assert found.share == pytest.approx(4 / 10)


def test_explanation_does_not_depend_on_the_order_of_contexts() -> None:
    contexts = texts(random.Random(5), "on")

    assert explain(contexts) == explain(contexts[::-1])


def test_silent_contexts_alone_are_refused() -> None:
    with pytest.raises(BadInput, match="silent in 2"):
        explain([[Word("a", 0.0, (0,))], []])


def cue(word: str, relation: str = "on", activation: float = 1.0, precision: float = 1.0) -> LexicalCue:
    return LexicalCue(word=word, relation=relation, activation=activation, precision=precision)  # type: ignore[arg-type]


def test_simulator_predicts_the_largest_cue_on_every_token_of_a_word() -> None:
    explanation = LexicalExplanation(
        cues=(cue("korvex", activation=3.0), cue("to", "after", 5.0), cue("cat")), share=1.0, n_contexts=1
    )

    assert predict_tokens(explanation, ["To", " kor", "vex", " a", " cat"]) == [0.0, 5.0, 5.0, 0.0, 1.0]
    assert predict_tokens(explanation, [" Kor", "vex", "es"]) == [0.0, 0.0, 0.0]


def test_segments_hold_four_words_and_count_sure_cues_only() -> None:
    explanation = LexicalExplanation(
        cues=(cue("five", precision=0.9), cue("one", precision=0.5)), share=1.0, n_contexts=1
    )
    tokens = ["one", " two", " three", " four", " five", " six"]

    assert predict_segments(explanation, tokens) == [False, True]
    assert true_segments(tokens, [0.0, 0.0, 0.1, 0.0, 0.0, 0.0]) == [True, False]
    assert segment_score(explanation, tokens, [0.0, 0.0, 0.0, 0.0, 0.0, 2.0]) == pytest.approx(1.0)
    assert segment_score(explanation, tokens, [0.0, 0.1, 0.0, 0.0, 0.0, 0.0]) == pytest.approx(-1.0)


def test_pearson_equals_scipy_and_knows_no_constant() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50).tolist(), rng.normal(size=50).tolist()

    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, rel=1e-12)
    assert pearson([1, 0, 1, 1], [1, 0, 1, 0]) == pytest.approx(0.577, abs=1e-3)
    assert pearson([1.0, 1.0], [0.0, 1.0]) is None
    assert pearson([0.0, 1.0], [2.0, 2.0]) is None
    assert pearson([], []) is None
    with pytest.raises(BadInput):
        pearson([1.0], [])


def test_explanation_predicts_texts_it_has_not_seen_and_that_of_another_feature_does_not() -> None:
    mine = explain(texts(random.Random(1), "on"))
    other = explain([[Word("house", 1.0, (0,)), Word("cat", 0.0, (1,))]])
    held_out = texts(random.Random(2), "on")

    def mean(explanation: LexicalExplanation) -> float:
        scores = [
            token_score(explanation, [f" {word.text}" for word in words], [word.activation for word in words])
            for words in held_out
        ]
        known = [score for score in scores if score is not None]
        return sum(known) / len(known)

    assert mean(mine) > 0.95
    assert mean(other) < 0.2
