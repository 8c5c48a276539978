"""What the pages of live requests show: tokens as chips, a strip of each SAE, features with their explanations.

1. The value of a token is that of its first feature: over the feature's scale, or over the text's largest activation.
2. A chip leads to the token's features, which stand on the same page and need no script to be shown.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from api.pages.numbers import number
from api.pages.tokens import Part, step, text_parts
from safe_sail.records import (
    Context,
    DifferingFeature,
    FeatureId,
    PromptComparison,
    PromptTrace,
    SaeComparison,
    SaeTrace,
    TokenFeature,
    TracedFeature,
    TracedText,
)

Notes = Mapping[FeatureId, str]


class FeatureLine(NamedTuple):
    """One feature with its value as text and as a share of the strongest colour."""

    feature: FeatureId
    value: str
    step: int
    activation: str
    note: str | None


class Chip(NamedTuple):
    """One token: what is drawn, how strongly, where it leads, and its features."""

    place: int
    parts: list[Part]
    css: str
    label: str
    is_content: bool
    lines: list[FeatureLine]
    n_active: int


class Strip(NamedTuple):
    """One SAE: a cell of colour for each token, and its strongest feature."""

    layer: SaeTrace
    cells: list[str]
    strongest: FeatureLine | None


class Strong(NamedTuple):
    """A feature over the whole text."""

    line: FeatureLine
    context: Context
    scale: float


class Difference(NamedTuple):
    """A feature that two texts activate differently, with drawings on one axis for all."""

    feature: FeatureId
    note: str | None
    one: DifferingFeature
    bar: float
    """Difference over the largest one."""
    first: Context
    second: Context
    scale: float


def chips(text: TracedText, layer: SaeTrace, notes: Notes) -> list[Chip]:
    """Chips of all tokens in order."""
    scale = text_scale(text, layer)
    found = []
    for place, (token, row) in enumerate(zip(text.tokens, layer.top, strict=True)):
        lines = [_line(layer, one, scale, notes) for one in row]
        first = row[0] if row else None
        said = "no feature" if first is None else f"feature {first.index}, {lines[0].value}"
        is_content = text.is_content[place]
        css = f"{'a' if first.activation > 0 else 'n'}{lines[0].step}" if first is not None and is_content else ""
        shown = list(text_parts(token)) or [Part("mark", "∅")]
        found.append(Chip(place, shown, css, f"token {place + 1}, {said}", is_content, lines, layer.n_active[place]))
    return found


def strips(trace: PromptTrace, notes: Notes) -> list[Strip]:
    """A strip of every SAE, in the order of the layers; special tokens have no colour."""
    found = []
    for layer in trace.layers:
        scale = text_scale(trace.text, layer)
        cells = [
            f"a{_step(row[0], scale)}" if row and is_content and row[0].activation > 0 else "a0"
            for row, is_content in zip(layer.top, trace.text.is_content, strict=True)
        ]
        strongest = None
        if layer.strongest:
            strongest = _line(layer, _peak(trace.text, layer.strongest[0]), scale, notes)
        found.append(Strip(layer, cells, strongest))
    return found


def strong_features(text: TracedText, layer: SaeTrace, notes: Notes) -> list[Strong]:
    """The features of the whole text, each with its tokens."""
    scale = text_scale(text, layer)
    return [
        Strong(
            _line(layer, _peak(text, one), scale, notes),
            _context(text, one.activations),
            one.scale if one.scale is not None and layer.is_normalised else scale,
        )
        for one in layer.strongest
    ]


def differences(comparison: PromptComparison, layer: SaeComparison, notes: Notes) -> list[Difference]:
    """Lines of the table of features that differ, in its order."""
    largest = max((abs(one.difference) for one in layer.features), default=1.0)
    found = []
    for one in layer.features:
        feature = FeatureId(sae=layer.sae, index=one.index)
        shown = (
            *_on_content(comparison.first, one.first_activations),
            *_on_content(comparison.second, one.second_activations),
        )
        peak = max(map(abs, shown))
        found.append(
            Difference(
                feature, notes.get(feature), one, one.difference / largest,
                _context(comparison.first, one.first_activations), _context(comparison.second, one.second_activations),
                one.scale if one.scale is not None and layer.is_normalised else peak,
            )
        )  # fmt: skip
    return found


def text_scale(text: TracedText, layer: SaeTrace) -> float:
    """What the strongest colour stands for: 1 where values are normalised, else the largest on a content token."""
    if layer.is_normalised:
        return 1.0
    rows = (row for row, is_content in zip(layer.top, text.is_content, strict=True) if row and is_content)
    return max((abs(row[0].activation) for row in rows), default=1.0)


def chosen_layer(layers: Sequence[SaeTrace | SaeComparison], sae: str | None) -> SaeTrace | SaeComparison | None:
    """The layer of the named SAE; the first where none is named; None where there is no such SAE."""
    return next((one for one in layers if sae in (None, one.sae)), None)


def _peak(text: TracedText, one: TracedFeature) -> TokenFeature:
    """The feature on the content token where it is largest."""
    activation = max(_on_content(text, one.activations))
    normalised = None if one.scale is None else activation / one.scale
    return TokenFeature(index=one.index, activation=activation, normalised=normalised)


def _on_content(text: TracedText, activations: tuple[float, ...]) -> tuple[float, ...]:
    """Activations with zeros at special tokens, whose values are far from all others' and would outshine them."""
    return tuple(value if is_content else 0.0 for value, is_content in zip(activations, text.is_content, strict=True))


def _line(layer: SaeTrace, one: TokenFeature, scale: float, notes: Notes) -> FeatureLine:
    feature = FeatureId(sae=layer.sae, index=one.index)
    is_ratio = layer.is_normalised and one.normalised is not None
    value = f"{number(one.normalised)} of its {_WORDS[layer.scale]}" if is_ratio and one.normalised is not None else (
        f"{number(one.activation)}, no stored scale" if layer.is_normalised else number(one.activation)
    )  # fmt: skip
    return FeatureLine(feature, value, _step(one, scale), number(one.activation), notes.get(feature))


_WORDS = {"maximum": "maximum", "quantile_999": "Q(0.999)"}


def _step(one: TokenFeature, scale: float) -> int:
    """Colour step; a feature without a scale beside scaled ones is drawn faintly: nobody knows how strong it is."""
    if one.activation == 0:
        return 0
    if scale == 1.0 and one.normalised is None:
        return 1
    return step(one.activation if one.normalised is None or scale != 1.0 else one.normalised, scale)


def _context(text: TracedText, activations: tuple[float, ...]) -> Context:
    shown = _on_content(text, activations)
    return Context(
        tokens=text.tokens,
        token_ids=text.token_ids,
        activations=shown,
        peak=shown.index(max(shown)),
        source_id="prompt",
    )
