"""A timer with a resolution of microseconds.

The timers of asyncio and uvloop have a resolution of one millisecond, and some requests take less
time. This timer uses timerfd_create(2) of Linux through the C library, because Python's `os` has
this function only since version 3.13.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable

_CLOCK_MONOTONIC, _TFD_NONBLOCK, _TFD_CLOEXEC, _TFD_TIMER_ABSTIME = 1, 0o4000, 0o2000000, 1
_libc = ctypes.CDLL(None, use_errno=True)


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Timer:
    """A timer that calls a function on the running event loop, once for each call of `set`."""

    def __init__(self, fire: Callable[[], None]) -> None:
        """Creates a timer. Raises OSError if no file descriptor is available.

        Args:
            fire: Function that is called when the timer expires.
        """
        self._fire = fire
        self._fd = _libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._expired)

    def set(self, when: float) -> None:
        """Sets the time of the next call.

        Args:
            when: Time of `time.monotonic`, in seconds. A past time calls the function immediately.
        """
        nanoseconds = max(int(when * 1e9), 1)
        spec = _TimerSpec(value=_TimeSpec(*divmod(nanoseconds, 1_000_000_000)))
        if _libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def close(self) -> None:
        """Stops the timer and closes its file descriptor."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _expired(self) -> None:
        os.read(self._fd, 8)
        self._fire()
