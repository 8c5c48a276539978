"""What is studied: models, SAEs, their features, safety concepts."""

from dataclasses import dataclass
from typing import Self

from safe_sail.records.checks import require, require_slug
from safe_sail.sites import Site


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef:
    """One model and the sizes a reader needs to place a site, a head or a neuron in it."""

    model_id: str
    """Slug by which everything else names the model."""
    architecture: str
    """Hugging Face class, as `LlamaForCausalLM`."""
    n_layers: int
    n_heads: int
    d_head: int
    d_model: int
    d_mlp: int
    d_vocab: int
    source: str
    """Folder or hub name it was loaded from."""

    def __post_init__(self) -> None:
        require_slug("model id", self.model_id)
        for name in ("n_layers", "n_heads", "d_head", "d_model", "d_mlp", "d_vocab"):
            require(getattr(self, name) > 0, f"{name} of {self.model_id} must be positive; got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeRef:
    """One sparse autoencoder: where it comes from, and the model and site it was trained on."""

    slug: str
    """Our name of it, as `organism.resid_post.3.topk8-1024`; registry ids hold slashes and cannot serve in a path."""
    release: str | None
    """SAELens release, or None for a folder or file."""
    sae_id: str
    """Id inside the release, or the folder's or file's name."""
    model_id: str | None
    """Model it was trained for; None where its metadata is silent."""
    site: Site
    """Where it reads."""
    d_in: int
    """Width of what it reads."""
    width: int
    """Number of features, d_sae."""
    architecture: str
    """SAELens' name of it: standard, topk, jumprelu, gated, transcoder, ... or safe-sail-topk."""

    def __post_init__(self) -> None:
        require_slug("SAE", self.slug)
        require(self.width > 0, f"SAE {self.slug} must have features; got width {self.width}.")
        require(self.d_in > 0, f"SAE {self.slug} must read something; got d_in {self.d_in}.")


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class FeatureId:
    """One feature of one SAE; written `slug/index`."""

    sae: str
    """Slug of the SAE."""
    index: int
    """Column of the encoder, counted from 0."""

    def __post_init__(self) -> None:
        require_slug("SAE", self.sae)
        require(self.index >= 0, f"feature index of {self.sae} counts from 0; got {self.index}.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Feature of its written form.

        Raises:
            BadRecord: the text is not `slug/index`.
        """
        slug, slash, index = text.rpartition("/")
        require(bool(slash) and index.isdecimal(), f"`{text}` is not a feature; expected `sae-slug/index`.")
        return cls(sae=slug, index=int(index))

    def __str__(self) -> str:
        return f"{self.sae}/{self.index}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Concept:
    """One safety concept and its place in the taxonomy: domain > category > concept."""

    name: str
    category: str
    domain: str
    harmful: bool

    def __post_init__(self) -> None:
        require(bool(self.name), "a concept needs a name; got an empty one.")
