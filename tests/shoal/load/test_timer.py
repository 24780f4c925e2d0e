"""The timer of the open loop."""

from __future__ import annotations

import asyncio
import time

import pytest

from shoal.load.timer import Timer


@pytest.mark.slow
async def test_timer_is_finer_than_a_millisecond() -> None:
    """The timer fires within half a millisecond of its moment, unless other work intervenes."""
    late: list[float] = []
    fired = asyncio.Event()
    timer = Timer(fired.set)
    while sum(seconds < 0.0005 for seconds in late) < 20 and len(late) < 2000:
        when = time.monotonic() + 0.0033
        timer.set(when)
        await fired.wait()
        late.append(time.monotonic() - when)
        fired.clear()
    timer.close()
    assert min(late) >= 0 and len(late) < 2000
