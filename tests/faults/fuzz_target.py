"""Runs one target with libFuzzer, through atheris. `fuzz.py` starts a process for each target.

    python -m tests.faults.fuzz_target decode CORPUS SEEDS -max_total_time=60

Each target keeps its promise for any bytes, or raises an exception that stops the fuzzer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pathlib
import struct
import sys
import tempfile
from collections.abc import Callable
from typing import cast

import atheris

with atheris.instrument_imports(include=["service", "model_store", "python_multipart", "PIL"]):
    from model_store.onnx.file import BadOnnx, read_onnx
    from model_store.params import BadParams, read_params
    from service.decoding.image import identify
    from service.errors import (
        BadImage,
        ImageTooExpensive,
        ImageTooLarge,
        MissingImage,
        NotReady,
        UnsupportedImageType,
    )
    from service.inference.model_host import ModelHost
    from service.inference.service import Decoding, Versions
    from service.upload.multipart import Form, boundary
    from service.workers.connection import FrameConnection
    from service.workers.engine_client import _EngineConnection
    from service.workers.engine_server import EngineServer, _FrontEndConnection
    from service.workers.frames import BOUNDS, BadFrame, FrameReader

MAX_PIXELS = 250_000
HEAD = struct.Struct("=IBQ")
"""Layout of a frame header: bytes of the body, kind, number."""
KNOWN = BadImage, UnsupportedImageType, ImageTooLarge, ImageTooExpensive
_loop = asyncio.new_event_loop()
_fuzz = pathlib.Path(tempfile.gettempdir()) / f"fuzz-{os.getpid()}.file"


def decodes(data: bytes) -> None:
    """Decoding returns 32 x 32 pixels or raises one of three exceptions."""
    try:
        image = identify(data, MAX_PIXELS).decode()
    except KNOWN:
        return
    assert image.shape == (32, 32, 3) and image.dtype == "uint8"


def reads_forms(data: bytes) -> None:
    """A form gives the same result in one piece or in several. The first byte is the size of the
    pieces, the first line is the Content-Type."""
    size, (kind, _, body) = 1 + (data[0] if data else 0), data[1:].partition(b"\n")
    try:
        delimiter = boundary("multipart/form-data; boundary=" + kind.decode("latin-1"))
    except MissingImage:
        return
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    assert _form(delimiter, [body]) == _form(delimiter, pieces)


def _form(delimiter: bytes, pieces: list[bytes]) -> list[bytes] | None:
    form = Form(delimiter, sum(map(len, pieces)), max_images=2)
    try:
        for piece in pieces:
            form.write(piece)
        return form.images()
    except MissingImage:
        return None


def reads_params(data: bytes) -> None:
    """Reading returns arrays or raises BadParams."""
    _fuzz.write_bytes(data)
    with contextlib.suppress(BadParams):
        read_params(_fuzz)


def reads_onnx(data: bytes) -> None:
    """Reading returns the same bytes or raises BadOnnx."""
    _fuzz.write_bytes(data)
    with contextlib.suppress(BadOnnx):
        assert read_onnx(_fuzz).content == data


class _NoEngine:
    """The parts of an engine that an engine server needs, without an engine."""

    started = None
    unloaded = False

    @property
    def batcher(self) -> None:
        raise NotReady


class _Wire(asyncio.Transport):
    """A transport that discards data and records its end."""

    ended = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: object) -> None:
        pass

    def abort(self) -> None:
        self.ended = True


def reads_frames(data: bytes) -> None:
    """Frames give the same result in one piece or in several. For any data of the other process, as
    it is or in a valid frame, a process ends the link or continues. The first byte is the size of
    the pieces."""
    size, stream = 1 + (data[0] if data else 0), data[1:]
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert _frames([stream]) == _frames(pieces)
    _loop.run_until_complete(_link(pieces))
    for kind, (fewest, most) in BOUNDS.items():
        if fewest <= len(stream) <= most:
            _loop.run_until_complete(_link([HEAD.pack(len(stream), kind, 1) + stream]))


def _frames(pieces: list[bytes]) -> list[tuple[int, int, bytes]] | None:
    reader, found = FrameReader(), []
    try:
        for piece in pieces:
            found += reader.feed(piece)
    except BadFrame:
        return None
    for frame in found:
        fewest, most = BOUNDS[frame.kind]
        assert fewest <= len(frame.body) <= most
    return [*found]


async def _link(pieces: list[bytes]) -> None:
    hub = EngineServer(cast(ModelHost, _NoEngine()), cast(Versions, None), cast(Decoding, None))
    ends: list[FrameConnection] = [_FrontEndConnection(hub), _EngineConnection()]
    for end in ends:
        wire = _Wire()
        end.connection_made(wire)
        for piece in pieces:
            if not wire.ended:
                end.data_received(piece)
        end.connection_lost(None)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "decode": decodes,
    "form": reads_forms,
    "params": reads_params,
    "onnx": reads_onnx,
    "frames": reads_frames,
}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    logging.disable()
    atheris.Setup([name, *arguments], TARGETS[name])
    atheris.Fuzz()
