"""Units of a model that a mask can keep or replace, and masks as edits of the model.

1. A `UnitSpace` lists groups of units: the heads of `head_out.L`, the neurons of `mlp_act.L`, features of an SAE.
2. A mask is one float32 vector over all units, 1 to keep and 0 to replace; it may require grad.
3. As edits, each group multiplies its units by its part of the vector and adds the rest of a baseline.

A mask is passed explicitly and lives in the edits made of it: there is no switch on the model, so gradient
checkpointing recomputes under the mask that the forward pass saw, as long as the edits are in force until backward has
run (`HookedModel.editing`). Hooks sit on modules; a thread that masks a model which another thread uses takes a
`shared_copy`.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safe_sail.circuits.baselines import ZERO, Baseline
from safe_sail.errors import BadSettings, CircuitMismatch, HeadsInseparable, SaeMetadataUnsupported
from safe_sail.model.edits import Edit, PositionedEdit, Step, compose
from safe_sail.model.handle import HookedModel
from safe_sail.records import Circuit, CircuitUnit, FeatureId, HeadRef, NeuronRef
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site, SiteKind

UnitKind = Literal["heads", "neurons", "features"]
View = Literal["removed", "alone"]
"""removed: the circuit's units are replaced; alone: all others are."""


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """Units that are masked at one site."""

    name: str
    """The site's name, or the SAE's slug."""
    kind: UnitKind
    site: Site
    first: int
    """Place of its first unit in a mask."""
    n: int
    sae: SAEHandle | None = None

    @property
    def places(self) -> slice:
        """Where its units stand in a mask."""
        return slice(self.first, self.first + self.n)

    def unit(self, index: int) -> CircuitUnit:
        """Its unit at this index, counted from 0."""
        if self.sae is not None:
            return FeatureId(sae=self.name, index=index)
        assert self.site.layer is not None
        return (HeadRef if self.kind == "heads" else NeuronRef)(self.site.layer, index)


@dataclass(frozen=True, slots=True)
class UnitSpace:
    """Every unit that a mask of this model covers: heads by layer, then neurons by layer, then SAE features."""

    model_id: str
    groups: tuple[UnitGroup, ...]

    @property
    def n_units(self) -> int:
        """Length of a mask."""
        return sum(group.n for group in self.groups)

    def n_of(self, kind: UnitKind) -> int:
        """Units of one kind."""
        return sum(group.n for group in self.groups if group.kind == kind)

    def places_of(self, kind: UnitKind) -> slice:
        """Where the units of one kind stand in a mask; kinds are contiguous."""
        found = [group for group in self.groups if group.kind == kind]
        return slice(found[0].first, found[-1].first + found[-1].n) if found else slice(0, 0)

    def unit(self, place: int) -> CircuitUnit:
        """The unit at a place of a mask."""
        group = next(one for one in self.groups if place < one.first + one.n)
        return group.unit(place - group.first)

    def place(self, unit: CircuitUnit) -> int:
        """Where a unit stands in a mask.

        Raises:
            CircuitMismatch: the space has no such unit.
        """
        name = unit.sae if isinstance(unit, FeatureId) else str(unit.site)
        for group in self.groups:
            if group.name == name and unit.index < group.n:
                return group.first + unit.index
        raise CircuitMismatch(
            f"`{unit}` is no unit of {self.model_id} that is masked here; there are {self.n_of('heads')} heads, "
            f"{self.n_of('neurons')} neurons and {self.n_of('features')} SAE features in "
            f"{', '.join(group.name for group in self.groups)}."
        )


