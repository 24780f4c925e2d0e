"""Tests what `create_app` builds from the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from service.app import LOAD_ENGINE, create_app, imported, load_engine
from service.errors import RateLimited
from service.inference.service import Service
from service.server.server import SidePort
from service.settings import BadSettings, Settings
from tests.fakes import FakeEngine
from tests.service.conftest import connected, png

KEY = SecretStr("one-key-of-many-letters")
PREDICT = ("/predict", "post")
INDEX = ("/v2/repository/index", "get")
LOAD = ("/v2/repository/models/{model}/load", "post")


def built(**settings: Any) -> Any:
    return create_app(Settings(**settings), FakeEngine().load)


def service(**settings: Any) -> Service:
    found: Service = built(**settings).state.service
    return found


def test_imported_returns_the_named_function() -> None:
    """The default name is that of the function that loads the real engine."""
    assert imported(LOAD_ENGINE) is load_engine


async def test_create_app_loads_the_model_in_its_lifespan() -> None:
    """Nothing is loaded before the lifespan begins, and the engine is closed at its end."""
    events: list[str] = []

    class Engine(FakeEngine):
        @asynccontextmanager
        async def load(self, settings: Settings) -> AsyncIterator[FakeEngine]:
            events.append("loaded")
            yield self
            events.append("closed")

    engine = Engine()
    app = create_app(Settings(), engine.load)
    assert events == []
    async with connected(Settings(), engine) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert events == ["loaded"]
    assert events == ["loaded", "closed"]
    assert app.state.service.engine.loaded is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decode_memory": 2**20}, "SHOAL_DECODE_MEMORY=1048576: "),
        (
            {"metrics_need_key": True, "metrics_port": 0, "api_keys": KEY},
            "SHOAL_METRICS_NEED_KEY .* SHOAL_METRICS_PORT",
        ),
        ({"api_keys": SecretStr("short")}, "SHOAL_API_KEYS"),
        ({"admin_keys": SecretStr("short")}, "SHOAL_ADMIN_KEYS"),
    ],
    ids=["memory", "metrics", "keys", "admin keys"],
)
def test_create_app_rejects_settings(settings: dict[str, Any], message: str) -> None:
    """Settings that cannot be used together, or at all, are errors that name them."""
    with pytest.raises(BadSettings, match=message):
        built(**settings)


@pytest.mark.parametrize(
    ("settings", "burst"),
    [
        ({"rate_limit": 3.9}, 3),
        ({"rate_limit": 0.1}, 1),
        ({"rate_limit": 0.1, "rate_burst": 7}, 7),
    ],
)
def test_create_app_limits_bursts(settings: dict[str, Any], burst: int) -> None:
    """Without SHOAL_RATE_BURST a client may send the images of one second at once, at least one."""
    limiter = service(**settings).rate_limiter
    assert limiter is not None
    for _ in range(burst):
        limiter.take("client", 0.0)
    with pytest.raises(RateLimited):
        limiter.take("client", 0.0)


def test_create_app_has_no_rate_limit_by_default() -> None:
    """Without SHOAL_RATE_LIMIT clients may send any number of images."""
    assert service().rate_limiter is None


def test_create_app_builds_a_listener_for_metrics() -> None:
    """With SHOAL_METRICS_PORT there is one more server, and otherwise none."""
    assert [type(one) for one in built(metrics_port=0).state.listeners] == [SidePort]
    assert built().state.listeners == []


@pytest.mark.parametrize(
    ("settings", "secured"),
    [
        ({}, set()),
        ({"api_keys": KEY}, {PREDICT}),
        ({"admin_keys": KEY}, {INDEX, LOAD}),
        ({"api_keys": KEY, "admin_keys": KEY}, {PREDICT, INDEX, LOAD}),
    ],
    ids=["no keys", "keys", "admin keys", "both"],
)
def test_openapi_describes_which_endpoints_need_a_key(
    settings: dict[str, Any], secured: set[tuple[str, str]]
) -> None:
    """Predictions need a key if keys are set, and the repository needs one if admin keys are set.
    Probes never need one."""
    description = built(**settings).openapi()
    found = {
        (path, method)
        for path, operations in description["paths"].items()
        for method, operation in operations.items()
        if "security" in operation
    }
    assert found & {PREDICT, INDEX, LOAD, ("/healthz", "get"), ("/readyz", "get")} == secured
    assert ("securitySchemes" in description["components"]) == bool(secured)


def test_openapi_includes_schemas_of_bodies_that_endpoints_read_themselves() -> None:
    """FastAPI does not see these bodies. Every reference in the description leads to a schema."""
    description = built().openapi()
    schemas = description["components"]["schemas"]
    assert {"ProblemDetails", "InferenceRequest", "RepositoryRequest"} <= schemas.keys()
    references = set(references_in(description))
    assert references <= {f"#/components/schemas/{name}" for name in schemas}


def references_in(value: Any) -> list[str]:
    """All references in a JSON value."""
    if isinstance(value, list):
        return [found for item in value for found in references_in(item)]
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for item in value.values() for found in references_in(item)]
    return []


async def status_codes(client: httpx.AsyncClient, *paths: str) -> list[int]:
    return [(await client.get(path)).status_code for path in paths]


@pytest.mark.parametrize(
    ("settings", "statuses"),
    [
        ({}, [200, 200, 200, 200]),
        ({"docs": False}, [200, 404, 404, 200]),
        ({"page": False}, [404, 200, 200, 200]),
        ({"metrics_port": 0}, [200, 200, 200, 404]),
    ],
    ids=["default", "no docs", "no page", "metrics port"],
)
async def test_create_app_serves_optional_paths(
    engine: FakeEngine, settings: dict[str, Any], statuses: list[int]
) -> None:
    """The page, the documentation and the metrics are served unless a setting moves or disables
    them."""
    async with connected(Settings(**settings), engine) as client:
        assert await status_codes(client, "/", "/docs", "/openapi.json", "/metrics") == statuses


async def test_create_app_allows_listed_origins_only(engine: FakeEngine) -> None:
    """A browser may read answers for a page of a listed origin, with the headers that help it."""
    async with connected(Settings(cors_origins="https://a.example"), engine) as client:
        for origin, allowed in (("https://a.example", True), ("https://b.example", False)):
            headers = {"origin": origin, "content-type": "image/png"}
            answer = await client.post("/predict", content=png(7), headers=headers)
            assert ("access-control-allow-origin" in answer.headers) is allowed
            if allowed:
                exposed = answer.headers["access-control-expose-headers"]
                assert {"Retry-After", "X-Request-ID"} <= set(exposed.split(", "))
