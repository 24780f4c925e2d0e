"""Training by its command line, in real processes, on a few images."""

from __future__ import annotations

import json
import math
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.processes import started
from model_store import manifest
from model_store.__main__ import main
from model_store.onnx import files
from model_store.params import read_params
from model_store.training import cifar10
from model_store.training.checkpoint import Progress
from model_store.training.recipe import Recipe

pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")
pytestmark = [pytest.mark.mxnet, pytest.mark.slow]
ROOT = pathlib.Path(__file__).parents[3]
BATCH, IMAGES, EPOCHS = 16, 16, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """CIFAR-10's layout with 80 training images of ten plain colors and 16 to test on."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(1)
    colors = random.integers(0, 256, (10, 3, 1))
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        labels = random.integers(0, 10, IMAGES)
        noise = random.integers(-20, 21, (IMAGES, 3, 1024))
        pixels = np.clip(colors[labels] + noise, 0, 255).astype(np.uint8).reshape(IMAGES, -1)
        records = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


def command(data: pathlib.Path, work: pathlib.Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "model_store", "train", "--device", "cpu", "--threads", "1"),
        *("--data", str(data), "--checkpoints", str(work / "saved"), "--store", str(work)),
        *("--batch-size", str(BATCH), "--epochs", str(EPOCHS), *more),
    ]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120)


class Steps:
    """A run of two epochs of three steps, which records the steps that are saved."""

    def __init__(self) -> None:
        self.recipe = Recipe(epochs=2, batch_size=1)
        self.batches = self
        self.per_epoch, self.steps = 3, 6
        self.progress = Progress()
        self.saved: list[int] = []

    def run(self, held_out: cifar10.Split) -> Iterator[Progress]:
        while self.progress.step < self.steps:
            self.progress.count(np.zeros(1, dtype=np.float32), right=1)
            if self.progress.step % self.per_epoch == 0:
                self.progress.close_epoch(accuracy=None, learning_rate=0.1)
            yield self.progress

    def save(self, folder: pathlib.Path) -> None:
        self.saved.append(self.progress.step)


@pytest.mark.parametrize(("seconds", "saved"), [(0.0, [1, 2, 3, 4, 5, 6]), (math.inf, [3, 6])])
def test_checkpoints_by_time(tmp_path: pathlib.Path, seconds: float, saved: list[int]) -> None:
    """A checkpoint is saved after every epoch, and within an epoch when the time has passed."""
    from model_store.training.job import _run

    steps, none = Steps(), cifar10.Split(np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, np.int64))
    _run(cast(Any, steps), none, tmp_path, seconds)
    assert steps.saved == saved


@pytest.fixture(scope="module")
def uninterrupted(data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    work = tmp_path_factory.mktemp("uninterrupted")
    finished = run(command(data, work))
    assert finished.returncode == 0, finished.stderr
    return work / "cifar_resnet20_v1" / "1"


def test_new_version(uninterrupted: pathlib.Path) -> None:
    """The result is a version with parameters, ONNX files if their packages are installed, a
    manifest with the recipe, and a plot."""
    model = manifest.read(uninterrupted)
    onnx = ["net.fp16.onnx", "net.onnx"] if files.can_write() else []
    assert sorted(path.name for path in uninterrupted.iterdir()) == [
        "manifest.json",
        *onnx,
        "net.params",
        "training.png",
    ]
    assert model.classes == cifar10.CLASSES
    assert model.training is not None
    assert (model.training["seed"], model.training["epochs"]) == (1, EPOCHS)
    assert model.training["threads"] == 1
    assert model.measured[0].images == IMAGES
    assert "16 images of test_batch.bin" in model.measured[0].on
    assert (uninterrupted / "training.png").read_bytes().startswith(b"\x89PNG")


def test_interrupted_and_resumed(
    data: pathlib.Path, uninterrupted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """After Ctrl-C within an epoch, the same command ends in the same bytes."""
    saved = tmp_path / "saved"
    training = command(data, tmp_path)
    with started(training, cwd=ROOT, stderr=subprocess.PIPE, text=True) as stopped:
        while not list(saved.glob("step-*")):  # the first epoch is done
            assert stopped.poll() is None
            time.sleep(0.01)
        stopped.send_signal(signal.SIGINT)
        _, output = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, output
    assert "run the same command to continue" in output
    assert not (tmp_path / "cifar_resnet20_v1").exists()

    resumed = run(command(data, tmp_path))

    assert resumed.returncode == 0, resumed.stderr
    assert "continuing from step" in resumed.stdout
    ours = read_params(tmp_path / "cifar_resnet20_v1" / "1" / "net.params")
    theirs = read_params(uninterrupted / "net.params")
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert np.array_equal(array, theirs[name]), name
    (state,) = saved.glob("step-*/state.json")
    assert len(json.loads(state.read_text())["progress"]["epochs"]) == EPOCHS


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--seed", "2", "--version", "2"), "another recipe"),
        (("--threads", "2", "--version", "2"), "--threads 1"),
        (("--version", "latest"), "version"),
        (("--version", "1"), "never overwritten"),
        (("--data", "/nowhere", "--version", "2"), "cifar-10-binary.tar.gz"),
        (("--architecture", "vgg", "--version", "2"), "cifar_resnet20_v1"),
        (("--start", "cifar_resnet20_v1/5", "--version", "2"), "manifest.json"),
        (("--start", "cifar_resnet20_v1", "--version", "2"), "version"),
        (("--start", "cifar_resnet20_v1/1", "--version", "2"), "another recipe"),
    ],
)
def test_errors(
    data: pathlib.Path,
    uninterrupted: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    """A wrong option gives one line and exit status 2, before anything is trained."""
    _, _, _, *arguments = command(data, uninterrupted.parents[1], *more)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_start_of_another_architecture(data: pathlib.Path, uninterrupted: pathlib.Path) -> None:
    """The weights to start from must fit the architecture."""
    resnet_56 = ("--architecture", "cifar_resnet56_v1", "--checkpoints", "/nowhere")
    start = ("--start", "cifar_resnet20_v1/1")
    failed = run(command(data, uninterrupted.parents[1], *resnet_56, *start))
    assert failed.returncode == 2
    (line,) = [line for line in failed.stderr.splitlines() if "engine.cc" not in line]  # MXNet's
    assert "do not fit the network" in line


def test_other_data(
    data: pathlib.Path, uninterrupted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A run does not continue with other images, even if a single pixel differs."""
    other = pathlib.Path(shutil.copytree(data, tmp_path / "other"))
    content = bytearray((other / "data_batch_3.bin").read_bytes())
    content[-1] ^= 1
    (other / "data_batch_3.bin").write_bytes(content)
    failed = run(command(other, uninterrupted.parents[1], "--version", "2"))
    assert failed.returncode == 2
    assert "other images" in failed.stderr and failed.stderr.count("\n") == 1