def unit_space(
    handle: HookedModel,
    kinds: Sequence[UnitKind] = ("heads", "neurons"),
    saes: Sequence[SAEHandle] = (),
) -> UnitSpace:
    """The heads, the neurons of dense blocks, and the features of these SAEs.

    Raises:
        BadSettings: nothing is left to mask.
        HeadsInseparable: the input of an attention output projection does not split into the model's heads.
        SaeMetadataUnsupported: an SAE's features cannot be taken out of what it reads.
    """
    groups: list[UnitGroup] = []
    layers = range(handle.dims.n_layers)

    def add(name: str, kind: UnitKind, site: Site, n: int, sae: SAEHandle | None = None) -> None:
        groups.append(UnitGroup(name, kind, site, sum(group.n for group in groups), n, sae))

    if "heads" in kinds:
        _require_heads(handle)
        for layer in layers:
            add(f"head_out.{layer}", "heads", Site(SiteKind.HEAD_OUT, layer), handle.dims.n_heads)
    if "neurons" in kinds:
        for layer in layers:
            site = Site(SiteKind.MLP_ACT, layer)
            if handle.has_site(site):
                add(str(site), "neurons", site, handle.dims.d_mlp)
    for sae in saes:
        handle.check_site(sae.site)
        if sae.is_transcoder or sae.decode_needs_input or not sae.has_decoder or sae.form.head is not None:
            raise SaeMetadataUnsupported(
                f"SAE {sae.ref.slug}: a feature is masked by taking what it writes out of what the SAE reads; this one "
                f"writes elsewhere, reads one head, rescales its input or has no decoder."
            )
        add(sae.ref.slug, "features", sae.site, sae.d_sae, sae)
    if not groups:
        raise BadSettings(
            f"nothing of {handle.model_id} is to be masked: expected heads, neurons or an SAE; got "
            f"{', '.join(kinds) or 'no kind'}. The blocks of a mixture of experts have no neurons to mask."
        )
    return UnitSpace(handle.model_id, tuple(groups))


def _require_heads(handle: HookedModel) -> None:
    row, dims = handle.architecture, handle.dims
    for layer, block in enumerate(handle.blocks):
        shape = block.get_submodule(row.attn_proj).get_parameter("weight").shape
        width = shape[0] if row.conv1d else shape[1]
        if width != dims.n_heads * dims.d_head:
            raise HeadsInseparable(
                f"`head_out.{layer}` of {handle.model_id} is {width} wide, which is not {dims.n_heads} heads of one "
                f"width; mask neurons alone, or give the model's row its number of heads."
            )


# ---------------------------------------------------------------------------------------------------- masks as edits


def masked_edits(
    space: UnitSpace,
    keep: Float[Tensor, " units"],
    baseline: Baseline = ZERO,
    *,
    positions: Int[Tensor, "batch seq"] | None = None,
) -> dict[Site, Edit]:
    """The mask as edits: each unit is `keep` of itself and `1 - keep` of the baseline.

    Groups that are kept whole are left out. With `positions`, the position ids of one batch, the edits of a resample
    baseline serve passes of that batch outside the handle's own calls too, as a training step makes them.

    Raises:
        CircuitMismatch: the mask has another length than the space.
        BadSettings: the baseline is of weights.
    """
    if keep.shape != (space.n_units,):
        raise CircuitMismatch(
            f"the mask has shape {tuple(keep.shape)}, {space.model_id} has {space.n_units} units to mask here; masks "
            f"belong to the model and the kinds of units they were made for."
        )
    if baseline.start is not None:
        raise BadSettings(
            "a start baseline gives units other weights, which no edit says; take the model that `masked.masked` makes."
        )
    edits: dict[Site, Edit] = {}
    for group in space.groups:
        part = keep[group.places]
        if not keep.requires_grad and bool((part == 1).all()):
            continue
        edit = _group_edit(group, part, baseline, positions)
        edits[group.site] = compose(edits[group.site], edit) if group.site in edits else edit
    return edits


