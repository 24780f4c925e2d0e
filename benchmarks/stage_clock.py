"""Runs the service with a clock that measures the CPU time of each stage of a request.

    python -m benchmarks.stage_clock

A stage is a part of the work for a request, such as decoding the image. The clock adds the CPU time
of the event loop's thread to the stage that runs. When the process receives SIGUSR1, the process
prints the totals as one line of JSON.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from batching import Batcher
from model_store.engine import LaneEngine
from service.__main__ import main
from service.api import predict
from service.http import middleware
from service.inference.pipeline import Pipeline
from service.server.connection import Connection
from service.telemetry.logs import Output
from service.telemetry.metrics import Metrics

STAGES = ("read", "route", "parse", "decode", "queue", "infer", "respond")
CLOCKED: tuple[tuple[Any, str, str], ...] = (
    (Connection, "data_received", "read"),
    (RequestResponseCycle, "run_asgi", "route"),
    (predict, "read_image", "parse"),
    (Pipeline, "decode", "decode"),
    (Batcher, "submit", "queue"),
    (Batcher, "_run", "queue"),
    (LaneEngine, "infer", "infer"),
    (predict, "_respond", "respond"),
    (Response, "__call__", "respond"),
    (middleware, "log_request", "respond"),
    (Metrics, "end_request", "respond"),
    (Metrics, "count_batch", "respond"),
    (Output, "flush", "respond"),
)
"""Class or module, name and stage of each function that begins a stage. Functions that a listed
function calls belong to the same stage, unless they are listed as well. All other code belongs to
the event loop, and the time of the event loop counts as `read`."""


class StageClock:
    """Measures the CPU seconds of one thread by stage.

    Stages can be nested. Time is added to the innermost stage only.
    """

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        """Starts the clock in the stage `read`.

        Args:
            clock: Returns the CPU time of the calling thread in seconds.
        """
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.own = 0.0
        """Seconds that the clock needs to enter and leave a stage. These seconds are subtracted
        from the outer stage."""
        self._clock = clock
        self._thread = threading.get_ident()
        self._stages = ["read"]
        self._since = clock()

    def enter(self, stage: str) -> None:
        """Begins a stage inside the current stage."""
        if threading.get_ident() == self._thread:
            self._charge()
            self._stages.append(stage)

    def leave(self) -> None:
        """Returns to the outer stage."""
        if threading.get_ident() == self._thread:
            self._charge()
            self._stages.pop()
            self.seconds[self._stages[-1]] -= self.own

    def print(self, *_: object) -> None:
        """Prints the totals. CPU time of other threads is added to the stage `infer`."""
        self._charge()
        totals = dict(self.seconds)
        totals["infer"] += time.process_time() - time.thread_time()
        print(json.dumps({"stages": totals}), flush=True)

    def _charge(self) -> None:
        now = self._clock()
        self.seconds[self._stages[-1]] += now - self._since
        self._since = now


class _Steps:
    """An awaitable that adds the CPU time of a coroutine's steps to a stage.

    A step is the code between two points where the coroutine waits.
    """

    def __init__(self, awaited: Coroutine[Any, Any, Any], clock: StageClock, stage: str) -> None:
        self._awaited, self._clock, self._stage = awaited, clock, stage

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = functools.partial(self._awaited.send, None)
        while True:
            self._clock.enter(self._stage)
            try:
                waits_for = step()
            except StopIteration as end:
                return end.value
            finally:
                self._clock.leave()
            try:
                sent = yield waits_for
                step = functools.partial(self._awaited.send, sent)
            except BaseException as error:  # noqa: BLE001  # the coroutine handles it
                step = functools.partial(self._awaited.throw, error)


def clocked(call: Callable[..., Any], clock: StageClock, stage: str) -> Callable[..., Any]:
    """Returns a function that does the same as `call` and adds the CPU time to `stage`.

    If `call` is a coroutine function, the returned function is a coroutine function, too.
    """

    @functools.wraps(call)
    def timed(*args: Any, **kwargs: Any) -> Any:
        clock.enter(stage)
        try:
            return call(*args, **kwargs)
        finally:
            clock.leave()

    @functools.wraps(call)
    async def timed_coroutine(*args: Any, **kwargs: Any) -> Any:
        awaited: Awaitable[Any] = _Steps(call(*args, **kwargs), clock, stage)
        return await awaited

    is_coroutine = call.__code__.co_flags & 0x80  # inspect.CO_COROUTINE
    return timed_coroutine if is_coroutine else timed


def own_seconds(times: int = 20_000) -> float:
    """Returns the mean CPU seconds that the clock adds to a call, measured with `times` calls."""

    def nothing() -> None:
        pass

    per_call = []
    for call in (nothing, clocked(nothing, StageClock(), "read")):
        began = time.thread_time()
        for _ in range(times):
            call()
        per_call.append((time.thread_time() - began) / times)
    return per_call[1] - per_call[0]


if __name__ == "__main__":
    stage_clock = StageClock()
    stage_clock.own = own_seconds()
    for owner, name, stage in CLOCKED:
        setattr(owner, name, clocked(getattr(owner, name), stage_clock, stage))
    signal.signal(signal.SIGUSR1, stage_clock.print)
    sys.exit(main())
