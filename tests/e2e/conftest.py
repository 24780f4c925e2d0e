"""Fixtures of the end-to-end tests: a browser, the service as it ships, and a held engine."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.e2e.chromium import Chromium, find
from tests.e2e.process import REAL, Hold, Server


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """A browser. Skips the test if there is none."""
    path = find()
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with Chromium(path) as chromium:
        yield chromium


@pytest.fixture(scope="session")
def real(model: pathlib.Path) -> Iterator[Server]:
    """A server with the network that ships, HTTP and gRPC, and batches of up to 64."""
    more = {"SHOAL_MAX_BATCH_SIZE": "64", "SHOAL_GRPC_PORT": "0"}
    with Server(*REAL, SHOAL_MODEL_STORE=str(model.parents[1]), **more) as server:
        server.wait_until_ready()
        yield server


@pytest.fixture
def hold(tmp_path: pathlib.Path) -> Hold:
    hold = Hold(tmp_path / "hold")
    hold.begin()
    return hold
