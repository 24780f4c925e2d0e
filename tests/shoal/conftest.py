"""Fixtures of the tests of the command and of the client."""

from __future__ import annotations

import pytest

from tests.fakes import FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()
