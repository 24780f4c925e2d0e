"""What several end-to-end tests need: a browser, and an engine that waits for them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.e2e.chromium import Chromium, find
from tests.e2e.process import Hold


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """The browser, where there is one."""
    path = find()
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with Chromium(path) as chromium:
        yield chromium


@pytest.fixture
def hold(tmp_path: pathlib.Path) -> Hold:
    hold = Hold(tmp_path / "hold")
    hold.begin()
    return hold
