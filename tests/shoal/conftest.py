"""What several tests of the command and the client need."""

from __future__ import annotations

import pytest

from tests.fakes import FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()
