"""Runs a rolling update on one machine, with nginx in front of two processes of the service.

    .venv/bin/python k8s/rehearse.py [--requests 20000] [--unheard 2]

The script replaces the processes in the same way as Kubernetes, with the numbers in k8s/base. nginx
sends requests to a new process when the readiness probe of the process passes. Only then an old
process is stopped (maxSurge 1, maxUnavailable 0). Kubernetes removes endpoints with a delay.
Therefore, nginx removes the old process `--unheard` seconds after the stop began. The old process
gets SIGTERM after the preStop sleep, and must exit with 0 within the grace period. Clients send
requests all the time. Updates are repeated until `--requests` requests have succeeded. The script
exits with 1 if a request was lost. nginx does not retry requests (proxy_next_upstream off), because
retries would hide failures. The script needs nginx (Debian: nginx-light) and the packages of
`make test`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from typing import Any

import yaml
from load import Load, ask, made_up_picture

ROOT = pathlib.Path(__file__).parents[1]
BASE = ROOT / "k8s/base"
CLIENTS = 8
MAX_SECONDS = 900.0
"""Maximum duration of a rehearsal, in seconds."""

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 11m;
    upstream shoal {{
{servers}
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://shoal;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream off;
        }}
    }}
}}
"""


class Manifest:
    """The numbers of the Deployment in k8s/base, and the settings of the service."""

    def __init__(self) -> None:
        deployment: Any = yaml.safe_load((BASE / "deployment.yaml").read_text(encoding="utf-8"))
        pod = deployment["spec"]["template"]["spec"]
        [container] = pod["containers"]
        probe = container["readinessProbe"]
        self.grace = float(pod["terminationGracePeriodSeconds"])
        self.pre_stop = float(container["lifecycle"]["preStop"]["sleep"]["seconds"])
        self.ready_path = str(probe["httpGet"]["path"])
        self.ready_period = float(probe["periodSeconds"])
        lines = (BASE / "shoal.env").read_text(encoding="utf-8").splitlines()
        self.environment = dict(re.findall(r"^(SHOAL_\w+)=(.*)$", "\n".join(lines), re.MULTILINE))


class Pod:
    """A process of the service, which takes the place of a pod."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    @classmethod
    async def ready(cls, manifest: Manifest) -> Pod:
        """Start a process, and wait until the readiness probe of the process passes."""
        port = free_port()
        settings = {
            "SHOAL_LOG_LEVEL": "warning",
            "SHOAL_DEVICE": "cpu",
            "SHOAL_DECODE_PROCESSES": "2",
            "SHOAL_PORT": str(port),
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service"),
            cwd=ROOT,
            env={**os.environ, **manifest.environment, **settings},
            stdout=asyncio.subprocess.DEVNULL,
        )
        pod = cls(process, port)
        url = f"http://127.0.0.1:{port}{manifest.ready_path}"
        while (await asyncio.to_thread(ask, url))[0] != 200:
            if process.returncode is not None:
                raise SystemExit(f"a pod ended with {process.returncode} before it was ready")
            await asyncio.sleep(manifest.ready_period)
        return pod


class Nginx:
    """An nginx that takes the place of a Service. The servers of nginx are the endpoints."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    @contextlib.asynccontextmanager
    async def serving(self, pods: list[Pod]) -> AsyncIterator[None]:
        self._write(pods)
        program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            raise SystemExit("nginx is not installed. On Debian: apt-get install nginx-light")
        self._process = await asyncio.create_subprocess_exec(
            program, "-p", self._folder, "-c", self._folder / "nginx.conf"
        )
        try:
            await asyncio.sleep(1)
            yield
        finally:
            self._process.terminate()
            await self._process.wait()

    def route_to(self, pods: list[Pod]) -> None:
        """Send new connections to these pods. Requests in flight are not affected."""
        assert self._process is not None
        self._write(pods)
        self._process.send_signal(1)  # SIGHUP: read the configuration again

    def errors(self) -> str:
        log = self._folder / "error.log"
        return log.read_text(encoding="utf-8") if log.exists() else ""

    def _write(self, pods: list[Pod]) -> None:
        # With max_fails=0, nginx continues to use a server after failures, so no failure is hidden.
        servers = "\n".join(f"        server 127.0.0.1:{pod.port} max_fails=0;" for pod in pods)
        text = NGINX.format(folder=self._folder, servers=servers, port=self.port)
        (self._folder / "nginx.conf").write_text(text, encoding="utf-8")


async def stop(manifest: Manifest, nginx: Nginx, old: Pod, rest: list[Pod], unheard: float) -> None:
    """Stop a pod as Kubernetes does: the endpoint and the process are stopped independently."""

    async def endpoint() -> None:
        await asyncio.sleep(unheard)
        nginx.route_to(rest)

    async def kubelet() -> None:
        async with asyncio.timeout(manifest.grace):
            await asyncio.sleep(manifest.pre_stop)
            old.process.terminate()
            status = await old.process.wait()
        if status != 0:
            raise SystemExit(f"a pod exited with {status} instead of 0")

    began = time.monotonic()
    await asyncio.gather(endpoint(), kubelet())
    took = time.monotonic() - began
    print(f"  a pod exited with 0, {took:.1f} s after its stop began", flush=True)


async def rehearse(requests: int, unheard: float) -> bool:
    manifest = Manifest()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        pods = [await Pod.ready(manifest) for _ in range(2)]
        nginx = Nginx(folder)
        try:
            async with nginx.serving(pods):
                load = Load(f"http://127.0.0.1:{nginx.port}/predict", made_up_picture(), CLIENTS)
                asking = asyncio.create_task(load.run())
                began, updates = time.monotonic(), 0
                while updates == 0 or load.answered < requests:
                    updates += 1
                    print(f"update {updates}: {load.answered:,} requests succeeded", flush=True)
                    for old in list(pods):
                        pods.append(await Pod.ready(manifest))
                        nginx.route_to(pods)
                        pods.remove(old)
                        await stop(manifest, nginx, old, pods, unheard)
                load.stop()
                await asking
        finally:
            for pod in pods:
                pod.process.kill()
                await pod.process.wait()
        seconds = time.monotonic() - began
        order = sorted(load.seconds)
        report = {
            "requests": load.answered + sum(load.lost.values()),
            "answered": load.answered,
            "lost": dict(load.lost),
            "updates": updates,
            "pods_replaced": 2 * updates,
            "seconds": round(seconds, 1),
            "requests_a_second": round(load.answered / seconds),
            "latency_ms": {
                f"p{q}": round(1e3 * order[int(len(order) * q / 100)], 1) for q in (50, 99)
            }
            | {"max": round(1e3 * order[-1], 1)},
        }
        print(json.dumps(report, indent=1))
        if load.lost:
            print(nginx.errors()[-3000:], file=sys.stderr)
        return not load.lost


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--requests",
        type=int,
        default=20_000,
        help="minimum number of requests (default: %(default)s)",
    )
    parser.add_argument(
        "--unheard",
        type=float,
        default=2.0,
        help="seconds after which nginx removes a stopping pod (default: %(default)s)",
    )
    options = parser.parse_args()
    whole = asyncio.wait_for(rehearse(options.requests, options.unheard), MAX_SECONDS)
    sys.exit(0 if asyncio.run(whole) else 1)