def _group_edit(group: UnitGroup, keep: Tensor, baseline: Baseline, positions: Tensor | None) -> Edit:
    sae = group.sae

    def edited(x: Tensor, places: Tensor | None) -> Tensor:
        if sae is not None:
            return _without_features(sae, x, keep, baseline, places)
        part = keep[:, None] if group.kind == "heads" else keep
        return blend(x, part, baseline.replacement(group.name, x, places))

    if baseline.kind == "resample" and positions is None:

        def apply(x: Tensor, step: Step) -> Tensor:
            return edited(x, step.position_ids)

        return PositionedEdit(apply)
    return lambda x: edited(x, positions)


def blend(x: Tensor, keep: Tensor, replacement: Tensor | None) -> Tensor:
    """`keep` of x and the rest of the replacement; bit-equal to x where keep is 1."""
    keep = keep.to(x)
    if replacement is None:
        return x * keep
    return torch.lerp(replacement.expand_as(x), x, keep.expand_as(x))


def _without_features(sae: SAEHandle, x: Tensor, keep: Tensor, baseline: Baseline, positions: Tensor | None) -> Tensor:
    features = sae.encode(x)
    replacement = baseline.replacement(sae.ref.slug, features, positions)
    surplus = features if replacement is None else features - replacement
    change = ((keep.to(surplus) - 1) * surplus) @ sae.decoder
    return x + change.reshape(x.shape).to(x.dtype)


# ------------------------------------------------------------------------------------------------- circuits as masks


def circuit_keep(space: UnitSpace, circuit: Circuit, view: View) -> Float[Tensor, " units"]:
    """The mask that removes the circuit, or leaves it alone.

    Raises:
        CircuitMismatch: the circuit is of another model, or names a unit that is not in the space.
    """
    if circuit.model_id != space.model_id:
        raise CircuitMismatch(
            f"circuit {circuit.slug} is of {circuit.model_id}, the model here is {space.model_id}; load that model or "
            f"search this one."
        )
    inside = torch.zeros(space.n_units)
    inside[[space.place(unit) for unit in circuit.units]] = 1.0
    return 1 - inside if view == "removed" else inside


def circuit_space(handle: HookedModel, circuit: Circuit, saes: Sequence[SAEHandle] = ()) -> UnitSpace:
    """The units that the circuit was sought among.

    Raises:
        CircuitMismatch: it was sought among features of SAEs that are not given, or among another number of units.
    """
    kinds: list[UnitKind] = []
    if circuit.n_heads:
        kinds.append("heads")
    if circuit.n_neurons:
        kinds.append("neurons")
    if circuit.n_features and not saes:
        raise CircuitMismatch(f"circuit {circuit.slug} holds SAE features; give the SAEs that it was sought among.")
    space = unit_space(handle, kinds, saes if circuit.n_features else ())
    for kind, n in (("heads", circuit.n_heads), ("neurons", circuit.n_neurons), ("features", circuit.n_features)):
        if space.n_of(kind) != n:  # type: ignore[arg-type]
            raise CircuitMismatch(
                f"circuit {circuit.slug} was sought among {n} {kind}; {handle.model_id} has {space.n_of(kind)}."  # type: ignore[arg-type]
            )
    return space


def circuit_edits(
    handle: HookedModel,
    circuit: Circuit,
    view: View,
    baseline: Baseline = ZERO,
    saes: Sequence[SAEHandle] = (),
) -> Mapping[Site, Edit]:
    """Edits under which the model lacks the circuit, or keeps nothing else of the units it was sought among.

    Raises:
        CircuitMismatch: the circuit is of another model.
        BadSettings: the baseline has no values of a group that is masked.
    """
    space = circuit_space(handle, circuit, saes)
    return masked_edits(space, circuit_keep(space, circuit, view), baseline)


def shared_copy(handle: HookedModel) -> HookedModel:
    """A handle with modules of its own and the same weights, for another thread: its hooks are not seen elsewhere."""
    weights = {id(each): each for each in (*handle.model.parameters(), *handle.model.buffers())}
    return HookedModel(
        copy.deepcopy(handle.model, weights), handle.tokenizer, handle.architecture, model_id=handle.model_id
    )
