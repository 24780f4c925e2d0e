"""Files that the store reads: regular ones, up to a size.

`open` blocks on a FIFO without a writer, and a device may be endless. Symbolic links are followed,
since Kubernetes mounts volumes as links. What is checked is the file that was opened and not its
path, so another file cannot take its place between the check and the read.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """The file, opened for reading in binary. Raises OSError, also where it is not a regular file:
    a directory, FIFO, socket or device."""
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
    """The content of a regular file. Raises OSError, also where it has more than `max_bytes`, of
    which no more are read."""
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes:,} bytes", os.fspath(path))
    return content
