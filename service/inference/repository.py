"""Lists the versions of the model in the model store, and loads and unloads them.

A server has one model, which the settings name. Versions of this model can replace each other.
Another model cannot replace this model, because requests that name this model would fail. To serve
a second model, start a second server (docs/decisions/0014-replacing-the-model.md).
"""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable

from batching import Draining
from model_store import versions
from model_store.architectures import UnknownArchitecture
from model_store.manifest import BadModel, Identity
from model_store.params import BadParams
from service.errors import ChangeUnderWay, LoadFailed, NotReady, UnknownModel
from service.inference.model_host import ModelHost
from service.settings import Settings
from service.telemetry.logs import log

NOT_NOW = (ChangeUnderWay, Draining, NotReady)
"""Exceptions that are raised if the server cannot load any version now."""
EXPECTED = (BadModel, BadParams, OSError, UnknownArchitecture)
"""Exceptions that are raised for an invalid version. Their messages are written for people."""


class Repository:
    """Loads and unloads versions of one model."""

    def __init__(self, settings: Settings, host: ModelHost, count: Callable[[str], None]) -> None:
        """
        Args:
            settings: The settings with the name of the model and the folder of the model store.
            host: Runs the model.
            count: Called with the result of each load, `loaded` or `failed`, for the metrics.
        """
        self._settings = settings
        self._host = host
        self._count = count
        self._loading: str | None = None
        self._failed: dict[str, str] = {}

    async def load(self, name: str, version: str | None = None) -> Identity:
        """Load a version, and replace the current version between two batches.

        Args:
            name: Name of the model, which must be the model of this server.
            version: Version to load. None: the version that the server would load at startup.

        Returns:
            Name and version of the loaded model.

        Raises:
            UnknownModel: `name` is not the model of this server.
            LoadFailed: The version cannot be loaded. The previous version stays in use.
            ChangeUnderWay: A version is already being loaded or unloaded.
            NotReady: The model is still being loaded at startup.
            Draining: The server is shutting down.
        """
        self._check(name)
        requested = version or "(version at startup)"
        try:
            path = await asyncio.to_thread(folder, self._settings, version)
            requested = path.name
            model = await self._host.replace(path)
        except NOT_NOW:
            raise
        except Exception as error:
            raise self._failure(requested, error) from error
        self._count("loaded")
        self._failed.pop(model.version, None)
        return _identity(model)

    async def unload(self, name: str) -> Identity:
        """Unload the model, after all accepted requests have finished.

        Returns name and version of the unloaded model. Raises UnknownModel, ChangeUnderWay,
        NotReady, Draining.
        """
        self._check(name)
        return _identity(await self._host.unload())

    async def reload(self) -> Identity:
        """Load the version that the server would load at startup, unless it is loaded already.

        Returns name and version of the loaded model. Raises the same exceptions as `load`.
        """
        started = self._host.loaded
        if started is not None:
            chosen = await asyncio.to_thread(folder, self._settings)
            if chosen.name == started.model.version:
                return _identity(started.model)
        return await self.load(self._settings.model)

    async def index(self) -> list[dict[str, str]]:
        """List all versions of the model in the store, and the loaded version.

        Returns one dictionary for each version, in ascending order: `name`, `version`, `state`
        (READY, LOADING or UNAVAILABLE), and `reason`, which explains why the version is not READY.
        """
        found = await asyncio.to_thread(versions.all_versions, self._settings.model_store)
        started = self._host.loaded
        numbers = {version for name, version in found if name == self._settings.model}
        numbers |= {started.model.version} if started else set()
        return [
            {"name": self._settings.model, "version": version} | self._state(version)
            for version in sorted(numbers, key=int)
        ]

    def _state(self, version: str) -> dict[str, str]:
        started = self._host.loaded
        if started is not None and started.model.version == version:
            return {"state": "READY", "reason": ""}
        if self._host.loading == version:
            return {"state": "LOADING", "reason": "being loaded"}
        return {"state": "UNAVAILABLE", "reason": self._failed.get(version, "not loaded")}

    def _check(self, name: str) -> None:
        if name != self._settings.model:
            raise UnknownModel(
                f"This server serves only the model {self._settings.model!r}. Load a version of "
                "this model, or start another server with another SHOAL_MODEL."
            )

    def _failure(self, version: str, error: Exception) -> LoadFailed:
        self._count("failed")
        why = str(error)
        if not isinstance(error, EXPECTED):
            log.error("loading a version failed unexpectedly", exc_info=error)
            why = f"{type(error).__name__}: {why.strip().partition(chr(10))[0]}"
        self._failed[version] = why
        log.warning("not loaded", extra={"fields": {"version": version, "reason": why}})
        started = self._host.loaded
        state = (
            f"Version {started.model.version} stays loaded" if started else "No version is loaded"
        )
        return LoadFailed(f"{self._settings.model} {version} was not loaded: {why}. {state}.")


def folder(settings: Settings, version: str | None = None) -> pathlib.Path:
    """Return the folder of a version in the model store.

    Args:
        settings: The settings with the model, its version and the model store.
        version: The version. None: the version in the settings, or else the highest version.

    Raises:
        BadModel: The store does not have the version. The message lists the existing versions.
    """
    store, model = settings.model_store, settings.model
    number = version or settings.model_version or versions.latest(store, model)
    found = versions.folder(store, model, number)
    versions.find(store, model, number)
    return found


def _identity(model: Identity) -> Identity:
    return Identity(name=model.name, version=model.version)
