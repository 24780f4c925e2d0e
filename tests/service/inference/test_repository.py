"""Tests the model repository: which version a load takes, what it reports, and what it counts."""

from __future__ import annotations

import asyncio
import pathlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from batching import Draining
from model_store.manifest import BadModel, Identity
from service.errors import ChangeUnderWay, LoadFailed, NotReady, UnknownModel
from service.inference.model_host import ModelHost
from service.inference.repository import Repository, folder
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.fakes import FakeEngine
from tests.service.v2.test_repository import add
from tests.waiting import until


@pytest.fixture
def store(tmp_path: pathlib.Path) -> pathlib.Path:
    """Versions 7, 8 and 10 of the model that is served, and a folder of another model."""
    for version in "7", "8", "10":
        add(tmp_path, version)
    add(tmp_path, "99")
    shutil.copytree(tmp_path / "fake", tmp_path / "other")
    shutil.rmtree(tmp_path / "fake" / "99")
    return tmp_path


class Running:
    """A repository whose model host serves version 7 by a fake engine."""

    def __init__(self, store: pathlib.Path, version: str | None = "7") -> None:
        self.engine = FakeEngine()
        self.counted: list[str] = []
        settings = Settings(model="fake", model_version=version, model_store=store)
        self.host = ModelHost(settings, self.engine.load, Metrics(), lambda: None)
        self.repository = Repository(settings, self.host, self.counted.append)

    async def states(self) -> dict[str, str]:
        return {one["version"]: one["state"] for one in await self.repository.index()}


@asynccontextmanager
async def running(store: pathlib.Path, version: str | None = "7") -> AsyncIterator[Running]:
    one = Running(store, version)
    async with one.host.running():
        await until(lambda: one.host.loaded)
        yield one


@pytest.mark.parametrize(
    ("pinned", "requested", "chosen"),
    [(None, None, "10"), ("7", None, "7"), ("7", "8", "8"), (None, "8", "8")],
)
def test_folder_chooses_the_version(
    store: pathlib.Path, pinned: str | None, requested: str | None, chosen: str
) -> None:
    """The requested version, or else the one in the settings, or else the highest number."""
    settings = Settings(model="fake", model_version=pinned, model_store=store)
    assert folder(settings, requested) == store / "fake" / chosen


def test_folder_of_an_unknown_version_lists_the_others(store: pathlib.Path) -> None:
    """The error of a version that does not exist lists those that do."""
    with pytest.raises(BadModel, match="fake 7, fake 8, fake 10"):
        folder(Settings(model="fake", model_store=store), "9")


@pytest.mark.parametrize("version", ["../../other/10", "07", "x"])
def test_folder_stays_in_the_store(store: pathlib.Path, version: str) -> None:
    """A version that is not a number leads to no folder."""
    with pytest.raises(BadModel, match=r"^version: "):
        folder(Settings(model="fake", model_store=store), version)


async def test_load_returns_and_counts_the_version(store: pathlib.Path) -> None:
    """A load returns the version that serves now, and is counted as `loaded`."""
    async with running(store) as one:
        assert await one.repository.load("fake", "8") == Identity(name="fake", version="8")
        assert one.host.loaded and one.host.loaded.model.version == "8"
    assert one.counted == ["loaded"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BadModel("its SHA-256 differs"), "its SHA-256 differs"),
        (OSError(5, "Input/output error"), "[Errno 5] Input/output error"),
        (RuntimeError("first line\nsecond line"), "RuntimeError: first line"),
        (RuntimeError(), "RuntimeError: "),
    ],
)
async def test_load_failure_says_what_still_serves(
    store: pathlib.Path, caplog: pytest.LogCaptureFixture, error: Exception, reason: str
) -> None:
    """The error has the reason and the version that still serves. It is counted, and an unexpected
    exception is logged with its traceback."""
    async with running(store) as one:
        one.engine.load_error = error
        with pytest.raises(LoadFailed) as caught:
            await one.repository.load("fake", "8")
        assert str(caught.value) == f"fake 8 was not loaded: {reason}. Version 7 stays loaded."
        (version,) = [v for v in await one.repository.index() if v["version"] == "8"]
        assert (version["state"], version["reason"]) == ("UNAVAILABLE", reason)
        await one.repository.unload("fake")
        with pytest.raises(LoadFailed, match="No version is loaded"):
            await one.repository.load("fake", "8")
    assert one.counted == ["failed", "failed"]
    traceback = [record for record in caplog.records if record.exc_info]
    assert bool(traceback) == isinstance(error, RuntimeError)


