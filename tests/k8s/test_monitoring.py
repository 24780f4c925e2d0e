"""Alerts, dashboard and autoscalers use metrics that the service exports."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.http import problems
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.k8s.manifests import K8S, Object, load
from tests.service.conftest import connected

COMPONENTS = K8S / "components"
ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def alerts() -> list[Object]:
    [rule] = load((COMPONENTS / "monitoring/alerts.yaml").read_text())
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]


def dashboard_queries() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((COMPONENTS / "monitoring/dashboard.json").read_text())
    for panel in dashboard["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    for variable in dashboard["templating"]["list"]:
        yield variable["name"], variable["query"]


def adapter_rules() -> list[Object]:
    [values] = load((COMPONENTS / "autoscale-queue/adapter-values.yaml").read_text())
    rules: list[Object] = values["rules"]["custom"]
    return rules


def queries() -> Iterator[tuple[str, str]]:
    """Every query, with the name of the alert, panel or autoscaler."""
    yield from ((alert["alert"], alert["expr"]) for alert in alerts())
    yield from dashboard_queries()
    for rule in adapter_rules():
        yield from ((rule["name"]["as"], rule[key]) for key in ("seriesQuery", "metricsQuery"))
    [scaled] = load((COMPONENTS / "keda/scaledobject.yaml").read_text())
    for trigger in scaled["spec"]["triggers"]:
        yield "keda", trigger["metadata"]["query"]


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Names of all samples that the service can export."""

    async def text() -> str:
        async with connected(Settings(), FakeEngine()) as client:
            return (await client.get("/metrics")).text

    families = text_string_to_metric_families(asyncio.run(text()))
    return {
        family.name + ending for family in families for ending in ENDINGS.get(family.type, ("",))
    }


@pytest.mark.parametrize(("source", "query"), list(queries()), ids=lambda value: value[:20])
def test_queries_use_existing_metrics(exported: set[str], source: str, query: str) -> None:
    asked = set(re.findall(r"\b(?:shoal|process)_[a-z_]+\b", query)) - {"shoal"}
    assert asked <= exported or source == "datasource"
    assert asked or source == "datasource"


@pytest.mark.parametrize(("source", "query"), list(queries()), ids=lambda value: value[:20])
def test_queries_use_existing_labels(source: str, query: str) -> None:
    """Codes, routes and stages in a query exist."""
    codes = {problem.code for problem in problems.PROBLEMS.values()}
    for known, label in ((codes, "code"), ({"/predict"}, "route"), ({"queue"}, "stage")):
        for value in re.findall(rf'{label}=~?"([^"]+)"', query):
            assert set(value.split("|")) <= known
    assert query.count("(") == query.count(")") and query.count("{") == query.count("}")


def test_autoscaler_uses_metrics_of_the_adapter() -> None:
    """The autoscaler's metrics are those that the adapter provides."""
    [scaler] = load((COMPONENTS / "autoscale-queue/autoscaler.yaml").read_text())
    asked = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]}
    assert asked == {rule["name"]["as"] for rule in adapter_rules()}


def test_alerts_are_explained() -> None:
    """Each alert has a summary and a severity, and the guide says what to do."""
    guide = (K8S.parent / "docs/deployment.md").read_text()
    for alert in alerts():
        assert alert["annotations"]["summary"] and alert["labels"]["severity"]
        assert f"`{alert['alert']}`" in guide
