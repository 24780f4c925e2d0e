"""Keys: asked for where there are any, exchanged without a restart, and never told."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import SecretStr

from service.app import create_app
from service.errors import Unauthorized
from service.http.api_keys import ApiKeys
from service.settings import BadSettings, Settings
from tests.fakes import Clock, FakeEngine
from tests.service.conftest import connected, png

ONE, TWO = "one-key-of-many-letters", "another-key-of-many-letters"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "keys"
    file.write_text(f"{ONE}\n")
    return file


def allows(keys: ApiKeys, key: str) -> bool:
    try:
        keys.check({"x-api-key": key})
    except Unauthorized:
        return False
    return True


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"authorization": f"Bearer {ONE}"}, True),
        ({"authorization": f"bearer  {TWO} "}, True),
        ({"x-api-key": TWO}, True),
        ({}, False),
        ({"x-api-key": ""}, False),
        ({"x-api-key": ONE[:-1]}, False),
        ({"x-api-key": ONE + "x"}, False),
        ({"x-api-key": f"{ONE},{TWO}"}, False),
        ({"x-api-key": "ключ-из-многих-букв"}, False),
        ({"authorization": ONE}, False),
        ({"authorization": f"Basic {ONE}"}, False),
        ({"authorization": "Bearer wrong-wrong-wrong", "x-api-key": ONE}, False),
    ],
)
def test_check_accepts_listed_keys_only(headers: dict[str, str], allowed: bool) -> None:
    """A listed key is accepted as a bearer token or in X-API-Key, complete and alone."""
    keys = ApiKeys(f"{ONE}, {TWO}")
    if allowed:
        keys.check(headers)
    else:
        with pytest.raises(Unauthorized):
            keys.check(headers)


def test_check_accepts_all_requests_without_keys() -> None:
    """Without keys, no key is required."""
    keys = ApiKeys()
    keys.check({})
    assert not keys.required


def test_key_file_is_read_again_when_it_changes(file: pathlib.Path, clock: Clock) -> None:
    """A second after a change, added keys are accepted and removed keys are not."""
    keys = ApiKeys(file=file, clock=clock)
    assert allows(keys, ONE) and not allows(keys, TWO)
    file.write_text(f"{ONE}\n{TWO}\n")
    assert not allows(keys, TWO)
    clock.now = 1.1
    assert allows(keys, ONE) and allows(keys, TWO)
    (replaced := file.with_name("new")).write_text(TWO)
    replaced.replace(file)
    clock.now = 2.2
    assert not allows(keys, ONE) and allows(keys, TWO)


@pytest.mark.parametrize("content", [None, b"", b"short", b"\xff" * 20])
def test_invalid_key_file_changes_nothing(
    file: pathlib.Path, clock: Clock, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """When the file is gone, empty or invalid, the keys stay valid, and one error is logged."""
    keys = ApiKeys(file=file, clock=clock)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    for clock.now in (1.1, 2.2, 3.3):
        assert allows(keys, ONE) and not allows(keys, "short") and not allows(keys, "")
    assert len([record for record in caplog.records if "were not reloaded" in record.message]) == 1


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"short", b"\xff" * 20])
def test_key_file_must_contain_keys_at_the_start(file: pathlib.Path, content: bytes | None) -> None:
    """Without keys in the file, the server does not start."""
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(BadSettings, match=str(file)):
        ApiKeys(file=file)


def test_short_key_is_rejected_without_being_shown() -> None:
    """The error for a short key does not contain it."""
    with pytest.raises(BadSettings, match="SHOAL_API_KEYS: a key has fewer") as refused:
        ApiKeys(f"{ONE},tiny-secret")
    assert "tiny" not in str(refused.value)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Of a server that wants a key."""
    app = create_app(Settings(api_keys=SecretStr(ONE)), FakeEngine().load)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/v2/models/fake/infer"])
async def test_all_endpoints_for_images_require_a_key(client: httpx.AsyncClient, path: str) -> None:
    """Every endpoint that accepts images requires a key; those that describe the server do not."""
    refused = await client.post(path, files={"img": png(7)})
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    headers = {"authorization": f"Bearer {ONE}"}
    assert (await client.post(path, files={"img": png(7)}, headers=headers)).status_code != 401
    for open_path in "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/fake":
        assert (await client.get(open_path)).status_code == 200
    described = (await client.get("/openapi.json")).json()["paths"]
    for path, methods in described.items():
        if "post" in methods and not path.startswith("/v2/repository"):
            assert methods["post"]["security"] == [{"bearer": []}, {"key": []}]


async def test_missing_key_gets_401_before_the_upload(client: httpx.AsyncClient) -> None:
    """A request without a key gets 401, with how to send one, before its body is read."""
    files = {"img": png(7)}
    refused = await client.post("/predict", files=files)
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert refused.headers["www-authenticate"] == "Bearer"
    answered = await client.post("/predict", files=files, headers={"x-api-key": ONE})
    assert answered.status_code == 200
    for path in "/healthz", "/readyz", "/metrics", "/docs":
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/docs", "/openapi.json", "/v2/health/live"]
)
async def test_metrics_require_a_key_if_set(path: str) -> None:
    """With `SHOAL_METRICS_NEED_KEY`, /metrics requires a key, and other open paths do not."""
    settings = Settings(api_keys=SecretStr(ONE), metrics_need_key=True)
    async with connected(settings, FakeEngine()) as client:
        assert (await client.get("/metrics")).status_code == 401
        allowed = await client.get("/metrics", headers={"authorization": f"Bearer {ONE}"})
        assert allowed.status_code == 200 and "shoal_ready 1.0" in allowed.text
        assert (await client.get(path)).status_code == 200


def test_metrics_port_and_metrics_key_exclude_each_other() -> None:
    """Setting a metrics port and a key for metrics is an error."""
    settings = Settings(api_keys=SecretStr(ONE), metrics_need_key=True, metrics_port=0)
    with pytest.raises(BadSettings, match="SHOAL_METRICS_PORT"):
        create_app(settings, FakeEngine().load)


async def test_keys_are_never_shown(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Keys are not in the API description, the log, errors or the text of the settings."""
    caplog.set_level("DEBUG")
    wrong = {"authorization": f"Bearer {TWO}"}
    refused = await client.post("/predict", headers=wrong)
    description = await client.get("/openapi.json")
    told = "".join([refused.text, str(refused.headers), description.text, caplog.text])
    told += "".join(str(vars(record)) for record in caplog.records)
    told += repr(Settings(api_keys=SecretStr(ONE)))
    assert ONE not in told and TWO not in told
    schemes = description.json()["components"]["securitySchemes"]
    assert description.json()["paths"]["/predict"]["post"]["security"] == [{s: []} for s in schemes]