def test_start(data: pathlib.Path, uninterrupted: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A run with `--start` and a learning rate of 0 ends in the weights of that version."""
    work = uninterrupted.parents[1]
    still = ("--learning-rate", "0", "--epochs", "1", "--small", "0.5", "--cutout", "8")
    start = ("--start", "cifar_resnet20_v1/1", "--version", "7", "--checkpoints", str(tmp_path))

    finished = run(command(data, work, *still, *start))

    assert finished.returncode == 0, finished.stderr
    target = work / "cifar_resnet20_v1" / "7"
    training = manifest.read(target).training
    assert training is not None and training["start"] == "cifar_resnet20_v1/1"
    before, after = (read_params(path / "net.params") for path in (uninterrupted, target))
    for name, array in before.items():
        if "running" not in name:
            np.testing.assert_allclose(after[name], array, rtol=1e-4, atol=1e-6, err_msg=name)
    (saved,) = tmp_path.glob("step-*")
    digest = manifest.read(uninterrupted).parameters.sha256
    assert json.loads((saved / "state.json").read_text())["start"] == digest


def test_learning_from_a_teacher(
    data: pathlib.Path, uninterrupted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A run that reads its teacher's logits from the file ends in the same bytes as the run that
    computed them. The manifest names the held-out images as those that were measured."""
    work = uninterrupted.parents[1]
    teacher = ("--teacher", "cifar_resnet20_v1/1", "--views", "1", "--logits", str(tmp_path))
    more = (*teacher, "--epochs", "2", "--held-out", "16", "--mixup", "0.2", "--zoom", "0.2")
    for version in ("8", "9"):
        own = ("--version", version, "--checkpoints", str(tmp_path / version))
        finished = run(command(data, work, *more, *own))
        assert finished.returncode == 0, finished.stderr
        assert "held out" in finished.stdout

    assert len(list(tmp_path.glob("*.logits"))) == 1
    computed, found = (work / "cifar_resnet20_v1" / version for version in ("8", "9"))
    assert (computed / "net.params").read_bytes() == (found / "net.params").read_bytes()
    model = manifest.read(found)
    assert model.training is not None
    assert model.training["teacher"] == "cifar_resnet20_v1/1"
    assert model.training["data"] == "CIFAR-10, 64 training images"
    assert model.measured[0].on == "CIFAR-10, the 16 training images held out, fp32"
    (saved,) = (tmp_path / "9").glob("step-*")
    digest = manifest.read(uninterrupted).parameters.sha256
    assert json.loads((saved / "state.json").read_text())["teachers"] == [digest]
