"""Tests SHOAL_GRPC_PORT without the packages of the extra `grpc`."""

from __future__ import annotations

import sys

import pytest

from service.app import create_app
from service.settings import BadSettings, Settings
from tests.fakes import FakeEngine


def test_grpc_port_requires_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages, the start fails with an error that says what to install."""
    for module in [name for name in sys.modules if name.startswith("service.grpc")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(BadSettings, match=r"SHOAL_GRPC_PORT=0: .* pip install 'shoal\[grpc\]'"):
        create_app(Settings(grpc_port=0), FakeEngine().load)
    create_app(Settings(), FakeEngine().load)
