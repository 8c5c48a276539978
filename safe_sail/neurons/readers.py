"""What a guard reads at the last token of a prompt: neurons, features of an SAE, or the place along a direction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safe_sail.errors import GuardUnfit
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, parts_by_length, trimmed
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site, SiteKind


class Reader(Protocol):
    """Turns activations at one token into features."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where it reads."""
        ...

    @property
    def n_features(self) -> int:
        """How many numbers it gives."""
        ...

    def read(self, at: Mapping[Site, Tensor]) -> Float[Tensor, "batch features"]:
        """Features of a batch of prompts from the activations at their last tokens."""
        ...


@dataclass(frozen=True, slots=True)
class NeuronReader:
    """Activations of neurons."""

    neurons: Int[Tensor, "neurons 2"]
    """Layers and indices."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """Neuron activations of the neurons' layers."""
        return tuple(Site(SiteKind.MLP_ACT, layer) for layer in self.neurons[:, 0].unique().tolist())

    @property
    def n_features(self) -> int:
        """One each."""
        return len(self.neurons)

    def read(self, at: Mapping[Site, Tensor]) -> Float[Tensor, "batch features"]:
        """The activations, in the order of the neurons."""
        values = at[self.sites[0]]
        found = values.new_empty(len(values), len(self.neurons))
        for site in self.sites:
            mine = self.neurons[:, 0] == site.layer
            found[:, mine] = at[site][:, self.neurons[mine, 1]]
        return found


@dataclass(frozen=True, slots=True)
class SaeReader:
    """Activations of features of an SAE."""

    sae: SAEHandle
    features: Int[Tensor, " features"]
    """Which of them."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where the SAE reads."""
        return (self.sae.site,)

    @property
    def n_features(self) -> int:
        """One each."""
        return len(self.features)

    def read(self, at: Mapping[Site, Tensor]) -> Float[Tensor, "batch features"]:
        """The activations, in the order of the features."""
        return self.sae.encode(at[self.sae.site][:, None], self.features)[:, 0]


@dataclass(frozen=True, slots=True)
class DirectionReader:
    """The projection on a direction of the residual stream."""

    site: Site
    vector: Float[Tensor, " d_model"]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where the direction was found."""
        return (self.site,)

    @property
    def n_features(self) -> int:
        """One number."""
        return 1

    def read(self, at: Mapping[Site, Tensor]) -> Float[Tensor, "batch features"]:
        """The component along the direction, in units of the stream."""
        values = at[self.site].double()
        unit = self.vector.to(values.device).double()
        found: Tensor = values @ (unit / unit.norm())
        return found[:, None]


def read_all(
    handle: HookedModel, batch: TokenBatch, readers: Sequence[Reader], batch_rows: int
) -> list[Float[Tensor, "prompts features"]]:
    """What each reader reads of each prompt, float32 on the CPU; one pass for all readers, ended at the deepest site.

    Raises:
        BadSite: the model lacks a site.
        GuardUnfit: a reader expects another width than its site has.
    """
    sites = sorted({site for reader in readers for site in reader.sites})
    _require_widths(handle, readers)
    found = [torch.empty(len(batch), reader.n_features) for reader in readers]
    with torch.no_grad():
        for rows in parts_by_length(batch, batch_rows):
            part = trimmed(batch, rows).to(handle.device)
            captured = handle.capture(part, sites)
            at = {site: values[:, -1] for site, values in captured.items()}  # padded on the left
            for store, reader in zip(found, readers, strict=True):
                store[rows] = reader.read(at).float().cpu()
    return found


def _require_widths(handle: HookedModel, readers: Sequence[Reader]) -> None:
    for reader in readers:
        for site in reader.sites:
            width = handle.site_shape(site)[-1]
            needed = width
            if isinstance(reader, DirectionReader):
                needed = len(reader.vector)
            elif isinstance(reader, SaeReader):
                needed = reader.sae.d_in
            elif isinstance(reader, NeuronReader) and int(reader.neurons[:, 1].max()) >= width:
                needed = int(reader.neurons[:, 1].max()) + 1
            if needed != width:
                raise GuardUnfit(
                    f"`{site}` of {handle.model_id} is {width} wide, the guard reads {needed}; it was made for another "
                    f"model."
                )


def read_mean(
    handle: HookedModel, batch: TokenBatch, site: Site, chosen: Bool[Tensor, " prompts"], batch_rows: int
) -> Float[Tensor, " d_model"]:
    """Mean activation at the last token of the chosen prompts, float64 on the CPU.

    Raises:
        BadSite: the model lacks the site.
        GuardUnfit: no prompt was chosen.
    """
    if not bool(chosen.any()):
        raise GuardUnfit(f"a mean at `{site}` needs at least one prompt; none was chosen.")
    total = torch.zeros(handle.site_shape(site), dtype=torch.float64)
    with torch.no_grad():
        for rows in parts_by_length(batch, batch_rows):
            part = trimmed(batch, rows).to(handle.device)
            values = handle.capture(part, [site])[site][:, -1].double().cpu()
            total += values[chosen[rows]].sum(dim=0)
    return total / int(chosen.sum())
