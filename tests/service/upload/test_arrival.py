"""The cancel scope in which a body arrives."""

from __future__ import annotations

import asyncio

import pytest

from service.upload.arrival import CancelScope


async def test_cancel_scope_raises_the_reason() -> None:
    """The block raises the reason, and the task can go on afterwards."""
    scope = CancelScope()
    asyncio.get_running_loop().call_soon(scope.cancel, ValueError("enough"))
    with pytest.raises(ValueError, match="enough"), scope:
        await asyncio.Event().wait()
    await asyncio.sleep(0)


async def test_cancel_scope_raises_the_reason_after_the_block_has_its_result() -> None:
    """The reason is raised also if the awaited result arrives in the same moment."""
    loop, scope = asyncio.get_running_loop(), CancelScope()
    awaited: asyncio.Future[None] = loop.create_future()
    loop.call_soon(awaited.set_result, None)
    loop.call_soon(scope.cancel, ValueError("enough"))
    with pytest.raises(ValueError, match="enough"), scope:
        await awaited


async def test_cancel_scope_prefers_an_error_of_the_block() -> None:
    """An exception that the block raises while it is canceled is not replaced."""

    async def fail(scope: CancelScope) -> None:
        with scope:
            try:
                await asyncio.Event().wait()
            finally:
                raise KeyError

    scope = CancelScope()
    asyncio.get_running_loop().call_soon(scope.cancel, ValueError("enough"))
    with pytest.raises(KeyError):
        await fail(scope)


async def test_cancel_scope_passes_on_other_cancellations() -> None:
    """If the task is canceled from outside as well, that cancellation is not swallowed."""

    async def wait(scope: CancelScope) -> None:
        with scope:
            await asyncio.Event().wait()

    scope = CancelScope()
    task = asyncio.create_task(wait(scope))
    await asyncio.sleep(0)
    scope.cancel(ValueError("enough"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
