"""The gate finds what an endpoint bears; the pace keeps to a minute's rate."""

import asyncio

import pytest

from safe_sail.llm.limits import AdaptiveGate, Pace


def test_rejections_bring_the_limit_to_what_was_accepted():
    async def run() -> int:
        gate = AdaptiveGate(128)
        for _ in range(128):
            await gate.enter()
        for _ in range(64):  # the endpoint allows 64
            gate.rejected(0.0)
            gate.leave()
        return gate.limit

    assert asyncio.run(run()) == 64


def test_rate_limit_brings_the_limit_to_one_and_stops_new_starts():
    now = 100.0

    async def run() -> tuple[int, float]:
        gate = AdaptiveGate(8, clock=lambda: now)
        for _ in range(8):
            await gate.enter()
        for _ in range(8):
            gate.rejected(5.0)
            gate.leave()
        return gate.limit, gate._paused_until

    assert asyncio.run(run()) == (1, 105.0)


def test_limit_rises_again_after_successes_but_not_above_the_ceiling():
    async def run() -> list[int]:
        gate = AdaptiveGate(8)
        for _ in range(6):
            await gate.enter()
        gate.rejected(0.0)
        limits = [gate.limit]
        for _ in range(4 * 5):
            gate.succeeded()
        limits.append(gate.limit)
        for _ in range(100):
            gate.succeeded()
        return [*limits, gate.limit]

    assert asyncio.run(run()) == [5, 6, 8]


def test_gate_admits_in_order_and_a_cancelled_wait_loses_no_place():
    async def run() -> tuple[list[int], int]:
        gate = AdaptiveGate(1)
        order: list[int] = []

        async def visit(number: int) -> None:
            await gate.enter()
            order.append(number)
            await asyncio.sleep(0)
            gate.leave()

        tasks = [asyncio.create_task(visit(number)) for number in range(5)]
        await asyncio.sleep(0)
        tasks[1].cancel()  # waits in the queue
        await asyncio.gather(*tasks, return_exceptions=True)
        return order, gate.open

    assert asyncio.run(run()) == ([0, 2, 3, 4], 0)


def test_place_given_to_a_cancelled_wait_is_passed_on():
    async def run() -> int:
        gate = AdaptiveGate(1)
        await gate.enter()
        first, second = (asyncio.create_task(gate.enter()) for _ in range(2))
        await asyncio.sleep(0)
        gate.leave()  # gives the place to the first, which is cancelled before it runs
        first.cancel()
        await asyncio.wait_for(second, 120)
        with pytest.raises(asyncio.CancelledError):
            await first
        return gate.open

    assert asyncio.run(run()) == 1


def test_pace_spreads_a_minutes_rate():
    now = 0.0
    pace = Pace(60, clock=lambda: now)  # one a second, five seconds' worth at once
    delays = [pace.delay(1) for _ in range(10)]
    assert delays == pytest.approx([0, 0, 0, 0, 0, 0, 1, 2, 3, 4])
    assert Pace(None).delay(10**9) == 0.0
