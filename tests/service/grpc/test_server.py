"""The setting, where the packages are missing."""

from __future__ import annotations

import sys

import pytest

from service.app import create_app
from service.settings import BadSettings, Settings
from tests.fakes import FakeEngine


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that cannot be followed ends the start, and says what to install."""
    for module in [name for name in sys.modules if name.startswith("service.grpc")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(BadSettings, match=r"SHOAL_GRPC_PORT=0: .* pip install 'shoal\[grpc\]'"):
        create_app(Settings(grpc_port=0), FakeEngine().load)
    create_app(Settings(), FakeEngine().load)
