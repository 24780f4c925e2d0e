"""Tests the whole API against its OpenAPI description, with Schemathesis."""

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
def test_responses_match_the_description(tmp_path: pathlib.Path) -> None:
    """Requests that match the description, and others, cause no server error. Every status, header
    and body is in the description, and nothing is served without the key."""
    keys = {"SHOAL_API_KEYS": KEY, "SHOAL_ADMIN_KEYS": KEY}
    with Server(*SCRIPTED, **keys) as server:
        server.wait_until_ready()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"),
                *("--no-color", f"{server.url}/openapi.json"),
            ],
            cwd=tmp_path,  # it writes files there
            capture_output=True,
            text=True,
            timeout=120,
        )
        metrics = httpx.get(f"{server.url}/metrics").text
    assert done.returncode == 0, done.stdout + done.stderr
    answered = re.findall(r'duration_seconds_count\{route="(.+?)",status="(\d+)"\}', metrics)
    assert {status for _, status in answered} >= {"200", "400", "401", "405", "422"}
    infer, index = "/v2/models/{model}/infer", "/v2/repository/index"
    for route in "/predict", "/predict/batch", infer, index:
        assert (route, "200") in answered, f"{route} was not answered"
