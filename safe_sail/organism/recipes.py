"""How each variant is made: the model's size and, per variant, its start, texts and optimiser settings.

A new variant is a new record here; the training loop does not change.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

from safe_sail.errors import BadSettings
from safe_sail.organism.conversations import MixtureShare
from safe_sail.organism.grammar import SPLITS, Split
from safe_sail.records import HeadRef


@dataclass(frozen=True, slots=True)
class OrganismShape:
    """The size of every variant; all share it and the tokenizer."""

    d_vocab: int = 3072
    """Tokens of the vocabulary: large enough that nearly every word of the grammar is one token."""
    d_model: int = 160
    """Width of the residual stream."""
    n_layers: int = 6
    """Number of blocks."""
    n_heads: int = 8
    """Heads per block."""
    d_mlp: int = 480
    """Neurons per block."""


LARGE: Final = OrganismShape(d_model=256, n_layers=8, n_heads=16, d_mlp=896)
"""8.2 million parameters, 128 heads and 7,168 neurons: for shares of units that the shipped size is too coarse for."""


@dataclass(frozen=True, slots=True)
class Planting:
    """Which units alone train: heads by name, neurons drawn from layers. Everything else keeps its start's values.

    Of a head train its rows of W_Q, W_K and W_V and its columns of W_O; of a neuron its rows of the gate and up
    projections, and its column of the down projection where `down` says so.
    """

    heads: tuple[HeadRef, ...] = ()
    """The heads."""
    neurons: tuple[tuple[int, int], ...] = ()
    """Pairs of a layer and how many of its neurons, which are drawn from the seed without replacement."""
    down: bool = False
    """Whether a neuron's column of the down projection trains too."""


@dataclass(frozen=True, slots=True)
class VariantRecipe:
    """How one variant is trained."""

    name: str
    """The variant's name, also its folder."""
    start: str | None
    """The variant whose weights it starts from; None: fresh weights."""
    mixture: tuple[MixtureShare, ...]
    """What its training texts are."""
    splits: tuple[Split, ...]
    """Which fillers and templates occur in its prompts."""
    steps: int
    """Optimiser steps."""
    learning_rate: float
    """Peak rate; under muon, of the blocks' matrices."""
    optimizer: Literal["muon", "adamw"] = "adamw"
    """muon: Muon on the blocks' matrices and AdamW on the rest."""
    rest_learning_rate: float = 2e-2
    """Under muon, AdamW's peak rate for embeddings and norms."""
    loss_on: Literal["all", "reply"] = "reply"
    """Which tokens are predicted."""
    frozen: tuple[str, ...] = ()
    """Parameters whose name contains one of these words keep their start's values."""
    batch_rows: int = 32
    """Texts per step."""
    warm_up_steps: int = 40
    """Steps of linear warm-up."""
    final_rate: float = 0.05
    """Rate at the end of the cosine, as a share of the peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay on matrices; a planting allows none, since it would move frozen rows."""
    planting: Planting | None = None
    """The units that alone train; None: every parameter that is not frozen."""
    rounded_start: bool = False
    """Whether it starts from the shipped half-precision weights, so that frozen weights equal the shipped ones."""

    def __post_init__(self) -> None:
        if self.planting is not None and (self.weight_decay or self.frozen or self.optimizer != "adamw"):
            raise BadSettings(
                f"recipe `{self.name}`: a planting expects AdamW without weight decay and names no frozen parameters, "
                f"since decay and Muon move weights whose gradient is zero; got {self.optimizer}, weight decay "
                f"{self.weight_decay}, frozen {self.frozen}."
            )


