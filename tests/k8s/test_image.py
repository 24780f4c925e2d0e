"""The image's recipe agrees with the project; k8s/check_image.py looks into the image."""

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


def test_default_target() -> None:
    """The last stage is what `docker build .` makes: the one for CPUs."""
    assert [stage.split(" AS ")[1] for stage in instructions("FROM")][-2:] == ["gpu", "cpu"]


def test_entry_point() -> None:
    """Exec form, so that Python is process 1 and gets the signals."""
    assert [json.loads(value) for value in instructions("ENTRYPOINT")] == [
        ["python", "-m", "service"]
    ]
    assert not [value for value in instructions("CMD") if not value.startswith("[")]


def test_port() -> None:
    assert instructions("EXPOSE") == [str(Settings.model_fields["port"].default)]


def test_user() -> None:
    """A number and not root, and the one that the manifests name."""
    pod = pod_of(rendered("gpu"))["securityContext"]
    assert instructions("USER") == [f"{pod['runAsUser']}:{pod['runAsGroup']}"]


def test_version() -> None:
    """One version in the project, the image's label and the manifests' tags."""
    version = PROJECT["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in DOCKERFILE
    for combination, device in ("gpu", "gpu"), ("cpu gateway", "cpu"):
        assert container_of(rendered(combination))["image"] == f"shoal:{version}-{device}"


def test_what_is_copied_is_not_ignored() -> None:
    """.dockerignore lets in what the recipe copies, and no test, tool or secret."""
    let_in = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = [
        source
        for value in instructions("COPY")
        if not value.startswith("--from")
        for source in value.split()[:-1]
    ]
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) <= set(copied)
    assert {source.replace("cpu.", "*.").replace("gpu.", "*.") for source in copied} == set(let_in)
    assert all((ROOT / source).exists() for source in copied)


def test_no_frontend_to_pull() -> None:
    """`# syntax=` makes a build fetch its parser first, which fails offline."""
    assert "# syntax" not in DOCKERFILE


def test_workflows() -> None:
    """Actions are pinned by commit, and a job may do only what it says."""
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    assert workflows
    for path in workflows:
        text = path.read_text()
        [workflow] = load(text)
        assert workflow["permissions"] == {"contents": "read"}
        assert all("timeout-minutes" in job for job in workflow["jobs"].values())
        for action in re.findall(r"uses: (\S+)", text):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", action)
