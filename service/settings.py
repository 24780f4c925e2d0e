"""All settings: name, type, bounds, default and meaning.

A setting is read once, when the process starts, from the environment variable with its name in
capitals after `SHOAL_`. `python -m service.settings` prints the table of docs/configuration.md.
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
"""A host and an optional port (RFC 9110, section 7.2), or a pattern such as *.example.com."""


class BadSettings(Exception):
    """Settings are invalid. The message has one line for each."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on. 0.0.0.0: all interfaces."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on. 0: any free port, which is logged."""
    workers: int = Field(default=1, ge=1, le=64)
    """Number of front ends, which are processes that serve HTTP. 1: one process does everything.
    From 2, a further process runs the engine for all of them, and limits on all requests together
    are divided among them."""

    grpc_port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port for the Open Inference Protocol over gRPC, which needs the extra `grpc`. 0: any free
    port, which is logged. Default: no gRPC."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port for `/metrics`, which the main port then does not serve. 0: any free port, which is
    logged. Default: `/metrics` is on the main port."""

    model: Name = "cifar_resnet20_v1"
    """Name of the model to serve."""
    model_version: Version | None = None
    """Version of the model. Default: the highest one in the store."""
    model_store: pathlib.Path = STORE
    """Folder of the model store. Default: the store that is installed with the package."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|gpu(:\d+)?)$")
    """Device that computes: auto, cpu, gpu or gpu:N. auto: a GPU that works, or else the CPU."""
    precision: Literal["auto", "fp32", "int8", "fp16"] = "auto"
    """Precision of the computation: auto, fp32, int8 (CPU) or fp16 (GPU). auto: int8 or fp16 if the
    machine has instructions for it and the version was measured to be as accurate; else fp32."""
    engine_threads: int = Field(default=1, ge=1, le=256)
    """Number of CPU threads that compute one batch."""
    engine_lanes: int | None = Field(default=None, ge=1, le=64)
    """Number of batches that a CPU computes at the same time. A GPU always computes one. Default:
    the number of CPU cores, at most 4; with int8 one less, because the event loop needs a core."""

    max_batch_size: int | None = Field(default=None, ge=1, le=1024)
    """Maximum number of images in a batch. Default: 16 on a CPU, 64 on a GPU."""
    max_queue_size: int = Field(default=1024, ge=1, le=65_536)
    """Maximum number of images in the queue. Further images are rejected with 503."""
    max_queue_delay: float = Field(default=0.0, ge=0, le=60)
    """Maximum number of seconds that an idle engine waits for further images before it computes an
    incomplete batch. 0: it does not wait."""
    request_timeout: Seconds = 5.0
    """Maximum number of seconds from the end of the upload to the answer. A request that cannot be
    answered in this time is rejected."""

    max_upload_bytes: int = Field(default=10 * 2**20, ge=1024, le=2**30)
    """Maximum number of bytes of a request's body. A longer one is rejected with 413 while it
    arrives."""
    max_upload_memory: int = Field(default=256 * 2**20, ge=1024, le=2**40)
    """Maximum number of bytes that the uploads of all requests hold in memory. Further uploads are
    rejected with 503."""
    max_images_per_request: int = Field(default=64, ge=1, le=256)
    """Maximum number of images in one request to `/predict/batch` or of the Open Inference
    Protocol."""
    max_image_pixels: int = Field(default=64_000_000, ge=1024, le=1_000_000_000)
    """Maximum number of pixels (width x height) of an image, checked before it is decoded."""
    upload_timeout: Seconds = 30.0
    """Seconds within which the body of a request must arrive."""
    decode_processes: int = Field(default_factory=lambda: min(cores(), 8), ge=1, le=256)
    """Number of processes that decode ordinary images, and maximum number of those for expensive
    images. `SHOAL_DECODE_MEMORY` may allow fewer. Default: one per CPU core, at most 8."""
    decode_memory: int = Field(default_factory=lambda: memory() // 2, ge=2**20, le=2**40)
    """Maximum number of bytes of memory that all decoder processes use together. Default: half of
    the memory of the machine or container."""
    max_decode_seconds: float = Field(default=2.0, gt=0, le=60)
    """Maximum CPU time for decoding one image, in seconds."""

    api_keys: SecretStr | None = None
    """API keys, separated by commas, of at least 16 characters each. With at least one, here or in
    the file, prediction requests must send a key."""
    api_keys_file: pathlib.Path | None = None
    """File with further API keys, one per line. It is read again when it changes."""
    metrics_need_key: bool = False
    """Whether requests for `/metrics` must send an API key, too."""
    rate_limit: float | None = Field(default=None, gt=0, le=1_000_000)
    """Maximum number of images per second for each client, which is identified by its API key or
    else by its address. A request counts as one image when it begins, and as all of its images when
    their number is known. Requests beyond the limit are rejected with 429. Default: no limit."""
    rate_burst: int | None = Field(default=None, ge=1, le=1_000_000)
    """Maximum number of images that a client may send at once. A request with more images is
    accepted and puts the client into debt: it is rejected until the debt is paid off at the rate
    limit. Default: the rate limit, at least 1."""
    allowed_hosts: str = ""
    """Host names, separated by commas, that are accepted in `Host`, besides IP addresses, localhost
    and the name in `SHOAL_HOST`. `*.example.com`: all names below example.com. `*`: every host.
    Other requests get 421, except for probes and metrics. Ports are ignored."""
    trusted_proxies: str = "127.0.0.1,::1"
    """Addresses or networks of proxies, separated by commas, from which `X-Forwarded-For`,
    `X-Forwarded-Proto` and `X-Forwarded-Host` are read."""
    cors_origins: str = ""
    """Origins, separated by commas, whose pages may send requests from a browser. `*`: all origins.
    POST requests of other pages get 403. Default: only this server's own pages."""
    admin_keys: SecretStr | None = None
    """Admin keys, separated by commas, of at least 16 characters each. Requests to load or unload a
    version of the model must send one. Without any, such requests are rejected."""
    admin_keys_file: pathlib.Path | None = None
    """File with further admin keys, one per line. It is read again when it changes."""

    max_connections: int = Field(default=4096, ge=1, le=1_000_000)
    """Maximum number of open connections, lowered if the process may have too few descriptors
    (`ulimit -n`). At the limit, a new connection replaces one of the client with the most,
    which has waited for its client longest. gRPC may have as many in addition, which take three
    descriptors each."""
    keep_alive_timeout: int = Field(default=75, ge=1, le=3600)
    """Seconds after which an idle connection is closed. Set it higher than the idle timeout of a
    load balancer in front."""
    drain_delay: float = Field(default=0.0, ge=0, le=600)
    """Seconds after SIGTERM during which new connections are accepted while `/readyz` reports
    draining, so that load balancers stop sending requests first."""
    shutdown_timeout: int = Field(default=20, ge=1, le=3600)
    """Seconds after `SHOAL_DRAIN_DELAY` in which requests in progress are answered. Those that take
    longer are canceled."""

    default_answer: Literal["json", "text"] = "json"
    """Answer of `/predict` to requests whose `Accept` header prefers neither `application/json` nor
    `text/plain`. json: an object. text: the sentence of the Flask tutorial."""
    page: bool = True
    """Whether to serve the web page at `/`, which classifies images."""
    docs: bool = True
    """Whether to serve the API documentation at `/docs` and `/openapi.json`."""

    log_format: Literal["auto", "json", "text"] = "auto"
    """Format of the log. json: one JSON object per line. text: for people. auto: text on a
    terminal, else json."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum severity of log lines. Requests are logged at info, and successful probes at
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
            raise ValueError(f"this has no effect without a limit: set {PREFIX}RATE_LIMIT, too")
        return value

    @field_validator("max_upload_memory")
    @classmethod
    def _require_one_upload(cls, value: int, info: ValidationInfo) -> int:
        if value < (one := info.data.get("max_upload_bytes", 0)):
            raise ValueError(f"this is less than {PREFIX}MAX_UPLOAD_BYTES={one}")
        return value

    def share(self, count: int) -> Settings:
        """Settings of one of `count` front ends: limits on all requests together are divided."""
        memory = max(self.max_upload_memory // count, self.max_upload_bytes)
        connections = max(self.max_connections // count, 1)
        return self.model_copy(
            update={
                "max_upload_memory": memory,
                "max_connections": connections,
            }
        )


def split(value: str) -> list[str]:
    """Split a setting at commas and white space."""
    return [part for part in re.split(r"[\s,]+", value) if part]


def host_name(host: str) -> str | None:
    """The name or IP address in `host`, which may have a port: in lower case, without brackets and
    without the dot of the DNS root. None if `host` is not valid."""
    match = HOST.fullmatch(host)
    return match and (match["address"] or match["name"]).lower()


def load_settings() -> Settings:
    """Read the settings from the environment. Raises BadSettings."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"{PREFIX}{str(detail['loc'][0]).upper()}={detail['input']}: {detail['msg']}"
            for detail in error.errors()
        ]
        raise BadSettings("\n".join(lines)) from error


def unknown(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each variable with the prefix that is not a setting, such as a typo."""
    known = [name.upper() for name in Settings.model_fields]
    for variable in sorted(environment):
        name = variable.removeprefix(PREFIX)
        if name == variable or name in known or _is_service_link(variable):
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {PREFIX}{close[0]}?" if close else ""
        yield f"{variable} is not a setting and is ignored{hint}"


def table() -> str:
    """The settings as a Markdown table."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        shown = f"`{default}`" if (default := default_of(field)) else ""
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown} | {one_line(field.description)} |")
    return "\n".join(rows)


def default_of(field: FieldInfo) -> str:
    """The default as text. Empty if the description states it."""
    default = field.default
    return "" if field.default_factory or default in (None, STORE) else str(default)


def one_line(text: str | None) -> str:
    """Replace line breaks and indentation with single spaces."""
    return " ".join((text or "").split())


def _is_service_link(name: str) -> bool:
    """Whether Kubernetes sets the variable for a service named `shoal` or `shoal-...`."""
    return re.search(r"_SERVICE_(HOST|PORT)|_PORT_\d+_(TCP|UDP)|_PORT$", name) is not None


if __name__ == "__main__":
    print(table())
