"""The mechanism under the handle: what runs at a module border during a pass.

1. `Work` says what a call wants: edits, captures, the site to stop at.
2. `installed` registers one hook per border that the work touches and removes them all in `finally`.
3. At a border, sites are visited in order; at each site first the edit, then the capture, then the stop.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from safe_sail.errors import EditRefused
from safe_sail.model.architectures import Architecture, Place
from safe_sail.model.edits import Edit, Step, apply_edit
from safe_sail.sites import Site, SiteKind


class Stop(Exception):
    """Ends a pass whose deepest requested site has been read."""


@dataclass(slots=True)
class Work:
    """What one call does at the sites, and what it has found."""

    edits: Mapping[Site, Edit]
    wanted: frozenset[Site] = frozenset()
    stop: Site | None = None
    """Deepest wanted site of a pass without logits."""
    captures: dict[Site, Tensor] = field(default_factory=dict)
    before: dict[int, Tensor] = field(default_factory=dict)
    """Block inputs by layer, kept until `attn_out` completes `resid_mid`."""


@contextmanager
def installed(
    work: Work,
    row: Architecture,
    blocks: Sequence[torch.nn.Module],
    head_shape: tuple[int, int],
    step_of: Callable[[], Step | None],
) -> Iterator[None]:
    """Scope in which the work is done by every pass of the model; `step_of` tells which tokens a pass sees."""
    borders: dict[tuple[int, Place], list[Site]] = {}
    for site in sorted({*work.edits, *work.wanted}):
        derived = site.kind is SiteKind.RESID_MID
        for kind in (SiteKind.RESID_PRE, SiteKind.ATTN_OUT) if derived else (site.kind,):
            borders.setdefault((site.layer or 0, row.place(kind)), []).append(site)
    with ExitStack() as hooks:
        for (layer, place), sites in borders.items():
            module = blocks[layer].get_submodule(place.path)
            visit = _Visit(work, tuple(sites), head_shape, step_of, place)
            if place.side == "input":
                hooks.callback(module.register_forward_pre_hook(visit.before, with_kwargs=True).remove)
            else:
                visit.copies = row.mlp_out_is_overwritten and place == row.place(SiteKind.MLP_OUT)
                hooks.callback(module.register_forward_hook(visit.after).remove)
        yield


@dataclass(slots=True)
class _Visit:
    """One border's share of the work."""

    work: Work
    sites: tuple[Site, ...]
    head_shape: tuple[int, int]
    step_of: Callable[[], Step | None]
    place: Place
    copies: bool = False

    def before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        y = self._all(x)
        if y is x:
            return None
        return ((y, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": y})

    def after(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        y = self._all(x)
        if self.copies:
            y = y.clone()
        if y is x:
            return None
        return (y, *output[1:]) if isinstance(output, tuple) else y

    def _all(self, x: Tensor) -> Tensor:
        for site in self.sites:
            if site.kind is SiteKind.HEAD_OUT:
                by_head = self._one(site, torch.unflatten(x, -1, self.head_shape))
                # with grad the model goes on from the captured view, or no gradient would reach it
                if site in self.work.edits or by_head.requires_grad:
                    x = by_head.flatten(-2)
            else:
                x = self._one(site, x)
        return x

    def _one(self, site: Site, x: Tensor) -> Tensor:
        work = self.work
        if site in work.edits:
            x = _edited(site, work.edits[site], x, self.step_of())
        if site in work.wanted:
            if site.kind is not SiteKind.RESID_MID:
                work.captures[site] = x
            elif self.place.side == "input":
                work.before[site.layer or 0] = x
                return x
            else:
                work.captures[site] = work.before.pop(site.layer or 0).to(x.device) + x
        if site == work.stop:
            raise Stop
        return x


def _edited(site: Site, edit: Edit, x: Tensor, step: Step | None) -> Tensor:
    version = x._version
    y = apply_edit(edit, x, step)
    if x._version != version:
        raise EditRefused(f"the edit at `{site}` changed its input in place; return a new tensor instead.")
    if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
        came = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise EditRefused(
            f"the edit at `{site}` was given {tuple(x.shape)} {x.dtype} and must return the same; {came} came."
        )
    return y


@contextmanager
def grad_scope() -> Iterator[None]:
    """Scope in which inference mode, if on, is no-grad: by their version in-place edits are found, which inference
    tensors lack.
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
