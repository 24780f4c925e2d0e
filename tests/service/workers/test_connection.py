"""Tests how a connection between two processes ends when it fails."""

from __future__ import annotations

import asyncio

import pytest

from service.workers import frames
from service.workers.connection import FrameConnection


class BrokenTransport(asyncio.Transport):
    """Cannot write."""

    aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise MemoryError

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize("arrives", [b"", frames.message(frames.STATE, 0, {})])
async def test_frame_connection_closes_when_it_fails(arrives: bytes) -> None:
    """A connection that cannot write, or whose subclass raises, is closed, so that its requests
    end."""

    class Broken(FrameConnection):
        def frame_received(self, frame: frames.Frame) -> None:
            raise LookupError

    link, transport = Broken(), BrokenTransport()
    link.connection_made(transport)
    if arrives:
        link.data_received(arrives)
    else:
        link.send(b"frame")
        await asyncio.sleep(0)
    assert transport.aborted
