"""Fatbin: reads for which GPUs a library contains machine code.

NVIDIA's compiler puts the code for GPUs into the ELF section `.nv_fatbin`. The section is a
sequence of containers. Each container has a header and a sequence of entries. Each entry has a
header and either machine code (cubin) for one compute capability, or PTX, which the driver compiles
for that compute capability or a later compute capability. Only the headers are read. NVIDIA does
not document the format; `tests/model_store/onnx/test_fatbin.py` compares the result with a real
library.
"""

from __future__ import annotations

import os
import pathlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

Capability: TypeAlias = tuple[int, int]
"""Compute capability of a GPU: major and minor number."""

SECTION = b".nv_fatbin"
ELF, MAGIC = 0x464C457F, 0xBA55ED50
PTX, CUBIN = 1, 2
ALIGNMENT = 8
"""Containers begin at multiples of this number of bytes."""

FILE_HEADER = struct.Struct("<IBB34xQ10xHHH")
"""Start of an ELF file: magic, word size, byte order, offset of the section headers, size of one
section header, number of section headers, index of the section that contains the names."""
SECTION_HEADER = struct.Struct("<I20xQQ24x")
"""Offset of the name, offset of the section in the file, size."""
CONTAINER_HEADER = struct.Struct("<IHHQ")
"""Magic, version, size of the header, size of all entries."""
ENTRY_HEADER = struct.Struct("<HHIQ12xI")
"""Kind, version, size of the header, size of the code, compute capability times ten."""


class BadFatbin(ValueError):
    """The file has no code for GPUs, or code in an unknown format."""


@dataclass(frozen=True)
class MachineCode:
    """Compute capabilities for which a library contains code."""

    cubins: frozenset[Capability]
    ptx: frozenset[Capability]

    def runs_on(self, capability: Capability) -> bool:
        """Whether a GPU can run the code.

        Machine code runs on GPUs with the same major number and an equal or higher minor number.
        """
        major, minor = capability
        return any(major == other and minor >= least for other, least in self.cubins) or any(
            capability >= least for least in self.ptx
        )

    def __str__(self) -> str:
        names = [f"{major}.{minor}" for major, minor in sorted(self.cubins)]
        return ", ".join(names + [f"{major}.{minor} (PTX)" for major, minor in sorted(self.ptx)])


def read(library: pathlib.Path) -> MachineCode:
    """Return the compute capabilities for which a library contains code.

    Args:
        library: Path of a 64-bit ELF file. Reading a library of 280 MB takes about 20 ms.

    Raises:
        BadFatbin: The file has no code for GPUs, or code in an unknown format.
        OSError: The file cannot be read.
    """
    found: dict[int, set[Capability]] = {CUBIN: set(), PTX: set()}
    with library.open("rb", buffering=0) as file:
        try:
            for kind, capability in _entries(file.fileno()):
                if kind in found:
                    found[kind].add(capability)
        except struct.error as error:
            raise BadFatbin(f"{library} ends too early") from error
    if not any(found.values()):
        raise BadFatbin(f"{library} has no code for GPUs")
    return MachineCode(frozenset(found[CUBIN]), frozenset(found[PTX]))


def _entries(file: int) -> Iterator[tuple[int, Capability]]:
    """Yield the kind and the compute capability of each entry."""
    start, end = _section(file)
    while start < end:
        magic, _, header, size = _unpack(CONTAINER_HEADER, file, start)
        if magic != MAGIC or header < CONTAINER_HEADER.size:
            raise BadFatbin(f"the code for GPUs has an unknown format at offset {start}")
        entry, start = start + header, start + header + size
        while entry < start:
            kind, _, header, size, capability = _unpack(ENTRY_HEADER, file, entry)
            if header < ENTRY_HEADER.size:
                raise BadFatbin(f"the code for GPUs has an unknown format at offset {entry}")
            yield kind, divmod(capability, 10)
            entry += header + size
        start += -start % ALIGNMENT


def _section(file: int) -> tuple[int, int]:
    """Return the offsets of the start and the end of the section in an ELF file."""
    magic, bits, order, offset, size, count, names = _unpack(FILE_HEADER, file, 0)
    if (magic, bits, order, size) != (ELF, 2, 1, 64):
        raise BadFatbin("the file is not a 64-bit little-endian ELF file")
    _, table, length = _unpack(SECTION_HEADER, file, offset + names * size)
    strings = os.pread(file, length, table)
    for number in range(count):
        name, start, length = _unpack(SECTION_HEADER, file, offset + number * size)
        if strings[name : strings.find(b"\0", name)] == SECTION:
            return start, start + length
    raise BadFatbin("the file has no code for GPUs")


def _unpack(layout: struct.Struct, file: int, offset: int) -> tuple[int, ...]:
    return layout.unpack(os.pread(file, layout.size, offset))
