"""An explainer and a simulator that need no language model: which words a feature fires on, and what that predicts.

1. Tokens are put back together into words; a word's activation is the largest of its tokens'.
2. Words are chosen one after another, each explaining most of what the chosen ones leave unexplained. A word explains
   the activation at its own place ("fires on") or at the next word ("fires after").
3. The simulator predicts, at every word of another text, the largest activation that a chosen word stands for.
4. Prediction and truth are compared by Pearson correlation: over tokens, or over short segments (the phi coefficient).

What is found this way is a list of words, not a meaning: the explainer is the embedded default and the baseline that a
language model's explanation has to beat.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from safe_sail.errors import BadInput

EXPLAINER: Final = "lexical"
"""Explainer id of every explanation made here."""

VERSION: Final = "2"
"""Changes whenever the rule that writes the text, or that says which contexts may explain, changes."""

SEGMENT_WORDS: Final = 4
"""Words in one segment; segments in the figures of arXiv 2509.18127 are about four words long."""

_LEAST_GAIN: Final = 0.02
"""A word must explain this share of the squared activation to be named; below it lists grow by chance words."""

_WORD: Final = re.compile(
    r"<\|[^|>]*\|>|</?[A-Za-z_]+>"  # special tokens
    r"|[\u3040-\u30ff\u3400-\u9fff]"  # kana and Chinese characters, one by one: no spaces stand between words
    r"|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’-][^\W\u3040-\u30ff\u3400-\u9fff]+)*"
    r"|[^\w\s]"
)

Relation = Literal["on", "after"]


class Word(NamedTuple):
    """One word of a text."""

    text: str
    """In lower case."""
    activation: float
    """Largest activation of the tokens it is made of."""
    tokens: tuple[int, ...]
    """Which tokens those are, counted from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalCue:
    """One word that an explanation names."""

    word: str
    relation: Relation
    """on: the feature fires on the word; after: on the word that follows it."""
    activation: float
    """Activation that it predicts: the mean where it occurs, with one silent occurrence added."""
    precision: float
    """Share of its occurrences at which the feature fires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalExplanation:
    """Which words a feature fires on."""

    cues: tuple[LexicalCue, ...]
    """In the order in which they were chosen."""
    share: float
    """Share of the activation mass of the contexts that stands where the cues say."""
    n_contexts: int
    """Contexts it was made from."""

    @property
    def text(self) -> str:
        """The explanation as a sentence."""
        parts = []
        for relation in ("on", "after"):
            named = [f'"{cue.word}"' for cue in self.cues if cue.relation == relation]
            if named:
                parts.append(f"{relation} {', '.join(named)}")
        return f"fires {' and '.join(parts)} ({self.share:.0%} of the activation mass, n={self.n_contexts} contexts)"


# 1. words


def words_of(tokens: Sequence[str], activations: Sequence[float] | None = None) -> list[Word]:
    """Words of a text given token by token; white space and the usual marks for it (`Ġ`, `▁`) separate words.

    Raises:
        BadInput: there are not as many activations as tokens.
    """
    values = [0.0] * len(tokens) if activations is None else list(activations)
    if len(values) != len(tokens):
        raise BadInput(f"expected one activation per token; got {len(values)} for {len(tokens)} tokens.")
    pieces = [token.replace("Ġ", " ").replace("▁", " ") for token in tokens]
    token_at = [index for index, piece in enumerate(pieces) for _ in piece]
    # a token without text is the start of a character that its successor completes
    waiting: dict[int, list[int]] = defaultdict(list)
    offset = 0
    for index, piece in enumerate(pieces):
        if not piece:
            waiting[offset].append(index)
        offset += len(piece)
    found = []
    for match in _WORD.finditer("".join(pieces)):
        parts = {token_at[place] for place in range(*match.span())}
        parts.update(index for place in range(*match.span()) for index in waiting.get(place, ()))
        found.append(Word(match[0].lower(), max(values[part] for part in parts), tuple(sorted(parts))))
    return found


# 2. choose words


def explain(contexts: Sequence[Sequence[Word]], *, n_words: int = 6) -> LexicalExplanation:
    """The words that predict a feature's activation best on these contexts; silent contexts may be among them.

    Step by step the cue is chosen that lowers the squared error of the prediction most: with activations a at the n
    places it newly covers, by (sum a)^2 / (n + 1), the 1 being a silent occurrence added against chance words. Ties:
    `on` before `after`, then the alphabet.

    Raises:
        BadInput: the feature is positive in none of the contexts.
    """
    places = _places_by_cue(contexts)
    activation = {(c, t): max(word.activation, 0.0) for c, words in enumerate(contexts) for t, word in enumerate(words)}
    mass = math.fsum(activation.values())
    if mass == 0:
        raise BadInput(f"an explanation needs a context in which the feature fires; it is silent in {len(contexts)}.")
    least = _LEAST_GAIN * math.fsum(a * a for a in activation.values())
    covered: set[tuple[int, int]] = set()
    cues: list[LexicalCue] = []
    while len(cues) < n_words:
        gain, relation, word = min(
            ((-_gain(at - covered, activation), relation, word) for (relation, word), at in places.items()),
            key=lambda candidate: (candidate[0], candidate[1] != "on", candidate[2]),
        )
        if -gain < least and cues:
            break
        at = places.pop((relation, word))
        total, fires = math.fsum(activation[p] for p in at), sum(activation[p] > 0 for p in at)
        cues.append(
            LexicalCue(word=word, relation=relation, activation=total / (len(at) + 1), precision=fires / len(at))
        )
        covered |= at
        if not places:
            break
    share = math.fsum(activation[place] for place in covered) / mass
    return LexicalExplanation(cues=tuple(cues), share=share, n_contexts=len(contexts))


def _places_by_cue(contexts: Sequence[Sequence[Word]]) -> dict[tuple[Relation, str], set[tuple[int, int]]]:
    """Where each cue predicts an activation: (context, word) places."""
    places: dict[tuple[Relation, str], set[tuple[int, int]]] = defaultdict(set)
    for c, words in enumerate(contexts):
        for t, word in enumerate(words):
            places["on", word.text].add((c, t))
            if t + 1 < len(words):
                places["after", word.text].add((c, t + 1))
    return dict(places)


def _gain(at: set[tuple[int, int]], activation: Mapping[tuple[int, int], float]) -> float:
    return math.fsum(activation[place] for place in at) ** 2 / (len(at) + 1)


# 3. simulate


def predict_tokens(explanation: LexicalExplanation, tokens: Sequence[str]) -> list[float]:
    """Activation that the explanation predicts on each token."""
    return predict_on(explanation, words_of(tokens), len(tokens))


def predict_on(explanation: LexicalExplanation, words: Sequence[Word], n_tokens: int) -> list[float]:
    """The same for a text whose words are known: many explanations of one text find them once."""
    predicted = [0.0] * n_tokens
    for word, cues in zip(words, _cues_at(explanation, words), strict=True):
        value = max((cue.activation for cue in cues), default=0.0)
        for token in word.tokens:
            predicted[token] = max(predicted[token], value)
    return predicted


def predict_segments(explanation: LexicalExplanation, tokens: Sequence[str]) -> list[bool]:
    """Whether the feature is predicted to fire in each segment: a cue is there that is right more often than not."""
    words = words_of(tokens)
    fires = [any(cue.precision > 0.5 for cue in cues) for cues in _cues_at(explanation, words)]
    return [any(fires[start : start + SEGMENT_WORDS]) for start in range(0, len(fires), SEGMENT_WORDS)]


def true_segments(tokens: Sequence[str], activations: Sequence[float]) -> list[bool]:
    """Whether the feature fires in each segment of `SEGMENT_WORDS` words; the last one may be shorter."""
    fires = [word.activation > 0 for word in words_of(tokens, activations)]
    return [any(fires[start : start + SEGMENT_WORDS]) for start in range(0, len(fires), SEGMENT_WORDS)]


def _cues_at(explanation: LexicalExplanation, words: Sequence[Word]) -> list[list[LexicalCue]]:
    by_key: dict[tuple[Relation, str], LexicalCue] = {(cue.relation, cue.word): cue for cue in explanation.cues}
    found = []
    for t, word in enumerate(words):
        keys: list[tuple[Relation, str]] = [("on", word.text)]
        if t > 0:
            keys.append(("after", words[t - 1].text))
        found.append([by_key[key] for key in keys if key in by_key])
    return found


# 4. compare


def pearson(truth: Sequence[float], predicted: Sequence[float]) -> float | None:
    """Pearson correlation, of 0/1 values the phi coefficient; None where one side is constant.

    Raises:
        BadInput: the two sides differ in length.
    """
    if len(truth) != len(predicted):
        raise BadInput(f"expected as many predictions as values; got {len(predicted)} for {len(truth)}.")
    if not truth or min(truth) == max(truth) or min(predicted) == max(predicted):
        return None
    n = len(truth)
    mean_t, mean_p = math.fsum(truth) / n, math.fsum(predicted) / n
    covariance = math.fsum((t - mean_t) * (p - mean_p) for t, p in zip(truth, predicted, strict=True))
    spread = math.fsum((t - mean_t) ** 2 for t in truth) * math.fsum((p - mean_p) ** 2 for p in predicted)
    return max(-1.0, min(1.0, covariance / math.sqrt(spread)))


def token_score(explanation: LexicalExplanation, tokens: Sequence[str], activations: Sequence[float]) -> float | None:
    """Correlation over the tokens of one context; None where truth or prediction is constant."""
    return pearson(activations, predict_tokens(explanation, tokens))


def segment_score(explanation: LexicalExplanation, tokens: Sequence[str], activations: Sequence[float]) -> float | None:
    """Phi coefficient over the segments of one context; None where truth or prediction is constant."""
    return pearson(true_segments(tokens, activations), predict_segments(explanation, tokens))
