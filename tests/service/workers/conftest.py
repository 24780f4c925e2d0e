"""An engine process and its front ends, without processes."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.v2.test_repository import add
from tests.service.workers.pair import Pair


@pytest.fixture
def pair(tmp_path: pathlib.Path, engine: FakeEngine) -> Iterator[Pair]:
    for version in "7", "8":
        add(tmp_path, version)
    settings = Settings(model="fake", model_version="7", model_store=tmp_path, max_queue_size=8)
    pair = Pair(tmp_path, engine, settings)
    with pair.address:
        yield pair
