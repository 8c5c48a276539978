"""Settings of linking features to the parts of a model."""

from dataclasses import dataclass

from safe_sail.errors import BadSettings
from safe_sail.settings.checks import at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkSettings:
    """How features are linked to heads, neurons, sets of units and directions."""

    n_choose: int = 48
    """Pairs of texts of each concept that choose features and units; they are not judged."""
    n_judge: int = 48
    """Pairs of texts of each concept that judge both measures."""
    n_features: int = 2
    """Features of each concept: those with the largest rate gap on the choosing texts."""
    n_heads: int = 6
    """Heads of each feature whose cause is measured: those whose direct share differs most on the choosing texts."""
    n_neurons: int = 12
    """Neurons of each feature, chosen alike."""
    n_control_units: int = 20
    """Random units of each layer and kind among the tested ones: below 20 their 95 % quantile is the largest."""
    n_random: int = 20
    """Random sets of equal size per layer behind a circuit, and random directions behind a direction."""
    ablation: str = "mean"
    """mean or zero: what an ablated unit is set to. The mean is over choosing texts without the concept: it keeps what
    the unit says of every text, and zero would take that away too."""
    alpha: float = 0.05
    """False discovery rate of each measure."""
    batch_rows: int = 32
    """Texts in one plain forward pass."""
    pack_rows: int = 512
    """Texts times ablations in one forward pass."""

    def __post_init__(self) -> None:
        at_least(self, 2, "n_choose", "n_judge", "n_control_units", "n_random")
        at_least(self, 1, "n_features", "batch_rows", "pack_rows")
        at_least(self, 0, "n_heads", "n_neurons")
        if self.ablation not in ("mean", "zero"):
            raise BadSettings(f"LinkSettings.ablation is mean or zero; got {self.ablation}.")
        if not 0 < self.alpha < 1:
            raise BadSettings(f"LinkSettings.alpha lies between 0 and 1; got {self.alpha}.")
        if self.pack_rows < self.batch_rows:
            raise BadSettings(
                f"LinkSettings.pack_rows holds at least one batch: expected {self.batch_rows} or more, got "
                f"{self.pack_rows}."
            )
