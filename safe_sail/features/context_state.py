"""Context buffers as tensors and JSON values, and back: equal buffers give equal states."""

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safe_sail.errors import BadInput
from safe_sail.features.context_buffers import ContextBuffers, KeptWindows, SparseWindow, Window
from safe_sail.settings import ContextSettings


class State(NamedTuple):
    """What can be written down."""

    tensors: dict[str, Tensor]
    info: dict[str, Any]
    """JSON values."""


def state_of(buffers: ContextBuffers) -> State:
    """Everything that the buffers hold; windows that nothing needs are forgotten first."""
    buffers.prune()
    windows = buffers.windows.values()
    tensors = {
        "windows.numbers": torch.tensor(list(buffers.windows), dtype=torch.long),
        "windows.lengths": torch.tensor([len(window.token_ids) for window in windows], dtype=torch.long),
        "windows.token_ids": torch.tensor([i for window in windows for i in window.token_ids], dtype=torch.int32),
    }
    if buffers.drawn is not None:
        tensors |= {"drawn.values": buffers.drawn.values, "drawn.sources": buffers.drawn.sources}
    for place, one in enumerate(buffers.saes.values()):
        tensors[f"{place}.counts"] = one.counts
        for name, kept in (("top", one.top), ("spread", one.spread)):
            if kept is not None:
                tensors[f"{place}.{name}.values"] = kept.best.values
                tensors[f"{place}.{name}.sources"] = kept.best.sources
                tensors[f"{place}.{name}.activations"] = kept.activations
        tensors |= {f"{place}.drawn.{name}": tensor for name, tensor in _drawn_tensors(one.drawn).items()}
    info = {
        "settings": asdict(buffers.settings),
        "seed": buffers.seed,
        "features": {slug: list(one.features) for slug, one in buffers.saes.items()},
        "n_windows": buffers.n_windows,
        "n_tokens": buffers.n_tokens,
        "source_ids": [window.source_id for window in windows],
    }
    return State({name: tensor.contiguous() for name, tensor in tensors.items()}, info)


def buffers_of(state: State) -> ContextBuffers:
    """The buffers that were written down.

    Raises:
        BadInput: the state is incomplete or its parts do not fit each other.
    """
    tensors, info = state
    try:
        buffers = ContextBuffers(info["features"], settings=ContextSettings(**info["settings"]), seed=int(info["seed"]))
        buffers.n_windows, buffers.n_tokens = int(info["n_windows"]), int(info["n_tokens"])
        numbers = tensors["windows.numbers"].tolist()
        rows = tensors["windows.token_ids"].split(tensors["windows.lengths"].tolist())
        for number, source_id, row in zip(numbers, info["source_ids"], rows, strict=True):
            buffers.windows[number] = Window(source_id, array("i", row.tolist()))
        if buffers.drawn is not None:
            buffers.drawn.restore(tensors["drawn.values"], tensors["drawn.sources"])
        for place, one in enumerate(buffers.saes.values()):
            one.counts = _like(one.counts, tensors[f"{place}.counts"])
            for name, kept in (("top", one.top), ("spread", one.spread)):
                if kept is not None:
                    _restore(kept, f"{place}.{name}", tensors)
            drawn = {name: tensors[f"{place}.drawn.{name}"] for name in _DRAWN_NAMES}
            one.drawn = _drawn_windows(drawn, buffers.drawn_numbers)
        buffers.prune()
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"expected a whole state of context buffers; {error!r}. Collect anew.") from error
    return buffers


_DRAWN_NAMES = ("windows", "features", "positions", "values")


def _drawn_tensors(drawn: Mapping[int, SparseWindow]) -> dict[str, Tensor]:
    ordered = sorted(drawn.items())
    windows = [torch.full_like(one.features, number) for number, one in ordered]
    return {
        "windows": _joined(windows, torch.long),
        "features": _joined((one.features for _, one in ordered), torch.long),
        "positions": _joined((one.positions for _, one in ordered), torch.long),
        "values": _joined((one.values for _, one in ordered), torch.float32),
    }


def _drawn_windows(tensors: Mapping[str, Tensor], numbers: Iterable[int]) -> dict[int, SparseWindow]:
    """By number; a window on which no feature fires has no entry in the tensors and is drawn all the same."""
    windows = tensors["windows"]
    found = {}
    for number in sorted(numbers):
        inside = windows == number
        features, positions, values = (tensors[name][inside] for name in _DRAWN_NAMES[1:])
        found[number] = SparseWindow(features, positions, values)
    return found


def _joined(parts: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([torch.empty(0, dtype=dtype), *parts])


def _restore(kept: KeptWindows, name: str, tensors: Mapping[str, Tensor]) -> None:
    kept.best.restore(tensors[f"{name}.values"], tensors[f"{name}.sources"])
    kept.activations = _like(kept.activations, tensors[f"{name}.activations"])


def _like(old: Tensor, new: Tensor) -> Tensor:
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        raise ValueError(f"expected {old.dtype} {list(old.shape)}, got {new.dtype} {list(new.shape)}")
    return new
