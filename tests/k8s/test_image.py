"""The Dockerfile agrees with the project. k8s/check_image.py checks the built image."""

from __future__ import annotations

import json
import re
import tomllib

from service.settings import Settings
from tests.k8s.manifests import ROOT, container_of, load, pod_of, rendered

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(name: str) -> list[str]:
    joined = re.sub(r"\\\n", " ", DOCKERFILE)
    return re.findall(rf"^{name} +(.+)$", joined, re.MULTILINE)


def test_default_target_is_for_cpus() -> None:
    """The last stage, which `docker build .` builds, is MXNet's CPU image."""
    stages = [stage.split(" AS ")[1] for stage in instructions("FROM")]
    assert stages[-5:] == ["onnx-gpu", "onnx", "mxnet", "gpu", "cpu"]


def test_entry_point_receives_signals() -> None:
    """The entry point has the exec form, so that Python is process 1 and receives signals."""
    assert [json.loads(value) for value in instructions("ENTRYPOINT")] == [
        ["python", "-m", "service"]
    ]
    assert not [value for value in instructions("CMD") if not value.startswith("[")]


def test_port_is_the_default() -> None:
    """The image exposes the default of SHOAL_PORT."""
    assert instructions("EXPOSE") == [str(Settings.model_fields["port"].default)]


def test_user_is_a_number() -> None:
    """The user is a number, is not root, and is the one in the manifests."""
    pod = pod_of(rendered("gpu"))["securityContext"]
    assert set(instructions("USER")) == {f"{pod['runAsUser']}:{pod['runAsGroup']}"}
    # Those of onnx-gpu and onnx, and the one of the stage that gpu and cpu are built from.
    assert len(instructions("USER")) == 3


def test_version_is_the_same_everywhere() -> None:
    """The project, the image's label and the manifests' tags have the same version."""
    version = PROJECT["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in DOCKERFILE
    for combination in ("gpu", "cpu gateway", "onnx-gpu"):
        target = combination.split()[0]
        assert container_of(rendered(combination))["image"] == f"shoal:{version}-{target}"


def test_dockerignore_allows_what_is_copied() -> None:
    """.dockerignore allows what the Dockerfile copies, and no tests, tools or secrets."""
    let_in = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = [
        source
        for value in instructions("COPY")
        if not value.startswith("--from")
        for source in value.split()[:-1]
    ]
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) <= set(copied)
    assert {re.sub(r"/[a-z-]+\.lock", "/*.lock", source) for source in copied} == set(let_in)
    assert all((ROOT / source).exists() for source in copied)


def test_build_needs_no_frontend_image() -> None:
    """The Dockerfile has no `# syntax=` line, which would download a parser."""
    assert "# syntax" not in DOCKERFILE


def test_workflows_are_restricted() -> None:
    """Actions are pinned by commit, and jobs declare their permissions."""
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    assert workflows
    for path in workflows:
        text = path.read_text()
        [workflow] = load(text)
        assert workflow["permissions"] == {"contents": "read"}
        assert all("timeout-minutes" in job for job in workflow["jobs"].values())
        for action in re.findall(r"uses: (\S+)", text):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", action)
