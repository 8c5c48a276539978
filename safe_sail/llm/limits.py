"""How many requests are open at once, and how many start in a minute.

The gate, adaptive:
1. It starts at its ceiling, which is what the user says the endpoint allows.
2. Each 429 lowers the limit to one below what is open. Against an endpoint that allows 64 at once, 128 open requests
   bring 64 rejections, and those bring the limit to 64 exactly; against a rate limit they bring it to 1.
3. A 429 with nothing else open is no matter of concurrency: nothing starts until its `retry-after` has passed.
4. After four limits' worth of successes it rises by 1, then by 2, 4, ... per limit's worth; a 429 starts that over.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

_PATIENCE = 4
"""Limits' worth of successes before the first probe: at 64 open, one rejection in 256 requests."""
_BURST_S = 5.0
"""Seconds' worth of the rate that may start at once; vendors enforce a minute's rate over windows of a few seconds."""


class AdaptiveGate:
    """Admits as many requests at once as the endpoint bears."""

    def __init__(self, ceiling: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ceiling = ceiling
        self._clock = clock
        self._limit = ceiling
        self._open = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._paused_until = 0.0
        self._successes = 0
        self._patience = _PATIENCE
        self._step = 1

    @property
    def limit(self) -> int:
        """Requests admitted at once now."""
        return self._limit

    @property
    def open(self) -> int:
        """Requests admitted and not yet gone."""
        return self._open

    async def enter(self) -> None:
        """Returns when one more request may be open; first come, first served."""
        if self._waiting or self._open >= self._limit:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.leave()  # the turn had been given: pass it on
                else:
                    self._waiting.remove(turn)
                raise
        else:
            self._open += 1
        try:
            while (wait := self._paused_until - self._clock()) > 0:
                await asyncio.sleep(wait)
        except asyncio.CancelledError:
            self.leave()
            raise

    def leave(self) -> None:
        """One request less is open."""
        self._open -= 1
        self._admit()

    def succeeded(self) -> None:
        """The endpoint took a request; raises the limit after enough of them."""
        self._successes += 1
        if self._limit < self._ceiling and self._successes >= self._patience * self._limit:
            self._limit = min(self._ceiling, self._limit + self._step)
            self._successes, self._patience, self._step = 0, 1, self._step * 2
            self._admit()

    def rejected(self, retry_after_s: float) -> None:
        """The endpoint answered 429 to a request that is still open; lowers the limit."""
        self._limit = max(1, min(self._limit, self._open) - 1)
        self._successes, self._patience, self._step = 0, _PATIENCE, 1
        if self._open == 1:
            self._paused_until = max(self._paused_until, self._clock() + retry_after_s)

    def _admit(self) -> None:
        while self._waiting and self._open < self._limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._open += 1
                turn.set_result(None)


class Pace:
    """Spreads an amount (requests or tokens) over minutes; None is no limit."""

    def __init__(self, per_minute: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_each = None if per_minute is None else 60.0 / per_minute
        self._clock = clock
        self._paid_until = 0.0

    def delay(self, amount: int) -> float:
        """Seconds to wait before so much may start; it counts as started."""
        if self._seconds_each is None:
            return 0.0
        now = self._clock()
        start = max(now, self._paid_until)
        self._paid_until = start + amount * self._seconds_each
        return max(0.0, start - _BURST_S - now)
