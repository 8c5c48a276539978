"""Names of places in a model: `resid_post.12`, `head_out.3`, `mlp_act.5`.

Every method of the library speaks of places by `Site`; `model/architectures.py` alone knows how a site becomes a
module. This file also translates the hook names of other tools, so that an SAE's metadata can be read.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import total_ordering
from typing import Self

from safe_sail.errors import BadSite


class SiteKind(StrEnum):
    """The nine kinds of places; the order of the members is the order of computation inside a block."""

    EMBED = "embed"
    """What enters block 0: [batch, seq, d_model]. Has no layer."""
    RESID_PRE = "resid_pre"
    """Residual stream before a block: [batch, seq, d_model]."""
    HEAD_OUT = "head_out"
    """Per-head value mix before W_O (TransformerLens `hook_z`): [batch, seq, n_heads, d_head]."""
    ATTN_OUT = "attn_out"
    """What attention adds to the stream (after a post-norm, if any): [batch, seq, d_model]."""
    RESID_MID = "resid_mid"
    """Stream between attention and MLP: [batch, seq, d_model]. Absent in parallel blocks."""
    MLP_IN = "mlp_in"
    """What the MLP reads, after its norm: [batch, seq, d_model]. Transcoders read here."""
    MLP_ACT = "mlp_act"
    """Neuron activations, the input of the down projection (`hook_post`): [batch, seq, d_mlp]."""
    MLP_OUT = "mlp_out"
    """What the MLP adds to the stream (after a post-norm, if any): [batch, seq, d_model]."""
    RESID_POST = "resid_post"
    """Residual stream after a block: [batch, seq, d_model]."""


_KIND_ORDER = {kind: position for position, kind in enumerate(SiteKind)}

_FOREIGN: tuple[tuple[re.Pattern[str], SiteKind], ...] = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        # TransformerLens, classic names
        (r"blocks\.(\d+)\.hook_resid_pre", SiteKind.RESID_PRE),
        (r"blocks\.(\d+)\.hook_resid_mid", SiteKind.RESID_MID),
        (r"blocks\.(\d+)\.hook_resid_post", SiteKind.RESID_POST),
        (r"blocks\.(\d+)\.hook_attn_out", SiteKind.ATTN_OUT),
        (r"blocks\.(\d+)\.hook_mlp_out", SiteKind.MLP_OUT),
        (r"blocks\.(\d+)\.attn\.hook_z", SiteKind.HEAD_OUT),
        (r"blocks\.(\d+)\.mlp\.hook_post", SiteKind.MLP_ACT),
        (r"blocks\.(\d+)\.ln2\.hook_normalized", SiteKind.MLP_IN),
        (r"blocks\.(\d+)\.mlp\.hook_in", SiteKind.MLP_IN),
        # TransformerLens 3, bridge names
        (r"blocks\.(\d+)\.hook_in", SiteKind.RESID_PRE),
        (r"blocks\.(\d+)\.hook_out", SiteKind.RESID_POST),
        (r"blocks\.(\d+)\.attn\.hook_out", SiteKind.ATTN_OUT),
        (r"blocks\.(\d+)\.mlp\.hook_out", SiteKind.MLP_OUT),
        # Hugging Face module paths (SAELens' HookedProxyLM, sparsify, nnsight): a module's output
        (r"(?:model\.layers|model\.language_model\.layers|transformer\.h|gpt_neox\.layers|layers|h)\.(\d+)",
         SiteKind.RESID_POST),
    )
)  # fmt: skip

_HOOKS: dict[SiteKind, str] = {
    SiteKind.RESID_PRE: "hook_resid_pre",
    SiteKind.HEAD_OUT: "attn.hook_z",
    SiteKind.ATTN_OUT: "hook_attn_out",
    SiteKind.RESID_MID: "hook_resid_mid",
    SiteKind.MLP_IN: "mlp.hook_in",  # the classic name, ln2.hook_normalized, is the value before the norm's gain
    SiteKind.MLP_ACT: "mlp.hook_post",
    SiteKind.MLP_OUT: "hook_mlp_out",
    SiteKind.RESID_POST: "hook_resid_post",
}


@total_ordering
@dataclass(frozen=True, slots=True)
class Site:
    """One place in a model; ordered by the depth at which it is computed."""

    kind: SiteKind
    layer: int | None = None
    """Counted from 0; None for `embed` alone."""

    def __post_init__(self) -> None:
        if (self.layer is None) != (self.kind is SiteKind.EMBED):
            raise BadSite(
                f"`{self.kind}` with layer {self.layer}: `embed` has no layer and every other kind has one, "
                f"as in `resid_post.12`."
            )
        if self.layer is not None and self.layer < 0:
            raise BadSite(f"`{self.kind}.{self.layer}`: layers count from 0; a negative layer has no meaning.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Site of its own name, `resid_post.12` or `embed`.

        Raises:
            BadSite: the text has another form or an unknown kind.
        """
        kind, dot, layer = text.partition(".")
        if kind not in set(SiteKind) or (dot and not re.fullmatch(r"\d+", layer)):
            kinds = ", ".join(SiteKind)
            raise BadSite(f"`{text}` is not a site; expected `kind.layer` as in `resid_post.12`, kind one of {kinds}.")
        return cls(SiteKind(kind), int(layer) if dot else None)

    @classmethod
    def from_hook_name(cls, name: str) -> Self:
        """Site of another tool's hook name: TransformerLens (classic, bridge), a Hugging Face block path, or ours.

        Raises:
            BadSite: the name is in none of the known styles, or names a place that is no site.
        """
        if name in ("hook_embed", "embed.hook_out"):
            return cls(SiteKind.EMBED)
        for pattern, kind in _FOREIGN:
            if found := pattern.fullmatch(name):
                return cls(kind, int(found[1]))
        try:
            return cls.parse(name)
        except BadSite:
            raise BadSite(
                f"hook name `{name}` is not known: expected a TransformerLens name (`blocks.3.hook_resid_post`), a "
                f"block's module path (`model.layers.3`) or a site (`resid_post.3`). Name the site yourself."
            ) from None

    @property
    def hook_name(self) -> str:
        """TransformerLens' name of the place, which other tools read; `from_hook_name` leads back."""
        return "embed.hook_out" if self.layer is None else f"blocks.{self.layer}.{_HOOKS[self.kind]}"

    def __str__(self) -> str:
        return str(self.kind) if self.layer is None else f"{self.kind}.{self.layer}"

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Site):
            return NotImplemented
        return self._depth() < other._depth()

    def _depth(self) -> tuple[int, int]:
        return (-1 if self.layer is None else self.layer, _KIND_ORDER[self.kind])
