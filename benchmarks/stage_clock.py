"""The service, with a clock on each stage of a request: CPU time of the event loop's thread,
charged to whichever stage runs. On SIGUSR1 it tells what there is so far, in a line on stdout.

python -m benchmarks.stage_clock
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
from model_store.engine import GluonEngine
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
    (GluonEngine, "infer", "infer"),
    (predict, "_respond", "respond"),
    (Response, "__call__", "respond"),
    (middleware, "log_request", "respond"),
    (Metrics, "end_request", "respond"),
    (Metrics, "count_batch", "respond"),
    (Output, "flush", "respond"),
)
"""Where each stage begins. Within one that is not told otherwise, what it calls is its own; outside
of all is the loop itself, which reads."""


class StageClock:
    """Seconds of this thread by stage, each moment charged to the innermost one."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.own = 0.0
        """Seconds that a look at the clock takes, there and back, which are no stage's."""
        self._clock = clock
        self._thread = threading.get_ident()
        self._stages = ["read"]
        self._since = clock()

    def enter(self, stage: str) -> None:
        if threading.get_ident() == self._thread:
            self._charge()
            self._stages.append(stage)

    def leave(self) -> None:
        if threading.get_ident() == self._thread:
            self._charge()
            self._stages.pop()
            self.seconds[self._stages[-1]] -= self.own

    def tell(self, *_: object) -> None:
        """All so far. Small pictures are decoded on this thread: what the others take is the
        engine's, whose own threads Python does not know."""
        self._charge()
        found = dict(self.seconds)
        found["infer"] += time.process_time() - time.thread_time()
        print(json.dumps({"stages": found}), flush=True)

    def _charge(self) -> None:
        now = self._clock()
        self.seconds[self._stages[-1]] += now - self._since
        self._since = now


class _Steps:
    """An awaitable whose every step is charged to a stage; what it waits for in between is not."""

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
            except BaseException as error:  # noqa: BLE001  # it is the coroutine's to handle
                step = functools.partial(self._awaited.throw, error)


def clocked(call: Callable[..., Any], clock: StageClock, stage: str) -> Callable[..., Any]:
    """`call`, function or coroutine function, charged to `stage`."""

    @functools.wraps(call)
    def plainly(*args: Any, **kwargs: Any) -> Any:
        clock.enter(stage)
        try:
            return call(*args, **kwargs)
        finally:
            clock.leave()

    @functools.wraps(call)
    async def stepwise(*args: Any, **kwargs: Any) -> Any:
        awaited: Awaitable[Any] = _Steps(call(*args, **kwargs), clock, stage)
        return await awaited

    is_coroutine = call.__code__.co_flags & 0x80  # inspect.CO_COROUTINE
    return stepwise if is_coroutine else plainly


def own_seconds(times: int = 20_000) -> float:
    """What being clocked adds to a call."""

    def nothing() -> None:
        pass

    found = []
    for call in (nothing, clocked(nothing, StageClock(), "read")):
        began = time.thread_time()
        for _ in range(times):
            call()
        found.append((time.thread_time() - began) / times)
    return found[1] - found[0]


if __name__ == "__main__":
    stage_clock = StageClock()
    stage_clock.own = own_seconds()
    for owner, name, stage in CLOCKED:
        setattr(owner, name, clocked(getattr(owner, name), stage_clock, stage))
    signal.signal(signal.SIGUSR1, stage_clock.tell)
    sys.exit(main())
