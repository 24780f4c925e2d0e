"""All settings of the service: name, type, range, default and meaning.

Settings are read once, when the process starts. The environment variable of a setting is `SHOAL_`
followed by the name of the setting in capitals. `python -m service.settings` prints the table of
docs/configuration.md.
"""

from __future__ import annotations

import difflib
import ipaddress
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from model_store.cgroup import cores, memory
from model_store.manifest import STORE, Name, Version

PREFIX = "SHOAL_"
Seconds = Annotated[float, Field(gt=0, le=3600)]
HOST = re.compile(
    r"(?:\[(?P<address>[\da-f:.]+)\]|(?P<name>(?:\*\.)?(?:[\w-]+\.)*[\w-]+)\.?)(?::\d*)?",
    re.ASCII | re.IGNORECASE,
)
"""Pattern of a host with an optional port (RFC 9110, section 7.2). Accepts *.example.com, too."""


class BadSettings(Exception):
    """At least one setting is invalid. The message has one line for each invalid setting."""


class Settings(BaseSettings):
    """Settings of the service. The docstring of each field is its description in the manual."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on. 0.0.0.0: all interfaces."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on. 0: any free port. The log contains the number of the port."""
    workers: int = Field(default=1, ge=1, le=64)
    """Number of front ends, which are processes that serve HTTP. 1: a single process serves
    HTTP and runs the engine. 2 or more: one additional process runs the engine for all front ends,
    and the front ends share `SHOAL_MAX_UPLOAD_MEMORY` and `SHOAL_MAX_CONNECTIONS` equally."""

    grpc_port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port for the Open Inference Protocol over gRPC, which needs the extra `grpc`. 0: any free
    port. Default: no gRPC."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port for `/metrics`. The main port then has no `/metrics`. 0: any free port. Default:
    `/metrics` is on the main port."""

    model: Name = "cifar_resnet20_v1"
    """Name of the model to serve."""
    model_version: Version | None = None
    """Version of the model. Default: the highest version in the store."""
    model_store: pathlib.Path = STORE
    """Folder of the model store, which contains the models. Default: the store that is installed
    with the package."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|gpu(:\d+)?)$")
    """Device that runs the model: auto, cpu, gpu or gpu:N. auto: a GPU if a GPU works, else
    the CPU."""
    backend: Literal["auto", "mxnet", "onnxruntime"] = "auto"
    """Library that runs the model: auto, mxnet or onnxruntime. auto: the installed library that can
    run the version. If both can, the one that can use a GPU. If both or neither can use a GPU,
    mxnet."""
    precision: Literal["auto", "fp32", "int8", "fp16"] = "auto"
    """Precision of the computation: auto, fp32, int8 (CPU) or fp16 (GPU). auto: int8 on a CPU or
    fp16 on a GPU, if the hardware supports that precision and the measured accuracy of the version
    is at most 0.3 percentage points below its accuracy in fp32. Otherwise fp32."""
    engine_threads: int = Field(default=1, ge=1, le=256)
    """Number of CPU threads that compute each batch."""
    engine_lanes: int | None = Field(default=None, ge=1, le=64)
    """Maximum number of batches that a CPU runs at the same time. A GPU always runs one batch at a
    time. Default: the number of CPU cores, but at most 4. In int8, the default is one batch less,
    but at least 1, to leave a core for the event loop."""

    max_batch_size: int | None = Field(default=None, ge=1, le=1024)
    """Maximum number of images in a batch. Default: 16 on a CPU, 64 on a GPU."""
    max_queue_size: int = Field(default=1024, ge=1, le=65_536)
    """Maximum number of images in the queue. Further images are rejected with 503."""
    max_queue_delay: float = Field(default=0.0, ge=0, le=60)
    """Maximum number of seconds that an idle engine waits for further images before it runs an
    incomplete batch. 0: the engine does not wait."""
    request_timeout: Seconds = 5.0
    """Maximum number of seconds from the end of the upload to the response. Requests that cannot
    finish in this time are rejected."""

    max_upload_bytes: int = Field(default=10 * 2**20, ge=1024, le=2**30)
    """Maximum number of bytes of a request's body. Longer bodies are rejected with 413 before they
    have arrived completely."""
    max_upload_memory: int = Field(default=256 * 2**20, ge=1024, le=2**40)
    """Maximum number of bytes that the uploads of all requests hold in memory. Further uploads are
    rejected with 503."""
    max_images_per_request: int = Field(default=64, ge=1, le=256)
    """Maximum number of images in one request to `/predict/batch` or over the Open Inference
    Protocol."""
    max_image_pixels: int = Field(default=64_000_000, ge=1024, le=1_000_000_000)
    """Maximum number of pixels (width x height) of an image. Larger images are rejected before they
    are decoded."""
    upload_timeout: Seconds = 30.0
    """Maximum number of seconds in which the body of a request must arrive."""
    decode_processes: int = Field(default_factory=lambda: min(cores(), 8), ge=1, le=256)
    """Number of processes that decode ordinary images. The setting is also the maximum number of
    processes that decode expensive images, which need much memory or CPU time.
    A low `SHOAL_DECODE_MEMORY` reduces both numbers. Default: one per CPU core, at most 8."""
    decode_memory: int = Field(default_factory=lambda: memory() // 2, ge=2**20, le=2**40)
    """Maximum number of bytes of memory that all decoder processes use together. Default: half of
    the memory of the machine or container."""
    max_decode_seconds: float = Field(default=2.0, gt=0, le=60)
    """Maximum number of seconds of CPU time for decoding one image."""

    api_keys: SecretStr | None = None
    """API keys, separated by commas, of at least 16 characters each. Prediction requests must send
    an API key if there is at least one key in this setting or in `SHOAL_API_KEYS_FILE`."""
    api_keys_file: pathlib.Path | None = None
    """File with further API keys, one per line. The service reads the file again when it
    changes."""
    metrics_need_key: bool = False
    """Whether requests for `/metrics` must send an API key."""
    rate_limit: float | None = Field(default=None, gt=0, le=1_000_000)
    """Maximum number of images per second for each client. A client is identified by its API key,
    or by its address if it sends no key. At first, a request counts as one image. The other images
    of the request are counted when their number is known. Requests beyond the limit are rejected
    with 429. Default: no limit."""
    rate_burst: int | None = Field(default=None, ge=1, le=1_000_000)
    """Maximum number of images that a client may send in a burst, faster than the rate limit
    allows. A single request with more images is accepted. After such a request, further requests of
    the client are rejected until the client's average rate is within the rate limit again. Default:
    `SHOAL_RATE_LIMIT`, but at least 1."""
    allowed_hosts: str = ""
    """Host names, separated by commas, that are accepted in the header `Host`. IP addresses,
    localhost and the name in `SHOAL_HOST` are always accepted. `*.example.com`: all names below
    example.com. `*`: every host. Requests with other names get 421, except for probes and metrics.
    Ports are ignored."""
    trusted_proxies: str = "127.0.0.1,::1"
    """IP addresses or networks of trusted proxies, separated by commas. The headers
    `X-Forwarded-For`, `X-Forwarded-Proto` and `X-Forwarded-Host` are ignored in requests from other
    addresses."""
    cors_origins: str = ""
    """Origins, separated by commas. Web pages of these origins may send requests to this server.
    `*`: all origins. POST requests from pages of other origins get 403. Default: only this server's
    own pages."""
    admin_keys: SecretStr | None = None
    """Admin keys, separated by commas, of at least 16 characters each. Requests to load or unload a
    version of the model must send an admin key. If there is no admin key, such requests are
    rejected."""
    admin_keys_file: pathlib.Path | None = None
    """File with further admin keys, one per line. The service reads the file again when it
    changes."""

    max_connections: int = Field(default=4096, ge=1, le=1_000_000)
    """Maximum number of open HTTP connections. gRPC has a separate maximum of the same size. Both
    maximums are lower if the process may not open enough file descriptors (`ulimit -n`): each HTTP
    connection needs one descriptor, and each gRPC connection needs three. At the maximum, a new
    connection replaces an idle or slow connection of the client with the most connections."""
    keep_alive_timeout: int = Field(default=75, ge=1, le=3600)
    """Number of seconds after which an idle connection is closed. Set a higher value than the idle
    timeout of a load balancer in front of the service."""
    drain_delay: float = Field(default=0.0, ge=0, le=600)
    """Number of seconds after SIGTERM in which the server still accepts new connections. `/readyz`
    reports draining during this time, so that load balancers stop sending requests."""
    shutdown_timeout: int = Field(default=20, ge=1, le=3600)
    """Maximum number of seconds that a shutdown waits for requests in progress, after
    `SHOAL_DRAIN_DELAY`. Requests that take longer are canceled."""

    default_answer: Literal["json", "text"] = "json"
    """Format of the response of `/predict` if the `Accept` header prefers neither
    `application/json` nor `text/plain`. json: a JSON object. text: a sentence, as in the Flask
    tutorial."""
    page: bool = True
    """Whether to serve the web page at `/`, which classifies images."""
    docs: bool = True
    """Whether to serve the API documentation at `/docs` and `/openapi.json`."""

    log_format: Literal["auto", "json", "text"] = "auto"
    """Format of the log. json: one JSON object per line. text: lines that people can read easily.
    auto: text on a terminal, else json."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum severity of log lines. Requests are logged at info, but successful probes at
    debug."""

    @field_validator("port", "grpc_port", "metrics_port", mode="before")
    @classmethod
    def _not_a_service_link(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and value.startswith("tcp://"):
            variable = f"{PREFIX}{info.field_name}".upper()
            service = variable.lower().replace("_", "-").removesuffix("-port")
            raise ValueError(
                f"Kubernetes sets this variable for a service named '{service}': set "
                f"enableServiceLinks: false in the pod, or set {variable} to a number"
            )
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, value: str) -> str:
        for part in split(value):
            if part != "*" and host_name(part) is None:
                raise ValueError(
                    f"{part!r} is not a host name in ASCII; list names such as example.com, "
                    "patterns such as *.example.com, or *"
                )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: str) -> str:
        for part in split(value):
            try:
                ipaddress.ip_network(part)
            except ValueError as error:
                raise ValueError(
                    f"{error}; use addresses, or networks such as 10.0.0.0/8"
                ) from error
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for part in split(value):
            if part != "*" and not re.fullmatch(r"https?://[^/\s?#*]+", part):
                raise ValueError(f"{part!r} is not an origin such as https://example.com, or *")
        return value

    @field_validator("metrics_need_key")
    @classmethod
    def _require_keys(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not (info.data.get("api_keys") or info.data.get("api_keys_file")):
            raise ValueError(f"there is no API key: set {PREFIX}API_KEYS or {PREFIX}API_KEYS_FILE")
        return value

    @field_validator("rate_burst")
    @classmethod
    def _require_rate_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("rate_limit") is None:
            raise ValueError(f"a burst needs a rate limit: set {PREFIX}RATE_LIMIT, too")
        return value

    @field_validator("max_upload_memory")
    @classmethod
    def _require_one_upload(cls, value: int, info: ValidationInfo) -> int:
        if value < (one := info.data.get("max_upload_bytes", 0)):
            raise ValueError(f"the value must be at least {PREFIX}MAX_UPLOAD_BYTES={one}")
        return value

    def share(self, count: int) -> Settings:
        """Return the settings of one of `count` front ends, which are processes that serve HTTP.

        Each front end gets an equal part of `max_connections` and of `max_upload_memory`. The part
        of `max_upload_memory` is at least `max_upload_bytes`.
        """
        memory = max(self.max_upload_memory // count, self.max_upload_bytes)
        connections = max(self.max_connections // count, 1)
        return self.model_copy(
            update={
                "max_upload_memory": memory,
                "max_connections": connections,
            }
        )


def split(value: str) -> list[str]:
    """Split the value of a setting at commas and white space."""
    return [part for part in re.split(r"[\s,]+", value) if part]


def host_name(host: str) -> str | None:
    """Return the name or IP address in `host`, in lower case and without the port.

    The result has neither the brackets of an IPv6 address nor a dot at the end. The result is None
    if `host` is not valid.
    """
    match = HOST.fullmatch(host)
    return match and (match["address"] or match["name"]).lower()


def load_settings() -> Settings:
    """Read the settings from the environment. Raises BadSettings if a setting is invalid."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"{PREFIX}{str(detail['loc'][0]).upper()}={detail['input']}: {detail['msg']}"
            for detail in error.errors()
        ]
        raise BadSettings("\n".join(lines)) from error


def unknown(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each variable that begins with `SHOAL_` but is not a setting."""
    known = [name.upper() for name in Settings.model_fields]
    for variable in sorted(environment):
        name = variable.removeprefix(PREFIX)
        if name == variable or name in known or _is_service_link(variable):
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {PREFIX}{close[0]}?" if close else ""
        yield f"{variable} is not a setting and is ignored{hint}"


def table() -> str:
    """Return the settings as a Markdown table."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        shown = f"`{default}`" if (default := default_of(field)) else ""
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown} | {one_line(field.description)} |")
    return "\n".join(rows)


def default_of(field: FieldInfo) -> str:
    """Return the default of a setting as text, or "" if the description states the default."""
    default = field.default
    return "" if field.default_factory or default in (None, STORE) else str(default)


def one_line(text: str | None) -> str:
    """Replace line breaks and indentation with single spaces."""
    return " ".join((text or "").split())


def _is_service_link(name: str) -> bool:
    """Whether Kubernetes sets variable `name` for a service named `shoal` or `shoal-*`."""
    return re.search(r"_SERVICE_(HOST|PORT)|_PORT_\d+_(TCP|UDP)|_PORT$", name) is not None


if __name__ == "__main__":
    print(table())
