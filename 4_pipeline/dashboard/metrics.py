"""What the dashboard counts, for Prometheus: requests, how long they took, what is served and how old it is."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from serving import Serving

PREFIX = "dashboard"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


def count(server: Flask, serving: Serving) -> None:
    """Count every request from here on, and tell at `/metrics`."""
    registry = CollectorRegistry()  # of its own: two apps in one process count apart
    requests = Counter(f"{PREFIX}_requests", "Requests answered.", ("route", "method", "status"), registry=registry)
    seconds = Histogram(f"{PREFIX}_request_seconds", "Time to answer.", ("route",), registry=registry, buckets=BUCKETS)
    registry.register(_Served(serving))

    @server.before_request
    def begin() -> None:
        g.began = time.perf_counter()

    @server.after_request
    def end(response: Response) -> Response:
        # The rule and not the path: whoever tries paths must not make the list of counters grow.
        route = request.url_rule.rule if request.url_rule else "none"
        method = request.method if request.method in ("GET", "POST", "HEAD", "OPTIONS") else "other"
        requests.labels(route, method, str(response.status_code)).inc()
        seconds.labels(route).observe(time.perf_counter() - g.get("began", time.perf_counter()))
        return response

    @server.get("/metrics")
    def metrics() -> Response:
        """Return all figures in Prometheus' text format."""
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Served(Collector):
    """Figures of what is served, read when they are asked for."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def collect(self) -> Iterator[Metric]:
        served, answered = self._serving.now, self._serving.answered
        model = InfoMetricFamily(f"{PREFIX}_model", "The version that speaks.")
        if served.production is not None:
            production = served.production
            model.add_metric([], {"name": production.name, "version": production.version, "run_id": production.run_id})
        yield model
        yield GaugeMetricFamily(
            f"{PREFIX}_registry_answer_age_seconds",
            "Time since the model registry last answered; NaN if it never did.",
            value=float("nan") if answered is None else time.monotonic() - answered,
        )
        hours = 0 if served.frame is None else len(served.frame)
        yield GaugeMetricFamily(f"{PREFIX}_data_hours", "Hours of data that are shown.", value=hours)
        troubles = GaugeMetricFamily(
            f"{PREFIX}_trouble_since_timestamp_seconds", "When a trouble began, in Unix time.", labels=("subject",)
        )
        for subject, trouble in served.troubles.items():
            troubles.add_metric([subject], trouble.since.timestamp())
        yield troubles
