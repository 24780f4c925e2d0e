"""There is always a complete checkpoint, and it belongs to its run."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest

from model_store.training import checkpoint
from model_store.training.checkpoint import Origin, Progress
from model_store.training.recipe import Recipe

ORIGIN = Origin(Recipe(), data="0" * 64, threads=2)


def save(folder: pathlib.Path, progress: Progress, fails: bool = False) -> None:
    with checkpoint.saving(folder, ORIGIN, progress) as partial:
        (partial / "net.params").touch()
        if fails:
            raise OSError("the disk is full")


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_progress_comes_back(tmp_path: pathlib.Path) -> None:
    """The progress that is read equals the progress that was saved."""
    progress = Progress()
    progress.count(np.array([0.1, 0.2], dtype=np.float32), right=1)
    progress.close_epoch(accuracy=1 / 3, learning_rate=0.1)
    progress.count(np.array([0.3], dtype=np.float32), right=0)
    progress.close_epoch(accuracy=None, learning_rate=0.1)
    progress.count(np.array([0.7], dtype=np.float32), right=0)
    save(tmp_path, progress)
    saved = checkpoint.newest(tmp_path)
    assert saved == tmp_path / "step-00000003"
    assert checkpoint.progress_of(saved) == progress


def test_no_checkpoint_yet(tmp_path: pathlib.Path) -> None:
    """Without a checkpoint, there is no newest one."""
    assert checkpoint.newest(tmp_path / "nowhere") is None


def test_saving_removes_older_checkpoints(tmp_path: pathlib.Path) -> None:
    """Older and incomplete checkpoints are removed; other files stay."""
    (tmp_path / ".killed.partial" / "step-00000001").mkdir(parents=True)
    (tmp_path / "training.png").touch()
    save(tmp_path, Progress(step=1))
    save(tmp_path, Progress(step=2))
    assert names(tmp_path) == ["step-00000002", "training.png"]


def test_a_failed_save_keeps_the_older(tmp_path: pathlib.Path) -> None:
    """If saving fails, the older checkpoint stays."""
    save(tmp_path, Progress(step=1))
    with pytest.raises(OSError, match="full"):
        save(tmp_path, Progress(step=2), fails=True)
    assert names(tmp_path) == ["step-00000001"]


def test_saving_survives_a_power_cut(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older checkpoint stays until files, folder and name of the newer one are on disk."""
    save(tmp_path, Progress(step=1))
    synced = []

    def fsync(descriptor: int) -> None:
        assert (tmp_path / "step-00000001" / "net.params").exists()
        synced.append(pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "fsync", fsync)
    save(tmp_path, Progress(step=2))
    assert sorted(synced) == sorted(["net.params", "state.json", "step-00000002", tmp_path.name])


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        (Origin(Recipe(seed=2), ORIGIN.data, 2), "another recipe.*'seed': 1"),
        (Origin(Recipe(), "1" * 64, 2), "other images or labels"),
        (Origin(Recipe(), ORIGIN.data, 1), "--threads 2"),
        (Origin(Recipe(), ORIGIN.data, 2, teachers=("2" * 64,)), "--teacher"),
    ],
)
def test_of_another_run(tmp_path: pathlib.Path, origin: Origin, message: str) -> None:
    """A run continues only with its own recipe, data and threads; the error says what differs."""
    save(tmp_path, Progress(step=1))
    saved = tmp_path / "step-00000001"
    checkpoint.check_origin(saved, ORIGIN)
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.check_origin(saved, origin)
    assert str(saved) in str(caught.value) and "--checkpoints" in str(caught.value)
