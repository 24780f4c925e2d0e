"""Who leaves ends what is awaited for him, whichever way the server says so."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from service.http.disconnect import DISCONNECT, Disconnect, cancel_on_disconnect


async def silent() -> Message:
    raise AssertionError("nobody asks for messages where the server tells by itself")


def told(departure: Disconnect) -> Request:
    return Request({"type": "http", DISCONNECT: departure}, silent)


async def test_a_departure_ends_what_is_awaited() -> None:
    departure = Disconnect()
    asyncio.get_running_loop().call_soon(departure.happens)
    with pytest.raises(ClientDisconnect), cancel_on_disconnect(told(departure)):
        await asyncio.sleep(60)
    await asyncio.sleep(0)  # the task goes on as if it had never been cancelled


async def test_who_has_left_already_is_not_waited_for() -> None:
    departure = Disconnect()
    departure.happens()
    with pytest.raises(ClientDisconnect), cancel_on_disconnect(told(departure)):
        await asyncio.sleep(60)


async def test_an_answered_request_does_not_end_with_its_client() -> None:
    departure = Disconnect()
    with cancel_on_disconnect(told(departure)):
        await asyncio.sleep(0)
    departure.happens()
    await asyncio.sleep(0)


async def test_a_server_that_tells_by_a_message() -> None:
    """It is asked only for who waits a while; messages of other kinds are passed over."""
    messages = [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return messages.pop(0)

    with cancel_on_disconnect(Request({"type": "http"}, receive)):
        pass
    assert len(messages) == 2
    with pytest.raises(ClientDisconnect), cancel_on_disconnect(Request({"type": "http"}, receive)):
        await asyncio.sleep(60)
    assert not messages
