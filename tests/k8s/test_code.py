"""The manifests agree with the code: settings, ports, probes, times, memory."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from service.app import create_app
from service.decoding.limits import limits
from service.http.origins import allowed_hosts
from service.server.server import LINGER_SECONDS
from service.settings import PREFIX, Settings, unknown
from service.telemetry.tracing import enabled
from service.workers.engine_client import MAX_DECODE_BYTES
from service.workers.supervisor import GRACE
from tests.fakes import FakeEngine
from tests.k8s.manifests import (
    COMBINATIONS,
    MEBIBYTE,
    container_of,
    environment_of,
    mebibytes,
    of_kind,
    pod_of,
    rendered,
)

PREDICTED_BASE = 260
"""Memory in MiB of a CPU process that has served for a while, measured: docs/deployment.md."""
PODS = ("Deployment", "InferenceService")
CONNECTION_BYTES = 260 * 1024
"""Memory that a hostile connection can hold, measured: docs/reliability.md."""
RPC_CONNECTION_BYTES = 160 * 1024
"""Memory that the relay of a gRPC connection can hold: service/grpc/relay.py."""
RPC_CALLS_BYTES = 110 * 2**20
"""Memory that gRPC holds for calls whose answers are not read, measured: docs/reliability.md."""
MARGIN = 5
"""Minimum number of seconds between the longest stop and the kill."""

APP = create_app(Settings(), FakeEngine().load)

every_combination = pytest.mark.parametrize("combination", COMBINATIONS)


def settings_of(combination: str) -> Settings:
    environment = environment_of(rendered(combination))
    return Settings(
        **{
            name.removeprefix(PREFIX).lower(): value  # type: ignore[arg-type]  # it converts
            for name, value in environment.items()
            if name.startswith(PREFIX)
        }
    )


@every_combination
def test_settings_are_valid(combination: str) -> None:
    """Every SHOAL_ variable is a setting with a valid value."""
    environment = environment_of(rendered(combination))
    assert list(unknown(environment)) == []
    assert settings_of(combination).device == combination.split()[0].removeprefix("onnx-")


@every_combination
def test_threads_match_the_cpu_limit(combination: str) -> None:
    """The number of threads is that of the pod's cores, not of the node's."""
    environment = environment_of(rendered(combination))
    limit = container_of(rendered(combination))["resources"]["limits"]["cpu"]
    assert environment["SHOAL_DECODE_PROCESSES"] == environment["OMP_NUM_THREADS"] == limit
    assert settings_of(combination).engine_threads < int(limit), "a core for the event loop"


@every_combination
def test_ports_match_the_settings(combination: str) -> None:
    """The container's ports are those on which the service listens."""
    ports = {p["name"]: p["containerPort"] for p in container_of(rendered(combination))["ports"]}
    settings = settings_of(combination)
    listens = {"http": settings.port, "grpc": settings.grpc_port}
    assert ports == {name: port for name, port in listens.items() if port is not None}


@every_combination
def test_service_names_are_allowed_hosts(combination: str) -> None:
    """The names of the Service, the addresses of pods, and localhost are allowed hosts."""
    settings = settings_of(combination)
    hosts = allowed_hosts(settings)
    service = "shoal-predictor" if "kserve" in combination else "shoal"
    [namespace] = {each["metadata"]["namespace"] for each in of_kind(rendered(combination), *PODS)}
    for suffix in "", f".{namespace}", f".{namespace}.svc", f".{namespace}.svc.cluster.local":
        assert hosts.accepts(f"{service}{suffix}:80".encode())
        assert not hosts.accepts(f"other{suffix}".encode())
    assert hosts.accepts(b"10.1.2.3:8000") and hosts.accepts(b"localhost:8000")


@every_combination
def test_traces_reach_the_collector(combination: str) -> None:
    """Where traces are sent, the variables exist, and the network policy allows the port."""
    environment = environment_of(rendered(combination))
    if "traces" not in combination:
        assert not enabled(environment)
        return
    assert enabled(environment)
    port = urlsplit(environment["OTEL_EXPORTER_OTLP_ENDPOINT"]).port
    [policy] = of_kind(rendered(combination), "NetworkPolicy")
    allowed = [p["port"] for rule in policy["spec"]["egress"] for p in rule["ports"]]
    assert allowed == [53, 53, port], "the DNS and the collector"


