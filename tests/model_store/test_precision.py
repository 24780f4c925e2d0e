"""Precision: which one is chosen and why."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from model_store.manifest import Manifest
from model_store.precision import PrecisionUnavailable, choose, cpu_flags
from tests.model_store.test_manifest import GOOD

VNNI = {"avx2", "avx512_vnni"}
INT8 = {"calibrated_on": "squares", "images": 9, "ranges": {"layer": [0, 1]}}


def described(ranges: bool = True, **accuracy: float) -> Manifest:
    """A version with or without ranges, and with measured accuracies."""
    measured = [
        {"on": "squares", "images": 100, "accuracy": share, "precision": name}
        for name, share in accuracy.items()
    ]
    more: dict[str, Any] = {"int8": INT8} if ranges else {}
    return Manifest.model_validate(GOOD | more | {"measured": measured})


BOTH = described(fp32=0.92, int8=0.918)


@pytest.mark.parametrize(
    ("wanted", "model", "device", "flags", "name", "reason"),
    [
        ("auto", BOTH, "cpu", VNNI, "int8", "accuracy is 91.80% in int8, 92.00% in fp32"),
        ("auto", BOTH, "cpu", {"avx_vnni"}, "int8", "measured"),
        ("auto", BOTH, "cpu", {"amx_int8"}, "int8", "measured"),
        ("auto", BOTH, "cpu", {"avx2", "avx512f"}, "fp32", "none of the instructions avx512_vnni"),
        ("auto", described(ranges=False, fp32=0.9), "cpu", VNNI, "fp32", "not calibrated"),
        ("auto", described(fp32=0.92), "cpu", VNNI, "fp32", "in int8 was not measured"),
        ("auto", described(), "cpu", VNNI, "fp32", "in fp32 was not measured"),
        (
            "auto",
            described(fp32=0.92, int8=0.9169),
            "cpu",
            VNNI,
            "fp32",
            "more than 0.3%",
        ),
        ("auto", described(fp32=0.92, int8=0.9171), "cpu", VNNI, "int8", "measured"),
        ("auto", BOTH, "gpu:0", VNNI, "fp32", "in fp16 was not measured"),
        (
            "auto",
            described(fp32=0.92, fp16=0.92),
            "gpu:0",
            (),
            "fp16",
            "accuracy is 92.00% in fp16",
        ),
        ("fp32", BOTH, "cpu", VNNI, "fp32", "as requested"),
        ("int8", BOTH, "cpu", (), "int8", "as requested"),
        ("fp16", BOTH, "gpu:1", (), "fp16", "as requested"),
    ],
)
def test_choose_takes_the_precision_and_gives_the_reason(
    wanted: str, model: Manifest, device: str, flags: Any, name: str, reason: str
) -> None:
    """`auto` needs the instructions and the measured accuracy; a name gets that precision."""
    chosen = choose(wanted, model, device, flags=flags)
    assert chosen.name == name
    assert reason in chosen.reason


@pytest.mark.parametrize(
    ("wanted", "model", "device", "message"),
    [
        ("int8", described(ranges=False), "cpu", "shoal models calibrate"),
        ("int8", BOTH, "gpu:0", "requires a CPU"),
        ("fp16", BOTH, "cpu", "requires a GPU"),
    ],
)
def test_choose_rejects_an_unavailable_precision(
    wanted: str, model: Manifest, device: str, message: str
) -> None:
    """A precision that is requested by name is not replaced."""
    with pytest.raises(PrecisionUnavailable, match=message):
        choose(wanted, model, device, flags=VNNI)


def test_choose_rejects_other_names() -> None:
    """Other names are rejected."""
    with pytest.raises(ValueError, match=r"bf16.*fp32, int8"):
        choose("bf16", BOTH, "cpu", flags=VNNI)


@pytest.mark.skipif(sys.platform != "linux", reason="read from Linux")
def test_cpu_flags_are_those_of_this_machine() -> None:
    """They contain sse2 on every x86-64."""
    assert {"fpu", "sse2"} <= cpu_flags()
