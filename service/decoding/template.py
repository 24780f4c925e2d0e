"""The template process, which decoder processes are forked from, and their main loops.

The template imports Pillow once and forks a decoder for each request of the server, which takes
milliseconds. It has one thread, receives no image, no key and no environment of the server, and
exits when the server closes their socket. `service.decoding.process` is the server's side.

Messages (SOCK_SEQPACKET, numbers in the machine's own order)
    template -> server    JSON: CPU seconds that decoding a sample took; once
    server -> template    ORDER: FORK, with two descriptors: a socket, and the file for images
    template -> server    RESULT: the process id; 0 if forking failed
    server -> template    ORDER: REAP, for each decoder once; until then its process id is its own
    template -> server    RESULT: its exit code, minus the signal that ended it, or LIVED_ON
    decoder -> server     JSON: the restrictions that hold; once
    server -> decoder     REQUEST: the file holds the image; of 0 bytes: free unused memory
    decoder -> server     a byte: 0 and the pixels, or a Fault and the repr of the exception
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
from contextlib import suppress

from PIL import Image

from service.decoding import picture, sandbox

FORK, REAP = 1, 2
ORDER = struct.Struct("=BQi")
"""FORK, bytes of memory that the decoder may take, and the increment of its niceness (nice(2)); or
REAP, the process id, and 0."""
RESULT = struct.Struct("=i")
REQUEST = struct.Struct("=QQ8sIIQ")
"""Bytes of the image, bytes of memory that decoding it takes at most, kind, width, height, and
maximum number of pixels."""
MAX_MESSAGE = 8192
"""Bytes."""
MAX_CAUSE = 200
"""Maximum number of characters of the exception's repr."""

_LIBC = ctypes.CDLL(None)

_IMPORTED_LATE = (
    "colorsys",
    "copy",
    "encodings.ascii",
    "encodings.latin_1",
    "PIL.ImageChops",
    "PIL.ImageColor",
    "PIL.ImagePalette",
)
"""Modules that Pillow imports when it needs them. The template does, as decoders open no files."""

EXIT_SECONDS = 0.05
"""Time in which a decoder that is to be reaped exits by itself; then it is killed."""
LIVED_ON = 256
"""RESULT for a decoder that did not exit in that time. Exit codes are smaller."""

SAMPLE = (512, 384)
"""Width and height, in pixels, of the images whose decoding is timed."""


def main(descriptor: int) -> None:
    """Fork and reap decoders, until the other end of the socket `descriptor` is closed."""
    control = socket.socket(fileno=descriptor)
    _prefer_to_be_killed()
    for name in _IMPORTED_LATE:
        importlib.import_module(name)
    with suppress(ConnectionError):  # the server has ended
        control.send(json.dumps(_sample_seconds()).encode())
        gc.collect()
        gc.freeze()
        while order := _receive(control):
            (what, value, nicer), descriptors = order
            result = _fork(value, nicer, *descriptors) if what == FORK else _reap(value)
            control.send(RESULT.pack(result))


def _receive(control: socket.socket) -> tuple[tuple[int, int, int], list[int]] | None:
    """An order and its descriptors; None: the server has ended."""
    message, descriptors, _, _ = socket.recv_fds(control, ORDER.size, 2)
    return (ORDER.unpack(message), descriptors) if message else None


def _fork(memory: int, nicer: int, connection: int, file: int) -> int:
    """The process id of a new decoder; 0: the system allows no further process."""
    pid = 0
    with suppress(OSError):
        pid = os.fork()
        if pid == 0:
            _decode_until_closed(memory, nicer, connection, file)
    os.close(connection)
    os.close(file)
    return pid


def _reap(pid: int) -> int:
    """How the decoder `pid` ended: its exit code, minus the signal, or LIVED_ON."""
    end = time.monotonic() + EXIT_SECONDS
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return LIVED_ON


def _decode_until_closed(memory: int, nicer: int, connection: int, file: int) -> None:
    """Main loop of a decoder process. Does not return."""
    try:
        sandbox.die_with_parent()
        os.nice(nicer)
        os.dup2(connection, 0)
        os.dup2(file, 1)
        os.closerange(2, os.sysconf("SC_OPEN_MAX"))
        link = socket.socket(fileno=0)
        link.send(json.dumps(sandbox.confine(memory)).encode())
        images = 0
        while request := link.recv(REQUEST.size):
            length, memory, kind, *size = REQUEST.unpack(request)
            if length == 0:
                _free_memory()
                continue
            fault, content = _decode(length, kind.rstrip(b"\0").decode(), *size)
            # What earlier images have left may be why there was too little memory.
            if fault == picture.Fault.DAMAGED and images and not _is_available(memory):
                fault = picture.Fault.OUT_OF_MEMORY
            link.send(bytes([fault]) + content)
            images += 1
    finally:
        os._exit(0)


def _decode(length: int, kind: str, width: int, height: int, max_pixels: int) -> tuple[int, bytes]:
    """0 and the pixels of the image in the file, or a Fault and the repr of the exception."""
    try:
        return 0, picture.decode(os.pread(1, length, 0), kind, width, height, max_pixels)
    except picture.Undecodable as error:
        return error.fault, repr(error.__cause__)[:MAX_CAUSE].encode(errors="replace")
    except MemoryError as error:
        return picture.Fault.OUT_OF_MEMORY, repr(error).encode()


def _is_available(memory: int) -> bool:
    """Whether this process may take so many bytes. Libraries that lack memory do not always say so:
    libjpeg and libwebp then call an image damaged."""
    _free_memory()
    try:
        mmap.mmap(-1, memory, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, MemoryError):
        return False
    return True


def _free_memory() -> None:
    """Return freed memory to the system."""
    with suppress(AttributeError):  # not glibc
        _LIBC.malloc_trim(0)


def _prefer_to_be_killed() -> None:
    """When the machine or container runs out of memory, the kernel kills a decoder first."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def _sample_seconds() -> float:
    """CPU seconds that decoding `SAMPLE` takes on this machine: the minimum of three."""
    gray = Image.linear_gradient("L").resize(SAMPLE)
    photo = Image.merge("RGB", (gray, gray.rotate(90), Image.effect_noise(SAMPLE, 9)))
    files = {}
    for kind in ("JPEG", "PNG"):
        files[kind] = io.BytesIO()
        photo.save(files[kind], kind, compress_level=1)
    times = []
    for _ in range(3):
        began = time.process_time()
        for kind, file in files.items():
            picture.decode(file.getvalue(), kind, *SAMPLE, max_pixels=SAMPLE[0] * SAMPLE[1])
        times.append(time.process_time() - began)
    return min(times)


if __name__ == "__main__":
    main(int(sys.argv[1]))
