"""Alerts, dashboard and autoscalers ask for metrics that the service has."""

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
    """Every query of ours, with the name of who asks."""
    yield from ((alert["alert"], alert["expr"]) for alert in alerts())
    yield from dashboard_queries()
    for rule in adapter_rules():
        yield from ((rule["name"]["as"], rule[key]) for key in ("seriesQuery", "metricsQuery"))
    [scaled] = load((COMPONENTS / "keda/scaledobject.yaml").read_text())
    for trigger in scaled["spec"]["triggers"]:
        yield "keda", trigger["metadata"]["query"]


@pytest.fixture(scope="module")
def told() -> set[str]:
    """Names of all samples that the service can tell."""

    async def text() -> str:
        async with connected(Settings(), FakeEngine()) as client:
            return (await client.get("/metrics")).text

    families = text_string_to_metric_families(asyncio.run(text()))
    return {
        family.name + ending for family in families for ending in ENDINGS.get(family.type, ("",))
    }


@pytest.mark.parametrize(("who", "query"), list(queries()), ids=lambda value: value[:20])
def test_metrics_exist(told: set[str], who: str, query: str) -> None:
    asked = set(re.findall(r"\b(?:shoal|process)_[a-z_]+\b", query)) - {"shoal"}
    assert asked <= told or who == "datasource"
    assert asked or who == "datasource"


@pytest.mark.parametrize(("who", "query"), list(queries()), ids=lambda value: value[:20])
def test_labels_exist(who: str, query: str) -> None:
    """Codes, routes and stages that a query picks are ones that the service uses."""
    codes = {problem.code for problem in problems.PROBLEMS.values()}
    for known, label in ((codes, "code"), ({"/predict"}, "route"), ({"queue"}, "stage")):
        for value in re.findall(rf'{label}=~?"([^"]+)"', query):
            assert set(value.split("|")) <= known
    assert query.count("(") == query.count(")") and query.count("{") == query.count("}")


def test_the_autoscaler_asks_for_what_the_adapter_has() -> None:
    [scaler] = load((COMPONENTS / "autoscale-queue/autoscaler.yaml").read_text())
    asked = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]}
    assert asked == {rule["name"]["as"] for rule in adapter_rules()}


def test_every_alert_says_what_to_do() -> None:
    """Its summary is in the message, and the guide has a line on it."""
    guide = (K8S.parent / "docs/deployment.md").read_text()
    for alert in alerts():
        assert alert["annotations"]["summary"] and alert["labels"]["severity"]
        assert f"`{alert['alert']}`" in guide
