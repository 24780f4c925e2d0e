"""How much memory there is: the machine's, or the container's."""

from __future__ import annotations

import pathlib

import pytest

from model_store.memory import memory

MACHINE = 4096 * 1_000_000


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("max\n", MACHINE),
        ("1610612736\n", 1536 * 2**20),
        (f"{2 * MACHINE}\n", MACHINE),
        ("", MACHINE),
        (None, MACHINE),
    ],
)
def test_the_lesser_of_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, told: str | None, found: int
) -> None:
    monkeypatch.setattr(
        "os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1_000_000}.__getitem__
    )
    limit = tmp_path / "memory.max"
    if told is not None:
        limit.write_text(told)
    assert memory(limit) == found
