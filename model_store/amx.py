"""AMX: Intel's matrix unit, which a process must request from Linux before it uses it.

With AMX, oneDNN computes int8 convolutions in half the time and with the same integers. The version
of oneDNN in MXNet (2.4.4) uses AMX only if an environment variable says so, and does not request
it; a process that uses it without permission is killed by SIGILL. The memory that AMX takes is
described in docs/decisions/0034-tiles.md.
"""

from __future__ import annotations

import ctypes
import pathlib
import platform
from collections.abc import Callable, MutableMapping

from model_store import precision, versions
from model_store.cgroup import memory

ISA = "DNNL_MAX_CPU_ISA"
WITH_AMX = "AVX512_CORE_AMX"
"""Source: https://oneapi-src.github.io/oneDNN/v2.4/dev_guide_cpu_dispatcher_control.html"""
CACHE = {"DNNL_PRIMITIVE_CACHE_CAPACITY": "160"}
"""Number of compiled operators that oneDNN keeps: those of one version in three buckets. With AMX
each takes megabytes, and the default is 1,024."""

CPU_FLAG = "amx_int8"
"""As Linux names it in /proc/cpuinfo."""
CONVOLUTION_BYTES = 7 * 2**20
"""Memory that oneDNN takes for each int8 convolution in each bucket, in addition to the tensors."""

ARCH_PRCTL = 158
REQUEST_PERMISSION, TILE_DATA = 0x1023, 18
"""ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA, since Linux 5.16; see arch/x86/xstate.rst."""


def granted() -> bool:
    """Request AMX for all threads of this process, including later ones.

    Returns False if Linux does not grant it or the machine has none.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return False
    status: int = ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA)
    return status == 0


def configure(
    wanted: bool, environment: MutableMapping[str, str], granted: Callable[[], bool] = granted
) -> None:
    """Set the environment variables that make oneDNN use AMX. Call it before MXNet is imported.

    Args:
        wanted: Whether to use AMX, unless `environment` says otherwise already.
        environment: Changed in place.
        granted: Requests AMX. Without permission it is disabled, whatever `environment` says.
    """
    if wanted:
        environment.setdefault(ISA, WITH_AMX)
    if not enabled(environment):
        return
    if granted():
        for name, value in CACHE.items():
            environment.setdefault(name, value)
    else:
        del environment[ISA]


def enabled(environment: MutableMapping[str, str]) -> bool:
    """Whether `environment` makes oneDNN use AMX."""
    return environment.get(ISA, "").upper() == WITH_AMX


def fits_memory(folder: pathlib.Path, wanted_precision: str, bucket_count: int) -> bool:
    """Whether a version is computed in int8 on a CPU with AMX, and AMX leaves enough memory.

    While a version is replaced, two versions are loaded. AMX may take a third of the memory then.

    Args:
        folder: Of the version.
        wanted_precision: As in `precision.choose`.
        bucket_count: Number of buckets that are loaded.

    Raises:
        BadModel, PrecisionUnavailable.
    """
    if CPU_FLAG not in precision.cpu_flags():
        return False
    model = versions.read_manifest(folder)
    if model.int8 is None or precision.choose(wanted_precision, model, "cpu").name != "int8":
        return False
    convolutions = len(model.int8.ranges)
    return 2 * CONVOLUTION_BYTES * convolutions * bucket_count < memory() / 3
