"""Tiles: the registers of AMX, Intel's matrix unit, which Linux wants to be asked for.

With them oneDNN computes the convolutions of int8 in half of the time, to the same integers. As
MXNet carries it (2.4.4) it leaves them alone unless told, and then does not ask: a process that
touches them without is ended by SIGILL. Their price in memory: docs/decisions/0034-tiles.md.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, MutableMapping

ISA = "DNNL_MAX_CPU_ISA"
WITH_TILES = "AVX512_CORE_AMX"
"""oneDNN's words: https://oneapi-src.github.io/oneDNN/v2.4/dev_guide_cpu_dispatcher_control.html"""
CACHE = {"DNNL_PRIMITIVE_CACHE_CAPACITY": "160"}
"""Convolutions and others that oneDNN keeps for whoever wants the same: those of one version in
three buckets. By default 1,024, and with tiles each takes megabytes."""

ARCH_PRCTL = 158
REQUEST_PERMISSION, TILE_DATA = 0x1023, 18
"""ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA, since Linux 5.16: arch/x86/xstate.rst in its
documentation."""


def granted() -> bool:
    """Ask for them, for all threads of this process, now and to come. False: there are none."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return False
    outcome: int = ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA)
    return outcome == 0


def settle(
    wanted: bool, environment: MutableMapping[str, str], granted: Callable[[], bool] = granted
) -> None:
    """Have oneDNN use them, if they are `wanted` and nothing else is said in the `environment`; and
    in no case if Linux does not grant them. Before MXNet is imported."""
    if wanted:
        environment.setdefault(ISA, WITH_TILES)
    if not used(environment):
        return
    if granted():
        for name, value in CACHE.items():
            environment.setdefault(name, value)
    else:
        del environment[ISA]


def used(environment: MutableMapping[str, str]) -> bool:
    return environment.get(ISA, "").upper() == WITH_TILES
