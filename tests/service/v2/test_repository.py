"""The model repository over HTTP: who may call it, what it tells, and what a switch changes."""

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

BROWSERS = {
    "x-content-type-options",
    "content-security-policy",
    "referrer-policy",
    "cache-control",
}
"""Headers for browsers, which programs need not know."""

KEY, API_KEY = "admin-key-of-many-letters", "api-key-of-many-letters"
LOAD, UNLOAD, INDEX = (
    "/v2/repository/models/fake/load",
    "/v2/repository/models/fake/unload",
    "/v2/repository/index",
)
HORSE = png(7)
BACKWARDS = tuple(reversed(MODEL.classes))
VERSION_8 = {"parameters": {"version": "8"}}


def add(store: pathlib.Path, version: str, **changes: Any) -> None:
    folder = store / "fake" / version
    folder.mkdir(parents=True)
    manifest.write(folder, MODEL.model_copy(update={"version": version, **changes}))


@pytest.fixture
def settings(tmp_path: pathlib.Path) -> Settings:
    """Version 7 serves; in version 8 the classes are the other way round."""
    add(tmp_path, "7")
    add(tmp_path, "8", classes=BACKWARDS)
    return Settings(
        model="fake",
        model_version="7",
        model_store=tmp_path,
        admin_keys=SecretStr(KEY),
        api_keys=SecretStr(API_KEY),
    )


