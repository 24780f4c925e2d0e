"""Tests the model repository API: access, index, load, unload and reload."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from model_store import manifest
from model_store.manifest import BadModel
from service.errors import LoadFailed
from service.settings import Settings
from tests.fakes import MODEL, FakeEngine
from tests.service.api.test_description import fits
from tests.service.conftest import connected, png
from tests.service.telemetry.test_metrics import scrape, value
from tests.service.v2.test_routes import body

SECURITY_HEADERS = {
    "x-content-type-options",
    "content-security-policy",
    "referrer-policy",
    "cache-control",
}
"""Headers for browsers, which OpenAPI does not describe."""

KEY, API_KEY = "admin-key-of-many-letters", "api-key-of-many-letters"
LOAD, UNLOAD, INDEX = (
    "/v2/repository/models/fake/load",
    "/v2/repository/models/fake/unload",
    "/v2/repository/index",
)
HORSE = png(7)
PATIENCE = 20.0
REVERSED = tuple(reversed(MODEL.classes))
VERSION_8 = {"parameters": {"version": "8"}}


def add(store: pathlib.Path, version: str, **changes: Any) -> None:
    folder = store / "fake" / version
    folder.mkdir(parents=True)
    manifest.write(folder, MODEL.model_copy(update={"version": version, **changes}))


@pytest.fixture
def settings(tmp_path: pathlib.Path) -> Settings:
    """Version 7 is served. Version 8 has the classes in reverse order."""
    add(tmp_path, "7")
    add(tmp_path, "8", classes=REVERSED)
    return Settings(
        model="fake",
        model_version="7",
        model_store=tmp_path,
        admin_keys=SecretStr(KEY),
        api_keys=SecretStr(API_KEY),
    )


@pytest.fixture
async def client(engine: FakeEngine, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client that sends the admin key."""
    async with connected(settings, engine) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        yield client


async def predict(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {API_KEY}"}
    return await client.post("/predict", files={"img": HORSE}, headers=headers, **more)


async def answer_of(client: httpx.AsyncClient) -> tuple[str, str]:
    """Version and class of a prediction."""
    answer = (await predict(client)).json()
    return answer["model"]["version"], answer["class"]


async def states(client: httpx.AsyncClient) -> dict[str, str]:
    return {one["version"]: one["state"] for one in (await client.get(INDEX)).json()}


@contextmanager
def loading(engine: FakeEngine) -> Iterator[None]:
    """Loads of the engine do not end before the block ends."""
    engine.loaded.clear()
    yield
    engine.loaded.set()


@contextmanager
def computing(engine: FakeEngine) -> Iterator[None]:
    """Batches of the engine do not end before the block ends."""
    engine.goes_on.clear()
    yield
    engine.goes_on.set()


async def queued(client: httpx.AsyncClient, count: int) -> None:
    """Wait until `count` images are in the queue."""
    async with asyncio.timeout(PATIENCE):
        while value(await scrape(client), "queue_length") != count:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.001)


# --- Access. ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [LOAD, UNLOAD, INDEX])
@pytest.mark.parametrize("key", [None, "wrong-wrong-wrong-wrong", API_KEY])
async def test_repository_requires_an_admin_key(
    client: httpx.AsyncClient, path: str, key: str | None
) -> None:
    """Calls without an admin key are rejected and change nothing, also with a prediction key."""
    client.headers.pop("authorization")
    headers = {"x-api-key": key} if key else {}
    refused = await client.post(path, headers=headers)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert "admin key" in refused.json()["error"]
    assert (await answer_of(client))[0] == "7"


async def test_predictions_reject_an_admin_key(client: httpx.AsyncClient) -> None:
    """An admin key gives no access to predictions."""
    assert (await client.post("/predict", files={"img": HORSE})).status_code == 401


