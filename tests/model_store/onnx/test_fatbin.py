"""The list of GPUs in a library, with small ELF files and with the installed library."""

from __future__ import annotations

import pathlib
import struct

import pytest

from model_store.onnx import fatbin
from model_store.onnx.cuda import Cuda
from model_store.onnx.fatbin import BadFatbin, Capability, MachineCode
from model_store.onnx.runtime import is_gpu_build

CODE = b"\x7fELF code for a GPU"


def entry(kind: int, capability: int, header: int = 64) -> bytes:
    fields = struct.pack("<HHIQ12xI", kind, 0x101, header, len(CODE), capability)
    return fields.ljust(header, b"\0") + CODE


def container(*entries: bytes) -> bytes:
    content = b"".join(entries)
    whole = struct.pack("<IHHQ", fatbin.MAGIC, 1, 16, len(content)) + content
    return whole.ljust(-(-len(whole) // 8) * 8, b"\0")


def elf(section: bytes, name: bytes = fatbin.SECTION) -> bytes:
    """Return an ELF file with the sections "", `name` and ".shstrtab", in this order."""
    names = b"\0" + name + b"\0.shstrtab\0"
    table = 64 + len(section) + len(names)
    headers = [(0, 0, 0), (1, 64, len(section)), (2 + len(name), 64 + len(section), len(names))]
    start = struct.pack("<IBB34xQ10xHHH", fatbin.ELF, 2, 1, table, 64, len(headers), 2)
    return (
        start + section + names + b"".join(struct.pack("<I20xQQ24x", *header) for header in headers)
    )


@pytest.fixture
def library(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "library.so"


def test_read_lists_the_entries_of_all_containers(library: pathlib.Path) -> None:
    """Machine code and PTX separately, with headers of any size. Other entries are ignored."""
    first = container(entry(2, 75), entry(2, 90, header=112))
    library.write_bytes(elf(first + container(entry(1, 120), entry(2, 75), entry(7, 30))))
    found = fatbin.read(library)
    assert found == MachineCode(frozenset({(7, 5), (9, 0)}), frozenset({(12, 0)}))
    assert str(found) == "7.5, 9.0, 12.0 (PTX)"


GOOD = elf(container(entry(2, 75)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends too early"),
        (b"\x7fELF", "ends too early"),
        (GOOD[:-100], "ends too early"),
        (b"MZ" + GOOD[2:], "not a 64-bit"),
        (elf(container(entry(2, 75)), name=b".text"), "no code for GPUs"),
        (elf(b""), "no code for GPUs"),
        (elf(container()), "no code for GPUs"),
        (elf(b"another format of code  "), "unknown format"),
        (elf(struct.pack("<IHHQ", fatbin.MAGIC, 1, 0, 0)), "unknown format"),
        (elf(container(struct.pack("<HHIQ48x", 2, 1, 0, 0))), "unknown format"),
    ],
)
def test_read_rejects_other_files(library: pathlib.Path, content: bytes, message: str) -> None:
    """Files that are damaged, have no code for GPUs, or have it in another format."""
    library.write_bytes(content)
    with pytest.raises(BadFatbin, match=message):
        fatbin.read(library)


CUBINS = frozenset({(7, 5), (8, 0), (8, 6), (9, 0), (12, 0)})


@pytest.mark.parametrize(
    ("gpu", "ptx", "runs"),
    [
        ((7, 0), (), False),
        ((7, 5), (), True),
        ((8, 9), (), True),
        ((9, 0), (), True),
        ((10, 0), (), False),
        ((10, 3), (), False),
        ((12, 1), (), True),
        ((10, 0), ((9, 0),), True),
        ((7, 0), ((7, 5),), False),
    ],
)
def test_runs_on_follows_nvidias_rule(
    gpu: Capability, ptx: tuple[Capability, ...], runs: bool
) -> None:
    """The same major number and an equal or lower minor number, or PTX for an earlier GPU."""
    assert MachineCode(CUBINS, frozenset(ptx)).runs_on(gpu) is runs


@pytest.mark.skipif(not is_gpu_build(), reason="onnxruntime-gpu is not installed")
def test_read_reads_the_installed_library() -> None:
    """The library of onnxruntime-gpu has machine code for Hopper (9.0) at least."""
    code = Cuda().machine_code()
    assert code is not None and code.runs_on((9, 0))
