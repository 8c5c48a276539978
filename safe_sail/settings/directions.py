"""How a refusal direction is sought, confirmed and evaluated."""

from dataclasses import dataclass

from safe_sail.errors import BadSettings
from safe_sail.settings.checks import at_least


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
        at_least(self, 2, "n_train", "n_validation", "n_evaluate", "n_bootstrap")
        at_least(self, 1, "n_confirm", "max_rank", "n_random", "max_new_tokens", "batch_rows", "pack_rows")
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
