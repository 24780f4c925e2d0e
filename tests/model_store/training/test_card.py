"""The model card, and the predictions that it gets from a service."""

from __future__ import annotations

import asyncio
import http.server
import json
import pathlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from model_store import manifest
from model_store.manifest import BadModel, Manifest
from model_store.training.card import predict_photos, write_card
from tests.model_store.test_manifest import GOOD

MODEL = Manifest.model_validate(GOOD)


class Service(http.server.BaseHTTPRequestHandler):
    """Predicts a cat with a probability of 0.75; rejects the body `nonsense`."""

    protocol_version = "HTTP/1.1"
    ready: ClassVar[dict[str, Any]] = {
        "model": {"name": "pets", "version": "3"},
        "precision": "int8",
    }

    def do_GET(self) -> None:
        self._answer(self.ready if self.path == "/readyz" else {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        good = self.headers["Content-Type"].startswith("image/") and body != b"nonsense"
        told: dict[str, Any] = {"class": "cat", "probability": 0.75}
        self._answer(told if good else {"detail": "not an image"})

    def _answer(self, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *about: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def photos(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("cat_1.jpg", "cat_2.jpg", "dog_1.jpg", "labels.csv"):
        (folder / name).write_bytes(b"picture")
    return folder


def test_photos(url: str, photos: pathlib.Path) -> None:
    """Each file that is named after a class is predicted and counted; other files are ignored."""
    seen = predict_photos(url, MODEL, photos)
    assert seen.by_class == {"cat": (2, 2), "dog": (0, 1)}
    assert (seen.right, seen.all, seen.precision, seen.probability) == (2, 3, "int8", 0.75)


def test_rejected_photo(url: str, photos: pathlib.Path) -> None:
    """The error names a file that the service rejects; no result of the others is given."""
    (photos / "dog_1.jpg").write_bytes(b"nonsense")
    with pytest.raises(BadModel, match=r"dog_1.jpg.*not an image"):
        predict_photos(url, MODEL, photos)


def test_another_version_is_served(url: str, photos: pathlib.Path) -> None:
    """A service of another version is rejected, with the settings to start the right one."""
    with pytest.raises(BadModel, match="SHOAL_MODEL_VERSION=4"):
        predict_photos(url, MODEL.model_copy(update={"version": "4"}), photos)


def test_no_service(photos: pathlib.Path) -> None:
    """The error says to start the service."""
    with pytest.raises(BadModel, match="start the service first"):
        predict_photos("http://127.0.0.1:1", MODEL, photos)


def test_no_photo(url: str, tmp_path: pathlib.Path) -> None:
    """A folder without files named after classes is rejected."""
    with pytest.raises(BadModel, match="no file is named CLASS_"):
        predict_photos(url, MODEL, tmp_path)


@pytest.mark.mxnet
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MXNet's own
def test_card(calibrated: pathlib.Path, tiny: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The card has the accuracy in each precision, the temperature and the recipe; writing it does
    not change the manifest."""
    pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")
    folder = pathlib.Path(shutil.copytree(calibrated, tmp_path / "cifar_resnet20_v1" / "1"))
    before = (folder / manifest.MANIFEST).read_bytes()
    path = asyncio.run(write_card(folder, tiny, None, "", "cpu"))
    text = path.read_text()
    model = manifest.read(folder)
    for one in model.measured:
        assert f"| {one.precision} | {one.accuracy:.2%} |" in text
    assert model.temperature is not None and model.training is not None
    assert f"temperature of {model.temperature.value}" in text
    assert f"| seed | {model.training['seed']} |" in text
    assert "fp16 was not measured" in text and "photographs" not in text.partition("##")[0]
    assert (folder / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / manifest.MANIFEST).read_bytes() == before
