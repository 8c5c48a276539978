"""How safety neurons are contrasted, patched and verified, and how a guard reads them."""

from dataclasses import dataclass
from typing import Literal, get_args

from safe_sail.errors import BadSettings
from safe_sail.settings.checks import at_least

ChangePositions = Literal["predicting", "completion"]
"""Which positions a change score counts: those that predict a completion token, or those of the tokens themselves."""
TextSource = Literal["first", "second"]
"""Which model's completions both models read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuronSettings:
    """How safety neurons are ranked by their change between two models, and verified by patching."""

    n_contrast: int = 200
    """Prompts whose completions the models are contrasted on; as Chen et al. 2025."""
    n_evaluate: int = 100
    """Prompts, others than those, that measure what patching does; Chen et al. have 200."""
    positions: ChangePositions = "predicting"
    """The paper's; the published code counts the completion tokens themselves."""
    text_source: TextSource = "first"
    """As Chen et al. 2025: the completions are those of the model before alignment."""
    shares: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    """Points of the curve, as shares of all neurons, ascending; Chen et al. report 0.05."""
    counts: tuple[int, ...] = ()
    """Points of the curve as numbers of neurons, in place of the shares where any is given."""
    n_random: int = 3
    """Draws of random neurons with the same number in each layer, at every point of the curve."""
    n_windows: int = 4
    """Consecutive windows of ranks, each as wide as `window_share`, that are patched alone; 0 for none."""
    window_share: float = 0.05
    """Width of a window of ranks; as Chen et al. 2025."""
    kept_share: float = 0.05
    """Most changed neurons that the record names; all scores are kept beside it."""
    tax_share: float = 0.05
    """Most changed neurons of a safety and of a helpfulness pair whose common ones are patched across; Chen et al."""
    effect_wanted: float = 0.9
    """The smallest point with at least this causal effect is what the search reports as needed."""
    n_bootstrap: int = 1000
    """Resamples behind each 95 % interval."""
    max_new_tokens: int = 40
    """Length of a reply; longer than every reply of the organism. Chen et al. contrast 256 and score 128."""
    batch_rows: int = 64
    """Rows of the first model in one pass; the second model has as many beside them."""
    system: str | None = None
    """System prompt; None sends none."""

    def __post_init__(self) -> None:
        at_least(self, 2, "n_evaluate", "n_random", "n_bootstrap")
        at_least(self, 1, "n_contrast", "max_new_tokens", "batch_rows")
        at_least(self, 0, "n_windows")
        for name, known in (("positions", ChangePositions), ("text_source", TextSource)):
            if getattr(self, name) not in get_args(known):
                raise BadSettings(
                    f"NeuronSettings.{name} is one of {', '.join(get_args(known))}; got {getattr(self, name)}."
                )
        if not self.counts and not self.shares:
            raise BadSettings("NeuronSettings needs points of the curve: some of `shares` or of `counts`; got none.")
        for name, top in (("shares", 1.0), ("counts", float("inf"))):
            values = getattr(self, name)
            if list(values) != sorted(set(values)) or any(not 0 < value <= top for value in values):
                raise BadSettings(f"NeuronSettings.{name} ascend from above 0 up to {top:g}, each once; got {values}.")
        for name in ("window_share", "kept_share", "tax_share", "effect_wanted"):
            if not 0 < getattr(self, name) <= 1:
                raise BadSettings(f"NeuronSettings.{name} lies above 0 and up to 1; got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardSettings:
    """How a guard is trained, given a threshold and judged."""

    n_train: int = 600
    """Prompts of the probe, of all kinds together."""
    n_validation: int = 300
    """Prompts that set the threshold and choose the guard that is kept."""
    n_test: int = 600
    """Held-out prompts that judge the guards once."""
    n_neurons: tuple[int, ...] = (150,)
    """Most changed neurons that are read, one guard for each number; Chen et al. 2025 have 1500 and find 150 decent."""
    n_random: int = 5
    """Draws of random neurons of the same layers."""
    inverse_penalty: float = 1.0
    """Of the logistic regression, scikit-learn's C and its default; features are standardised."""
    max_false_refusals: float = 0.05
    """Share of validation prompts with a safe answer that may be refused at the threshold."""
    n_bootstrap: int = 1000
    """Resamples behind each 95 % interval."""
    max_new_tokens: int = 40
    """Length of the replies that are labelled and given."""
    batch_rows: int = 64
    """Prompts in one pass."""
    system: str | None = None
    """System prompt; None sends none."""

    def __post_init__(self) -> None:
        at_least(self, 2, "n_train", "n_validation", "n_test", "n_bootstrap")
        at_least(self, 1, "n_random", "max_new_tokens", "batch_rows")
        if not self.n_neurons or list(self.n_neurons) != sorted(set(self.n_neurons)) or self.n_neurons[0] < 1:
            raise BadSettings(
                f"GuardSettings.n_neurons are numbers of neurons, ascending from 1 up, each once; got {self.n_neurons}."
            )
        if not 0 <= self.max_false_refusals < 1:
            raise BadSettings(
                f"GuardSettings.max_false_refusals is a share from 0 and below 1; got {self.max_false_refusals}."
            )
        if not self.inverse_penalty > 0:
            raise BadSettings(f"GuardSettings.inverse_penalty must be positive; got {self.inverse_penalty}.")
