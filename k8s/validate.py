"""Validates rendered manifests against the schemas of Kubernetes and of operators.

    python k8s/validate.py VERSION[,VERSION...] FILE...

Unknown fields and unknown kinds are errors. Kubernetes' own objects are validated against each
version of Kubernetes. Objects of KEDA and the Prometheus operator are validated against published
models. An InferenceService is validated against KServe's list of fields, and the pod in it against
Kubernetes. No Python package has a schema of the Gateway API, so tests/k8s checks only the
references of such objects. k8s/check installs the required packages and runs this script.
"""

from __future__ import annotations

import ast
import importlib.metadata
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as monitoring
from pydantic import ValidationError

Object = dict[str, Any]

MODELS = {
    ("keda.sh/v1alpha1", "ScaledObject"): keda.ScaledObject,
    ("monitoring.coreos.com/v1", "PrometheusRule"): monitoring.PrometheusRule,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): monitoring.ServiceMonitor,
}
WITHOUT_SCHEMA = {
    ("gateway.networking.k8s.io/v1", "Gateway"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
}
KSERVE = ("serving.kserve.io/v1beta1", "InferenceService")


def faults(manifest: Object, version: str) -> Iterator[str]:
    kind = manifest["apiVersion"], manifest["kind"]
    if kind in WITHOUT_SCHEMA:
        return
    if kind in MODELS:
        yield from _model_faults(MODELS[kind], manifest)
    elif kind == KSERVE:
        yield from _kserve_faults(manifest, version)
    else:
        yield from _schema_faults(manifest, version)


def _schema_faults(manifest: Object, version: str) -> Iterator[str]:
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        yield f"Kubernetes {version} has no {manifest['apiVersion']} {manifest['kind']}"


def _model_faults(model: Any, manifest: Object) -> Iterator[str]:
    try:
        model.model_validate(manifest, extra="forbid")
    except ValidationError as error:
        yield from (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


def _kserve_faults(manifest: Object, version: str) -> Iterator[str]:
    predictor = manifest["spec"]["predictor"]
    kserves = _kserve_fields("ComponentExtensionSpec")
    known = _kserve_fields("PredictorSpec")
    yield from (f"spec.predictor.{field}: unknown" for field in predictor.keys() - known)
    pod = {field: value for field, value in predictor.items() if field not in kserves}
    yield from _schema_faults({"apiVersion": "v1", "kind": "Pod", "spec": pod}, version)


def _kserve_fields(model: str) -> set[str]:
    """Read the fields from KServe's source code, because importing it needs 1 GB of packages."""
    ending = "v1beta1_" + "".join(f"_{c.lower()}" if c.isupper() else c for c in model)[1:] + ".py"
    [file] = [f for f in importlib.metadata.files("kserve") or () if f.name == ending]
    for node in ast.walk(ast.parse(pathlib.Path(file.locate()).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "attribute_map":
            return set(ast.literal_eval(node.value).values())
    raise LookupError(f"no fields in {file}")


def main(versions: str, *files: str) -> int:
    bad = checked = 0
    for name in files:
        path = pathlib.Path(name)
        for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            for version in versions.split(","):
                checked += 1
                for fault in faults(manifest, version):
                    bad += 1
                    print(f"{path.stem}: {manifest['kind']} (Kubernetes {version}): {fault}")
    print(f"{len(files)} renderings, {checked} objects checked, {bad} faults")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
