"""Ablations of units and of features, many in one pass.

Units:
1. A plain pass of some texts keeps the features' activations at their peak tokens, and the stream before each layer.
2. Every set of units (one unit, or a circuit) times every text is a row; rows of one first layer share passes, begin at
   that layer from the kept stream, and end at the SAE's site.
3. In a row only its own units are set to their mean, or to zero.

Features:
1. A plain pass keeps each feature's activation at every token.
2. Every vector times every text is a row: the activation times the vector is taken out of the SAE's output site, so
   what the SAE does not explain stays. The vector is the decoder row, or a random one of its length.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safe_sail.errors import BadInput
from safe_sail.links.contributions import values_at
from safe_sail.links.reading import peaks_of
from safe_sail.links.texts import TextPart
from safe_sail.model.edits import Edit
from safe_sail.model.handle import HookedModel
from safe_sail.model.resume import skipped_blocks
from safe_sail.model.tokens import TokenBatch, rows_of
from safe_sail.records import UnitRef
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site, SiteKind

UnitValues = Mapping[Site, Tensor]
"""What ablated units are set to, by site: [n_heads, d_head] or [d_mlp]."""


@torch.no_grad()
def unit_means(handle: HookedModel, sites: Collection[Site], parts: Iterator[TextPart]) -> dict[Site, Tensor]:
    """Mean value of every unit of these sites over the tokens that count; float64 sums."""
    sums = {site: torch.zeros(handle.site_shape(site), dtype=torch.float64) for site in sites}
    n = 0
    for part in parts:
        captured = handle.capture(part.batch, list(sites))
        n += int(part.counted.sum())
        for site in sites:
            x = captured[site]
            sums[site] += x[part.counted.to(x.device)].double().sum(0).cpu()
    return {site: (total / n).float() for site, total in sums.items()}


def zero_values(handle: HookedModel, sites: Collection[Site]) -> dict[Site, Tensor]:
    """Zeros in place of every unit of these sites."""
    return {site: torch.zeros(handle.site_shape(site)) for site in sites}


class ReadTexts(NamedTuple):
    """Activations at the peak tokens of the plain pass, float32 on the CPU."""

    plain: Float[Tensor, "batch features"]
    ablated: Float[Tensor, "batch sets features"]


@final
class UnitAblator:
    """Ablates sets of units before an SAE's site and reads features there; counts its passes."""

    def __init__(
        self, handle: HookedModel, sae: SAEHandle, features: Int[Tensor, " features"], values: UnitValues,
        *, pack_rows: int,
    ) -> None:  # fmt: skip
        self._handle, self._sae, self._features, self._values = handle, sae, features, values
        self._pack_rows = pack_rows
        self.n_passes = 0

    @torch.no_grad()
    def read(self, part: TextPart, sets: Sequence[Collection[UnitRef]]) -> ReadTexts:
        """The features of some texts with each set of units ablated in turn.

        Raises:
            BadInput: a set is empty, or holds a unit that does not stand before the SAE's site.
        """
        first_layers = [self._first_layer(units) for units in sets]
        starts = sorted(set(first_layers))
        streams = [Site(SiteKind.RESID_PRE, layer) for layer in starts]
        captured = self._handle.capture(part.batch, [*streams, self._sae.site])
        self.n_passes += 1
        peaks = peaks_of(self._sae, captured[self._sae.site], self._features, part)
        ablated = torch.empty(len(part.rows), len(sets), len(self._features))
        for start, stream in zip(starts, streams, strict=True):
            index = [place for place, layer in enumerate(first_layers) if layer == start]
            at_once = max(1, self._pack_rows // len(part.rows))
            for first in range(0, len(index), at_once):
                some = index[first : first + at_once]
                found = self._resumed(part.batch, start, captured[stream], [sets[place] for place in some], peaks)
                ablated[:, some] = found
        return ReadTexts(self._at_peaks(captured[self._sae.site], peaks), ablated)

    def _first_layer(self, units: Collection[UnitRef]) -> int:
        late = [str(unit) for unit in units if not unit.site < self._sae.site]
        if not units or late:
            raise BadInput(
                f"a set to ablate holds units before `{self._sae.site}`, where SAE {self._sae.ref.slug} reads; got "
                f"{', '.join(late[:5]) or 'none'}."
            )
        for unit in units:
            self._handle.check_site(unit.site)
        return min(unit.layer for unit in units)

    def _resumed(
        self, batch: TokenBatch, start: int, stream: Tensor, sets: Sequence[Collection[UnitRef]], peaks: Tensor
    ) -> Float[Tensor, "batch sets features"]:
        n, rows = len(batch), list(range(len(batch))) * len(sets)
        resumed = stream[rows]
        edits: dict[Site, Edit] = {Site(SiteKind.RESID_PRE, start): lambda x: resumed.to(x)}
        which = torch.arange(len(sets)).repeat_interleave(n)
        for site, mask in unit_masks(self._handle, sets).items():
            edits[site] = replaced_units(mask[which], self._values[site])
        with skipped_blocks(self._handle, start):
            x = self._handle.capture(rows_of(batch, rows), [self._sae.site], edits)[self._sae.site]
        self.n_passes += 1
        return self._at_peaks(x, peaks[torch.tensor(rows)]).reshape(len(sets), n, -1).transpose(0, 1)

    def _at_peaks(self, x: Tensor, peaks: Tensor) -> Float[Tensor, "batch features"]:
        # of each token only the feature whose peak it is
        found = self._sae.encode(values_at(x, peaks), self._features)
        return found.diagonal(dim1=-2, dim2=-1).float().cpu()


def unit_masks(handle: HookedModel, sets: Sequence[Collection[UnitRef]]) -> dict[Site, Bool[Tensor, "sets units"]]:
    """Which units of each site belong to which set.

    Raises:
        BadInput: a unit's index is beyond its layer.
    """
    masks: dict[Site, Tensor] = {}
    for place, units in enumerate(sets):
        for unit in units:
            n = handle.site_shape(unit.site)[0]
            if unit.index >= n:
                raise BadInput(f"{unit}: `{unit.site}` of {handle.model_id} has {n} units, counted from 0.")
            mask = masks.setdefault(unit.site, torch.zeros(len(sets), n, dtype=torch.bool))
            mask[place, unit.index] = True
    return masks


def replaced_units(mask: Bool[Tensor, "batch units"], values: Float[Tensor, "*unit"]) -> Edit:
    """Edit that sets, in each row of the batch, its own units to their values."""

    def edit(x: Tensor) -> Tensor:
        chosen = mask.to(x.device).reshape(mask.shape[0], 1, mask.shape[1], *[1] * (x.ndim - 3))
        return torch.where(chosen, values.to(x), x)

    return edit


class WithoutFeatures(NamedTuple):
    """What later parts of the model say with features ablated."""

    logits: Float[Tensor, "batch vectors d_vocab"]
    """After each text's last token."""
    captures: dict[Site, Tensor]
    """By asked site, at the tokens that were asked for: [batch, vectors, tokens, ...]."""


@final
class FeatureAblator:
    """Takes features out of an SAE's output site and reads what follows; counts its passes."""

    def __init__(self, handle: HookedModel, sae: SAEHandle, *, pack_rows: int) -> None:
        if sae.decode_needs_input:
            raise BadInput(
                f"SAE {sae.ref.slug} fixes its input's norm or mean and undoes it after decoding, so a feature writes "
                f"no fixed vector; features of such an SAE cannot be ablated one by one."
            )
        self._handle, self._sae, self._pack_rows = handle, sae, pack_rows
        self.n_passes = 0

    @torch.no_grad()
    def read(
        self,
        part: TextPart,
        features: Int[Tensor, " features"],
        vectors: Float[Tensor, "vectors d_out"],
        owners: Sequence[int],
        sites: Sequence[Site] = (),
        n_last: int = 1,
        *,
        places: Int[Tensor, "batch vectors kept"] | None = None,
    ) -> WithoutFeatures:
        """With `activation of features[owners[v]] * vectors[v]` taken out, for each v; a zero vector takes nothing.

        Sites are read at the last `n_last` tokens, or at the columns that `places` names for each text and vector.
        """
        out, sae = self._sae.out_site, self._sae
        captured = self._handle.capture(part.batch, list({sae.site, out}))
        self.n_passes += 1
        activations = sae.encode(captured[sae.site], features)
        n, at_once = len(part.rows), max(1, self._pack_rows // len(part.rows))
        logits, seen = [], {site: list[Tensor]() for site in sites}
        for first in range(0, len(vectors), at_once):
            some = range(first, min(first + at_once, len(vectors)))
            taken = torch.cat([activations[..., owners[v], None] * vectors[v].to(activations) for v in some])
            stream = captured[out].repeat(len(some), *[1] * (captured[out].ndim - 1))
            edited = (stream.float() - taken.to(stream.device).reshape(stream.shape).float()).to(stream.dtype)
            run = self._run(rows_of(part.batch, list(range(n)) * len(some)), edited, sites)
            logits.append(run[0].reshape(len(some), n, -1).transpose(0, 1))
            for site in sites:
                kept = run[1][site]
                kept = (
                    kept[:, -n_last:]
                    if places is None
                    else values_at(kept, places[:, some].transpose(0, 1).flatten(0, 1))
                )
                seen[site].append(kept.reshape(len(some), n, *kept.shape[1:]).transpose(0, 1))
        return WithoutFeatures(torch.cat(logits, 1), {site: torch.cat(found, 1) for site, found in seen.items()})

    def _run(self, batch: TokenBatch, edited: Tensor, sites: Sequence[Site]) -> tuple[Tensor, dict[Site, Tensor]]:
        self.n_passes += 1
        out = self._sae.out_site
        start, where = 0, out
        if out.kind is SiteKind.RESID_POST and (out.layer or 0) + 1 < self._handle.dims.n_layers:
            start = (out.layer or 0) + 1
            where = Site(SiteKind.RESID_PRE, start)
        elif out.kind is SiteKind.RESID_PRE:
            start = out.layer or 0
        with skipped_blocks(self._handle, start):
            run = self._handle.run(batch, sites, {where: lambda x: edited.to(x)}, logits="last")
        assert run.logits is not None
        return run.logits[:, -1].float().cpu(), {site: run.captures[site].float().cpu() for site in sites}
