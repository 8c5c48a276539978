"""Settings of every kind of job: frozen, validated, without torch, so that a server can describe them.

Each field says its unit and where its default comes from.
"""

from dataclasses import dataclass

from safe_sail.errors import BadSettings


def _at_least(settings: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value < least:
            raise BadSettings(f"{type(settings).__name__}.{name} must be at least {least}; got {value}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSettings:
    """How SAEs are scored on concepts."""

    n_choose: int = 64
    """Texts of each class, per concept, that choose the best feature. 64 as in Arditi et al.'s validation sets."""
    n_judge: int = 64
    """Texts of each class, per concept, that judge it; none of them chose."""
    n_bootstrap: int = 1000
    """Resamples behind each 95 % interval; below 1,000 its ends move by more than a hundredth between seeds."""
    n_shuffles: int = 20
    """Label shuffles behind the control."""
    batch_size: int = 64
    """Texts in one forward pass."""

    def __post_init__(self) -> None:
        _at_least(self, 2, "n_choose", "n_judge", "n_bootstrap", "n_shuffles")
        _at_least(self, 1, "batch_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextSettings:
    """How contexts are collected from a corpus."""

    n_documents: int = 2000
    """Documents of the organism's corpus; about 100,000 tokens, see docs/organism.md."""
    n_contexts: int = 20
    """Top contexts kept per feature; Neuronpedia and SAEBench keep as many."""
    window: int = 64
    """Tokens in one context; the longest document of the organism has fewer."""
    batch_size: int = 64
    """Windows in one forward pass."""
    n_bins: int = 24
    """Bins of the activation histogram."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "n_documents", "batch_size", "n_bins")
        _at_least(self, 2, "n_contexts", "window")


@dataclass(frozen=True, kw_only=True, slots=True)
class LexicalSettings:
    """How features are explained without an LLM."""

    n_words: int = 6
    """Words named in an explanation at most."""
    judged_share: float = 0.5
    """Share of a feature's contexts that the explainer never sees and that judge the explanation."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "n_words")
        if not 0 < self.judged_share < 1:
            raise BadSettings(f"LexicalSettings.judged_share lies between 0 and 1; got {self.judged_share}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSettings:
    """What the demo does: the main job on the embedded model organism."""

    score: ScoreSettings = ScoreSettings()
    contexts: ContextSettings = ContextSettings()
    lexical: LexicalSettings = LexicalSettings()
    n_features: int = 40
    """Features explained per SAE: the best of each concept first, then the next best."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "n_features")
