"""Tests the limit of calls in one turn of the event loop."""

from __future__ import annotations

import asyncio
from functools import partial

from service.grpc.turn_limit import CALLS, TurnLimit


async def test_turn_limit_resumes_waiting_relays_in_order() -> None:
    """After `CALLS` calls, relays wait. They resume in order, in as many turns as they need."""
    turn, resumed = TurnLimit(), list[int]()

    def resume(number: int) -> None:
        resumed.append(number)
        turn.count_call()

    for _ in range(CALLS):
        assert not turn.is_reached
        turn.count_call()
    assert turn.is_reached
    for number in range(CALLS + 1):
        turn.wait(partial(resume, number))
    await asyncio.sleep(0)
    assert resumed == list(range(CALLS)) and turn.is_reached
    await asyncio.sleep(0)
    assert resumed == list(range(CALLS + 1)) and not turn.is_reached
