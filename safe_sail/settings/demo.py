"""What the demo does."""

from dataclasses import dataclass

from safe_sail.settings.checks import at_least
from safe_sail.settings.explaining import LexicalSettings
from safe_sail.settings.scoring import ContextSettings, ScoreSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSettings:
    """What the demo does: the main job on the embedded model organism."""

    score: ScoreSettings = ScoreSettings()  # noqa: RUF009 - frozen
    contexts: ContextSettings = ContextSettings()  # noqa: RUF009 - frozen
    lexical: LexicalSettings = LexicalSettings()  # noqa: RUF009 - frozen
    n_features: int = 40
    """Features explained per SAE: the best of each concept first, then the next best."""

    def __post_init__(self) -> None:
        at_least(self, 1, "n_features")