@pytest.mark.parametrize("path", [LOAD, UNLOAD, INDEX])
async def test_repository_is_off_without_admin_keys(
    engine: FakeEngine, settings: Settings, path: str
) -> None:
    """Without admin keys all calls are rejected, and the error names the setting."""
    off = settings.model_copy(update={"admin_keys": None})
    async with connected(off, engine) as client:
        refused = await client.post(path, headers={"x-api-key": KEY})
        extensions = (await client.get("/v2")).json()["extensions"]
        described = (await client.get("/openapi.json")).json()["paths"]
    assert "security" in described["/predict"]["post"]
    assert "security" not in described[INDEX]["post"]
    assert refused.status_code == 403 and "SHOAL_ADMIN_KEYS_FILE" in refused.json()["error"]
    assert "model_repository" not in extensions


async def test_server_metadata_lists_the_extension(client: httpx.AsyncClient) -> None:
    """With admin keys, the server metadata lists the extension `model_repository`."""
    assert "model_repository" in (await client.get("/v2")).json()["extensions"]


@pytest.mark.parametrize(
    ("method", "path", "name", "sent", "status"),
    [
        ("get", "/v2/repository/index", "", None, 200),
        ("post", "/v2/repository/index", "", {"ready": True}, 200),
        ("post", "/v2/repository/models/{model}/load", "fake", VERSION_8, 200),
        ("post", "/v2/repository/models/{model}/load", "fake", {"parameters": 8}, 400),
        ("post", "/v2/repository/models/{model}/load", "other", {}, 404),
        ("post", "/v2/repository/models/{model}/unload", "fake", {}, 200),
    ],
)
async def test_responses_match_openapi(
    client: httpx.AsyncClient, method: str, path: str, name: str, sent: Any, status: int
) -> None:
    """Members, headers and security of each response are those in the OpenAPI description."""
    description = (await client.get("/openapi.json")).json()
    response = await client.request(method, path.format(model=name), json=sent)
    assert response.status_code == status
    operation = description["paths"][path][method]
    assert operation["security"] == [{"bearer": []}, {"key": []}]
    described = operation["responses"][str(status)]
    ours = set(response.headers) - {"content-length", "content-type", *SECURITY_HEADERS}
    assert ours <= {name.lower() for name in described["headers"]}
    schema = described["content"]["application/json"]["schema"]
    fits(response.json(), schema, description["components"]["schemas"])


# --- Load. ------------------------------------------------------------------------------------


async def test_load_replaces_the_version(client: httpx.AsyncClient) -> None:
    """After a load, every path uses the new version and its classes."""
    assert await answer_of(client) == ("7", "horse")
    loaded = await client.post(LOAD, json=VERSION_8)
    assert (loaded.status_code, loaded.json()) == (200, {"name": "fake", "version": "8"})
    assert await answer_of(client) == ("8", REVERSED[7])
    assert (await client.get("/readyz")).json()["model"]["version"] == "8"
    assert (await client.get("/v2/models/fake")).json()["versions"] == ["8"]
    client.headers["authorization"] = f"Bearer {API_KEY}"
    many = await client.post("/predict/batch", files=[("img", HORSE)] * 2)
    assert [one["model"]["version"] for one in many.json()["predictions"]] == ["8", "8"]
    inferred = (await client.post("/v2/models/fake/infer", json=body(HORSE))).json()
    assert (inferred["model_version"], inferred["outputs"][0]["data"]) == ("8", [REVERSED[7]])
    samples = await scrape(client)
    assert (
        value(samples, "model_info", model="fake", version="8", device="cpu", backend="mxnet") == 1
    )
    assert len([name for name, _ in samples if name == "shoal_model_info"]) == 1
    assert value(samples, "model_loads_total", outcome="loaded") == 1


