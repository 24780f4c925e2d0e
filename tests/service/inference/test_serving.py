"""What a readiness probe is told of an engine, wherever it is."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from batching import Draining
from service.errors import DecodersDown, NotReady, Stalled, Unloaded
from service.inference.serving import Decoding, Inference, LoadedModel, Serving
from service.settings import Settings
from service.telemetry.engine_stats import EngineStats
from tests.fakes import MODEL, FakeEngine

READY = LoadedModel(MODEL, FakeEngine.device, FakeEngine.precision)
FIGURES = EngineStats(True, False, 0, 0, 0.0, 8, 0.2, {"1": 0.01}, None)


class FakeDecoding:
    is_down = False


class NoDecoding:
    is_down = True


class FakeInference:
    started: LoadedModel | None = READY
    unloaded = False
    failure = None

    def __init__(self, figures: EngineStats | Exception | None) -> None:
        self._figures = figures

    async def figures(self) -> EngineStats | None:
        if isinstance(self._figures, Exception):
            raise self._figures
        return self._figures


def serving(figures: EngineStats | Exception | None) -> Serving:
    inference = cast(Inference, FakeInference(figures))
    return Serving(Settings(), inference, cast(Decoding, FakeDecoding()))


async def test_an_engine_that_makes_progress_is_available() -> None:
    assert await serving(FIGURES).available() == (READY, FIGURES)


@pytest.mark.parametrize("figures", [replace(FIGURES, stalled=True), TimeoutError()])
async def test_an_engine_without_progress_is_not_available(
    figures: EngineStats | Exception,
) -> None:
    """It says so itself, or the process that it is in does not answer."""
    with pytest.raises(Stalled):
        await serving(figures).available()


async def test_what_else_is_not_available() -> None:
    """A model that is not loaded, and a server that is shutting down."""
    draining, loading, unloaded = (serving(FIGURES) for _ in range(3))
    draining.draining = True
    with pytest.raises(Draining):
        await draining.available()
    loading.inference.started = None  # type: ignore[misc]  # a fake's
    with pytest.raises(NotReady):
        await loading.available()
    unloaded.inference.started, unloaded.inference.unloaded = None, True  # type: ignore[misc]
    with pytest.raises(Unloaded):
        await unloaded.available()


async def test_a_server_without_decoders_is_not_available() -> None:
    """It would answer small images only."""
    without = serving(FIGURES)
    without.decoders = cast(Decoding, NoDecoding())
    with pytest.raises(DecodersDown):
        await without.available()
