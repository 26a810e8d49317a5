"""docs/telemetry.md and the Grafana dashboard against the router's own list of names."""

from __future__ import annotations

import pytest
from tests.telemetry.dashboard import labels_used, queries, samples_asked
from tests.telemetry.documented import documented_metrics

from tandem_router.telemetry.names import METRICS, Kind, prometheus_names

SAMPLES = {name: metric for metric in METRICS for name in prometheus_names(metric)}


def labels_of(name: str) -> set[str]:
    metric = SAMPLES[name]
    return {label.replace(".", "_") for label in metric.labels} | ({"le"} if metric.kind is Kind.HISTOGRAM else set())


def test_docs_list_exactly_the_metrics_that_there_are() -> None:
    there = [(prometheus_names(metric)[0].removesuffix("_bucket"), metric.kind.value) for metric in METRICS]
    assert [(metric.name, metric.kind) for metric in documented_metrics()] == there


def test_docs_list_exactly_the_labels_that_there_are() -> None:
    there = [tuple(label.replace(".", "_") for label in metric.labels) for metric in METRICS]
    assert [metric.labels for metric in documented_metrics()] == there


@pytest.mark.parametrize(("title", "query"), queries(), ids=lambda value: value[:40])
def test_a_dashboard_query_asks_for_samples_that_are_exported(title: str, query: str) -> None:
    assert samples_asked(query), f"{title} asks for nothing of ours"
    assert samples_asked(query) <= set(SAMPLES)


@pytest.mark.parametrize(("title", "query"), queries(), ids=lambda value: value[:40])
def test_a_dashboard_query_uses_labels_that_its_metric_has(title: str, query: str) -> None:
    has = set().union(*(labels_of(name) for name in samples_asked(query)))
    assert labels_used(query) <= has, title


def test_every_metric_is_on_the_dashboard() -> None:
    asked = set().union(*(samples_asked(query) for _, query in queries()))
    assert not [metric.name for metric in METRICS if not asked.intersection(prometheus_names(metric))]
