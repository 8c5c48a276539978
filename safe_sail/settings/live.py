"""What a live request is told: one prompt that somebody waits for. LIVE_KINDS is the whole table.

Prompts are data of bounded length; models, SAEs, guards and directions are named, and the server says what names mean.
"""

from dataclasses import dataclass
from typing import Literal

from safe_sail.errors import BadSettings
from safe_sail.settings.checks import at_least, within
from safe_sail.settings.offered import OfferedGuard, OfferedModel, OfferedSae

MAX_PROMPT_CHARS = 20_000
MAX_NEW_TOKENS = 512
MAX_TOKENS = 2048
"""Of a prompt and its answer together: a record of a trace grows with tokens times SAEs."""

ScaleName = Literal["maximum", "quantile_999"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceSettings:
    """How a text is traced."""

    n_top: int = 8
    """Features of each token."""
    n_strongest: int = 12
    """Features of the whole text, each with its activation on every token."""
    scale: ScaleName = "maximum"
    """What activations are divided by: the feature's largest activation that is stored, or its Q(0.999)."""
    normalise: bool | None = None
    """Order features by normalised activation, or by activation; None normalises where the SAE has stored scales."""

    def __post_init__(self) -> None:
        within(self, 1, 50, "n_top", "n_strongest")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareSettings:
    """How two texts are compared."""

    alignment: Literal["mean", "token"] = "mean"
    """mean: means over content tokens. token: equal runs of tokens, each with its counterpart, template included."""
    part: Literal["prompt", "reply"] = "prompt"
    """Whose tokens are compared."""
    n_features: int = 20
    """Features that differ most, of each SAE."""
    scale: ScaleName = "maximum"
    normalise: bool | None = None
    """As of a trace; features without a stored scale are left out of a normalised comparison."""
    n_random: int = 200
    """Random exchanges of tokens behind the control."""
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, 1, 100, "n_features")
        within(self, 20, 2000, "n_random")
        at_least(self, 0, "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class TracePromptJob:
    """What `trace-prompt` is told."""

    prompt: str
    model: OfferedModel = "aligned"
    """A variant of the embedded organism, or a model that the server offers."""
    saes: tuple[OfferedSae, ...] | None = None
    """None are those of the organism."""
    system: str | None = None
    """System prompt; none is sent unless given."""
    plain: bool = False
    """The text as it is, without the chat template."""
    max_new_tokens: int = 40
    """Tokens of the answer at most; 0 asks for none."""
    settings: TraceSettings = TraceSettings()

    def __post_init__(self) -> None:
        _require_texts(self.prompt, self.system)
        _require_no_turns(self.plain, self.system)
        _require_saes(self.saes)
        within(self, 0, MAX_NEW_TOKENS, "max_new_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparePromptsJob:
    """What `compare-prompts` is told."""

    first: str
    second: str
    model: OfferedModel = "aligned"
    """A variant of the embedded organism, or a model that the server offers."""
    saes: tuple[OfferedSae, ...] | None = None
    """None are those of the organism."""
    system: str | None = None
    """System prompt; none is sent unless given."""
    plain: bool = False
    """The texts as they are, without the chat template."""
    max_new_tokens: int = 40
    """Tokens of each answer at most; 0 asks for none."""
    settings: CompareSettings = CompareSettings()

    def __post_init__(self) -> None:
        _require_texts(self.first, self.second, self.system)
        _require_no_turns(self.plain, self.system)
        _require_saes(self.saes)
        within(self, 0, MAX_NEW_TOKENS, "max_new_tokens")
        if self.settings.part == "reply" and self.max_new_tokens == 0:
            raise BadSettings("replies are to be compared and none is asked for; max_new_tokens must be at least 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SteerPromptJob:
    """What `steer-prompt` is told: a feature of an SAE, or a direction."""

    prompt: str
    model: OfferedModel = "aligned"
    """A variant of the embedded organism, or a model that the server offers."""
    sae: OfferedSae | None = None
    """SAE of the feature."""
    feature: int | None = None
    """Feature of the SAE, counted from 0."""
    direction: str | None = None
    """Slug of a direction in the database, instead of a feature."""
    kind: Literal["add", "ablate"] = "add"
    coefficient: float = 1.0
    """Of `add`. Feature: times its largest stored activation, or in SAE units. Direction: times its own length."""
    unit: Literal["maximum", "activation"] = "maximum"
    """Of a feature's coefficient."""
    system: str | None = None
    """System prompt; none is sent unless given."""
    max_new_tokens: int = 60
    """Tokens of each answer at most."""

    def __post_init__(self) -> None:
        _require_texts(self.prompt, self.system)
        within(self, 1, MAX_NEW_TOKENS, "max_new_tokens")
        of_feature = self.sae is not None and self.feature is not None
        if of_feature == (self.direction is not None) or (self.sae is None) != (self.feature is None):
            raise BadSettings("expected `sae` and `feature`, or `direction`; got neither, both or a half.")
        if self.feature is not None:
            at_least(self, 0, "feature")
        if self.kind == "add" and not 0 < abs(self.coefficient) <= 1000:
            raise BadSettings(f"a coefficient lies within -1000 and 1000 and is not 0; got {self.coefficient}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardPromptJob:
    """What a kept guard is asked."""

    prompt: str
    guard: OfferedGuard
    model: OfferedModel | None = None
    """None is the model that the guard was trained on, where it is a variant of the organism."""
    sae: OfferedSae | None = None
    """SAE whose features the guard reads; None is the one of the organism that it names."""
    max_new_tokens: int = 60
    """Tokens of the answer at most, where the guard lets the prompt pass."""

    def __post_init__(self) -> None:
        _require_texts(self.prompt)
        within(self, 1, MAX_NEW_TOKENS, "max_new_tokens")


LIVE_KINDS: dict[str, type] = {
    "trace-prompt": TracePromptJob,
    "compare-prompts": ComparePromptsJob,
    "steer-prompt": SteerPromptJob,
    "guard-prompt": GuardPromptJob,
}
"""Kind of a live request to what it is told; `scripts/live.py` runs them all."""


def _require_no_turns(plain: bool, system: str | None) -> None:
    if plain and system is not None:
        raise BadSettings("a system prompt is a turn of a chat, and a plain text has none; leave one of them out.")


def _require_saes(saes: tuple[str, ...] | None) -> None:
    if saes is not None and not 1 <= len(saes) <= 64:
        raise BadSettings(f"a text is traced in 1 to 64 SAEs; got {len(saes)}.")


def _require_texts(*texts: str | None) -> None:
    for text in texts:
        if text is None:
            continue
        if not text.strip():
            raise BadSettings("a prompt has words; got an empty text.")
        if len(text) > MAX_PROMPT_CHARS:
            raise BadSettings(f"a prompt has at most {MAX_PROMPT_CHARS} characters; got {len(text)}.")
