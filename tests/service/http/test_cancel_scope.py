"""What is awaited, ended for a reason."""

from __future__ import annotations

import asyncio

import pytest

from service.http.cancel_scope import CancelScope


async def test_the_reason_takes_the_place_of_what_is_awaited() -> None:
    work = CancelScope()
    asyncio.get_running_loop().call_soon(work.interrupt, ValueError("enough"))
    with pytest.raises(ValueError, match="enough"), work:
        await asyncio.sleep(60)
    await asyncio.sleep(0)  # the task goes on as if it had never been cancelled


async def test_too_late_is_told_all_the_same() -> None:
    """What was awaited has ended in the same moment."""
    loop, work = asyncio.get_running_loop(), CancelScope()
    awaited: asyncio.Future[None] = loop.create_future()
    loop.call_soon(awaited.set_result, None)
    loop.call_soon(work.interrupt, ValueError("enough"))
    with pytest.raises(ValueError, match="enough"), work:
        await awaited


async def test_an_error_of_its_own_comes_first() -> None:
    async def fail(work: CancelScope) -> None:
        with work:
            try:
                await asyncio.sleep(60)
            finally:
                raise KeyError

    work = CancelScope()
    asyncio.get_running_loop().call_soon(work.interrupt, ValueError("enough"))
    with pytest.raises(KeyError):
        await fail(work)


async def test_a_server_that_gives_up_is_heard() -> None:
    """Its cancellation goes on its way, whatever else there is to tell."""

    async def wait(work: CancelScope) -> None:
        with work:
            await asyncio.sleep(60)

    work = CancelScope()
    task = asyncio.create_task(wait(work))
    await asyncio.sleep(0)
    work.interrupt(ValueError("enough"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
