"""Replacing the model in a real process: under load, in NVIDIA's own words, and in vain."""

from __future__ import annotations

import asyncio
import base64
import json
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferenceServerException, InferInput

from model_store import manifest
from model_store.params import read_params, sha256, write_params
from model_store.training import cifar10
from shoal.load.connection import connect
from tests.e2e.process import PATIENCE, REAL, Server
from tests.reference import probabilities
from tests.service.conftest import png

pytestmark = pytest.mark.slow
NAME = "cifar_resnet20_v1"
KEY = "admin-key-of-many-letters"
HEADERS = {"authorization": f"Bearer {KEY}"}
CLASSES = {
    "1": cifar10.CLASSES,
    "2": tuple(f"{name}, says 2" for name in reversed(cifar10.CLASSES)),
}
IMAGES = 4
CLIENTS = 12
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def store(model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The network that ships as version 1; as version 2 with its outputs, and so its classes, in
    reverse order and by other names."""
    store = tmp_path_factory.mktemp("store")
    shutil.copytree(model, store / NAME / "1")
    arrays = dict(read_params(model / "net.params"))
    for output in "output.weight", "output.bias":
        arrays[output] = arrays[output][::-1]
    add(store, "2", lambda path: write_params(path, arrays), classes=CLASSES["2"])
    return store


def add(
    store: pathlib.Path, version: str, change: Callable[[pathlib.Path], object], **described: Any
) -> pathlib.Path:
    """Version 1 again, its parameters changed and its manifest telling of them."""
    folder = store / NAME / version
    shutil.copytree(store / NAME / "1", folder)
    path = folder / "net.params"
    change(path)
    model = manifest.read(folder).model_copy(update={"version": version, **described})
    file = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    parameters = model.parameters.model_copy(update=file)
    manifest.write(folder, model.model_copy(update={"parameters": parameters}))
    return path


@pytest.fixture(scope="module")
def server(store: pathlib.Path) -> Iterator[Server]:
    environment = {"SHOAL_MODEL_STORE": str(store), "SHOAL_MODEL_VERSION": "1"}
    with Server(*REAL, SHOAL_ADMIN_KEYS=KEY, **environment) as server:
        server.wait_until_ready()
        yield server


def load(server: Server, version: str) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v2/repository/models/{NAME}/load",
        json={"parameters": {"version": version}},
        headers=HEADERS,
        timeout=60,
    )


@pytest.fixture
def serves_1(server: Server) -> Server:
    """Whatever a test before has loaded."""
    ready = httpx.get(f"{server.url}/readyz").json()
    if ready.get("model", {}).get("version") != "1":
        assert load(server, "1").status_code == 200
    return server


class Clients:
    """Each asks one thing after the other, and checks every answer against the version that it
    names: its classes, and what NumPy computes of its parameters. `heard`: of each client, the
    versions in the order of the answers."""

    def __init__(self, server: Server, store: pathlib.Path) -> None:
        url = httpx.URL(server.url)
        self.heard: list[list[str]] = [[] for _ in range(CLIENTS)]
        self.failures: list[str] = []
        self.slowest = 0.0
        self.answers = 0
        self._host, self._port = url.host, url.port or 80
        self._leaving = False
        self._tasks: list[asyncio.Task[None]] = []
        reds = [60 * number for number in range(IMAGES)]
        pixels = np.zeros((IMAGES, 32, 32, 3), np.uint8)
        pixels[..., 0] = np.array(reds)[:, None, None]
        self._expected = {
            version: probabilities(read_params(store / NAME / version / "net.params"), pixels)
            for version in CLASSES
        }
        files = [("img", ("a.png", png(red))) for red in reds]
        tensor = {
            "name": "image",
            "datatype": "BYTES",
            "shape": [IMAGES],
            "data": [base64.b64encode(png(red)).decode() for red in reds],
        }
        infer = {"inputs": [tensor], "outputs": [{"name": "class"}, {"name": "probabilities"}]}
        one = [
            httpx.Request(
                "POST", f"{url}/predict", content=data, headers={"content-type": "image/png"}
            )
            for _, (_, data) in files
        ]
        self._asked = [
            *zip(map(_bytes, one), range(IMAGES), strict=True),
            (_bytes(httpx.Request("POST", f"{url}/predict/batch", files=files)), None),
            (_bytes(httpx.Request("POST", f"{url}/v2/models/{NAME}/infer", json=infer)), None),
        ]

    async def __aenter__(self) -> Clients:
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(CLIENTS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leaving = True
        await asyncio.gather(*self._tasks)

    async def more(self, count: int) -> None:
        """Until there are so many answers more."""
        until = self.answers + count
        async with asyncio.timeout(60):
            while self.answers < until:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def _ask(self, number: int) -> None:
        connection = await connect(self._host, self._port)
        turn = number
        while not self._leaving:
            request, image = self._asked[turn % len(self._asked)]
            turn += 1
            sent = time.monotonic()
            status, body = await connection.request(request, PATIENCE)
            self.answers += 1
            self.slowest = max(self.slowest, time.monotonic() - sent)
            if status != 200:
                self.failures.append(f"{status} {body.decode()}")
                continue
            self._note(number, json.loads(body), image)
        connection.close()

    def _note(self, number: int, body: Any, image: int | None) -> None:
        if "outputs" in body:
            version = body["model_version"]
            classes, shares = (output["data"] for output in body["outputs"])
            self._check(version, range(IMAGES), np.reshape(shares, (IMAGES, -1)), classes)
            self.heard[number].append(version)
            return
        predictions = body.get("predictions", [body])
        for place, prediction in enumerate(predictions):
            version = prediction["model"]["version"]
            assert tuple(prediction["probabilities"]) == CLASSES[version]
            shares = list(prediction["probabilities"].values())
            self._check(version, [image or place], np.array([shares]), [prediction["class"]])
        self.heard[number] += [prediction["model"]["version"] for prediction in predictions]

    def _check(self, version: str, images: Any, shares: Any, classes: list[str]) -> None:
        expected = self._expected[version][list(images)]
        if np.abs(shares - expected).max() > TOLERANCE:
            self.failures.append(f"not what version {version} computes of {images}")
        if classes != [CLASSES[version][best] for best in expected.argmax(axis=1)]:
            self.failures.append(f"not the classes of version {version}: {classes}")


def _bytes(request: httpx.Request) -> bytes:
    """As it goes over the wire."""
    head = [f"{request.method} {request.url.path} HTTP/1.1"]
    head += [f"{name}: {value}" for name, value in request.headers.items()]
    return "\r\n".join([*head, "", ""]).encode() + request.read()


async def test_load_of_a_version_under_load_loses_no_request(
    serves_1: Server, store: pathlib.Path
) -> None:
    """No request fails, each answer is right for its version, and each client sees one change."""
    async with Clients(serves_1, store) as clients:
        await clients.more(300)
        loaded = await asyncio.to_thread(load, serves_1, "2")
        await clients.more(300)
    assert (loaded.status_code, loaded.json()) == (200, {"name": NAME, "version": "2"})
    assert clients.failures == [] and clients.answers > 600
    for heard in clients.heard:
        assert heard == sorted(heard) and {*heard} == {"1", "2"}
    assert clients.slowest < 5, "on a machine with other work"


async def test_broken_versions_are_rejected_under_load(
    serves_1: Server, store: pathlib.Path
) -> None:
    """A broken version is rejected with its reason; requests and memory are not affected."""

    def cut(path: pathlib.Path) -> None:
        path.write_bytes(path.read_bytes()[:-1000])

    def flip(path: pathlib.Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def reshape(path: pathlib.Path) -> None:
        arrays = dict(read_params(path))
        arrays["output.weight"] = arrays["output.weight"][:, :32]
        write_params(path, arrays)

    def inflate(path: pathlib.Path) -> None:
        arrays = {name: np.array(array) for name, array in read_params(path).items()}
        arrays["output.weight"] = np.full_like(arrays["output.weight"], 3e38)
        write_params(path, arrays)

    def nothing(path: pathlib.Path) -> None:
        pass

    cut(add(store, "3", nothing))
    flip(add(store, "4", nothing))
    add(store, "5", reshape)
    add(store, "6", inflate)
    add(store, "7", cut)
    reasons = {
        "3": "bytes instead of",
        "4": "SHA-256",
        "5": "another shape",
        "6": "computes invalid results",
        "7": "bytes, but only",
        "8": "the store holds",
    }
    async with Clients(serves_1, store) as clients:
        for version, reason in reasons.items():
            refused = await asyncio.to_thread(load, serves_1, version)
            assert refused.status_code == 400 and reason in refused.json()["error"], refused.text
            assert "Version 1 stays loaded" in refused.json()["error"]
            await clients.more(20)
    assert clients.failures == []
    assert {version for heard in clients.heard for version in heard} == {"1"}
    client = InferenceServerClient(serves_1.url.removeprefix("http://"))
    index = client.get_model_repository_index(headers=HEADERS)
    told = {one["version"]: (one["state"], one["reason"]) for one in index}
    assert told["1"] == ("READY", "") and told["2"] == ("UNAVAILABLE", "not loaded")
    for version in "34567":
        assert told[version][0] == "UNAVAILABLE" and reasons[version] in told[version][1]


def test_tritonclient_can_load_and_unload(serves_1: Server) -> None:
    """NVIDIA's client can list, load and unload; between them the model is not ready."""
    client = InferenceServerClient(serves_1.url.removeprefix("http://"))
    with pytest.raises(InferenceServerException, match="admin key"):
        client.get_model_repository_index()
    index = client.get_model_repository_index(headers=HEADERS)
    assert [one["state"] for one in index if one["version"] == "1"] == ["READY"]
    client.unload_model(NAME, headers=HEADERS)
    assert client.is_server_live() and not client.is_server_ready()
    assert not client.is_model_ready(NAME)
    tensor = InferInput("pixels", [1, 32, 32, 3], "UINT8")
    tensor.set_data_from_numpy(np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(InferenceServerException, match="unloaded"):
        client.infer(NAME, [tensor])
    client.load_model(NAME, headers=HEADERS)
    assert client.is_model_ready(NAME, "1")
    assert client.infer(NAME, [tensor]).get_response()["model_version"] == "1"
    with pytest.raises(InferenceServerException, match="serves only"):
        client.load_model("resnet50", headers=HEADERS)


def test_memory_of_replaced_versions_is_freed(serves_1: Server) -> None:
    """The memory of a network is free again once another one serves."""
    for version in "21":
        assert load(serves_1, version).status_code == 200
    before = resident(serves_1)
    for version in "2121":
        assert load(serves_1, version).status_code == 200
    assert resident(serves_1) - before < 40, "MB; a network takes 20"


def resident(server: Server) -> float:
    """Megabytes."""
    status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
    (kilobytes,) = re.findall(r"VmRSS:\s+(\d+)", status)
    return int(kilobytes) / 1000


async def test_stop_while_a_version_loads(store: pathlib.Path) -> None:
    """The load request is answered, and the process ends with status 0."""
    environment = {"SHOAL_MODEL_STORE": str(store), "SHOAL_MODEL_VERSION": "1"}
    with Server(*REAL, SHOAL_ADMIN_KEYS=KEY, **environment) as server:
        server.wait_until_ready()
        loading = asyncio.create_task(asyncio.to_thread(load, server, "2"))
        async with httpx.AsyncClient(base_url=server.url, headers=HEADERS) as client:
            while "LOADING" not in (await client.post("/v2/repository/index")).text:
                pass
        assert await asyncio.to_thread(server.stop) == 0
        assert (await loading).status_code == 200
