"""One pass for two models: its rows are the first model's, then the second's; what differs serves each half.

1. A module whose weights differ is run on each half with its own weights; all others run once for both.
2. Until the first block whose weights differ both halves would be equal, so a pass begins with the first model's rows
   alone and takes the second's at that block; where something before the blocks differs, it begins with both.
3. After the last block whose activations of the second model are wanted, its rows are dropped.
4. Within these two blocks, attention before an MLP that differs and W_out after the last wanted activations run the
   first model's rows alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch


def doubled_batch(batch: TokenBatch) -> TokenBatch:
    """The rows twice: once for each model."""
    return TokenBatch(
        torch.cat([batch.token_ids] * 2), torch.cat([batch.attention_mask] * 2), batch.source_ids + batch.source_ids
    )


@contextmanager
def served_by_half(first: HookedModel, second: HookedModel, names: Sequence[str]) -> Iterator[None]:
    """Scope in which these modules of the first model serve the second half of their rows as the second model's."""
    with ExitStack() as undo:
        for name in names:
            mine, theirs = (one.model.get_submodule(name) for one in (first, second))
            _put(undo, mine, _by_half(mine.forward, theirs.forward))
        yield


@contextmanager
def served_by_first_half(handle: HookedModel, names: Sequence[str]) -> Iterator[None]:
    """Scope in which these modules run the first half of their rows alone and give its result for both halves.

    Right where the halves are equal, and where nobody wants what comes of the second.
    """

    def changed(run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            half = len(next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor))) // 2
            given, named = _each((args, kwargs), 2 * half, lambda value: value[:half])
            return _each(run(*given, **named), half, lambda value: torch.cat([value] * 2))

        return forward

    with ExitStack() as undo:
        for name in names:
            module = handle.model.get_submodule(name)
            _put(undo, module, changed(module.forward))
        yield


@contextmanager
def twice_the_rows(handle: HookedModel, begin: int, end: int) -> Iterator[None]:
    """Scope in which blocks `begin` to `end`, both counted in, run the rows of a pass twice.

    Only the first half of what block `end` gives goes on.
    """
    done: dict[int, tuple[Tensor, Tensor]] = {}

    def twice(value: Tensor) -> Tensor:
        if id(value) not in done:  # once a pass and not once a block
            # the tensor itself is kept beside its double, or its id could come again while the pass runs
            done[id(value)] = (value, torch.cat([value] * 2))
        return done[id(value)][1]

    def changed(run: Callable[..., Any], layer: int) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if layer == begin:
                done.clear()
                rows, hidden_states = len(hidden_states), torch.cat([hidden_states] * 2)
            else:
                rows = len(hidden_states) // 2
            given, named = _each((args, kwargs), rows, twice)
            found = run(hidden_states, *given, **named)
            return found if layer < end else _first_half(found)

        return forward

    with ExitStack() as undo:
        for layer in range(begin, end + 1):
            _put(undo, handle.blocks[layer], changed(handle.blocks[layer].forward, layer))
        yield


@contextmanager
def half_the_rows(handle: HookedModel, end: int) -> Iterator[None]:
    """Scope in which only the first half of the rows that block `end` gives goes on through the blocks after it."""

    def changed(run: Callable[..., Any], layer: int) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if layer == end:
                return _first_half(run(hidden_states, *args, **kwargs))
            rows = len(hidden_states)
            given, named = _each((args, kwargs), 2 * rows, lambda value: value[:rows])
            return run(hidden_states, *given, **named)

        return forward

    with ExitStack() as undo:
        for layer in range(end, len(handle.blocks)):
            _put(undo, handle.blocks[layer], changed(handle.blocks[layer].forward, layer))
        yield


def _each(value: Any, rows: int, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with every tensor of so many rows changed: masks, positions and rotations; what has one row for all is
    broadcast, and what has one axis, as cache positions, has no rows.
    """
    if isinstance(value, tuple | list):
        return type(value)(_each(one, rows, change) for one in value)
    if type(value) is dict:
        return {name: _each(one, rows, change) for name, one in value.items()}
    return change(value) if isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows else value


def _first_half(found: Any) -> Any:
    if isinstance(found, tuple):  # Falcon's blocks give the stream and attention weights, or None
        return (_first_half(found[0]), *found[1:])
    return found[: len(found) // 2]


def _put(undo: ExitStack, module: torch.nn.Module, forward: Callable[..., Any]) -> None:
    before = module.__dict__.get("forward")
    undo.callback(_restore, module, before)
    module.__dict__["forward"] = forward


def _restore(module: torch.nn.Module, before: Any) -> None:
    if before is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = before


def _by_half(mine: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:  # the usual map of one tensor; a step of one token is bound by overhead
            half = len(args[0]) // 2
            return _joined(mine(args[0][:half]), theirs(args[0][half:]))
        rows = next(one.shape[0] for one in (*args, *kwargs.values()) if isinstance(one, Tensor))

        def part(value: Any, which: int) -> Any:
            return value.chunk(2)[which] if isinstance(value, Tensor) and value.shape[:1] == (rows,) else value

        found = [
            run(*[part(one, which) for one in args], **{name: part(one, which) for name, one in kwargs.items()})
            for which, run in enumerate((mine, theirs))
        ]
        return _joined(*found)

    return forward


def _joined(mine: Any, theirs: Any) -> Any:
    if isinstance(mine, tuple):
        return tuple(torch.cat(pair) for pair in zip(mine, theirs, strict=True))
    return torch.cat([mine, theirs])
