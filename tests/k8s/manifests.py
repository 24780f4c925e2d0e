"""The rendered manifests of k8s/, as plain data.

`COMBINATIONS` are some that together use every file; where `SHOAL_RENDERED` names a folder with
renderings, as k8s/check makes it, all that are there.
"""

from __future__ import annotations

import functools
import os
import pathlib
import shutil
import subprocess
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
K8S = ROOT / "k8s"
RENDERED = os.environ.get("SHOAL_RENDERED")
COMBINATIONS = (
    sorted(p.stem.replace("+", " ") for p in pathlib.Path(RENDERED).glob("*pu*.yaml"))
    if RENDERED
    else [
        "cpu gateway grpc traces",
        "cpu kserve",
        "cpu load-balancer api-keys model-store monitoring autoscale-queue",
        "gpu",
        "gpu load-balancer api-keys model-store monitoring keda",
        "onnx-gpu",
    ]
)
MEBIBYTE = 2**20

Object = dict[str, Any]


def load(text: str) -> list[Object]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
    return [document for document in yaml.load_all(text, loader) if document]


@functools.cache
def rendered(combination: str) -> list[Object]:
    """The objects of an overlay with components. Skips the test if there is no kubectl."""
    if RENDERED:
        return load((pathlib.Path(RENDERED) / f"{combination.replace(' ', '+')}.yaml").read_text())
    kubectl = os.environ.get("KUBECTL") or shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl renders the manifests and is not here")
    run = subprocess.run(
        [K8S / "render", *combination.split()],
        env={**os.environ, "KUBECTL": kubectl},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.returncode == 0, run.stderr
    return load(run.stdout)


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [o for o in objects if o["kind"] in kinds]


def pod_of(objects: list[Object]) -> Object:
    """The serving pod, created by a Deployment or an InferenceService."""
    [maker] = of_kind(objects, "Deployment", "InferenceService")
    spec = maker["spec"]
    pod: Object = spec["template"]["spec"] if maker["kind"] == "Deployment" else spec["predictor"]
    return pod


def container_of(objects: list[Object]) -> Object:
    [container] = pod_of(objects)["containers"]
    found: Object = container
    return found


def environment_of(objects: list[Object]) -> dict[str, str]:
    """The container's environment variables. Its own entries override those of ConfigMaps."""
    container = container_of(objects)
    maps = {o["metadata"]["name"]: o["data"] for o in of_kind(objects, "ConfigMap")}
    environment: dict[str, str] = {}
    for source in container["envFrom"]:
        environment |= maps[source["configMapRef"]["name"]]
    for entry in container["env"]:
        resource = entry["valueFrom"]["resourceFieldRef"]["resource"]
        environment[entry["name"]] = container["resources"]["limits"][
            resource.removeprefix("limits.")
        ]
    return environment


def mebibytes(quantity: str) -> float:
    units = {"Mi": 1, "Gi": 1024}
    return float(quantity[:-2]) * units[quantity[-2:]]
