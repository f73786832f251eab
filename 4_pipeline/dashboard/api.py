"""The HTTP API (`/predict`, `/health` and `/metrics`) and the route of the weekly report."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from http import HTTPStatus

from flask import Flask, Response, abort, jsonify, request
from forecast import problem
from forecast.govern.gate import source_of
from forecast.show import monitoring
from forecast.table import features
from forecast.terms import steps
from forecast.terms.errors import DataError, ModelError
from werkzeug.exceptions import BadRequest

from . import address, predictions, requests
from .follower import Comparison, Follower, Snapshot
from .layout import WHAT_TO_RUN

POLICY = "sandbox allow-popups; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MEASURES = {  # attribute of `monitoring.Quality` -> metric name and description
    "mae": ("model_mae", "Mean absolute error in the unit of the target"),
    "bias_percent": ("model_bias_percent", "Bias in percent of the measured mean"),
    "coverage": ("model_inside", f"Share of the {steps.NAMES} within the error band"),
}
EXAMPLE = {"utc_timestamp": requests.EXAMPLE} | {each.name: each.slider.first for each in problem.INPUTS}


def register(server: Flask, follower: Follower) -> None:
    """Register the routes of the API; none of them waits for MLflow."""
    dumps = functools.partial(server.json.dumps, allow_nan=False)  # NaN is not valid JSON
    server.json.dumps = dumps  # type: ignore[method-assign] # for this server only

    @server.get("/health")
    def health() -> Response:
        """Return the dashboard's status and current faults, even while the registry is down."""
        snapshot = follower.now
        production = snapshot.champion.production if snapshot.champion else None
        return jsonify(
            status="ok",
            version=production and production.version,
            learned_from=source_of(production),
            data=snapshot.frame is not None,
            state=snapshot.comparison and snapshot.comparison.state,
            faults=sorted(snapshot.faults),
        )

    @server.get("/metrics")
    def metrics() -> Response:
        """Return the state and quality of the latest predictions in the Prometheus format."""
        return Response("\n".join(_metrics(follower.now.comparison)) + "\n", mimetype="text/plain; version=0.0.4")

    @server.get("/results/report.html")
    def report() -> Response:
        """Return the weekly report with a link to the dashboard."""
        try:
            text = (follower.data_file.parents[1] / "results" / "report.html").read_text()
        except FileNotFoundError:
            abort(HTTPStatus.NOT_FOUND, f"there is no report.html yet; run {WHAT_TO_RUN}")
        back = f'<body><nav><a href="{address.link("/")}">← Dashboard</a></nav>'
        return Response(text.replace("<body>", back, 1), headers={"Content-Security-Policy": POLICY})

    @server.post("/predict")
    def predict() -> tuple[Response, int]:
        """Return predictions for rows of inputs, and the version of the model."""
        return _predict(follower)


def _predict(follower: Follower) -> tuple[Response, int]:
    example, next_step = json.dumps({"rows": [EXAMPLE]}), "send the rows in the form of the example"
    if not request.is_json:
        status, content_type = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, request.content_type or "no Content-Type"
        next_step = "send this header with a body such as " + example
        return _error(status, "Content-Type is not JSON.", content_type, "Content-Type: application/json", next_step)
    try:
        body, snapshot = request.get_json(), follower.now
    except BadRequest as error:
        value = getattr(error.__cause__, "description", None)
        return _error(HTTPStatus.BAD_REQUEST, "The body is not valid JSON.", value, example, next_step)
    if not isinstance(body, dict) or body.keys() != {"rows"}:
        value = f"keys {', '.join(body)}"[:200] if isinstance(body, dict) else f"{body!r:.40}"
        reason = "The body must be a JSON object with `rows` as its only key."
        return _error(HTTPStatus.BAD_REQUEST, reason, value, example, next_step)
    try:
        rows = requests.from_records(body["rows"])
        if snapshot.champion is None:
            return _no_model(snapshot)
        champion, production = snapshot.champion, snapshot.champion.production
        rows, origin = features.assume_capacity(rows, champion.year_ends)
        table = predictions.table(rows[["utc_timestamp"]], *champion.predict_with_band(rows))
        model = {name: getattr(production, name) for name in ("name", "version", "run_id")}
        return jsonify(
            model=model | {"learned_from": source_of(production)},
            coverage=champion.model.coverage,
            rows=table.assign(capacity=origin).to_dict("records"),
        ), HTTPStatus.OK
    except (DataError, ModelError) as error:
        is_data = isinstance(error, DataError)
        status = HTTPStatus.UNPROCESSABLE_ENTITY if is_data else HTTPStatus.INTERNAL_SERVER_ERROR
        value = error.value if error.value is None else "; ".join(map(str.strip, str(error.value).splitlines()))
        return _error(status, error.what, value, error.expected, error.next_step)


def _metrics(comparison: Comparison | None) -> Iterator[str]:
    """Yield lines of the Prometheus text format: https://prometheus.io/docs/instrumenting/exposition_formats/."""
    yield f"# HELP model_state State of the latest predictions, an index into the list {', '.join(monitoring.STATES)}."
    yield "# TYPE model_state gauge"
    if comparison:
        yield f"model_state {monitoring.STATES.index(comparison.state)}"
    for measure, (name, meaning) in MEASURES.items():
        yield f"# HELP {name} {meaning} over the latest {monitoring.WINDOW_DAYS} days."
        yield f"# TYPE {name} gauge"
        for quality in comparison.latest if comparison else []:
            yield f'{name}{{target="{quality.target.key}"}} {getattr(quality, measure)}'


def _no_model(snapshot: Snapshot) -> tuple[Response, int]:
    what, next_step = "The model is being loaded.", "retry in a few seconds"
    if "model" in snapshot.faults:
        what, next_step = snapshot.faults["model"].why, "mlflow-gate status"
    elif snapshot.is_ready:
        what, next_step = snapshot.missing("champion"), WHAT_TO_RUN.replace("`", "")
    return _error(HTTPStatus.SERVICE_UNAVAILABLE, what, next_step=next_step)


def _error(
    status: HTTPStatus, what: str, value: object = None, expected: object = None, next_step: object = None
) -> tuple[Response, int]:
    details = {"found": value, "expected": expected, "next": next_step}
    return jsonify(error=what, **{name: str(value) for name, value in details.items() if value is not None}), status
