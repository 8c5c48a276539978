"""Settings of every kind of job: frozen, validated, without torch, so that a server can describe them.

Each field says its unit and where its default comes from.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

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
    max_bytes: int = 2**31
    """Memory for what is kept of the texts: 4 bytes per text and feature of all SAEs. Concepts are read in blocks that
    fit, so texts that several concepts share are read once per block; one concept must fit."""

    def __post_init__(self) -> None:
        _at_least(self, 2, "n_choose", "n_judge", "n_bootstrap", "n_shuffles")
        _at_least(self, 1, "batch_size", "max_bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextSettings:
    """How contexts are collected from a corpus."""

    n_documents: int = 2000
    """Documents of the organism's corpus; about 73,000 tokens."""
    n_contexts: int = 20
    """Top contexts kept per feature; Neuronpedia and SAEBench keep as many."""
    n_random: int = 40
    """Windows drawn at random on which every feature is shown too; twice n_contexts, since half of them judge."""
    n_spread: int = 20
    """Windows drawn from those on which the feature fires, which spreads them over its quantiles; as n_contexts."""
    window: int = 96
    """Tokens in one context; the longest of 20,000 documents of the organism has 83."""
    batch_size: int = 64
    """Windows in one forward pass."""
    n_bins: int = 24
    """Bins of the activation histogram."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "n_documents", "batch_size", "n_bins")
        _at_least(self, 2, "n_contexts", "window")
        _at_least(self, 0, "n_random", "n_spread")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class LlmSettings:
    """Which language model is asked over an OpenAI-compatible endpoint, how fast, and what it may cost.

    The key is not here: settings are kept with every run, a key never is.
    """

    base_url: str
    """Up to and with the version, as in `http://127.0.0.1:8000/v1`; never taken from a request."""
    model: str
    """Name that the endpoint knows the model by."""
    max_in_flight: int = 64
    """Requests open at once at most; cut when the endpoint answers 429, then raised again."""
    timeout_s: float = 120.0
    """Whole time of one attempt, in seconds; 20 times the median answer of a 70B model to 1,000 tokens."""
    connect_timeout_s: float = 10.0
    """Seconds until the connection stands."""
    max_attempts: int = 4
    """Attempts at one request that may end in a timeout, a cut connection or a 5xx; each is counted."""
    max_rejections: int = 12
    """429 answers to one request before it fails; they cost time, not tokens."""
    max_wait_s: float = 120.0
    """Longest `retry-after` obeyed; a longer one fails the request with its reason."""
    backoff_s: float = 0.5
    """Wait before the second attempt where the endpoint names none; doubles with each."""
    requests_per_minute: int | None = None
    """Rate that the endpoint allows; None where only its 429 answers say."""
    tokens_per_minute: int | None = None
    """Prompt and completion tokens a minute, by the estimate before the request."""
    budget_tokens: int | None = None
    """Prompt and completion tokens that all requests of a run may cost; None is no limit."""
    budget_money: float | None = None
    """US dollars that all requests of a run may cost; needs a known price. None is no limit."""
    cache_path: str | None = None
    """SQLite file of earlier answers; None asks anew every time."""
    completion_field: str = "max_tokens"
    """Field that limits the answer: `max_tokens`, or `max_completion_tokens` for models that want it."""
    temperature: float | None = 0.0
    """Spread of the answers; None for models that accept no temperature."""
    allow_plain_http: bool = False
    """Whether a key may travel over http to another machine."""

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in {"http", "https"} or not url.hostname or url.username or url.query or url.fragment:
            raise BadSettings(
                "LlmSettings.base_url is http(s)://host[:port]/path without user, query or fragment; "
                f"got scheme `{url.scheme}` and host `{url.hostname}`."
            )
        if not self.model:
            raise BadSettings("LlmSettings.model is the name that the endpoint knows the model by; got an empty one.")
        _at_least(self, 1, "max_in_flight", "max_attempts", "max_rejections")
        for name in ("timeout_s", "connect_timeout_s", "max_wait_s", "backoff_s"):
            if not getattr(self, name) > 0:
                raise BadSettings(f"LlmSettings.{name} is a positive number of seconds; got {getattr(self, name)}.")
        for name in ("requests_per_minute", "tokens_per_minute", "budget_tokens", "budget_money"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BadSettings(f"LlmSettings.{name} must be above 0, or None for no limit; got {value}.")
        if self.completion_field not in {"max_tokens", "max_completion_tokens"}:
            raise BadSettings(
                "LlmSettings.completion_field is `max_tokens` or `max_completion_tokens`; "
                f"got `{self.completion_field}`."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectionSettings:
    """How a refusal direction is sought, confirmed and evaluated."""

    n_train: int = 128
    """Prompts of each class behind the means; as Arditi et al. 2024."""
    n_validation: int = 64
    """Prompts of each class that score and confirm candidates; Arditi et al. have 32, which leaves +-0.17 at 50 %."""
    n_evaluate: int = 200
    """Prompts of each class that neither made nor chose the direction."""
    estimators: tuple[str, ...] = ("raw", "projected")
    """Tried in order until a direction is confirmed: raw, projected, winsorised, standardised difference in means. Raw
    is the paper's; projected is what is left of it beside the harmless mean, docs/methods/refusal_direction.md."""
    winsor_quantile: float = 0.995
    """Winsorised: entries of an activation are clipped to this quantile of their sizes."""
    filter_prompts: bool = True
    """Keep only harmful prompts that the model refuses and harmless ones that it answers, by the refusal metric."""
    induce_above: float = 0.0
    """Filter, in logits; Arditi et al. 2024, appendix C.1."""
    kl_below: float = 0.1
    """Filter, in nats; the same source."""
    layer_share: float = 0.8
    """Filter: layers from this share of the depth on are left out; the same source."""
    score_all: bool = False
    """Score bypass and KL of candidates that already failed too: a whole table at two more passes for each."""
    n_bootstrap: int = 1000
    """Resamples behind each 95 % interval."""
    n_confirm: int = 4
    """Candidates tried by generation at most, best first."""
    max_refusal_left: float = 0.05
    """Share of harmful validation prompts that may still be refused for a direction to be confirmed."""
    max_degenerate: float = 0.05
    """Share of replies that may be broken text for an intervention to count."""
    min_refusal_induced: float = 0.95
    """Share of harmless validation prompts that the added direction should make refused."""
    max_rank: int = 8
    """Directions in a subspace at most."""
    n_random: int = 10
    """Random directions behind each control."""
    max_new_tokens: int = 40
    """Length of a reply; longer than every reply of the organism. The paper generates 512."""
    batch_rows: int = 64
    """Prompts in one forward pass."""
    pack_rows: int = 256
    """Prompts times candidates in a pass that scores candidates: its head sees the last position alone."""
    system: str | None = None
    """System prompt; None sends none, as Arditi et al. do."""

    def __post_init__(self) -> None:
        _at_least(self, 2, "n_train", "n_validation", "n_evaluate", "n_bootstrap")
        _at_least(self, 1, "n_confirm", "max_rank", "n_random", "max_new_tokens", "batch_rows", "pack_rows")
        known = {"raw", "projected", "winsorised", "standardised"}
        if not self.estimators or set(self.estimators) - known or len(set(self.estimators)) < len(self.estimators):
            raise BadSettings(
                f"DirectionSettings.estimators are some of raw, projected, winsorised and standardised, each once; got "
                f"{', '.join(self.estimators) or 'none'}."
            )
        for name in ("winsor_quantile", "layer_share"):
            if not 0 < getattr(self, name) <= 1:
                raise BadSettings(f"DirectionSettings.{name} lies above 0 and up to 1; got {getattr(self, name)}.")
        for name in ("max_refusal_left", "max_degenerate", "min_refusal_induced"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadSettings(f"DirectionSettings.{name} is a share between 0 and 1; got {getattr(self, name)}.")


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
        _at_least(self, 1, "n_active", "max_prompt_tokens", "max_reply_tokens")
        _at_least(self, 0, "n_silent", "tokens_before", "tokens_after")


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSettings:
    """How a language model judges explanations by simulating their features."""

    by_tokens: bool = False
    """Token-level simulation (Pearson) instead of segment-level (phi), which takes under half of the tokens."""
    n_contexts: int = 10
    """Contexts in one call, active and silent ones together."""
    max_calls: int = 1
    """Calls for one feature at most; further ones only while its interval is wider than `enough_width`."""
    enough_width: float = 0.4
    """Width of the interval at which a feature is judged well enough."""
    n_controls: int = 20
    """Features judged with another feature's explanation: one more call each. 20 as in the lexical baseline."""
    n_bootstrap: int = 1000
    """Resamples of contexts behind each 95 % interval."""
    tokens_before: int = 20
    """Tokens shown before the peak."""
    tokens_after: int = 8
    """Tokens shown after the peak."""
    max_prompt_tokens: int = 1500
    """The other half of a feature's 3,000; fewer contexts are shown until it fits."""
    max_reply_tokens: int = 600
    """Limit of the answer, thinking included; ten texts of eight segments take about 200."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "n_contexts", "max_calls", "max_prompt_tokens", "max_reply_tokens")
        _at_least(self, 0, "n_controls", "tokens_before", "tokens_after", "enough_width")
        _at_least(self, 2, "n_bootstrap")
