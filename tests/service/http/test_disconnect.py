"""Cancelling the work for clients that have disconnected, and the cancel scope behind it."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from service.http.context import CONTEXT, RequestContext
from service.http.disconnect import CancelScope, Disconnect, cancel_on_disconnect


async def never_called() -> Message:
    raise AssertionError("no message is needed, because the server calls `Disconnect.notify`")


def request(disconnect: Disconnect) -> Request:
    return Request({"type": "http", CONTEXT: RequestContext(disconnect)}, never_called)


def without_context(receive: object) -> Request:
    return Request({"type": "http", "headers": []}, receive)  # type: ignore[arg-type]


async def test_a_disconnect_cancels_the_block() -> None:
    """The block raises ClientDisconnect, and the task can go on afterwards."""
    disconnect = Disconnect()
    asyncio.get_running_loop().call_soon(disconnect.notify)
    with pytest.raises(ClientDisconnect), cancel_on_disconnect(request(disconnect)):
        await asyncio.sleep(60)
    await asyncio.sleep(0)


async def test_an_earlier_disconnect_cancels_the_block() -> None:
    """A client that has disconnected before the block cancels it immediately."""
    disconnect = Disconnect()
    disconnect.notify()
    with pytest.raises(ClientDisconnect), cancel_on_disconnect(request(disconnect)):
        await asyncio.sleep(60)


async def test_a_later_disconnect_cancels_nothing() -> None:
    """A disconnect after the block has no effect on the task."""
    disconnect = Disconnect()
    with cancel_on_disconnect(request(disconnect)):
        await asyncio.sleep(0)
    disconnect.notify()
    await asyncio.sleep(0)


async def test_a_message_cancels_the_block() -> None:
    """On other servers the message is received only by requests that wait for a while, and other
    messages are ignored."""
    messages = [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return messages.pop(0)

    with cancel_on_disconnect(without_context(receive)):
        pass
    assert len(messages) == 2
    with pytest.raises(ClientDisconnect), cancel_on_disconnect(without_context(receive)):
        await asyncio.sleep(60)
    assert not messages


async def test_cancel_scope_raises_the_reason() -> None:
    """The block raises the reason, and the task can go on afterwards."""
    scope = CancelScope()
    asyncio.get_running_loop().call_soon(scope.cancel, ValueError("enough"))
    with pytest.raises(ValueError, match="enough"), scope:
        await asyncio.sleep(60)
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
    """An exception that the block raises while it is cancelled is not replaced."""

    async def fail(scope: CancelScope) -> None:
        with scope:
            try:
                await asyncio.sleep(60)
            finally:
                raise KeyError

    scope = CancelScope()
    asyncio.get_running_loop().call_soon(scope.cancel, ValueError("enough"))
    with pytest.raises(KeyError):
        await fail(scope)


async def test_cancel_scope_passes_on_other_cancellations() -> None:
    """If the task is cancelled from outside as well, that cancellation is not swallowed."""

    async def wait(scope: CancelScope) -> None:
        with scope:
            await asyncio.sleep(60)

    scope = CancelScope()
    task = asyncio.create_task(wait(scope))
    await asyncio.sleep(0)
    scope.cancel(ValueError("enough"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
