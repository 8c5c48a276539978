"""How features are explained and explanations judged, with and without a language model."""

from dataclasses import dataclass

from safe_sail.errors import BadSettings
from safe_sail.records import JudgeMethod
from safe_sail.settings.checks import at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class LexicalSettings:
    """How features are explained without an LLM."""

    n_words: int = 6
    """Words named in an explanation at most."""
    judged_share: float = 0.5
    """Share of a feature's contexts that the explainer never sees and that judge the explanation."""

    def __post_init__(self) -> None:
        at_least(self, 1, "n_words")
        if not 0 < self.judged_share < 1:
            raise BadSettings(f"LexicalSettings.judged_share lies between 0 and 1; got {self.judged_share}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplainSettings:
    """What a language model is shown of a feature so that it explains it."""

    n_active: int = 12
    """Contexts with an activation, spread over its levels; OpenAI, delphi and SAEBench show 5 to 40."""
    n_silent: int = 5
    """Contexts without one, for contrast; 5 as in Neuronpedia."""
    tokens_before: int = 20
    """Tokens shown before the peak; most features respond to what stands before."""
    tokens_after: int = 8
    """Tokens shown after the peak."""
    max_prompt_tokens: int = 1500
    """Half of the 3,000 prompt tokens that a feature takes by default; contexts are left out until it fits."""
    max_reply_tokens: int = 400
    """Limit of the answer, thinking included; an explanation of 40 words takes about 70. Thinking models need more."""

    def __post_init__(self) -> None:
        at_least(self, 1, "n_active", "max_prompt_tokens", "max_reply_tokens")
        at_least(self, 0, "n_silent", "tokens_before", "tokens_after")


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSettings:
    """How a language model judges explanations."""

    method: JudgeMethod = JudgeMethod.SEGMENT_SIMULATION
    """Segments take under 0.4 of the tokens of a token simulation; detection and fuzzing judge whole texts."""
    n_contexts: int = 20
    """Contexts in one call, active and silent ones together, half of each where both are kept."""
    max_calls: int = 1
    """Calls for one feature at most; further ones only while its interval is wider than `enough_width`."""
    enough_width: float = 0.4
    """Width of the interval at which a feature is judged well enough; half of it for shares, which end at 0 and 1."""
    n_controls: int = 20
    """Features judged with another feature's explanation: one more call each. 20 as in the lexical baseline."""
    n_bootstrap: int = 1000
    """Resamples of contexts behind each 95 % interval."""
    tokens_before: int = 20
    """With the next, the length of a window; its peak stands anywhere in the last two thirds of it."""
    tokens_after: int = 8
    """The rest of its length."""
    max_prompt_tokens: int = 1500
    """The other half of a feature's 3,000; fewer contexts are shown until it fits."""
    max_reply_tokens: int = 600
    """Limit of the answer, thinking included; twenty texts of eight segments take about 100."""

    def __post_init__(self) -> None:
        at_least(self, 1, "n_contexts", "max_calls", "max_prompt_tokens", "max_reply_tokens")
        at_least(self, 0, "n_controls", "tokens_before", "tokens_after", "enough_width")
        at_least(self, 2, "n_bootstrap")
