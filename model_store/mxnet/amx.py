"""AMX: requests permission from Linux to use Intel's matrix unit, and enables AMX in oneDNN.

oneDNN is the library that runs MXNet's operators on a CPU. With AMX, oneDNN runs int8
convolutions in half the time, with the same results. MXNet's version of oneDNN (2.4.4) uses AMX
only if an environment variable enables it, and does not request permission from Linux. A process
that uses AMX without permission is killed by SIGILL. docs/decisions/0034-tiles.md describes how
much memory oneDNN takes with AMX.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, MutableMapping

from model_store import precision
from model_store.backend import Request
from model_store.batch import buckets
from model_store.cgroup import memory

ISA = "DNNL_MAX_CPU_ISA"
"""Environment variable that tells oneDNN which instructions it may use."""
WITH_AMX = "AVX512_CORE_AMX"
"""Value of `ISA` that enables AMX. Source:
https://oneapi-src.github.io/oneDNN/v2.4/dev_guide_cpu_dispatcher_control.html"""
CACHE = {"DNNL_PRIMITIVE_CACHE_CAPACITY": "160"}
"""Environment variable that limits the number of compiled operators that oneDNN keeps. 160
operators are enough for one version in three buckets (batch sizes). With AMX, each operator takes
megabytes, so the default of 1,024 operators would take gigabytes."""

CPU_FLAG = "amx_int8"
"""Name of AMX for 8-bit integers in /proc/cpuinfo."""
CONVOLUTION_BYTES = 7 * 2**20
"""Bytes of memory that oneDNN takes for each int8 convolution and bucket (batch size), in addition
to the tensors."""

ARCH_PRCTL = 158
"""Number of the system call `arch_prctl` on x86-64."""
REQUEST_PERMISSION, TILE_DATA = 0x1023, 18
"""ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA of Linux 5.16 and later; see arch/x86/xstate.rst."""


def granted() -> bool:
    """Request permission to use AMX for all current and later threads of this process.

    Returns False if Linux does not grant the permission, or if the machine has no AMX.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return False
    status: int = ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA)
    return status == 0


def configure(
    wanted: bool, environment: MutableMapping[str, str], granted: Callable[[], bool] = granted
) -> None:
    """Set the environment variables that make oneDNN use AMX.

    This function must be called before MXNet is imported.

    Args:
        wanted: Whether to use AMX. Ignored if `environment` already contains the variable that
            `ISA` names.
        environment: Environment variables, which are changed in place.
        granted: Function that requests permission to use AMX. If the function returns False, AMX is
            disabled even if `environment` enables AMX.
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
    """Whether `environment` enables AMX for oneDNN."""
    return environment.get(ISA, "").upper() == WITH_AMX


def is_useful(request: Request) -> bool:
    """Whether a version should run with AMX.

    The CPU must have AMX, the version must run in int8, and there must be enough memory. While a
    version is replaced, two versions are loaded. AMX may take at most a third of the machine's
    memory for the two versions together.

    Raises:
        PrecisionUnavailable: The wanted precision is not available.
    """
    model = request.model
    if CPU_FLAG not in precision.cpu_flags() or model.int8 is None:
        return False
    if precision.choose(request.precision, model, "cpu").name != "int8":
        return False
    bucket_count = len(buckets(request.max_batch_size, few=True))
    convolutions = len(model.int8.ranges)
    return 2 * CONVOLUTION_BYTES * convolutions * bucket_count < memory() / 3