@pytest.fixture
async def client(engine: FakeEngine, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Of somebody who has both keys: each where it belongs."""
    async with connected(settings, engine) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        yield client


async def predict(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {API_KEY}"}
    return await client.post("/predict", files={"img": HORSE}, headers=headers, **more)


async def told(client: httpx.AsyncClient) -> tuple[str, str]:
    """Version and class of an answer."""
    answer = (await predict(client)).json()
    return answer["model"]["version"], answer["class"]


async def states(client: httpx.AsyncClient) -> dict[str, str]:
    return {one["version"]: one["state"] for one in (await client.get(INDEX)).json()}


@contextmanager
def loading(engine: FakeEngine) -> Iterator[None]:
    """Within, what is to be loaded is not loaded yet."""
    engine.loaded.clear()
    yield
    engine.loaded.set()


# --- Who may. ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [LOAD, UNLOAD, INDEX])
@pytest.mark.parametrize("key", [None, "wrong-wrong-wrong-wrong", API_KEY])
async def test_an_admin_key_is_wanted(
    client: httpx.AsyncClient, path: str, key: str | None
) -> None:
    """One for predictions will not do; nothing has happened."""
    client.headers.pop("authorization")
    headers = {"x-api-key": key} if key else {}
    refused = await client.post(path, headers=headers)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert "admin key" in refused.json()["error"]
    assert (await told(client))[0] == "7"


async def test_an_admin_key_is_none_for_predictions(client: httpx.AsyncClient) -> None:
    assert (await client.post("/predict", files={"img": HORSE})).status_code == 401


@pytest.mark.parametrize("path", [LOAD, UNLOAD, INDEX])
async def test_without_any_admin_key_it_is_off(
    engine: FakeEngine, settings: Settings, path: str
) -> None:
    """For everybody, and the answer says how to turn it on."""
    off = settings.model_copy(update={"admin_keys": None})
    async with connected(off, engine) as client:
        refused = await client.post(path, headers={"x-api-key": KEY})
        extensions = (await client.get("/v2")).json()["extensions"]
        described = (await client.get("/openapi.json")).json()["paths"]
    assert "security" in described["/predict"]["post"]
    assert "security" not in described[INDEX]["post"]
    assert refused.status_code == 403 and "SHOAL_ADMIN_KEYS_FILE" in refused.json()["error"]
    assert "model_repository" not in extensions


async def test_the_extension_is_told(client: httpx.AsyncClient) -> None:
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
async def test_answers_are_as_described(
    client: httpx.AsyncClient, method: str, path: str, name: str, sent: Any, status: int
) -> None:
    """Members, headers, and the key that is wanted."""
    description = (await client.get("/openapi.json")).json()
    response = await client.request(method, path.format(model=name), json=sent)
    assert response.status_code == status
    operation = description["paths"][path][method]
    assert operation["security"] == [{"bearer": []}, {"key": []}]
    described = operation["responses"][str(status)]
    ours = set(response.headers) - {"content-length", "content-type", *BROWSERS}
    assert ours <= {name.lower() for name in described["headers"]}
    schema = described["content"]["application/json"]["schema"]
    fits(response.json(), schema, description["components"]["schemas"])


# --- Load. ------------------------------------------------------------------------------------


async def test_another_version_takes_over(client: httpx.AsyncClient) -> None:
    """Whoever asks afterwards is answered by it, in its own classes, on every path."""
    assert await told(client) == ("7", "horse")
    loaded = await client.post(LOAD, json=VERSION_8)
    assert (loaded.status_code, loaded.json()) == (200, {"name": "fake", "version": "8"})
    assert await told(client) == ("8", BACKWARDS[7])
    assert (await client.get("/readyz")).json()["model"]["version"] == "8"
    assert (await client.get("/v2/models/fake")).json()["versions"] == ["8"]
    client.headers["authorization"] = f"Bearer {API_KEY}"
    many = await client.post("/predict/batch", files=[("img", HORSE)] * 2)
    assert [one["model"]["version"] for one in many.json()["predictions"]] == ["8", "8"]
    inferred = (await client.post("/v2/models/fake/infer", json=body(HORSE))).json()
    assert (inferred["model_version"], inferred["outputs"][0]["data"]) == ("8", [BACKWARDS[7]])
    samples = await scrape(client)
    assert value(samples, "model_info", model="fake", version="8", device="cpu") == 1
    assert len([name for name, _ in samples if name == "shoal_model_info"]) == 1
    assert value(samples, "model_loads_total", outcome="loaded") == 1


async def test_what_was_accepted_before_names_who_computed_it(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """A batch that the old version has is answered in its name, after the new one took over; who
    waited meanwhile is answered by the new one."""
    engine.seconds = 0.05
    first = asyncio.create_task(told(client))
    await engine.called.wait()
    second = asyncio.create_task(told(client))
    assert (await client.post(LOAD, json=VERSION_8)).status_code == 200
    assert not first.done()
    assert await first == ("7", "horse")
    assert await second == ("8", BACKWARDS[7])


async def test_an_answer_is_one_versions(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """Where a version takes over between two images of one inference request, those that the old
    one computed are computed again."""
    engine.seconds = 0.05
    client.headers["x-api-key"] = KEY
    client.headers["authorization"] = ""
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
    assert answer["model_version"] == "8", answer
    assert answer["outputs"][0]["data"] == [BACKWARDS[7]] * 12
    assert sum(engine.batches) == 12 + engine.batches[0]


async def test_who_names_a_version_gets_no_other(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """A request for version 7 that version 8 computed is refused, not answered by another."""
    engine.seconds = 0.05
    first = asyncio.create_task(told(client))
    await engine.called.wait()
    infer = asyncio.create_task(
        client.post(
            "/v2/models/fake/versions/7/infer",
            json=body(HORSE),
            headers={"authorization": f"Bearer {API_KEY}"},
        )
    )
    await asyncio.sleep(0.01)
    await client.post(LOAD, json=VERSION_8)
    assert (await first)[0] == "7"
    assert (await infer).status_code == 404


async def test_without_a_version_it_is_the_one_of_a_start(
    engine: FakeEngine, settings: Settings
) -> None:
    """The one that the settings name, or else the highest. The body may be missing altogether."""
    for pinned, version in (("7", "7"), (None, "8")):
        async with connected(settings.model_copy(update={"model_version": pinned}), engine) as one:
            one.headers["x-api-key"] = KEY
            assert (await one.post(LOAD)).json()["version"] == version


async def test_what_cannot_be_loaded_changes_nothing(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """The old version goes on, the client and the index are told why, and it is counted."""
    engine.load_error = BadModel("its SHA-256 differs")
    refused = await client.post(LOAD, json=VERSION_8)
    assert refused.status_code == 400
    assert "SHA-256 differs" in refused.json()["error"]
    assert "Version 7 goes on serving" in refused.json()["error"]
    assert await told(client) == ("7", "horse")
    (reason,) = [v["reason"] for v in (await client.get(INDEX)).json() if v["version"] == "8"]
    assert "SHA-256" in reason
    assert value(await scrape(client), "model_loads_total", outcome="failed") == 1

    engine.load_error = None
    assert (await client.post(LOAD, json=VERSION_8)).status_code == 200
    assert await states(client) == {"7": "UNAVAILABLE", "8": "READY"}
    await client.post(LOAD)
    (reason,) = [v["reason"] for v in (await client.get(INDEX)).json() if v["version"] == "8"]
    assert reason == "not loaded", "what is mended is no failure any more"


async def test_the_unforeseen_changes_nothing_either(
    client: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is raised: the client is told its first line, and the log all."""
    engine.load_error = RuntimeError("cuDNN trips\nover its own frames")
    refused = await client.post(LOAD, json=VERSION_8)
    assert "RuntimeError: cuDNN trips. Version 7" in refused.json()["error"]
    assert "over its own frames" in caplog.text
    assert (await told(client))[0] == "7"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"parameters": {"version": "9"}}, "it holds fake 7, fake 8"),
        ({"parameters": {"version": "latest"}}, "not a number"),
        ({"parameters": {"version": "../8"}}, "not a number"),
        ({"parameters": {"version": [8]}}, "not a number"),
        ({"parameters": {"config": "{}"}}, "'config'"),
        ({"parameters": {"file:1/net.params": "AAAA"}}, "'file:1/net.params'"),
        ({"parameters": 8}, "parameters"),
        ([], "The body"),
    ],
)
async def test_calls_that_cannot_be_followed(
    client: httpx.AsyncClient, sent: Any, expected: str
) -> None:
    """Told in the protocol's shape; a parameter that is not known is not passed over."""
    refused = await client.post(LOAD, json=sent)
    assert refused.status_code == 400 and list(refused.json()) == ["error"]
    assert expected in refused.json()["error"]
    assert (await told(client))[0] == "7"


