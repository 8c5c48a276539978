"""Ray on a busy machine: it gives itself half a minute to start, and no setting gives it more."""

import gc
import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def patiently(start: Callable[[], T]) -> T:
    """What starts Ray and goes on, from its beginning again where Ray was not up in time."""
    for _ in range(9):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error) and "Ray did not start within" not in str(error):
                raise
        with warnings.catch_warnings():  # the processes of the one that was late, which end with this one
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    return start()
