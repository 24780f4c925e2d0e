"""Runs a container image as the manifests run it, and checks what the manifests require.

    python3 k8s/check_image.py IMAGE [--docker podman] [--photos FOLDER]

The container has a read-only root, no capabilities, no new privileges, a memory limit and a small
/tmp. It must run as the manifests' user, become ready, pass its HEALTHCHECK and classify pictures.
If the container is stopped under load, it must respond to all requests and exit with 0. The script
exits with 1 if one of these checks fails. The script uses the standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import socket
import subprocess
import sys
import time

from load import Load, ask, made_up_picture, photos

NAME = "shoal-check-image"
CLIENTS = 16
LARGEST = 600_000_000
"""Maximum size of the unpacked CPU image, in bytes."""
LIMITS = [
    *("--read-only", "--tmpfs", "/tmp:rw,noexec,nosuid,nodev,size=16m"),  # noqa: S108
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "512"),
    *("--memory", "1536m", "--cpus", "2"),
]
DRAIN_DELAY = 2.0
STILL_ROUTED = 1.0
"""Seconds after the stop in which clients still send requests, as behind a load balancer."""


class Check:
    """Runs the checks of one image, and records whether a check failed."""

    def __init__(self, docker: str, image: str) -> None:
        """
        Args:
            docker: Command of the container engine, `docker` or `podman`.
            image: Name and tag of the image.
        """
        self.image = image
        self._docker = docker
        self.failed = False

    def docker(self, *arguments: str) -> str:
        run = subprocess.run(  # noqa: S603
            [self._docker, *arguments], capture_output=True, text=True, timeout=120
        )
        if run.returncode:
            raise SystemExit(f"{self._docker} {arguments[0]}: {run.stderr.strip()}")
        return run.stdout.strip()

    def expect(self, passed: bool, message: str) -> None:
        """Print the result of a check, and record a failure."""
        print(f"{'ok    ' if passed else 'FAILED'} {message}", flush=True)
        self.failed = self.failed or not passed


def check(image: str, docker: str, folder: pathlib.Path | None) -> bool:
    it = Check(docker, image)
    layers = it.docker("history", "--format", "{{.Size}}\t{{.CreatedBy}}", image)
    print("\n".join(line[:110] for line in layers.splitlines() if not line.startswith("0B")))
    size = int(it.docker("image", "inspect", "--format", "{{.Size}}", image))
    it.expect(size < LARGEST, f"{size / 1e6:.0f} MB unpacked, less than {LARGEST / 1e6:.0f}")

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    settings = {"SHOAL_HOST": "127.0.0.1", "SHOAL_PORT": port, "SHOAL_DRAIN_DELAY": DRAIN_DELAY}
    environment = [f"--env={name}={value}" for name, value in settings.items()]
    began = time.monotonic()
    # With the host's network, no proxy accepts connections that the server would reject.
    it.docker("run", "--detach", "--name", NAME, "--network", "host", *LIMITS, *environment, image)
    try:
        _running(it, url, began, folder)
    finally:
        state = subprocess.run(  # noqa: S603
            [docker, "logs", "--tail", "5", NAME], capture_output=True, text=True, timeout=60
        )
        print(state.stdout + state.stderr)
        it.docker("rm", "--force", NAME)
    return not it.failed


def _running(it: Check, url: str, began: float, folder: pathlib.Path | None) -> None:
    status = 0
    while status != 200 and time.monotonic() < began + 60:
        status, answer = ask(f"{url}/readyz")
        time.sleep(0.05)
    it.expect(status == 200, f"ready after {time.monotonic() - began:.1f} s: {answer[:90]}")

    python = it.docker("exec", NAME, "python", "-c", PROBE)
    seen = json.loads(python)
    it.expect(seen["uid"] == seen["gid"] == 10001, f"runs as {seen['uid']}:{seen['gid']}")
    it.expect(
        not seen["writable"], f"can write to {seen['writable'] or 'nothing'} in addition to /tmp"
    )
    it.expect(not seen["there"], f"contains {seen['there'] or 'no compiler, pip or tests'}")
    it.expect(seen["status"]["CapEff"] == "0" * 16, "has no capabilities")
    it.expect(seen["status"]["NoNewPrivs"] == "1", "cannot gain privileges")
    print(f"       {seen['status']['VmRSS']} resident, {seen['status']['Threads']} threads, idle")
    health = it.docker(
        "image", "inspect", "--format", "{{json .Config.Healthcheck.Test}}", it.image
    )
    it.docker("exec", NAME, *json.loads(health)[1:])  # a failure ends this script
    it.expect(True, "passes its HEALTHCHECK")

    for name, picture in photos(folder).items():
        status, sentence = ask(f"{url}/predict", picture)
        it.expect(status == 200 and sentence.startswith("The input"), f"{name}: {sentence[:90]}")
    asyncio.run(_stopped_under_load(it, url))


async def _stopped_under_load(it: Check, url: str) -> None:
    load = Load(f"{url}/predict", made_up_picture(), CLIENTS)
    asking = asyncio.create_task(load.run())
    await asyncio.sleep(3)
    before = load.answered
    peak = await asyncio.to_thread(it.docker, "exec", NAME, "grep", "VmHWM", "/proc/1/status")
    print(f"       {peak.split(':')[1].strip()} resident at most, under load")
    stop = asyncio.create_task(asyncio.to_thread(it.docker, "stop", "-t", "60", NAME))
    began = time.monotonic()
    await asyncio.sleep(STILL_ROUTED)
    load.stop()
    await asking
    await stop
    took = time.monotonic() - began
    code = it.docker("inspect", "--format", "{{.State.ExitCode}}", NAME)
    after = load.answered - before
    it.expect(
        not load.lost and after > 0,
        f"{before} requests succeeded before SIGTERM, {after} after it, lost: {dict(load.lost)}",
    )
    it.expect(code == "0", f"stopped in {took:.1f} s with exit code {code}")


PROBE = """
import importlib.util, json, os, shutil
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
tools = [name for name in ("cc", "gcc", "ld", "pip", "uv") if shutil.which(name)]
find = importlib.util.find_spec
modules = [name for name in ("pip", "setuptools", "tests", "pytest") if find(name)]
def writes(folder):
    try:
        open(os.path.join(folder, "written"), "w").close()
    except OSError:
        return False
    return True
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "there": tools + modules,
    "writable": [folder for folder in ("/", "/app", "/opt/shoal") if writes(folder)],
    "status": {name: status[name].strip() for name in ("CapEff", "NoNewPrivs", "VmRSS", "Threads")},
}))
"""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image")
    parser.add_argument(
        "--docker",
        default="docker",
        help="command of the container engine, docker or podman (default: %(default)s)",
    )
    parser.add_argument(
        "--photos",
        type=pathlib.Path,
        help="folder of photographs, named horse*.jpg and dog*.jpg (default: a drawn picture)",
    )
    options = parser.parse_args()
    sys.exit(0 if check(options.image, options.docker, options.photos) else 1)
