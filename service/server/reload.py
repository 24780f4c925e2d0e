"""What SIGHUP reloads: the keys, and the model."""

from __future__ import annotations

from fastapi import FastAPI

from service.errors import LoadFailed
from service.http.api_keys import ApiKeys
from service.http.problems import problem_for
from service.inference.repository import NOT_NOW
from service.inference.serving import Versions
from service.telemetry.logs import log


async def reload(app: FastAPI) -> None:
    """Read the files of keys now, and let the version serve that a start would take. Whatever
    cannot be reloaded stays as it was, and the log says why."""
    keys: tuple[ApiKeys, ...] = app.state.keys, app.state.admin_keys
    for one in keys:
        one.reload()
    repository: Versions = app.state.repository
    try:
        served = await repository.reload()
    except (LoadFailed, *NOT_NOW) as error:
        detail = problem_for(error).detail or str(error)
        log.error("the model stays as it was: %s", detail)
    else:
        log.info("reloaded", extra={"fields": {"model": served.name, "version": served.version}})
