"""In how many bits the network computes: `auto`, `fp32`, `int8` or `fp16`, turned into one of them.

`auto` takes 8 bits on a CPU and 16 on a GPU where two things hold: the machine has instructions
for it, and the accuracy measured in it, which the manifest names, is within `MAY_COST` of that in
32 bits. All else is served in 32. A precision that was asked for by name and cannot be had is an
error in words (docs/decisions/0015-int8-beside-fp32.md).
"""

from __future__ import annotations

import pathlib
from collections.abc import Collection
from dataclasses import dataclass

from model_store.manifest import Manifest, PrecisionName

MAY_COST = 0.003
"""Share of images that `auto` may get wrong more than fp32 does."""
INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Products of 8-bit numbers summed up in 32 bits, in Linux's words (/proc/cpuinfo)."""
CHOICES = ("auto", "fp32", "int8", "fp16")


class PrecisionUnavailable(RuntimeError):
    """The precision asked for cannot be had here; the message says why and what to do."""


@dataclass(frozen=True)
class Precision:
    """`reason` says why it was chosen."""

    name: PrecisionName
    reason: str


def choose(
    wanted: str, model: Manifest, device: str, flags: Collection[str] | None = None
) -> Precision:
    """The precision for `wanted` on `device` (`cpu` or `gpu:N`), a CPU having `flags`.

    Raises ValueError for a word that is none of `CHOICES`, PrecisionUnavailable.
    """
    if wanted not in CHOICES:
        raise ValueError(f"precision {wanted!r} is not one of {', '.join(CHOICES)}")
    name: PrecisionName = "int8" if device == "cpu" else "fp16"
    if wanted == "fp32":
        return Precision("fp32", "as asked")
    if wanted == "auto":
        trouble = _not_worth_it(model, name, cpu_flags() if flags is None else flags)
        if trouble is None:
            return Precision(name, _in_figures(model, name))
        return Precision("fp32", trouble)
    if wanted != name:
        other = "a GPU" if wanted == "fp16" else "a CPU"
        raise PrecisionUnavailable(
            f"precision {wanted} was asked for and is for {other}; this is {device}. "
            f"Choose auto, fp32 or {name}"
        )
    if wanted == "int8" and model.int8 is None:
        raise PrecisionUnavailable(
            f"precision int8 was asked for, and {model.name} {model.version} does not say what "
            "8 bits stand for: make a version that does, with `python -m model_store calibrate`"
        )
    return Precision(name, "as asked")


def cpu_flags() -> frozenset[str]:
    """What the CPU can do, in Linux's words; empty where Linux does not say."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def _not_worth_it(model: Manifest, name: PrecisionName, flags: Collection[str]) -> str | None:
    """Why `auto` stays with fp32, or None."""
    if name == "int8":
        if model.int8 is None:
            return "this version is not calibrated for int8"
        if not any(flag in flags for flag in INT8_FLAGS):
            return f"this CPU has none of {', '.join(INT8_FLAGS)}"
    whole, less = model.accuracy_in("fp32"), model.accuracy_in(name)
    if whole is None or less is None:
        return f"the accuracy of this version in {name if whole else 'fp32'} was not measured"
    if less < whole - MAY_COST:
        return f"{_in_figures(model, name)}, which is more than {MAY_COST:.1%} less"
    return None


def _in_figures(model: Manifest, name: PrecisionName) -> str:
    less, whole = model.accuracy_in(name), model.accuracy_in("fp32")
    return f"measured {less:.2%} accurate in {name}, {whole:.2%} in fp32"
