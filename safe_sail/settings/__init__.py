"""Settings of every kind of job: frozen, validated, without torch, so that a server can describe them.

Each field says its unit and where its default comes from.
"""

from safe_sail.settings.circuits import CircuitSettings
from safe_sail.settings.demo import DemoSettings
from safe_sail.settings.directions import DirectionSettings
from safe_sail.settings.explaining import ExplainSettings, JudgeSettings, LexicalSettings
from safe_sail.settings.interventions import InterventionSettings
from safe_sail.settings.links import LinkSettings
from safe_sail.settings.live import CompareSettings, TraceSettings
from safe_sail.settings.llm import LlmSettings
from safe_sail.settings.neurons import ChangePositions, GuardSettings, NeuronSettings, TextSource
from safe_sail.settings.scoring import ContextSettings, ScoreSettings
from safe_sail.settings.training import SaeRecipe, SaeTrainingSettings
from safe_sail.settings.tuning import ForgettingSettings, TuningSettings

__all__ = [
    "ChangePositions",
    "CircuitSettings",
    "CompareSettings",
    "ContextSettings",
    "DemoSettings",
    "DirectionSettings",
    "ExplainSettings",
    "ForgettingSettings",
    "GuardSettings",
    "InterventionSettings",
    "JudgeSettings",
    "LexicalSettings",
    "LinkSettings",
    "LlmSettings",
    "NeuronSettings",
    "SaeRecipe",
    "SaeTrainingSettings",
    "ScoreSettings",
    "TextSource",
    "TraceSettings",
    "TuningSettings",
]
