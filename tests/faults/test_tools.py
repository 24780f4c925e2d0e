"""The logic of the tools that attack a server; what they find is theirs to say."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.processes import started, tree
from service.decoding.image import identify
from tests.faults import hostile, mutations
from tests.faults.attacks import sound
from tests.faults.cost_search import Cost, Elites, Found, as_request, seeds
from tests.faults.honest import Account
from tests.faults.mutations import IMAGES, KINDS, Mutator
from tests.faults.target import NoGroup
from tests.service import synthetic

SERVED = [
    (kind, name)
    for name in synthetic.served()
    for kind in IMAGES
    if name.startswith((f"{kind}.", f"{kind} "))
]


@pytest.mark.parametrize(("kind", "name"), SERVED)
def test_segments_are_the_whole_file(kind: str, name: str) -> None:
    """Segments join to the file, and a sound file needs no repair."""
    data = synthetic.served()[name]
    assert b"".join(mutations.segments(kind, data)) == data
    assert mutations.repair(kind, data) == data


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.binary(max_size=300), other=st.binary(max_size=100), seed=st.integers(0, 2**32))
def test_any_bytes_have_mutants(kind: str, data: bytes, other: bytes, seed: int) -> None:
    """Every kind of data can be cut and mutated, sound or not, within the size that is allowed."""
    assert b"".join(mutations.segments(kind, data)) == data
    mutant = Mutator(random.Random(seed), largest=1000).mutate(kind, data, other)
    assert len(mutant) <= 1000


@pytest.mark.parametrize("kind", IMAGES)
def test_resized_images_state_their_new_size(kind: str) -> None:
    """The size that `resize` writes is the one that the server reads."""
    for data in seeds(kind):
        if identify(data, 2**40).pixels == 0:
            continue
        for place in mutations.sizes(kind, data):
            changed = mutations.resize(data, place, 300, 200)
            assert mutations.size_at(changed, place) == (300, 200)
            data = changed
        found = identify(data + bytes(300_000), 2**40)  # as many as the pixels take
        assert (found.width, found.height) == (300, 200)


def test_mutant_depends_on_the_seed_alone() -> None:
    """The same seed makes the same mutant."""
    data = seeds("png")[0]
    mutants = [Mutator(random.Random(7), 1000).mutate("png", data, data) for _ in range(2)]
    assert mutants[0] == mutants[1]


def test_elites_keep_the_costliest_of_each_size() -> None:
    """A small input is kept beside a large one that costs more, and replaced by a costlier one."""
    elites = Elites()
    large = Found("gif", bytes(10_000), Cost(2.0, 100, 200))
    small = Found("gif", bytes(10), Cost(1.0, 50, 200))
    better = Found("gif", bytes(11), Cost(1.5, 60, 200))
    for found in (large, small, better):
        assert elites.improves(found)
        elites.add(found)
    assert not elites.improves(small)
    assert {*elites.all()} == {large, better}
    assert elites.choose("gif", random.Random(0)) in (large, better)


def test_unanswered_requests_reduce_the_share() -> None:
    """Requests without an answer count as not answered, and do not count in percentiles."""
    account = Account(asked=4)
    account.statuses.update({"200": 3, "timed out": 1})
    account.latencies += [0.1, 0.2, 0.3]
    assert account.answered == 0.75
    assert account.percentile(99) == 0.3
    assert Account().percentile(99) == np.inf


def test_costs_of_a_process_tree_without_a_group() -> None:
    """CPU time and memory of a process and of its children, where no cgroup can be created."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    child = "import sys; b = bytearray(50_000_000); sum(range(10**6)); print(flush=True); input()"
    with started(
        [sys.executable, "-c", code, child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        group = NoGroup(lambda: process.pid)
        assert len(tree(process.pid)) == 2
        assert group.memory() > 50 and group.peak() >= group.memory()
        assert group.cpu_seconds() > 0
        process.communicate(b"\n")
    assert tree(process.pid) == {}


def test_small_hostile_files_are_what_they_claim() -> None:
    """The header of a 46-byte WebP states 64 megapixels, and its data is complete."""
    found = identify(hostile.lossless_webp(hostile.WEBP), hostile.PIXELS)
    assert (found.format, found.pixels) == ("WebP", 16383 * 3906)
    small = hostile.lossless_webp((300, 200))
    assert identify(small, 10**6).decode().shape == (32, 32, 3)
    assert len(hostile.DISPOSAL) == 43


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (9, 16)])
def test_interlaced_rows_are_counted(size: tuple[int, int]) -> None:
    """A made interlaced PNG has exactly the bytes that a decoder wants."""
    data = hostile._flat_png(size, 16, 6, interlaced=True)
    assert identify(data, 1000).decode().shape == (32, 32, 3)
    assert hostile._adam7(*size, 64) > size[0] * size[1] * 8


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("grpc", "head")])
def test_bodies_are_posted_complete(kind: str) -> None:
    """A request contains the whole body."""
    body = seeds(kind)[0]
    assert body in as_request(kind, body)


def test_a_picture_for_every_format() -> None:
    """The pictures that tell whether a server still works can be decoded."""
    for kind, data in sound().items():
        assert identify(data, 10**6).format.upper() == kind
        assert identify(data, 10**6).decode().shape == (32, 32, 3)
