"""The internals of other projects that this one uses: the fence around them.

A project may change its internals in any release. So each is listed here with the reason and the
modules that use it, the versions in pyproject.toml have upper bounds, and `test_internals` fails
when a name is missing or used elsewhere.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

PROJECTS = (
    "PIL",
    "argparse",
    "fastapi",
    "httptools",
    "prometheus_client",
    "python_multipart",
    "starlette",
    "uvicorn",
)
PUBLIC = {
    "PIL": "*",
    "PIL.Image": "Resampling",
    "PIL.BmpImagePlugin": "BmpImageFile",
    "PIL.GifImagePlugin": "GifImageFile",
    "PIL.PngImagePlugin": "PngImageFile",
    "argparse": "*",
    "fastapi": "*",
    "httptools": "*",
    "prometheus_client": "*",
    "prometheus_client.core": "*",
    "prometheus_client.multiprocess": "MultiProcessCollector mark_process_dead",
    "prometheus_client.parser": "text_string_to_metric_families",
    "prometheus_client.registry": "Collector",
    "python_multipart.exceptions": "FormParserError",
    "python_multipart.multipart": "MultipartParser parse_options_header",
    "starlette.applications": "Starlette",
    "starlette.datastructures": "State",
    "starlette.exceptions": "HTTPException",
    "starlette.middleware.cors": "CORSMiddleware",
    "starlette.requests": "ClientDisconnect Request",
    "starlette.responses": "*",
    "starlette.routing": "BaseRoute Match",
    "starlette.types": "*",
    "uvicorn": "*",
}
"""Module -> the names in it that are documented, or `*` for all without an underscore."""


@dataclass(frozen=True)
class Internal:
    """A class, function or constant, and which of its members are used."""

    name: str
    """Full name."""
    reason: str
    modules: Sequence[str]
    """The modules that may use it."""
    members: str = ""
    """Names of attributes and methods that only these modules may use."""
    common: str = ""
    """Names of further members, which other classes have too."""


INTERNALS = (
    Internal(
        "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol",
        "limits on the time, memory and work of a connection, which uvicorn does not have",
        ["service/server/connection.py"],
        members="_unset_keepalive_if_required timeout_keep_alive_handler timeout_keep_alive_task"
        " on_response_complete",
        common="connection_made connection_lost data_received eof_received pause_writing"
        " resume_writing on_message_begin on_headers_complete on_body on_message_complete"
        " cycle flow headers loop parser scope server_state timeout_keep_alive transport url",
    ),
    Internal(
        "uvicorn.protocols.http.httptools_impl.RequestResponseCycle",
        "the body of a request and the state of its answer",
        ["service/server/connection.py", "benchmarks/stage_clock.py"],
        members="message_event",
        common="body more_body response_complete response_started run_asgi scope",
    ),
    Internal(
        "uvicorn.protocols.http.httptools_impl.STATUS_LINE",
        "answers to data that is not a valid request",
        ["service/server/connection.py"],
    ),
    Internal(
        "uvicorn.protocols.http.flow_control.FlowControl",
        "reading pauses while the application has much of a body to receive",
        ["service/server/connection.py"],
        members="read_paused write_paused",
        common="pause_reading resume_reading pause_writing resume_writing",
    ),
    Internal(
        "uvicorn.protocols.http.flow_control.HIGH_WATER_LIMIT",
        "the same limit as uvicorn's own for the body that waits for the application",
        ["service/server/connection.py"],
    ),
    Internal(
        "uvicorn.server.ServerState",
        "a limit on open connections; uvicorn can only answer 503 on them",
        ["service/server/connection_limit.py"],
        common="connections",
    ),
    Internal(
        "uvicorn.Server",
        "a shutdown that loses no requests, several accepts per turn, a second port",
        ["service/server/server.py"],
        members="_log_started_message force_exit handle_exit main_loop on_tick",
        common="config lifespan run server_state servers should_exit shutdown startup",
    ),
    Internal(
        "uvicorn.Config",
        "a second server in the same event loop; a protocol that is not a class",
        ["service/server/server.py"],
        members="lifespan_class timeout_graceful_shutdown",
        common="backlog host load port",
    ),
    Internal(
        "uvicorn.lifespan.on.LifespanOn",
        "further listeners on the same socket pass the state of the lifespan to connections",
        ["service/server/server.py"],
        common="state",
    ),
    Internal(
        "uvicorn.middleware.proxy_headers.ProxyHeadersMiddleware",
        "X-Forwarded-Host counts from the same proxies as X-Forwarded-For",
        ["service/http/proxies.py"],
        members="trusted_hosts",
    ),
    Internal(
        "fastapi.routing.APIRoute",
        "the fast path: endpoints that read their own bodies skip dependency injection",
        ["service/http/middleware.py"],
        members="param_convertors",
        common="app endpoint methods path",
    ),
    Internal(
        "PIL.JpegImagePlugin.JpegImageFile",
        "Pillow would parse all EXIF data for a resolution that is not used, at any cost",
        ["service/decoding/picture.py"],
        members="_read_dpi_from_exif",
    ),
    Internal(
        "PIL.WebPImagePlugin.WebPImageFile",
        "the decoder's two canvases are released after the first frame",
        ["service/decoding/picture.py"],
        members="_get_next",
    ),
    Internal(
        "python_multipart.multipart.MultipartState",
        "the parser must not see padding behind a delimiter, which it reads byte by byte",
        ["service/upload/multipart.py"],
        members="BOUNDARY_PADDING",
    ),
    Internal(
        "argparse._SubParsersAction",
        "completion of paths in every command; shtab uses the same names",
        ["shoal/completion.py"],
        common="choices",
    ),
    Internal(
        "argparse.ArgumentParser",
        "as above",
        ["shoal/completion.py"],
        members="_actions",
    ),
)
OURS = {"os._exit", "url._replace"}
"""Documented, in spite of their underscores."""


def resolve(name: str) -> Any:
    """Import the object with this full name. Raises ImportError, AttributeError."""
    module, attributes = name, list[str]()
    while True:
        try:
            value: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, attribute = module.rpartition(".")
            attributes.insert(0, attribute)
            if not module:
                raise
    for attribute in attributes:
        value = getattr(value, attribute)
    return value


def has_member(owner: Any, member: str) -> bool:
    """Whether a class has this attribute, or sets it on its instances."""
    if hasattr(owner, member):
        return True
    sources = (inspect.getsource(kind) for kind in inspect.getmro(owner) if kind is not object)
    return any(f"self.{member}" in source for source in sources)


def violations(path: str, tree: ast.Module) -> Iterator[str]:
    """What the module at `path` uses of internals that are not listed for it.

    Args:
        path: Path within the repository.
        tree: The module.
    """
    allowed = [internal for internal in INTERNALS if path in internal.modules]
    fenced = {name for internal in INTERNALS for name in internal.members.split()}
    fenced -= {name for internal in allowed for name in internal.members.split()}
    for node in ast.walk(tree):
        for name in _imported(node):
            if name not in {internal.name for internal in allowed}:
                yield f"{path}: import of {name}"
        used = _member(node)
        if used in fenced:
            yield f"{path}: use of {used}"
        if isinstance(node, ast.Attribute) and _is_foreign_private(node):
            members = {name for internal in allowed for name in internal.members.split()}
            text = ast.unparse(node)
            listed = text in {internal.name for internal in allowed}
            if node.attr not in members and not listed and text not in OURS:
                yield f"{path}: use of {text}"


def _imported(node: ast.AST) -> Iterator[str]:
    """Full names of what an import statement takes from `PROJECTS` and is not public."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.partition(".")[0] in PROJECTS and alias.name not in PUBLIC:
                yield alias.name
    elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in PROJECTS:
        public = PUBLIC.get(str(node.module), "")
        for alias in node.names:
            documented = public == "*" and not alias.name.startswith("_")
            if not documented and alias.name not in public.split():
                yield f"{node.module}.{alias.name}"


def _member(node: ast.AST) -> str:
    """The name of a member that a node uses or defines."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name
    return ""


def _is_foreign_private(node: ast.Attribute) -> bool:
    """Whether this is a private member of something other than `self`, `cls` or a part of them."""
    if not node.attr.startswith("_") or node.attr.startswith("__"):
        return False
    return not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))


def modules_to_scan(root: pathlib.Path) -> list[pathlib.Path]:
    """The modules of the product and its benchmarks. `model_store` uses internals of MXNet, which
    is pinned to one version; the rival servers of benchmarks have environments of their own."""
    folders = ("batching", "benchmarks", "service", "shoal")
    paths = (path for folder in folders for path in (root / folder).rglob("*.py"))
    return sorted(path for path in paths if not {"baselines", "rivals"} & set(path.parts))
