"""What a job of each kind is told. A kind is a command's name; JOB_KINDS is the whole table.

What a job may name is marked in the types, `safe_sail.settings.offered`.
"""

from dataclasses import dataclass

from safe_sail.settings.checks import at_least
from safe_sail.settings.demo import DemoSettings
from safe_sail.settings.directions import DirectionSettings
from safe_sail.settings.explaining import ExplainSettings, JudgeSettings
from safe_sail.settings.method_jobs import (
    FindCircuitJob,
    FindSafetyNeuronsJob,
    GuardJob,
    InterveneFeaturesJob,
    LinkFeaturesJob,
    TrainSaesJob,
    TuneCircuitJob,
    WritePairsJob,
)
from safe_sail.settings.offered import OfferedFile, OfferedLlm, OfferedModel, OfferedSae
from safe_sail.settings.scoring import ContextSettings, ScoreSettings

_N_FEATURES = DemoSettings().n_features


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSaesJob:
    """What `score-saes` is told."""

    model: OfferedModel | None = None
    """None is the embedded organism."""
    saes: tuple[OfferedSae, ...] | None = None
    """None are the organism's."""
    concepts: tuple[OfferedFile, ...] | None = None
    """Files of labelled texts, .jsonl or .csv; None are the organism's."""
    taxonomy: OfferedFile | None = None
    """YAML or JSON of domains, categories and concepts."""
    corpus: OfferedFile | None = None
    """Texts on which reconstruction is measured; the organism has its own."""
    text_field: str = "text"
    """Where .jsonl and .parquet files hold the text."""
    plain: bool = False
    """Texts as they are, without the chat template."""
    settings: ScoreSettings = ScoreSettings()  # noqa: RUF009 - frozen
    seed: int = 0
    """Decides every random choice."""

    def __post_init__(self) -> None:
        at_least(self, 0, "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectContextsJob:
    """What `collect-contexts` is told."""

    model: OfferedModel | None = None
    """None is the embedded organism."""
    saes: tuple[OfferedSae, ...] | None = None
    """None are the organism's."""
    corpus: OfferedFile | None = None
    """.txt, .jsonl or .parquet file, or a folder of them; None is the organism's."""
    text_field: str = "text"
    """Where .jsonl and .parquet files hold the text."""
    features: str | None = None
    """Features of every SAE, as 0-99,512; None are all."""
    settings: ContextSettings = ContextSettings()  # noqa: RUF009 - frozen
    seed: int = 0
    """Decides every random choice."""

    def __post_init__(self) -> None:
        at_least(self, 0, "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplainFeaturesJob:
    """What `explain-features` is told."""

    sae: str | None = None
    """SAE in the database; None where one SAE alone has contexts."""
    llm: OfferedLlm | None = None
    """Language model that explains; None explains by the words alone and asks nobody."""
    limit: int = _N_FEATURES
    """Features at most: those with the best concept scores first."""
    budget_tokens: int | None = None
    """Tokens that the job may use at most, prompts and answers; None is no limit."""
    budget_money: float | None = None
    """US dollars that the job may cost at most; None is no limit."""
    retry_failed: bool = False
    """Ask again where an answer was no use before."""
    settings: ExplainSettings = ExplainSettings()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        at_least(self, 1, "limit")


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeExplanationsJob:
    """What `judge-explanations` is told."""

    sae: str | None = None
    """SAE in the database; None where one SAE alone has contexts."""
    explainer: str = "lexical"
    """Whose explanations are judged: `lexical`, which are simulated without asking, or a language model's name."""
    llm: OfferedLlm | None = None
    """Language model that judges; needed unless the explanations are lexical."""
    limit: int = _N_FEATURES
    """Features at most: those with the best concept scores first."""
    budget_tokens: int | None = None
    """Tokens that the job may use at most, prompts and answers; None is no limit."""
    budget_money: float | None = None
    """US dollars that the job may cost at most; None is no limit."""
    retry_failed: bool = False
    """Ask again where an answer was no use before."""
    settings: JudgeSettings = JudgeSettings()  # noqa: RUF009 - frozen
    seed: int = 0
    """Decides every random choice."""

    def __post_init__(self) -> None:
        at_least(self, 1, "limit")
        at_least(self, 0, "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class FindRefusalDirectionJob:
    """What `find-refusal-direction` is told."""

    model: OfferedModel = "aligned"
    """aligned, base or backdoored of the embedded organism, or a model that the server offers."""
    harmful_file: OfferedFile | None = None
    """Harmful instructions, one a line; None are the organism's."""
    harmless_file: OfferedFile | None = None
    """Harmless instructions, one a line; None are the organism's."""
    refusal_tokens: tuple[str, ...] | None = None
    """Words that refusals begin with; None learns them."""
    settings: DirectionSettings = DirectionSettings()  # noqa: RUF009 - frozen
    seed: int = 0
    """Decides every random choice."""

    def __post_init__(self) -> None:
        at_least(self, 0, "seed")


JOB_KINDS: dict[str, type] = {
    "score-saes": ScoreSaesJob,
    "collect-contexts": CollectContextsJob,
    "explain-features": ExplainFeaturesJob,
    "judge-explanations": JudgeExplanationsJob,
    "find-refusal-direction": FindRefusalDirectionJob,
    "find-safety-neurons": FindSafetyNeuronsJob,
    "guard": GuardJob,
    "find-circuit": FindCircuitJob,
    "tune-circuit": TuneCircuitJob,
    "link-features": LinkFeaturesJob,
    "intervene-features": InterveneFeaturesJob,
    "train-saes": TrainSaesJob,
    "write-pairs": WritePairsJob,
}
"""Command to what its job is told. The command's module has `run_job(settings, context)`, which the worker calls."""
