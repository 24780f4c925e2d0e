"""What probes are told, wherever the engine is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from batching import Draining
from service.errors import DecodersDown, NotReady, Stalled, Unloaded
from service.inference.service import LoadedModel, Service
from service.telemetry.engine_stats import EngineStats
from tests.fakes import MODEL, FakeEngine


async def submit(image: object, timeout: float) -> Any:  # noqa: ASYNC109  # as `Batcher.submit`
    raise NotImplementedError


LOADED = LoadedModel(MODEL, FakeEngine.device, FakeEngine.backend, FakeEngine.precision, submit)
STATS = EngineStats(True, False, 0, 0, 0.0, 8, 0.2, {"1": 0.01}, None)


class FakeDecoders:
    is_down = False


class FakeHost:
    def __init__(self, stats: EngineStats | Exception | None) -> None:
        self.loaded: LoadedModel | None = LOADED
        self.unloaded = False
        self._stats = stats

    async def stats(self) -> EngineStats | None:
        if isinstance(self._stats, Exception):
            raise self._stats
        return self._stats


def service(
    stats: EngineStats | Exception | None = STATS,
) -> tuple[Service, FakeHost, FakeDecoders]:
    """A service with only the parts that probes ask."""
    host, decoders, nothing = FakeHost(stats), FakeDecoders(), cast(Any, None)
    parts = dict.fromkeys(
        (
            "settings",
            "repository",
            "uploads",
            "keys",
            "admin_keys",
            "rate_limiter",
            "metrics",
            "tracing",
        ),
        nothing,
    )
    return Service(engine=cast(Any, host), decoders=cast(Any, decoders), **parts), host, decoders


async def test_check_ready_names_the_model() -> None:
    """An engine that makes progress is ready."""
    assert await service()[0].check_ready() == (LOADED, STATS)


@pytest.mark.parametrize("stats", [replace(STATS, stalled=True), TimeoutError()])
async def test_check_ready_rejects_an_engine_without_progress(
    stats: EngineStats | Exception,
) -> None:
    """The engine is stalled, or its process does not respond."""
    with pytest.raises(Stalled):
        await service(stats)[0].check_ready()


async def test_check_ready_rejects_a_server_that_drains() -> None:
    """A server that is shutting down is not ready."""
    draining, _, _ = service()
    draining.draining = True
    with pytest.raises(Draining):
        await draining.check_ready()


@pytest.mark.parametrize(("unloaded", "error"), [(False, NotReady), (True, Unloaded)])
async def test_check_ready_rejects_without_a_model(unloaded: bool, error: type[Exception]) -> None:
    """The error tells a model that is still loading from one that an operator unloaded."""
    without, host, _ = service()
    host.loaded, host.unloaded = None, unloaded
    with pytest.raises(NotReady) as caught:
        await without.check_ready()
    assert caught.type is error


async def test_check_ready_rejects_without_decoders() -> None:
    """A server without decoders would answer small images only."""
    without, _, decoders = service()
    decoders.is_down = True
    with pytest.raises(DecodersDown):
        await without.check_ready()


@pytest.mark.parametrize(
    ("stats", "live"),
    [(STATS, True), (None, True), (replace(STATS, healthy=False), False), (TimeoutError(), False)],
)
async def test_is_live(stats: EngineStats | Exception | None, live: bool) -> None:
    """A process is live unless its engine failed or does not respond."""
    assert await service(stats)[0].is_live() is live
