"""The whole OpenAPI description against a real process, asked by Schemathesis."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import httpx
import pytest

from tests.e2e.process import SCRIPTED, Server

KEY = "described-in-sixteen-letters"  # CONFIG has it, too
CONFIG = pathlib.Path(__file__).with_name("schemathesis.toml")


@pytest.mark.slow
def test_whatever_is_asked_the_answer_is_as_described(tmp_path: pathlib.Path) -> None:
    """Asked as described and otherwise: no server error, no status, header or body that the
    description does not have, and nothing without the key."""
    keys = {"SHOAL_API_KEYS": KEY, "SHOAL_ADMIN_KEYS": KEY}
    with Server(*SCRIPTED, **keys) as server:
        server.wait_until_ready()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"),
                *("--no-color", f"{server.url}/openapi.json"),
            ],
            cwd=tmp_path,  # it keeps notes
            capture_output=True,
            text=True,
            timeout=120,
        )
        metrics = httpx.get(f"{server.url}/metrics").text
    assert done.returncode == 0, done.stdout + done.stderr
    asked = re.findall(r'duration_seconds_count\{route="(.+?)",status="(\d+)"\}', metrics)
    assert {status for _, status in asked} >= {"200", "400", "401", "405", "422"}
    infer, index = "/v2/models/{model}/infer", "/v2/repository/index"
    for route in "/predict", "/predict/batch", infer, index:
        assert (route, "200") in asked, f"no answer of {route} was seen"
