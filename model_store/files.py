"""Files: reads files of the store, but only regular files and only up to a maximum size.

Other kinds of files are rejected: `open` blocks on a FIFO without a writer, and reading a device
may never end. Symbolic links are followed, because Kubernetes mounts volumes as links. The type is
checked after the file was opened, so the file cannot be replaced between the check and the read.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading in binary mode.

    Raises:
        OSError: The file cannot be opened, or is a directory, FIFO, socket or device.
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
    """Return the content of a regular file.

    Args:
        path: Path of the file.
        max_bytes: Maximum size of the file in bytes.

    Raises:
        OSError: The file cannot be read, is not a regular file, or has more than `max_bytes` bytes.
    """
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes:,} bytes", os.fspath(path))
    return content
