"""What jobs are told that find neurons, circuits and links, change features, train SAEs or write pairs."""

from dataclasses import dataclass
from typing import Literal

from safe_sail.errors import BadSettings
from safe_sail.settings.checks import at_least
from safe_sail.settings.circuits import CircuitSettings
from safe_sail.settings.interventions import InterventionSettings
from safe_sail.settings.links import LinkSettings
from safe_sail.settings.neurons import GuardSettings, NeuronSettings
from safe_sail.settings.offered import MadeName, OfferedFile, OfferedLlm, OfferedModel, OfferedSae
from safe_sail.settings.training import SaeRecipe, SaeTrainingSettings
from safe_sail.settings.tuning import ForgettingSettings, TuningSettings

_RECIPE = SaeRecipe(slug="default", architecture="topk", d_sae=1024)


@dataclass(frozen=True, kw_only=True, slots=True)
class FindSafetyNeuronsJob:
    """What `find-safety-neurons` is told."""

    first: OfferedModel = "base"
    """Model that is patched: a variant of the embedded organism, or a model that the server offers."""
    second: OfferedModel = "aligned"
    """Model whose activations are put in; of the same architecture."""
    contrast_file: OfferedFile | None = None
    """Prompts that rank the neurons, one a line; None are the organism's."""
    evaluate_file: OfferedFile | None = None
    """Other prompts that measure the patch, one a line; given with those that rank."""
    helpful: OfferedModel | None = None
    """Model aligned for helpfulness: its neurons against those of the second."""
    helpful_file: OfferedFile | None = None
    """Harmless prompts that measure helpfulness, one a line."""
    reward_model: OfferedModel | None = None
    """Reward model or classifier that scores replies, in place of a language model that judges them."""
    llm: OfferedLlm | None = None
    """Language model that judges replies; None takes the phrase judge."""
    budget_tokens: int | None = None
    """Tokens that the judge may use at most; None is no limit."""
    budget_money: float | None = None
    """US dollars that the judge may cost at most; None is no limit."""
    settings: NeuronSettings = NeuronSettings()  # noqa: RUF009 - frozen
    seed: int = 0
    """Decides every random choice."""

    def __post_init__(self) -> None:
        at_least(self, 0, "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardJob:
    """What `guard` is told."""

    model: OfferedModel = "base"
    """Guarded model."""
    aligned: OfferedModel = "aligned"
    """Model after alignment; the contrast chooses the neurons."""
    harmful_file: OfferedFile | None = None
    """Harmful prompts, one a line, shuffled and split; None are the organism's."""
    harmless_file: OfferedFile | None = None
    """Harmless prompts, one a line; given with the harmful ones."""
    borderline_file: OfferedFile | None = None
    """Harmless prompts that look harmful, one a line."""
    sae: OfferedSae | None = None
    """SAE whose features are read; None is one of the organism's, and none of another model."""
    direction: str | None = None
    """Kept direction that is read, by slug; None is the difference of class means."""
    name: MadeName | None = None
    """Folder of the guard that is kept; None keeps its figures alone."""
    settings: GuardSettings = GuardSettings()  # noqa: RUF009 - frozen
    seed: int = 0
    """Decides every random choice."""

    def __post_init__(self) -> None:
        at_least(self, 0, "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class FindCircuitJob:
    """What `find-circuit` is told."""

    model: OfferedModel = "aligned"
    """A variant of the embedded organism, or a model that the server offers."""
    behaviour: str | None = None
    """refusal or backdoor; None is the backdoor where the model's name has it, else refusal."""
    target_file: OfferedFile | None = None
    """JSON lines of prompt, with_circuit, without_circuit and, for a backdoor, clean; None are the organism's."""
    kept_file: OfferedFile | None = None
    """JSON lines of prompt and reply that shall not change; given with the others."""
    organism_prompts: bool = False
    """Whether the model, though no variant of the embedded organism, was trained on its texts and takes its prompts."""
    saes: tuple[OfferedSae, ...] | None = None
    """SAEs whose features are masked too, with a budget of features."""
    start_model: OfferedModel | None = None
    """Model that `model` was trained from: removed units take its weights; given with the ablation `start` alone."""
    method: Literal["masks", "ships"] = "masks"
    """masks, or ships: heads ranked by what their absence does."""
    n_seeds: int = 3
    """Searches, from `seed` on; the best is kept."""
    settings: CircuitSettings = CircuitSettings()  # noqa: RUF009 - frozen
    seed: int = 0
    """Decides every random choice."""

    def __post_init__(self) -> None:
        at_least(self, 1, "n_seeds")
        at_least(self, 0, "seed")
        if self.method not in ("masks", "ships"):
            raise BadSettings(f"FindCircuitJob.method is masks or ships; got {self.method}.")
        by_weights = self.settings.ablation == "start"
        if by_weights != (self.start_model is not None):
            raise BadSettings(
                f"FindCircuitJob: the ablation start and start_model go together, as removed units take that model's "
                f"weights; got ablation {self.settings.ablation} and start_model {self.start_model}."
            )
        if by_weights and (self.method == "ships" or self.saes):
            raise BadSettings(
                "FindCircuitJob: the ablation start is of the weights of heads and neurons, found by masks; ships "
                "replaces heads' outputs and SAE features have no weights in the model, so take zero, mean or resample."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneCircuitJob:
    """What `tune-circuit` is told: rows and both files of prompts together, or none of them for the organism's own."""

    model: OfferedModel | None = None
    """None is the organism's variant whose refusal was planted."""
    units: OfferedFile | None = None
    """JSON file with one name and its units; None is the planted circuit of `model` None, or what `find` finds."""
    find: ForgettingSettings | None = None
    """Find the circuit from what full tuning makes the model forget."""
    rows: OfferedFile | None = None
    """JSON lines of prompt and reply: four fifths train, the rest is held out."""
    harmful_file: OfferedFile | None = None
    """Held-out prompts that shall be refused, one a line."""
    harmless_file: OfferedFile | None = None
    """Held-out prompts that shall be answered, one a line."""
    task: Literal["answers", "helpful"] = "answers"
    """What the organism learns where the circuit is kept; helpful: answers that end with an offer."""
    settings: TuningSettings = TuningSettings()  # noqa: RUF009 - frozen
    seed: int = 0
    """Decides every random choice."""

    def __post_init__(self) -> None:
        at_least(self, 0, "seed")
        files = (self.rows, self.harmful_file, self.harmless_file)
        if any(one is None for one in files) and any(one is not None for one in files):
            raise BadSettings(
                "TuneCircuitJob takes rows, harmful_file and harmless_file, or none of them; some are missing."
            )
        if self.model is None and (self.rows is not None or self.units is not None):
            raise BadSettings("TuneCircuitJob.model: expected the model that units or rows are for; got none.")
        if self.units is not None and self.find is not None:
            raise BadSettings("TuneCircuitJob takes units, or find to find them; got both.")
        if self.model is not None and self.units is None and self.find is None:
            raise BadSettings("TuneCircuitJob.units: a model of your own comes with units, or with find to find them.")
        if self.find is not None and self.settings.mode != "excluded":
            raise BadSettings("TuneCircuitJob.find is of mode excluded: what it finds is to be left alone.")
        if self.task == "helpful" and (self.rows is not None or self.settings.mode == "only"):
            raise BadSettings("TuneCircuitJob.task helpful is of the organism's own rows and of mode excluded.")


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkFeaturesJob:
    """What `link-features` is told."""

    model: OfferedModel | None = None
    """None is the embedded organism."""
    saes: tuple[OfferedSae, ...] | None = None
    """None is the organism's SAE with the cleanest features."""
    concepts: tuple[OfferedFile, ...] | None = None
    """Files of texts in pairs, with and without a concept; None are the organism's."""
    taxonomy: OfferedFile | None = None
    """YAML or JSON of domains, categories and concepts."""
    only: tuple[str, ...] | None = None
    """Only these concepts."""
    plain: bool = False
    """Texts as they are, without the chat template."""
    features: tuple[int, ...] | None = None
    """Only among these features of each SAE."""
    directions: tuple[str, ...] | None = None
    """Kept directions, by slug; None are all of the model."""
    units: OfferedFile | None = None
    """JSON file of circuits to link whole, beside those that are kept."""
    refusal_tokens: tuple[str, ...] | None = None
    """Words that refusals begin with; None are those of the kept search."""
    settings: LinkSettings = LinkSettings()  # noqa: RUF009 - frozen
    seed: int = 0
    """Decides every random choice."""

    def __post_init__(self) -> None:
        at_least(self, 0, "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class InterveneFeaturesJob:
    """What `intervene-features` is told."""

    model: OfferedModel | None = None
    """None is the embedded organism."""
    sae: OfferedSae | None = None
    """SAE that has contexts in the database; None is the organism's."""
    harmful_file: OfferedFile | None = None
    """Harmful prompts, one a line; None are the organism's."""
    harmless_file: OfferedFile | None = None
    """Harmless prompts, one a line; None are the organism's."""
    refusal_tokens: tuple[str, ...] | None = None
    """Words that refusals begin with; None learns them."""
    limit: int = 10
    """Features at most: those with the best concept scores first."""
    settings: InterventionSettings = InterventionSettings()  # noqa: RUF009 - frozen
    seed: int = 0
    """Decides every random choice."""

    def __post_init__(self) -> None:
        at_least(self, 1, "limit")
        at_least(self, 0, "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSaesJob:
    """What `train-saes` is told: every architecture in every width and sparsity, at every site."""

    name: MadeName
    """Folder of the SAEs; later jobs name one as `made/NAME/SLUG`."""
    sites: tuple[str, ...]
    """Where to read, as resid_post.12."""
    model: OfferedModel | None = None
    """None is the embedded organism."""
    corpus: OfferedFile | None = None
    """.txt, .jsonl or .parquet file, or a folder of them; None is the organism's."""
    text_field: str = "text"
    """Where .jsonl and .parquet files hold the text."""
    architectures: tuple[str, ...] = ("topk",)
    """topk, batchtopk, relu or jumprelu."""
    widths: tuple[int, ...] = (_RECIPE.d_sae,)
    """Features."""
    k: tuple[int, ...] | None = None
    """Active features a token, of topk and batchtopk; None is 8."""
    sparsity: tuple[float, ...] | None = None
    """Penalty of relu (L1) and jumprelu (L0); None is 1."""
    steps: int = _RECIPE.steps
    """Optimiser steps."""
    batch_rows: int = _RECIPE.batch_rows
    """Activations in a step."""
    learning_rate: float = _RECIPE.learning_rate
    """Adam's; to zero over the last fifth."""
    at_once: int = 64
    """SAEs trained in one pass; fewer need less memory."""
    settings: SaeTrainingSettings = SaeTrainingSettings()  # noqa: RUF009 - frozen
    seed: int = 0
    """Decides every random choice."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_rows", "at_once")
        at_least(self, 0, "seed")
        if not self.sites:
            raise BadSettings("TrainSaesJob.sites names at least one site, as resid_post.12; got none.")


@dataclass(frozen=True, kw_only=True, slots=True)
class WritePairsJob:
    """What `write-pairs` is told."""

    name: MadeName
    """Folder of the pairs; later jobs name them as `made/NAME/pairs.jsonl`."""
    texts: tuple[OfferedFile, ...]
    """Files of texts that have their concept, .jsonl or .csv."""
    llm: OfferedLlm
    """Language model that rewrites and checks."""
    taxonomy: OfferedFile | None = None
    """YAML or JSON of domains, categories and concepts."""
    limit: int | None = None
    """Texts at most, in their order; None are all."""
    n_control: int = 20
    """Texts checked against themselves, as a control."""
    budget_tokens: int | None = None
    """Tokens that the job may use at most, prompts and answers; None is no limit."""
    budget_money: float | None = None
    """US dollars that the job may cost at most; None is no limit."""
    retry_failed: bool = False
    """Ask again where an answer was no use before."""

    def __post_init__(self) -> None:
        at_least(self, 0, "n_control")
        if self.limit is not None:
            at_least(self, 1, "limit")
        if not self.texts:
            raise BadSettings("WritePairsJob.texts names at least one file of texts; got none.")
