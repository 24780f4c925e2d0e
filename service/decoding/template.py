"""The main loops of the template process and of decoder processes ("decoders").

The template is a fork server: all decoders are forked from it. The template has imported Pillow, so
the start of a decoder takes only milliseconds. The template has one thread. The template receives
no images, no API keys, and no environment variables of the server except a few. The template exits
when the server closes its socket to the template. `service.decoding.launch` is the server's side of
the template, and `service.decoding.process` is the server's side of a decoder.

Messages (SOCK_SEQPACKET, integers in the byte order of the machine)
    template -> server    JSON, once: CPU seconds of decoding the sample images
    server -> template    ORDER with FORK and two descriptors: a socket, and the file for images
    template -> server    RESULT: process id of the decoder, or 0 if the fork failed
    server -> template    ORDER with REAP, once for each decoder; this frees the process id
    template -> server    RESULT: exit code, or negative number of the signal
    decoder -> server     JSON, once: names of the restrictions that apply
    server -> decoder     REQUEST: decode the image in the file; with 0 bytes: free unused memory
    decoder -> server     the byte 0 and the pixels, or a Fault and the repr of an exception
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
"""Three numbers. To fork a decoder: FORK, the maximum number of bytes of memory of the decoder, and
the increment of the decoder's niceness (nice(2)). To reap a decoder: REAP, its process id, and 0.
"""
RESULT = struct.Struct("=i")
"""Result of an order, as one number."""
REQUEST = struct.Struct("=QQ8sIIQ")
"""Number of bytes of the image, maximum number of bytes of memory for decoding it, type, width,
height and maximum number of pixels."""
MAX_MESSAGE = 8192
"""Maximum number of bytes of a message."""
MAX_CAUSE = 200
"""Maximum number of characters of the repr of an exception in a message."""

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
"""Modules that Pillow imports only when they are needed. The template imports them, because
decoders cannot open files."""

SAMPLE = (512, 384)
"""Width and height of the sample images in pixels. The time of decoding them shows the speed of the
machine."""


def main(descriptor: int) -> None:
    """Fork and reap decoders until the server closes its end of the socket `descriptor`."""
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
    """Receive an order and its descriptors. Returns None if the server has ended."""
    message, descriptors, _, _ = socket.recv_fds(control, ORDER.size, 2)
    return (ORDER.unpack(message), descriptors) if message else None


def _fork(memory: int, nicer: int, connection: int, file: int) -> int:
    """Fork a decoder. Returns the process id, or 0 if the system allows no more processes."""
    pid = 0
    with suppress(OSError):
        pid = os.fork()
        if pid == 0:
            _decode_until_closed(memory, nicer, connection, file)
    os.close(connection)
    os.close(file)
    return pid


def _reap(pid: int) -> int:
    """Kill the decoder `pid` if it runs, and wait for its end.

    Returns the exit code, or the negative number of the signal that ended the decoder.
    """
    os.kill(pid, signal.SIGKILL)  # has no effect on a decoder that has exited
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _decode_until_closed(memory: int, nicer: int, connection: int, file: int) -> None:
    """Run the main loop of a decoder. This function does not return."""
    try:
        sandbox.die_with_parent()
        os.nice(nicer)
        os.dup2(connection, 0)
        os.dup2(file, 1)
        os.closerange(2, os.sysconf("SC_OPEN_MAX"))
        link = socket.socket(fileno=0)
        free = sandbox.free_memory(memory)
        link.send(json.dumps(sandbox.confine(memory)).encode())
        images = 0
        while request := link.recv(REQUEST.size):
            length, needed, kind, *size = REQUEST.unpack(request)
            if length == 0:
                _free_memory()
                continue
            fault, content = _decode(length, kind.rstrip(b"\0").decode(), *size)
            # Libraries may report a lack of memory as damage. Earlier images may be the cause.
            if fault == picture.Fault.DAMAGED and images and not _is_available(min(needed, free)):
                fault = picture.Fault.OUT_OF_MEMORY
            link.send(bytes([fault]) + content)
            images += 1
    finally:
        os._exit(0)


def _decode(length: int, kind: str, width: int, height: int, max_pixels: int) -> tuple[int, bytes]:
    """Decode the image in the file.

    Returns 0 and the pixels, or a `Fault` and the repr of an exception.
    """
    try:
        return 0, picture.decode(os.pread(1, length, 0), kind, width, height, max_pixels)
    except picture.Undecodable as error:
        return error.fault, repr(error.__cause__)[:MAX_CAUSE].encode(errors="replace")
    except MemoryError as error:
        return picture.Fault.OUT_OF_MEMORY, repr(error).encode()


def _is_available(memory: int) -> bool:
    """Whether this process can allocate `memory` bytes.

    Without enough memory, libjpeg and libwebp report that the image is damaged.
    """
    _free_memory()
    try:
        mmap.mmap(-1, memory, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, MemoryError):
        return False
    return True


def _free_memory() -> None:
    """Return freed memory to the operating system."""
    with suppress(AttributeError):  # not glibc
        _LIBC.malloc_trim(0)


def _prefer_to_be_killed() -> None:
    """Make the kernel kill decoders first when the machine or container runs out of memory."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def _sample_seconds() -> float:
    """Return the CPU seconds of decoding the sample images: the minimum of three measurements."""
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
