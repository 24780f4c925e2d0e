"""Precision: chooses the precision in which a version runs on a device.

A user requests `auto`, `fp32`, `int8` or `fp16`. `auto` means int8 on a CPU and fp16 on a GPU if
two conditions are met. The machine must have instructions for that precision. The measured accuracy
in that precision must be at most `MAX_ACCURACY_LOSS` below the accuracy in fp32. Otherwise, `auto`
means fp32. If a user requests a precision by name and this precision is not available, an error is
raised (docs/decisions/0015-int8-beside-fp32.md).
"""

from __future__ import annotations

import pathlib
from collections.abc import Collection
from dataclasses import dataclass

from model_store.manifest import BackendName, Manifest, PrecisionName

MAX_ACCURACY_LOSS = 0.003
"""Maximum loss of accuracy that `auto` accepts, as a share of the images."""
INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Names, in /proc/cpuinfo, of instructions that multiply 8-bit numbers and add the products in 32
bits. The last two are instructions of Arm CPUs."""
CHOICES = ("auto", "fp32", "int8", "fp16")
"""Precisions that a user can request."""


class PrecisionUnavailable(RuntimeError):
    """The requested precision is not available. The message says why and what to do."""


@dataclass(frozen=True)
class Precision:
    """The precision that was chosen."""

    name: PrecisionName
    reason: str
    """Reason why the precision was chosen."""


def choose(
    wanted: str,
    model: Manifest,
    device: str,
    backend: BackendName = "mxnet",
    flags: Collection[str] | None = None,
) -> Precision:
    """Choose the precision for a version on a device.

    Args:
        wanted: One of `CHOICES`.
        model: The version's manifest.
        device: cpu or gpu:N.
        backend: Name of the backend that runs the version.
        flags: Names of the CPU's instructions in /proc/cpuinfo. None: `cpu_flags()`.

    Raises:
        ValueError: `wanted` is not one of `CHOICES`.
        PrecisionUnavailable: The wanted precision is not available for this version on this device.
    """
    if wanted not in CHOICES:
        raise ValueError(f"precision {wanted!r} is not one of {', '.join(CHOICES)}")
    name: PrecisionName = "int8" if device == "cpu" else "fp16"
    if wanted == "fp32":
        return Precision("fp32", "as requested")
    if wanted == "auto":
        reason = _why_fp32(model, name, backend, cpu_flags() if flags is None else flags)
        if reason is None:
            return Precision(name, _accuracies(model, name, backend))
        return Precision("fp32", reason)
    if wanted != name:
        other = "a GPU" if wanted == "fp16" else "a CPU"
        raise PrecisionUnavailable(
            f"precision {wanted} was requested, but requires {other}, and the device is {device}. "
            f"Choose auto, fp32 or {name}"
        )
    if not is_offered(wanted, model, backend):
        raise PrecisionUnavailable(
            f"precision {wanted} was requested, but {model.name} {model.version} is not calibrated "
            f"for {wanted} with {backend}. Calibrate the version with `shoal models calibrate`"
        )
    return Precision(name, "as requested")


def is_offered(wanted: str, model: Manifest, backend: BackendName) -> bool:
    """Whether a backend can run a version in a precision. `wanted` is one of `CHOICES`."""
    if backend == "onnxruntime":
        return wanted in ("auto", "fp32", *model.onnx)
    return wanted != "int8" or model.int8 is not None


def cpu_flags() -> frozenset[str]:
    """Return the names of the CPU's instructions in /proc/cpuinfo.

    The result is empty if the file cannot be read.
    """
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    # Linux calls the line `flags` on x86-64 and `Features` on Arm.
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


def _why_fp32(
    model: Manifest, name: PrecisionName, backend: BackendName, flags: Collection[str]
) -> str | None:
    """Return the reason why `auto` means fp32 instead of `name`; None if `auto` means `name`."""
    if not is_offered(name, model, backend):
        return f"this version is not calibrated for {name}"
    if name == "int8" and not any(flag in flags for flag in INT8_FLAGS):
        return f"this CPU has none of the instructions {', '.join(INT8_FLAGS)}"
    full, reduced = model.accuracy_in("fp32", backend), model.accuracy_in(name, backend)
    if full is None or reduced is None:
        return f"the accuracy of this version in {name if full else 'fp32'} was not measured"
    if reduced < full - MAX_ACCURACY_LOSS:
        measured = _accuracies(model, name, backend)
        return f"{measured}, a loss of more than {MAX_ACCURACY_LOSS:.1%}"
    return None


def _accuracies(model: Manifest, name: PrecisionName, backend: BackendName) -> str:
    full, reduced = model.accuracy_in("fp32", backend), model.accuracy_in(name, backend)
    return f"the measured accuracy is {reduced:.2%} in {name}, {full:.2%} in fp32"
