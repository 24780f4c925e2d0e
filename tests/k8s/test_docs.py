"""docs/deployment.md and k8s/combinations.txt agree."""

from __future__ import annotations

import re

from tests.k8s.manifests import K8S, ROOT

GUIDE = (ROOT / "docs/deployment.md").read_text()
CHECKED = [
    tuple(line.split())
    for line in (K8S / "combinations.txt").read_text().splitlines()
    if not line.startswith("#")
]


def test_combinations_of_the_guide_are_checked() -> None:
    """k8s/check checks every combination that the guide renders."""
    named = re.findall(
        r"k8s/render ((?:cpu|gpu|onnx-gpu)\b[ a-z-]*?)(?: \||`|$)", GUIDE, re.MULTILINE
    )
    assert named and {tuple(combination.split()) for combination in named} <= set(CHECKED)


def test_components_are_explained_and_checked() -> None:
    """The guide describes every component, and k8s/check checks it."""
    components = {path.name for path in (K8S / "components").iterdir()}
    assert components == {name for _, *rest in CHECKED for name in rest}
    assert not {name for name in components if f"`{name}`" not in GUIDE}


def test_files_of_the_guide_exist() -> None:
    """Paths of the project in the guide exist."""
    named = set(re.findall(r"\b((?:k8s|docs|benchmarks)/[\w./-]*\w)", GUIDE))
    made = {path for path in named if path.startswith("k8s/overlays/mine")}  # the reader's own
    assert not {path for path in named - made if not (ROOT / path).exists()}