async def test_a_number_will_do(client: httpx.AsyncClient) -> None:
    loaded = await client.post(LOAD, json={"parameters": {"version": 8}})
    assert loaded.json()["version"] == "8"


async def test_a_long_body_is_not_read(client: httpx.AsyncClient) -> None:
    assert (await client.post(LOAD, content=b" " * 70_000)).status_code == 413


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_another_name_is_another_servers(client: httpx.AsyncClient, path: str) -> None:
    """Replacing the model by one of another name would take it from its clients."""
    refused = await client.post(path.replace("fake", "other"), json={})
    assert refused.status_code == 404 and "SHOAL_MODEL" in refused.json()["error"]


async def test_one_change_at_a_time(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """While a version is loaded the index says so, others are asked to wait, and all is served."""
    with loading(engine):
        first = asyncio.create_task(client.post(LOAD, json=VERSION_8))
        await engine.loading.wait()
        for path in LOAD, UNLOAD:
            assert (await client.post(path)).status_code == 409
        assert (await states(client))["8"] == "LOADING", "the one under way still is"
        assert (await told(client))[0] == "7"
    assert (await first).status_code == 200
    assert await told(client) == ("8", BACKWARDS[7])


# --- Index. -----------------------------------------------------------------------------------


async def test_the_index(client: httpx.AsyncClient) -> None:
    """Every version of the model, by GET or POST; only what serves, where that is asked for."""
    serves = {"name": "fake", "version": "7", "state": "READY", "reason": ""}
    other = {"name": "fake", "version": "8", "state": "UNAVAILABLE", "reason": "not loaded"}
    assert (await client.get(INDEX)).json() == [serves, other]
    assert (await client.post(INDEX)).json() == [serves, other]
    assert (await client.post(INDEX, json={"ready": True})).json() == [serves]
    assert (await client.post(INDEX, json={"ready": "yes"})).status_code == 400


# --- Unload. ----------------------------------------------------------------------------------


async def test_unload_and_load_again(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """Live, not ready, and nothing is computed; until the next load."""
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
    assert await told(client) == ("8", BACKWARDS[7])


async def test_unload_answers_who_was_accepted(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """Those in the engine and those who wait; nobody after them."""
    engine.seconds = 0.05
    accepted = [asyncio.create_task(told(client)) for _ in range(12)]
    await engine.called.wait()
    unload = asyncio.create_task(client.post(UNLOAD))
    await asyncio.sleep(0.01)
    assert not engine.unloaded and (await predict(client)).status_code == 503
    assert await asyncio.gather(*accepted) == [("7", "horse")] * 12
    assert (await unload).status_code == 200 and engine.unloaded


# --- Reload, as on SIGHUP. --------------------------------------------------------------------


async def test_reload(client: httpx.AsyncClient, engine: FakeEngine, settings: Settings) -> None:
    """The version that a start would take; nothing happens where it serves."""
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