async def test_load_failure_names_the_version_even_without_a_number(store: pathlib.Path) -> None:
    """Where no number was requested, the error names the version that was chosen. If none exists,
    it says which one was to be loaded."""
    async with running(store, None) as one:
        one.engine.load_error = BadModel("damaged")
        with pytest.raises(LoadFailed, match=r"^fake 10 was not loaded: damaged"):
            await one.repository.load("fake")
        shutil.rmtree(store / "fake")
        with pytest.raises(LoadFailed, match=r"^fake \(version at startup\) was not loaded"):
            await one.repository.load("fake")


async def test_success_clears_the_failure_of_a_version(store: pathlib.Path) -> None:
    """The reason of a failure is reported until that version is loaded."""
    async with running(store) as one:
        one.engine.load_error = BadModel("damaged")
        with pytest.raises(LoadFailed):
            await one.repository.load("fake", "8")
        one.engine.load_error = None
        await one.repository.load("fake", "10")
        reasons = {v["version"]: v["reason"] for v in await one.repository.index()}
        assert reasons == {"7": "not loaded", "8": "damaged", "10": ""}
        await one.repository.load("fake", "8")
        await one.repository.load("fake", "7")
        reasons = {v["version"]: v["reason"] for v in await one.repository.index()}
    assert reasons == {"7": "", "8": "not loaded", "10": "not loaded"}


async def test_repository_rejects_other_models(store: pathlib.Path) -> None:
    """Only the model in the settings can be loaded or unloaded, also if the store has others."""
    async with running(store) as one:
        for call in one.repository.load, one.repository.unload:
            with pytest.raises(UnknownModel, match="'fake'"):
                await call("other")
        assert await one.states() == {"7": "READY", "8": "UNAVAILABLE", "10": "UNAVAILABLE"}
    assert one.counted == []


async def test_changes_that_come_too_early_or_too_late_are_not_failures(
    store: pathlib.Path,
) -> None:
    """A load during the start, during another change, or at the end is rejected. It is not counted,
    and the index does not report a failure."""
    one = Running(store)
    with pytest.raises(NotReady):
        await one.repository.load("fake", "8")
    async with one.host.running():
        await until(lambda: one.host.loaded)
        one.engine.loaded.clear()
        loading = asyncio.create_task(one.repository.load("fake", "8"))
        await one.engine.loading.wait()
        with pytest.raises(ChangeUnderWay):
            await one.repository.load("fake", "10")
        states = await one.states()
        one.engine.loaded.set()
        await loading
    assert states == {"7": "READY", "8": "LOADING", "10": "UNAVAILABLE"}
    with pytest.raises(Draining):
        await one.repository.load("fake", "7")
    assert one.counted == ["loaded"]


async def test_reload_does_nothing_if_the_version_serves(store: pathlib.Path) -> None:
    """A reload takes the version that a start would load, and loads it unless it serves."""
    async with running(store, None) as one:
        assert (await one.repository.reload()).version == "10"
        assert one.counted == ["loaded"], "the fake engine started with version 7"
        assert (await one.repository.reload()).version == "10"
        assert one.counted == ["loaded"]
        add(store, "11")
        assert (await one.repository.reload()).version == "11"
        await one.repository.unload("fake")
        assert (await one.repository.reload()).version == "11"
    assert one.counted == ["loaded"] * 3


async def test_index_includes_a_version_that_was_deleted(store: pathlib.Path) -> None:
    """The version that serves is listed although its folder is gone. Versions are ordered by their
    number."""
    async with running(store) as one:
        (store / "fake" / "7" / "manifest.json").unlink()
        versions = await one.repository.index()
    assert [one["version"] for one in versions] == ["7", "8", "10"]
    assert versions[0] == {"name": "fake", "version": "7", "state": "READY", "reason": ""}
