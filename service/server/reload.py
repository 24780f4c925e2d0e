"""Reloads the API keys and the model on SIGHUP."""

from __future__ import annotations

from service.errors import LoadFailed
from service.http.problems import problem_for
from service.inference.repository import NOT_NOW
from service.inference.service import Service
from service.telemetry.logs import log


async def reload(service: Service) -> None:
    """Read the files of API keys again, and load the version of the model that a start would load.
    What cannot be reloaded stays as it was, and the log says why."""
    for keys in (service.keys, service.admin_keys):
        keys.reload()
    try:
        served = await service.repository.reload()
    except (LoadFailed, *NOT_NOW) as error:
        detail = problem_for(error).detail or str(error)
        log.error("the model stays as it was: %s", detail)
    else:
        log.info("reloaded", extra={"fields": {"model": served.name, "version": served.version}})
