"""docs/deployment.md and k8s/combinations.txt name the same things, and they are there."""

from __future__ import annotations

import re

from tests.k8s.manifests import K8S, ROOT

GUIDE = (ROOT / "docs/deployment.md").read_text()
CHECKED = [
    tuple(line.split())
    for line in (K8S / "combinations.txt").read_text().splitlines()
    if not line.startswith("#")
]


def test_what_the_guide_renders_is_checked() -> None:
    named = re.findall(r"k8s/render ((?:cpu|gpu)[ a-z-]*?)(?: \||`|$)", GUIDE, re.MULTILINE)
    assert named and {tuple(combination.split()) for combination in named} <= set(CHECKED)


def test_every_component_is_explained_and_checked() -> None:
    components = {path.name for path in (K8S / "components").iterdir()}
    assert components == {name for _, *rest in CHECKED for name in rest}
    assert not {name for name in components if f"`{name}`" not in GUIDE}


def test_files_that_the_guide_names() -> None:
    """Paths of the project in the guide lead somewhere."""
    named = set(re.findall(r"\b((?:k8s|docs|benchmarks)/[\w./-]*\w)", GUIDE))
    mine = {path for path in named if path.startswith("k8s/overlays/mine")}  # the reader's own
    assert not {path for path in named - mine if not (ROOT / path).exists()}