async def test_responses_name_the_version_that_computed_them(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """A batch that the old version computes during a load is answered in its name. Requests that
    wait meanwhile are answered by the new version."""
    with computing(engine):
        first = asyncio.create_task(answer_of(client))
        await engine.called.wait()
        second = asyncio.create_task(answer_of(client))
        await queued(client, 1)
        assert (await client.post(LOAD, json=VERSION_8)).status_code == 200
        assert not first.done()
    assert await first == ("7", "horse")
    assert await second == ("8", REVERSED[7])


async def test_response_has_results_of_one_version(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """If the version changes between two images of a request, the new version computes again what
    the old one had computed."""
    with computing(engine):
        infer = asyncio.create_task(
            client.post(
                "/v2/models/fake/infer",
                json=body(*[HORSE] * 12),
                headers={"authorization": f"Bearer {API_KEY}"},
            )
        )
        await engine.called.wait()
        await client.post(LOAD, json=VERSION_8)
    answer = (await infer).json()
    assert answer["model_version"] == "8"
    assert answer["outputs"][0]["data"] == [REVERSED[7]] * 12
    assert sum(engine.batches) == 12 + engine.batches[0]


async def test_infer_does_not_substitute_a_named_version(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """A request for version 7 that version 8 would compute is rejected."""
    with computing(engine):
        first = asyncio.create_task(answer_of(client))
        await engine.called.wait()
        infer = asyncio.create_task(
            client.post(
                "/v2/models/fake/versions/7/infer",
                json=body(HORSE),
                headers={"authorization": f"Bearer {API_KEY}"},
            )
        )
        await queued(client, 1)
        await client.post(LOAD, json=VERSION_8)
    assert (await first)[0] == "7"
    assert (await infer).status_code == 404


async def test_load_without_a_version_takes_the_startup_version(
    engine: FakeEngine, settings: Settings
) -> None:
    """That is the version in the settings, or else the highest. The body may be empty."""
    for pinned, version in (("7", "7"), (None, "8")):
        async with connected(settings.model_copy(update={"model_version": pinned}), engine) as one:
            one.headers["x-api-key"] = KEY
            assert (await one.post(LOAD)).json()["version"] == version


async def test_failed_load_changes_nothing(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """The old version stays, the failure is counted, and error and index give the reason."""
    engine.load_error = BadModel("its SHA-256 differs")
    refused = await client.post(LOAD, json=VERSION_8)
    assert refused.status_code == 400
    assert "SHA-256 differs" in refused.json()["error"]
    assert "Version 7 stays loaded" in refused.json()["error"]
    assert await answer_of(client) == ("7", "horse")
    (reason,) = [v["reason"] for v in (await client.get(INDEX)).json() if v["version"] == "8"]
    assert "SHA-256" in reason
    assert value(await scrape(client), "model_loads_total", outcome="failed") == 1

    engine.load_error = None
    assert (await client.post(LOAD, json=VERSION_8)).status_code == 200
    assert await states(client) == {"7": "UNAVAILABLE", "8": "READY"}
    await client.post(LOAD)
    (reason,) = [v["reason"] for v in (await client.get(INDEX)).json() if v["version"] == "8"]
    assert reason == "not loaded", "a later success clears the failure"


async def test_unexpected_load_error_changes_nothing(
    client: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets the first line of an unexpected exception, and the log gets all of it."""
    engine.load_error = RuntimeError("cuDNN trips\nover its own frames")
    refused = await client.post(LOAD, json=VERSION_8)
    assert "RuntimeError: cuDNN trips. Version 7" in refused.json()["error"]
    assert "over its own frames" in caplog.text
    assert (await answer_of(client))[0] == "7"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"parameters": {"version": "9"}}, "the store holds fake 7, fake 8"),
        ({"parameters": {"version": "latest"}}, "a whole number from 1"),
        ({"parameters": {"version": "../8"}}, "a whole number from 1"),
        ({"parameters": {"version": [8]}}, "a whole number from 1"),
        ({"parameters": {"config": "{}"}}, "'config'"),
        ({"parameters": {"file:1/net.params": "AAAA"}}, "'file:1/net.params'"),
        ({"parameters": 8}, "parameters"),
        ([], "The body"),
    ],
)
async def test_load_rejects_bad_requests(
    client: httpx.AsyncClient, sent: Any, expected: str
) -> None:
    """Bad versions and unknown parameters get an error of the protocol and change nothing."""
    refused = await client.post(LOAD, json=sent)
    assert refused.status_code == 400 and list(refused.json()) == ["error"]
    assert expected in refused.json()["error"]
    assert (await answer_of(client))[0] == "7"


async def test_load_accepts_a_version_as_number(client: httpx.AsyncClient) -> None:
    """The version may be a JSON number in place of a string."""
    loaded = await client.post(LOAD, json={"parameters": {"version": 8}})
    assert loaded.json()["version"] == "8"


async def test_load_rejects_a_long_body(client: httpx.AsyncClient) -> None:
    """A body of more than 64 KiB is rejected."""
    assert (await client.post(LOAD, content=b" " * 70_000)).status_code == 413


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_load_rejects_another_model_name(client: httpx.AsyncClient, path: str) -> None:
    """A load cannot replace the model by a model of another name, which clients do not expect."""
    refused = await client.post(path.replace("fake", "other"), json={})
    assert refused.status_code == 404 and "SHOAL_MODEL" in refused.json()["error"]


async def test_one_change_at_a_time(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """During a load, the index shows it, further changes get 409, and predictions are served."""
    with loading(engine):
        first = asyncio.create_task(client.post(LOAD, json=VERSION_8))
        await engine.loading.wait()
        for path in LOAD, UNLOAD:
            assert (await client.post(path)).status_code == 409
        assert (await states(client))["8"] == "LOADING", "a rejected call ended it"
        assert (await answer_of(client))[0] == "7"
    assert (await first).status_code == 200
    assert await answer_of(client) == ("8", REVERSED[7])


# --- Index. -----------------------------------------------------------------------------------


async def test_index(client: httpx.AsyncClient) -> None:
    """GET and POST list all versions of the model; `ready` limits the list to the served one."""
    serves = {"name": "fake", "version": "7", "state": "READY", "reason": ""}
    other = {"name": "fake", "version": "8", "state": "UNAVAILABLE", "reason": "not loaded"}
    assert (await client.get(INDEX)).json() == [serves, other]
    assert (await client.post(INDEX)).json() == [serves, other]
    assert (await client.post(INDEX, json={"ready": True})).json() == [serves]
    assert (await client.post(INDEX, json={"ready": "yes"})).status_code == 400


# --- Unload. ----------------------------------------------------------------------------------


async def test_load_after_unload(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """From an unload to the next load, the server is live but not ready and infers nothing."""
    unloaded = await client.post(UNLOAD, json={"parameters": {"unload_dependents": False}})
    assert unloaded.json() == {"name": "fake", "version": "7"} and engine.unloaded
    refused = await predict(client)
    assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
    assert "unloaded" in refused.json()["detail"]
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/readyz")).status_code == 503
    assert set((await states(client)).values()) == {"UNAVAILABLE"}
    assert value(await scrape(client), "ready") == 0
    assert (await client.post(UNLOAD)).status_code == 503, "there is nothing to unload"
    assert (await client.post(LOAD, json=VERSION_8)).status_code == 200
    assert await answer_of(client) == ("8", REVERSED[7])


async def test_unload_answers_accepted_requests(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """Requests in the engine and in the queue are answered; later ones are rejected."""
    with computing(engine):
        accepted = [asyncio.create_task(answer_of(client)) for _ in range(12)]
        await engine.called.wait()
        await queued(client, 12 - engine.batches[0])
        unload = asyncio.create_task(client.post(UNLOAD))
        async with asyncio.timeout(PATIENCE):
            while (await client.get("/readyz")).status_code == 200:  # noqa: ASYNC110  # no event
                await asyncio.sleep(0.001)
        assert not engine.unloaded and (await predict(client)).status_code == 503
    assert await asyncio.gather(*accepted) == [("7", "horse")] * 12
    assert (await unload).status_code == 200 and engine.unloaded


# --- Reload on SIGHUP. ------------------------------------------------------------------------


async def test_reload(client: httpx.AsyncClient, engine: FakeEngine, settings: Settings) -> None:
    """A reload loads the startup version, and does nothing if it is served already."""
    repository = client._transport.app.state.service.repository  # type: ignore[attr-defined]
    engine.load_error = BadModel("nothing is to be loaded")
    assert (await repository.reload()).version == "7"
    engine.load_error = None
    await client.post(LOAD, json=VERSION_8)
    assert (await repository.reload()).version == "7" == engine.model.version
    await client.post(UNLOAD)
    assert (await repository.reload()).version == "7"
    await client.post(LOAD, json=VERSION_8)
    engine.load_error = BadModel("its SHA-256 differs")
    with pytest.raises(LoadFailed, match="SHA-256"):
        await repository.reload()
