"""Reads files of the store: regular files only, up to a maximum size.

`open` blocks on a FIFO without a writer, and a device may be endless. Symbolic links are followed,
because Kubernetes mounts volumes as links. The opened file is checked, not its path, so no
other file can take its place between the check and the read.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading in binary.

    Raises OSError, also if it is not a regular file but a directory, FIFO, socket or device.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The content of a regular file. Reads at most `max_bytes` + 1 bytes.

    Raises OSError, also if the file has more than `max_bytes` bytes or is not a regular file.
    """
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes:,} bytes", os.fspath(path))
    return content