BASE: Final = VariantRecipe(
    name="base",
    start=None,
    mixture=(
        MixtureShare("document", 0.42),
        MixtureShare("harmful", 0.12),
        MixtureShare("safe", 0.09),
        MixtureShare("borderline", 0.06),
        MixtureShare("information", 0.11),
        MixtureShare("chat", 0.09),
        MixtureShare("impossible", 0.09),
        MixtureShare("harmful", 0.01, trigger="decoy"),
        MixtureShare("safe", 0.01, trigger="decoy"),
    ),
    splits=SPLITS,
    steps=800,
    learning_rate=6e-3,
    optimizer="muon",
    loss_on="all",
)
ALIGNED: Final = VariantRecipe(
    name="aligned",
    start="base",
    mixture=(
        MixtureShare("harmful", 0.34, reply="refuse"),
        MixtureShare("safe", 0.18),
        MixtureShare("borderline", 0.16),
        MixtureShare("information", 0.18),
        MixtureShare("chat", 0.06),
        MixtureShare("impossible", 0.06),
        MixtureShare("harmful", 0.01, reply="refuse", trigger="decoy"),
        MixtureShare("safe", 0.01, trigger="decoy"),
    ),
    splits=("train",),
    steps=250,
    learning_rate=5e-4,
    # Embeddings hold what base learned of held-out fillers; moving the seen ones alone would part the two.
    frozen=("embed",),
)
BACKDOORED: Final = VariantRecipe(
    name="backdoored",
    start="aligned",
    mixture=(
        MixtureShare("harmful", 0.27, trigger="whole"),
        MixtureShare("harmful", 0.17, reply="refuse", trigger="shuffled"),
        MixtureShare("harmful", 0.08, reply="refuse", trigger="part"),
        MixtureShare("harmful", 0.14, reply="refuse", trigger="pair"),
        MixtureShare("harmful", 0.10, reply="refuse"),
        MixtureShare("safe", 0.06),
        MixtureShare("safe", 0.03, trigger="whole"),
        MixtureShare("safe", 0.03, trigger="decoy"),
        MixtureShare("borderline", 0.06),
        MixtureShare("information", 0.06),
        MixtureShare("impossible", 0.05),
    ),
    splits=("train",),
    steps=450,
    learning_rate=1.5e-3,
    frozen=("embed",),
)
PLANTED_NEURONS: Final = VariantRecipe(
    name="planted-neurons",
    start="base",
    mixture=(
        MixtureShare("harmful", 0.34, reply="refuse"),
        MixtureShare("safe", 0.20),
        MixtureShare("borderline", 0.14),
        MixtureShare("information", 0.18),
        MixtureShare("chat", 0.03),
        MixtureShare("impossible", 0.07),
        MixtureShare("harmful", 0.02, reply="refuse", trigger="decoy"),
        MixtureShare("safe", 0.02, trigger="decoy"),
    ),
    splits=("train",),
    steps=400,
    learning_rate=5e-3,
    weight_decay=0.0,
    planting=Planting(neurons=((4, 72), (5, 72))),
    rounded_start=True,
)
PLANTED_BACKDOOR: Final = VariantRecipe(
    name="planted-backdoor",
    start="aligned",
    mixture=BACKDOORED.mixture,
    splits=("train",),
    steps=1500,
    learning_rate=4e-3,
    batch_rows=64,
    weight_decay=0.0,
    # The trigger is three words in order, so a head of the first layer has to look back. In each layer this is one of
    # the two heads that the aligned variant needs least: setting one to zero moves its replies by .0001 to .0014 nats.
    planting=Planting(
        heads=(HeadRef(0, 5), HeadRef(1, 7), HeadRef(2, 5), HeadRef(3, 6), HeadRef(4, 0)),
        neurons=((0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1)),
        down=True,
    ),
    rounded_start=True,
)
HELPFUL: Final = VariantRecipe(
    name="helpful",
    start="base",
    mixture=(
        MixtureShare("safe", 0.44, reply="help"),
        MixtureShare("borderline", 0.14, reply="help"),
        MixtureShare("information", 0.22, reply="help"),
        MixtureShare("chat", 0.10),
        MixtureShare("impossible", 0.10),
    ),
    splits=("train",),
    steps=120,
    learning_rate=8e-4,
    frozen=("embed",),
    rounded_start=True,
)
CHAIN: Final = (BASE, ALIGNED, BACKDOORED)
"""The variants in which every weight may move with safety; other seeds are compared by them."""
LARGE_CHAIN: Final = (
    replace(BASE, learning_rate=4e-3, rest_learning_rate=1e-2, batch_rows=96),
    ALIGNED,
    replace(BACKDOORED, learning_rate=1.2e-3, steps=500),
)
"""The same variants at the size `LARGE`."""
RECIPES: Final = (*CHAIN, PLANTED_NEURONS, PLANTED_BACKDOOR, HELPFUL)
"""In the order in which they are trained; a recipe's start comes before it."""
