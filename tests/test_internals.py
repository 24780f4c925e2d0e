"""Tests of the fence around other projects' internals (`tests.internals`)."""

from __future__ import annotations

import ast

import pytest

from tests.internals import INTERNALS, Internal, has_member, modules_to_scan, resolve, violations
from tests.sources import ROOT


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: internal.name)
def test_internals_exist(internal: Internal) -> None:
    """Each listed internal can be imported from the installed version, with its members."""
    value = resolve(internal.name)
    names = [*internal.members.split(), *internal.common.split()]
    assert [name for name in names if not has_member(value, name)] == []
    assert internal.reason


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: internal.name)
def test_internals_are_used_where_they_are_listed(internal: Internal) -> None:
    """Each listed module uses the internal, and each of its members is used by one of them."""
    members = [*internal.members.split(), *internal.common.split()]
    names = [internal.name.rpartition(".")[2], *members]
    for path in internal.modules:
        text = (ROOT / path).read_text()
        assert any(name in text for name in names), path
    together = "".join((ROOT / path).read_text() for path in internal.modules)
    assert [name for name in members if name not in together] == []


def test_internals_are_used_nowhere_else() -> None:
    """No other module imports an internal, uses its members, or uses private names of others."""
    paths = modules_to_scan(ROOT)
    assert len(paths) > 100
    found = [
        violation
        for path in paths
        for violation in violations(str(path.relative_to(ROOT)), ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "from uvicorn.protocols.http.httptools_impl import STATUS_LINE",
        "import uvicorn.server",
        "from prometheus_client import values\nvalues._lock",
        "from prometheus_client.values import ValueClass",
        "from argparse import _SubParsersAction",
        "parser._actions",
        "argparse._SubParsersAction",
        "server.lifespan_class",
        "class Mine(Server):\n    async def main_loop(self): ...",
        "super()._get_next()",
        "self._counter._upper_bounds",
    ],
)
def test_violations_find_internals(code: str) -> None:
    """An import, a member or a private name that is not listed for a module is reported."""
    assert [*violations("service/app.py", ast.parse(code))]


@pytest.mark.parametrize(
    "code",
    [
        "import argparse\nargparse.ArgumentParser()",
        "from fastapi import FastAPI, Request",
        "from prometheus_client.core import Metric",
        "self._private",
        "os._exit(1)",
        "x.__class__",
        "app.middleware_stack",
    ],
)
def test_violations_accept_public_names(code: str) -> None:
    """Documented names, own private names and what is listed for the module are accepted."""
    assert [*violations("service/app.py", ast.parse(code))] == []
