"""How many cores there are: those of the process, or of its container."""

from __future__ import annotations

import pathlib

import pytest

from model_store.cores import cores


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("10000 100000\n", 1),
        ("6400000 100000\n", 8),
        ("", 8),
        (None, 8),
    ],
)
def test_the_lesser_of_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, told: str | None, found: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    quota = tmp_path / "cpu.max"
    if told is not None:
        quota.write_text(told)
    assert cores(quota) == found
