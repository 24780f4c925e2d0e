"""References between objects of the manifests, which neither schemas nor the API server check."""

from __future__ import annotations

import pytest

from tests.k8s.manifests import (
    COMBINATIONS,
    K8S,
    Object,
    container_of,
    load,
    of_kind,
    pod_of,
    rendered,
)

every_combination = pytest.mark.parametrize("combination", COMBINATIONS)
SUPPORTED = {
    "gpu": [("5", None), ("6", None), ("7", None), ("8", None)],
    "onnx-gpu": [("8", None), ("9", None), ("12", None), ("7", "5")],
}
"""Compute capabilities, major and minor, that the backend of an overlay has machine code for:
docs/backends.md. None: all minor ones."""


def labels_of_pod(objects: list[Object]) -> dict[str, str]:
    [maker] = of_kind(objects, "Deployment", "InferenceService")
    labels: dict[str, str] = (
        maker["spec"]["template"]["metadata"]["labels"]
        if maker["kind"] == "Deployment"
        else maker["spec"]["predictor"]["labels"]
    )
    return labels


@every_combination
def test_objects_are_in_one_namespace(combination: str) -> None:
    """All objects with a namespace are in the same one, which exists."""
    objects = rendered(combination)
    [namespace] = of_kind(objects, "Namespace")
    used = {o["metadata"]["namespace"] for o in objects if o["kind"] != "Namespace"}
    assert used == {namespace["metadata"]["name"]}


@every_combination
def test_selectors_select_the_pod(combination: str) -> None:
    """Every selector matches the labels of the serving pod."""
    objects = rendered(combination)
    labels = labels_of_pod(objects).items()
    for o in of_kind(objects, "Deployment", "PodDisruptionBudget"):
        assert o["spec"]["selector"]["matchLabels"].items() <= labels
    for policy in of_kind(objects, "NetworkPolicy"):
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels
    for service in of_kind(objects, "Service"):
        assert service["spec"]["selector"].items() <= labels
    for spread in pod_of(objects)["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"].items() <= labels


@every_combination
def test_port_names_exist(combination: str) -> None:
    """Ports that are used by name are ports of the container."""
    objects = rendered(combination)
    names = {port["name"] for port in container_of(objects)["ports"]}
    services = of_kind(objects, "Service")
    for service in services:
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for policy in of_kind(objects, "NetworkPolicy"):
        assert {p["port"] for rule in policy["spec"]["ingress"] for p in rule["ports"]} <= names
    for monitor in of_kind(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [s for s in services if wanted <= s["metadata"]["labels"].items()]
        ports = {port["name"] for s in found for port in s["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports


@every_combination
def test_routes_lead_to_the_service(combination: str) -> None:
    """Routes of the Gateway name a Service and a port that exist."""
    objects = rendered(combination)
    served = {
        (s["metadata"]["name"], port["port"])
        for s in of_kind(objects, "Service")
        for port in s["spec"]["ports"]
    }
    gateways = {o["metadata"]["name"] for o in of_kind(objects, "Gateway")}
    for route in of_kind(objects, "HTTPRoute"):
        assert {parent["name"] for parent in route["spec"]["parentRefs"]} <= gateways
        backends = [b for rule in route["spec"]["rules"] for b in rule["backendRefs"]]
        assert {(b["name"], b["port"]) for b in backends} <= served


@every_combination
def test_deployment_has_one_autoscaler(combination: str) -> None:
    """One autoscaler scales an existing object, and nothing else sets the number of pods."""
    objects = rendered(combination)
    scalers = of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject")
    deployments = of_kind(objects, "Deployment")
    assert len(scalers) == len(deployments)  # KServe brings its own
    for scaler, deployment in zip(scalers, deployments, strict=True):
        assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
        assert "replicas" not in deployment["spec"]
        least, most = (
            scaler["spec"].get(f"{bound}Replicas") or scaler["spec"].get(f"{bound}ReplicaCount")
            for bound in ("min", "max")
        )
        assert 2 <= least < most, "one pod is no service: it is away while it is replaced"


@every_combination
def test_volumes_match_mounts(combination: str) -> None:
    """Each mount has a volume, each volume has a mount, and claims exist."""
    objects = rendered(combination)
    pod, container = pod_of(objects), container_of(objects)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    claims = {o["metadata"]["name"] for o in of_kind(objects, "PersistentVolumeClaim")}
    used = [v["persistentVolumeClaim"] for v in volumes.values() if "persistentVolumeClaim" in v]
    assert {claim["claimName"] for claim in used} == claims


@every_combination
def test_pod_is_restricted(combination: str) -> None:
    """The pod has the restricted profile of Kubernetes, a read-only root and no token."""
    assert_restricted(pod_of(rendered(combination)))


def test_fill_pod_is_restricted() -> None:
    """The pod that fills the store is restricted, runs the overlay's image and mounts the claim."""
    component = K8S / "components/model-store"
    [fill] = load((component / "fill.yaml").read_text())
    [claim] = load((component / "claim.yaml").read_text())
    assert_restricted(fill["spec"])
    assert fill["spec"]["containers"][0]["image"] == container_of(rendered("cpu gateway"))["image"]
    assert claim["metadata"]["name"] in str(fill["spec"]["volumes"])


def assert_restricted(pod: Object) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False, "SHOAL_PORT would be an address"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        name, _, tag = container["image"].rpartition(":")
        assert name and tag not in ("", "latest")


@every_combination
def test_rollouts_suit_the_nodes(combination: str) -> None:
    """On CPU nodes a new pod starts first. On GPU nodes an old one stops first, to free its GPU."""
    [maker] = of_kind(rendered(combination), "Deployment", "InferenceService")
    strategy = maker["spec"].get("strategy") or maker["spec"]["predictor"]["deploymentStrategy"]
    surge, away = (1, 0) if combination.startswith("cpu") else (0, 1)
    assert strategy["rollingUpdate"] == {"maxSurge": surge, "maxUnavailable": away}


@every_combination
def test_gpus_have_a_served_generation(combination: str) -> None:
    """A pod has no GPU, or one GPU of a generation for which the backend has code."""
    objects = rendered(combination)
    limits, pod = container_of(objects)["resources"]["limits"], pod_of(objects)
    if combination.startswith("cpu"):
        assert "nvidia.com/gpu" not in limits and "tolerations" not in pod
        return
    assert limits["nvidia.com/gpu"] == 1
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    affinity = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    selected = []
    for term in affinity["nodeSelectorTerms"]:
        major, *minor = term["matchExpressions"]
        assert major["key"] == "nvidia.com/gpu.compute.major"
        assert all(label["key"] == "nvidia.com/gpu.compute.minor" for label in minor)
        minors = minor[0]["values"] if minor else [None]
        selected += [(one, other) for one in major["values"] for other in minors]
    assert selected == SUPPORTED[combination.split()[0]]
