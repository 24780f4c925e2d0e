"""Every setting: name, type, bound, default and meaning in one place.

Each is read from the environment variable of its name in capitals behind `SHOAL_`, once, when
the process starts. `python -m service.settings` prints the table of docs/configuration.md.
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
    """The settings cannot be used; the message has a line for each that is wrong."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on; 0 takes a free one and logs it."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that speak HTTP. 1: one process does it all; from 2 on they share one more process
    with the engine, and what is for all requests together is divided among them."""

    grpc_port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port for the Open Inference Protocol over gRPC, with the packages of the extra `grpc`; 0
    takes a free one and logs it. Default: none."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port for `/metrics` alone, which the main port then does not serve; 0 takes a free
    one and logs it. Default: none, `/metrics` is on the main port."""

    model: Name = "cifar_resnet20_v1"
    """Name of the model to serve."""
    model_version: Version | None = None
    """Its version. Default: the highest in the store."""
    model_store: pathlib.Path = STORE
    """Folder of the store. Default: the one that ships."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|gpu(:\d+)?)$")
    """auto, cpu, gpu or gpu:N. auto: a GPU that computes, else the CPU."""
    precision: Literal["auto", "fp32", "int8", "fp16"] = "auto"
    """auto, fp32, int8 (CPU) or fp16 (GPU). auto: int8 or fp16 where the machine has instructions
    for it and the version was measured to be as accurate in it; else fp32."""
    engine_threads: int = Field(default=1, ge=1, le=256)
    """CPU threads that compute one batch."""
    engine_lanes: int | None = Field(default=None, ge=1, le=64)
    """Batches that a CPU computes at the same time; a GPU computes one. Default: one a CPU core, 4
    at most, and in int8 one less, since there the event loop takes a core for itself."""

    max_batch_size: int | None = Field(default=None, ge=1, le=1024)
    """Most images computed together. Default: 16 on a CPU, 64 on a GPU."""
    max_queue_size: int = Field(default=1024, ge=1, le=65_536)
    """Most requests that wait for the engine; more are refused."""
    max_queue_delay: float = Field(default=0.0, ge=0, le=60)
    """Seconds the oldest request may wait for company while the engine is idle. 0: never."""
    request_timeout: Seconds = 5.0
    """Seconds from the end of the upload in which a request is answered or refused."""

    max_upload_bytes: int = Field(default=10 * 2**20, ge=1024, le=2**30)
    """Most bytes of a request's body, told while it arrives."""
    max_upload_memory: int = Field(default=256 * 2**20, ge=1024, le=2**40)
    """Most bytes of uploads held at the same moment, by all requests together; more are refused."""
    max_images_per_request: int = Field(default=64, ge=1, le=256)
    """Most images of one request to `/predict/batch` or of the Open Inference Protocol."""
    max_image_pixels: int = Field(default=64_000_000, ge=1024, le=1_000_000_000)
    """Most pixels (width x height) of an image, told before any is decoded."""
    upload_timeout: Seconds = 30.0
    """Seconds in which a request's body must have arrived."""
    decode_processes: int = Field(default_factory=lambda: min(cores(), 8), ge=1, le=256)
    """Processes that decode ordinary images, and maximum number of those for expensive ones; fewer
    where `SHOAL_DECODE_MEMORY` allows no more. Default: one per CPU core, at most 8."""
    decode_memory: int = Field(default_factory=lambda: memory() // 2, ge=2**20, le=2**40)
    """Bytes that all decoder processes may take together. Default: half of the memory that the
    machine or container has."""
    max_decode_seconds: float = Field(default=2.0, gt=0, le=60)
    """CPU time that decoding one image may take, in seconds."""

    api_keys: SecretStr | None = None
    """Keys, separated by commas; with any, predictions are for who sends one. At least 16
    characters each."""
    api_keys_file: pathlib.Path | None = None
    """File of more keys, one a line, read again when it changes."""
    metrics_need_key: bool = False
    """Whether `/metrics`, too, is for who sends a key."""
    rate_limit: float | None = Field(default=None, gt=0, le=1_000_000)
    """Maximum number of images per second of each client, identified by its API key or else by its
    address. A request counts as one image when it begins, and as all of its images once they are
    known; requests beyond the limit are rejected with 429. Default: unlimited."""
    rate_burst: int | None = Field(default=None, ge=1, le=1_000_000)
    """Maximum number of images that such a client may send at once. The images of a request that
    exceeds it are a debt: the client is rejected until it is worked off. Default: those of one
    second, at least 1."""
    allowed_hosts: str = ""
    """Host names, separated by commas, that requests may be addressed to, besides IP addresses,
    localhost and the name in SHOAL_HOST; `*.example.com` for all names below example.com, `*` for
    every host. Other requests get 421, except probes and metrics. Ports are ignored."""
    trusted_proxies: str = "127.0.0.1,::1"
    """Addresses or networks, separated by commas, whose `X-Forwarded-For` says who the client
    is, and `X-Forwarded-Host` which host it asked for."""
    cors_origins: str = ""
    """Origins, separated by commas, whose pages may ask from a browser; `*` for all. Other pages'
    POST requests get 403. Default: none but this server's own."""
    admin_keys: SecretStr | None = None
    """Keys, separated by commas, for who may load another version of the model; without any, nobody
    may. At least 16 characters each."""
    admin_keys_file: pathlib.Path | None = None
    """File of more such keys, one a line, read again when it changes."""

    max_connections: int = Field(default=4096, ge=1, le=1_000_000)
    """Maximum number of connections, as far as the system gives descriptors (`ulimit -n`); a
    newcomer takes the place of the one that waits for its client longest without progress. gRPC has
    as many of its own, with three descriptors each."""
    keep_alive_timeout: int = Field(default=75, ge=1, le=3600)
    """Seconds an idle connection is kept; more than a load balancer in front keeps its own."""
    drain_delay: float = Field(default=0.0, ge=0, le=600)
    """Seconds after SIGTERM in which new connections are still taken while `/readyz` says
    draining, so that load balancers look elsewhere first."""
    shutdown_timeout: int = Field(default=20, ge=1, le=3600)
    """Seconds after that in which requests in flight are answered; then they are cut off."""

    default_answer: Literal["json", "text"] = "json"
    """Answer of `/predict` to requests whose `Accept` header prefers neither `application/json` nor
    `text/plain`. json: an object. text: the sentence of the Flask tutorial."""
    page: bool = True
    """Whether to serve the page at `/`, where one drops pictures and sees their classes."""
    docs: bool = True
    """Whether to serve `/docs` and `/openapi.json`."""

    log_format: Literal["auto", "json", "text"] = "auto"
    """json: one JSON object a line; text: for reading; auto: text on a terminal, else json."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged; requests are logged at info, probes that
    find all well at debug."""

    @field_validator("port", "grpc_port", "metrics_port", mode="before")
    @classmethod
    def _not_a_service_link(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and value.startswith("tcp://"):
            variable = f"{PREFIX}{info.field_name}".upper()
            service = variable.lower().replace("_", "-").removesuffix("-port")
            raise ValueError(
                f"this is a link that Kubernetes makes for a service named '{service}': set "
                f"enableServiceLinks: false in the pod, or give {variable} a number"
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
                raise ValueError(f"{error}; an address or a network such as 10.0.0.0/8") from error
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for part in split(value):
            if part != "*" and not re.fullmatch(r"https?://[^/\s?#*]+", part):
                raise ValueError(f"{part!r} is no origin such as https://example.com, and not *")
        return value

    @field_validator("metrics_need_key")
    @classmethod
    def _there_are_keys(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not (info.data.get("api_keys") or info.data.get("api_keys_file")):
            raise ValueError(f"there is no key: set {PREFIX}API_KEYS or {PREFIX}API_KEYS_FILE")
        return value

    @field_validator("rate_burst")
    @classmethod
    def _of_a_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("rate_limit") is None:
            raise ValueError(f"without effect: set {PREFIX}RATE_LIMIT, too")
        return value

    @field_validator("max_upload_memory")
    @classmethod
    def _holds_one(cls, value: int, info: ValidationInfo) -> int:
        if value < (one := info.data.get("max_upload_bytes", 0)):
            raise ValueError(f"less than one upload may have, {PREFIX}MAX_UPLOAD_BYTES={one}")
        return value

    def share(self, count: int) -> Settings:
        """Of one of `count` processes: what is for all requests together is divided."""
        memory = max(self.max_upload_memory // count, self.max_upload_bytes)
        connections = max(self.max_connections // count, 1)
        return self.model_copy(
            update={
                "max_upload_memory": memory,
                "max_connections": connections,
            }
        )


def split(value: str) -> list[str]:
    """What a setting lists, separated by commas."""
    return [part for part in re.split(r"[\s,]+", value) if part]


def host_name(host: str) -> str | None:
    """The name or IP address in `host`, which may have a port: in lower case, without brackets and
    without the dot of the DNS root. None if `host` is not valid."""
    found = HOST.fullmatch(host)
    return found and (found["address"] or found["name"]).lower()


def load_settings() -> Settings:
    """The settings from the environment. Raises BadSettings."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"{PREFIX}{str(fault['loc'][0]).upper()}={fault['input']}: {fault['msg']}"
            for fault in error.errors()
        ]
        raise BadSettings("\n".join(lines)) from error


def unknown(environment: Mapping[str, str]) -> Iterator[str]:
    """A line for each variable that looks like a setting and is none: a slip of the pen."""
    known = [name.upper() for name in Settings.model_fields]
    for variable in sorted(environment):
        name = variable.removeprefix(PREFIX)
        if name == variable or name in known or _is_service_link(variable):
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; {PREFIX}{close[0]} is" if close else ""
        yield f"{variable} is no setting and is ignored{hint}"


def table() -> str:
    """The settings as a Markdown table."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        shown = f"`{default}`" if (default := default_of(field)) else ""
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown} | {one_line(field.description)} |")
    return "\n".join(rows)


def default_of(field: FieldInfo) -> str:
    """For people; empty where the meaning says it better."""
    default = field.default
    return "" if field.default_factory or default in (None, STORE) else str(default)


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _is_service_link(name: str) -> bool:
    """Kubernetes sets such variables for a service named `shoal` or `shoal-...`."""
    return re.search(r"_SERVICE_(HOST|PORT)|_PORT_\d+_(TCP|UDP)|_PORT$", name) is not None


if __name__ == "__main__":
    print(table())