@every_combination
def test_probes_use_existing_paths(combination: str) -> None:
    """Probes use paths that exist, and the liveness probe does not check readiness."""
    container = container_of(rendered(combination))
    kinds = ("startup", "readiness", "liveness")
    asked = [container[f"{kind}Probe"]["httpGet"] for kind in kinds]
    assert {get["port"] for get in asked} == {"http"}
    assert {get["path"] for get in asked} <= APP.openapi()["paths"].keys()
    assert [get["path"] for get in asked] == ["/readyz", "/readyz", "/healthz"]


@every_combination
def test_grace_period_covers_the_longest_stop(combination: str) -> None:
    """The grace period is longer than preStop and everything that the service does at a stop."""
    pod, settings = pod_of(rendered(combination)), settings_of(combination)
    sleep = container_of(rendered(combination))["lifecycle"]["preStop"]["sleep"]["seconds"]
    stop = (
        settings.drain_delay + LINGER_SECONDS + settings.shutdown_timeout
    )  # service/server/server.py
    stop += settings.shutdown_timeout  # service/inference/model_host.py: the batcher and the engine
    if settings.workers > 1:
        stop += 2 * GRACE  # service/workers/supervisor.py: for front ends, then for the engine
    assert sleep + stop + MARGIN <= pod["terminationGracePeriodSeconds"]
    assert settings.drain_delay > 0, "kept-alive connections need a last answer that closes them"


@every_combination
def test_memory_limit_covers_all_bounds(combination: str) -> None:
    """The memory limit is sufficient if everything is at its limit at the same moment."""
    pod, settings = pod_of(rendered(combination)), settings_of(combination)
    limit = mebibytes(container_of(rendered(combination))["resources"]["limits"]["memory"])
    half = int(limit * MEBIBYTE / 2)  # what a container of this size gives decoders by default
    decoders = limits(settings.decode_processes, half, settings.max_decode_seconds)
    connection = CONNECTION_BYTES + (RPC_CONNECTION_BYTES if settings.grpc_port else 0)
    uploads = settings.max_upload_memory * (1.5 if settings.grpc_port else 1)
    uploads += connection * settings.max_connections
    uploads += RPC_CALLS_BYTES if settings.grpc_port else 0
    if settings.workers > 1:
        uploads += settings.workers * MAX_DECODE_BYTES
    tmpfs = sum(mebibytes(v["emptyDir"]["sizeLimit"]) for v in pod["volumes"] if v.get("emptyDir"))
    # The file in memory that each decoder reads holds a copy of the image.
    uploads += (decoders.ordinary + decoders.expensive) * settings.max_upload_bytes
    most = PREDICTED_BASE + (decoders.memory + uploads) / MEBIBYTE + tmpfs
    assert most <= limit, f"{most:.0f} MiB do not fit into {limit:.0f}"


@every_combination
def test_api_keys_file_is_mounted(combination: str) -> None:
    """The file of keys is in the Secret's volume."""
    file = settings_of(combination).api_keys_file
    mounts = container_of(rendered(combination))["volumeMounts"]
    folders = [mount["mountPath"] for mount in mounts if mount["name"] == "api-keys"]
    assert folders == ([str(file.parent)] if file else [])


@every_combination
def test_model_store_is_mounted_read_only(combination: str) -> None:
    """The store's volume is mounted read-only at the path that the service reads."""
    if "model-store" not in combination:
        return
    store = str(settings_of(combination).model_store)
    mounts = container_of(rendered(combination))["volumeMounts"]
    assert {"name": "models", "mountPath": store, "readOnly": True} in mounts


@every_combination
def test_gateway_forwards_existing_paths(combination: str) -> None:
    """The gateway forwards existing paths, but no metrics, and waits longer than the service."""
    settings = settings_of(combination)
    there = [getattr(route, "path", "") for route in APP.routes]
    for route in of_kind(rendered(combination), "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            paths = {match["path"]["value"] for match in rule["matches"]}
            assert "/predict" in paths and "/metrics" not in paths
            for prefix in paths:
                assert any(path == prefix or path.startswith(f"{prefix}/") for path in there), (
                    prefix
                )
            for seconds in rule["timeouts"].values():
                longest = settings.upload_timeout + settings.request_timeout
                assert float(seconds.removesuffix("s")) > longest
