"""The runtime: what is set before MXNet is imported, and what an error says."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable

import pytest

from model_store.architectures import ARCHITECTURES, UnknownArchitecture
from model_store.backend import BackendUnavailable
from model_store.mxnet import runtime
from model_store.mxnet.architectures import build
from model_store.mxnet.runtime import load_mxnet

NOT_THERE = "cannot open shared object file: No such file or directory"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """MXNet is not loaded, it is the CPU build, and none of its variables is set."""
    monkeypatch.delitem(sys.modules, "mxnet", raising=False)
    monkeypatch.setattr(runtime, "is_gpu_build", lambda: False)
    monkeypatch.setattr("ctypes.PyDLL", Library)
    for name in (*runtime.ENVIRONMENT, "OMP_NUM_THREADS", "MXNET_ENGINE_TYPE"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    return monkeypatch


class Library:
    """A library whose functions are their own names."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> str:
        return f"{name} of {self._path}"


def importing(result: Exception | None) -> Callable[[str], types.ModuleType]:
    """An importer that records the environment it is called in, or raises `result`."""

    def import_module(name: str) -> types.ModuleType:
        if result is not None:
            raise result
        module = types.ModuleType(name)
        vars(module)["environment"] = dict(os.environ)
        vars(module)["nd"] = types.SimpleNamespace(waitall=lambda: None)
        vars(module)["base"] = types.SimpleNamespace(_LIB=types.SimpleNamespace())
        vars(module)["libinfo"] = types.SimpleNamespace(find_lib_path=lambda: ["libmxnet.so"])
        return module

    return import_module


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(f"libcuda.so.1: {NOT_THERE}"), "driver"),
        (OSError(f"libcudart.so.11.0: {NOT_THERE}"), "nvidia-cuda-runtime-cu11"),
        (OSError(f"libcudnn.so.8: {NOT_THERE}"), r"shoal\[gpu\].*nvidia-cudnn-cu11"),
        (OSError(f"libgomp.so.1: {NOT_THERE}"), "apt-get install libgomp1 libquadmath0"),
        (OSError("something else"), "something else"),
        (ModuleNotFoundError("No module named 'mxnet'", name="mxnet"), r"shoal\[cpu\]"),
        (ModuleNotFoundError("No module named 'distutils'", name="distutils"), "setuptools"),
    ],
)
def test_load_mxnet_says_what_to_install(
    environment: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    """An error of the linker or the import becomes one line."""
    environment.setattr("importlib.import_module", importing(error))
    with pytest.raises(BackendUnavailable, match=message) as caught:
        load_mxnet(1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("in_order", "engine"), [(False, None), (True, "NaiveEngine")])
def test_load_mxnet_sets_the_environment_before_the_import(
    environment: pytest.MonkeyPatch, in_order: bool, engine: str | None
) -> None:
    """MXNet and OpenMP read the variables only once."""
    environment.setattr("importlib.import_module", importing(None))
    seen = load_mxnet(3, in_order).environment
    assert seen["OMP_NUM_THREADS"] == "3"
    assert seen["OMP_WAIT_POLICY"] == "PASSIVE"
    assert seen["MXNET_USE_OPERATOR_TUNING"] == "0"
    assert seen.get("MXNET_ENGINE_TYPE") == engine


def test_load_mxnet_keeps_variables_that_are_set(environment: pytest.MonkeyPatch) -> None:
    """An operator who sets a variable has a reason."""
    environment.setenv("OMP_WAIT_POLICY", "ACTIVE")
    environment.setenv("MXNET_ENGINE_TYPE", "ThreadedEngine")
    environment.setattr("importlib.import_module", importing(None))
    seen = load_mxnet(3, in_order=True).environment
    assert (seen["OMP_WAIT_POLICY"], seen["MXNET_ENGINE_TYPE"]) == ("ACTIVE", "ThreadedEngine")


@pytest.mark.parametrize(("scheduler", "kept"), [(None, True), ("ThreadedEngine", False)])
def test_load_mxnet_makes_short_calls_keep_the_interpreter_lock(
    environment: pytest.MonkeyPatch, scheduler: str | None, kept: bool
) -> None:
    """Only without a scheduler of threads: otherwise a call may wait for a thread that waits for
    the lock."""
    if scheduler is not None:
        environment.setenv("MXNET_ENGINE_TYPE", scheduler)
    environment.setattr("importlib.import_module", importing(None))
    functions = vars(load_mxnet(1, in_order=True).base._LIB)
    expected = {name: f"{name} of libmxnet.so" for name in runtime.KEEP_LOCK} if kept else {}
    assert functions == expected


def test_load_mxnet_overrides_omp_num_threads(environment: pytest.MonkeyPatch) -> None:
    """The requested number is used, even if a shell or an image sets another one."""
    environment.setenv("OMP_NUM_THREADS", "7")
    environment.setattr("importlib.import_module", importing(None))
    assert load_mxnet(3).environment["OMP_NUM_THREADS"] == "3"


def test_load_mxnet_twice_returns_the_same_module(environment: pytest.MonkeyPatch) -> None:
    """The second call changes no variable."""
    first = types.ModuleType("mxnet")
    environment.setitem(sys.modules, "mxnet", first)
    environment.setenv("OMP_NUM_THREADS", "7")
    assert load_mxnet(3) is first
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(("gpu_build", "loaded"), [(True, ["cuda", "mxnet"]), (False, ["mxnet"])])
def test_load_mxnet_loads_cuda_first(
    environment: pytest.MonkeyPatch, gpu_build: bool, loaded: list[str]
) -> None:
    """The GPU build finds CUDA's libraries in the process."""
    order: list[str] = []

    def preload() -> list[str]:
        order.append("cuda")
        return ["libnccl.so.2: file too short"]  # the system may have a better one

    environment.setattr(runtime, "is_gpu_build", lambda: gpu_build)
    environment.setattr("model_store.mxnet.cuda.preload", preload)

    def import_module(name: str) -> types.ModuleType:
        order.append(name)
        return importing(None)(name)

    environment.setattr("importlib.import_module", import_module)
    load_mxnet(1)
    assert order == loaded


def test_load_mxnet_hides_the_name_of_the_scheduler(
    environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only MXNet's own line on standard error is hidden."""

    def import_module(name: str) -> types.ModuleType:
        module = importing(None)(name)
        vars(module)["nd"].waitall = lambda: os.write(2, b"start using engine")
        return module

    environment.setattr("importlib.import_module", import_module)
    load_mxnet(1)
    os.write(2, b"something else")
    assert capfd.readouterr().err == "something else"


def test_load_mxnet_reports_a_broken_library(environment: pytest.MonkeyPatch) -> None:
    """If MXNet misses a library that exists, the message says what is wrong with it."""
    environment.setattr(runtime, "is_gpu_build", lambda: True)
    environment.setattr(
        "model_store.mxnet.cuda.preload", lambda: ["/x/libnccl.so.2: file too short"]
    )
    environment.setattr("importlib.import_module", importing(OSError(f"libnccl.so.2: {NOT_THERE}")))
    with pytest.raises(
        BackendUnavailable, match=r"nvidia-nccl-cu11; /x/libnccl\.so\.2: file too short"
    ):
        load_mxnet(1)


def test_build_rejects_an_unknown_architecture() -> None:
    """The message lists all names; MXNet is not imported."""
    with pytest.raises(UnknownArchitecture, match="cifar_resnet20_v1, cifar_resnet56_v1"):
        build("resnet50", 10)


@pytest.mark.slow
def test_build_makes_every_architecture_without_gluoncvs_package() -> None:
    """The package would make Pillow accept truncated images."""
    code = (
        "import sys\n"
        "from PIL import ImageFile\n"
        "from model_store.architectures import ARCHITECTURES\n"
        "from model_store.mxnet.architectures import build\n"
        "for name in ARCHITECTURES: build(name, 10)\n"
        "sys.exit(ImageFile.LOAD_TRUNCATED_IMAGES or 'gluoncv' in sys.modules)\n"
    )
    assert len(ARCHITECTURES) > 10
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
