"""What several end-to-end tests need: a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.chromium import Chromium, find


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """The browser, where there is one."""
    path = find()
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with Chromium(path) as chromium:
        yield chromium
