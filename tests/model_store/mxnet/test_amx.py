"""AMX: requested only where it is used, and with the same results."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from model_store.cgroup import memory
from model_store.mxnet import amx
from model_store.mxnet.amx import ISA, WITH_AMX
from model_store.precision import cpu_flags
from tests.sources import ROOT

CAPACITY = "DNNL_PRIMITIVE_CACHE_CAPACITY"
BUCKETS, CONVOLUTIONS = 3, 20
"""Those in 8 bits."""


@pytest.mark.parametrize(
    ("wanted", "granted", "before", "after"),
    [
        (True, True, {}, {ISA: WITH_AMX, CAPACITY: "160"}),
        (True, False, {}, {}),
        (False, True, {}, {}),
        (True, True, {ISA: "AVX2"}, {ISA: "AVX2"}),
        (False, True, {ISA: "avx512_core_amx"}, {ISA: "avx512_core_amx", CAPACITY: "160"}),
        (False, False, {ISA: WITH_AMX}, {}),
        (True, True, {CAPACITY: "9"}, {ISA: WITH_AMX, CAPACITY: "9"}),
    ],
)
def test_configure_sets_the_environment(
    wanted: bool, granted: bool, before: dict[str, str], after: dict[str, str]
) -> None:
    """Variables that are set take precedence, unless the process would be killed."""
    environment = dict(before)
    amx.configure(wanted, environment, lambda: granted)
    assert environment == after
    assert amx.enabled(environment) is (ISA in after and after[ISA] != "AVX2")


def test_configure_requests_amx_only_if_it_may_be_used() -> None:
    """A process without AMX does not get the larger signal stack that AMX needs."""

    def never() -> bool:
        raise AssertionError

    amx.configure(False, {}, never)
    amx.configure(True, {ISA: "AVX2"}, never)


@pytest.mark.parametrize("system", [("Linux", "aarch64"), ("Darwin", "x86_64")])
def test_granted_is_false_on_other_machines(
    monkeypatch: pytest.MonkeyPatch, system: tuple[str, str]
) -> None:
    """The number of the system call may mean another call there."""
    monkeypatch.setattr("platform.system", lambda: system[0])
    monkeypatch.setattr("platform.machine", lambda: system[1])
    monkeypatch.setattr("ctypes.CDLL", None)
    assert not amx.granted()


COMPUTES = """
import asyncio, os, pathlib, sys
import numpy as np
import model_store.engine
from model_store import store
from model_store.replica import Replica

async def main(folder, file):
    async with model_store.engine.load_engine(pathlib.Path(folder), "cpu", 1, 16, "int8") as engine:
        images = np.random.default_rng(1).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
        np.save(file, await store.probabilities(engine, images))
        at_start = steps
        await engine.replace(pathlib.Path(folder))
        print(steps - 2 * at_start, "with AMX" in engine.precision.reason)

load, steps = Replica.load, 0
def counted(*arguments, **options):
    global steps
    for step in load(*arguments, **options):
        steps += 1
        yield
Replica.load = counted
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif("amx_int8" not in cpu_flags(), reason="this CPU has no AMX")
@pytest.mark.skipif(memory() < 3 * 2**30, reason="this machine has too little memory for AMX")
def test_int8_with_amx_computes_the_same(calibrated: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Results with and without AMX are equal to the last bit. With AMX, a version that replaces
    another is loaded in more steps, each of which compiles at most one convolution."""
    for name, settings, output in (
        ("with", {}, f"{BUCKETS * CONVOLUTIONS} True"),
        ("without", {ISA: "AVX512_CORE_BF16"}, "0 False"),
    ):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DNNL_")}
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", COMPUTES, calibrated, tmp_path / f"{name}.npy"],
            cwd=ROOT,
            env=environment | settings,
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.strip() == output
    one, two = (np.load(tmp_path / f"{name}.npy") for name in ("with", "without"))
    assert np.array_equal(one, two)
