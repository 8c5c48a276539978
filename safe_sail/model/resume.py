"""Passes that begin in the middle: blocks whose result is known already are not run again.

1. Keep the stream before a layer from a plain pass.
2. Choose rows of the batch, each as often as there are variants of it, and put the kept stream before that layer.
3. The blocks before it hand on what they are given, so a pass costs the blocks from that layer on.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from safe_sail.model.handle import HookedModel


@contextmanager
def skipped_blocks(handle: HookedModel, layer: int) -> Iterator[None]:
    """Scope in which blocks before `layer` hand on what they are given; its user replaces `resid_pre` of `layer`."""
    # Falcon's blocks return a pair, the others the stream alone; the stream is what block `layer` will have replaced.
    returns_pair = handle.architecture.family == "falcon"

    def hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states, None) if returns_pair else hidden_states

    with ExitStack() as restore:
        for block in handle.blocks[:layer]:
            block.forward = hand_on
            restore.callback(block.__dict__.pop, "forward")
        yield
