"""The whole application in this process, with an engine that answers by rule."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
from PIL import Image

from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeEngine


def png(red: int, side: int = 32) -> bytes:
    """A PNG that FakeEngine classifies as `red` modulo ten."""
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    pixels[..., 0] = red
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(
        max_upload_bytes=100_000,
        max_upload_memory=200_000,
        max_image_pixels=1_000_000,
        decode_processes=1,
    )


@asynccontextmanager
async def connected(settings: Settings, engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application with these settings and this engine."""
    app = create_app(settings, engine.load)
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)  # the model is loaded beside the server
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


@pytest.fixture
async def client(engine: FakeEngine, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with connected(settings, engine) as client:
        yield client
