"""What must not be told is not told, by a real process that logs all it can."""

from __future__ import annotations

import pathlib

import httpx
import pytest

from tests.e2e.process import SCRIPTED, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow
HORSE = png(7)
SECRETS = {
    "SHOAL_API_KEYS": "first-secret-of-many-letters",
    "SHOAL_ADMIN_KEYS": "admin-secret-of-many-letters",
}
FILED = "filed-secret-of-many-letters"
WRONG = "wrong-secret-of-many-letters"


@pytest.mark.parametrize("error", ["", "the engine was told to fail"])
def test_keys_never_leave_the_process(tmp_path: pathlib.Path, error: str) -> None:
    """No key, right or wrong, is in the log, an answer, a description or a metric."""
    (tmp_path / "keys").write_text(FILED)
    more = {"SHOAL_API_KEYS_FILE": str(tmp_path / "keys"), "SHOAL_LOG_LEVEL": "debug"}
    if error:
        more["ENGINE_ERROR"] = error
    with Server(*SCRIPTED, **SECRETS, **more) as server:
        server.wait_until_ready()
        told = ""
        keys = [*SECRETS.values(), FILED, WRONG]
        for key in keys:
            for headers in {"authorization": f"Bearer {key}"}, {"x-api-key": key}:
                for path in "/predict", "/predict/batch", "/v2/models/fake/infer":
                    answer = httpx.post(
                        server.url + path, files={"img": HORSE}, headers=headers, timeout=10
                    )
                    told += answer.text + str(answer.headers)
                index = httpx.get(f"{server.url}/v2/repository/index", headers=headers)
                told += index.text + str(index.headers)
        for path in "/openapi.json", "/docs", "/metrics", "/readyz", "/healthz", "/", "/v2":
            told += httpx.get(server.url + path).text
        assert server.stop() == 0
        told += str(server.log()) + server.errors()
    assert "unauthorized" in told and "Traceback" not in told
    assert [key for key in keys if key in told] == []
