"""Reloads the API keys and the model on SIGHUP."""

from __future__ import annotations

from fastapi import FastAPI

from service.errors import LoadFailed
from service.http.api_keys import ApiKeys
from service.http.problems import problem_for
from service.inference.repository import NOT_NOW
from service.inference.serving import Versions
from service.telemetry.logs import log


async def reload(app: FastAPI) -> None:
    """Read the key files again, and load the version that a new start would load. What cannot be
    reloaded stays unchanged, and the log says why."""
    keys: tuple[ApiKeys, ...] = app.state.keys, app.state.admin_keys
    for api_keys in keys:
        api_keys.reload()
    repository: Versions = app.state.repository
    try:
        loaded = await repository.reload()
    except (LoadFailed, *NOT_NOW) as error:
        detail = problem_for(error).detail or str(error)
        log.error("the model was not reloaded: %s", detail)
    else:
        fields = {"model": loaded.name, "version": loaded.version}
        log.info("reloaded", extra={"fields": fields})
