"""The dashboard beside its pages: `POST /predict` and `GET /health` for programs, and what the pipeline wrote."""

from __future__ import annotations

import functools
from http import HTTPStatus
from typing import Any

import address
import pandas as pd
from flask import Flask, Response, abort, jsonify, request
from layout import WHAT_TO_RUN
from serving import Follower, Snapshot

from workshop.data import prediction_requests
from workshop.data.schema import STAMP, TARGETS
from workshop.errors import DataError, ModelError

WRITTEN = "sandbox allow-popups; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
EXAMPLE = '{"rows": [{"utc_timestamp": "2016-06-01T12:00:00Z", "windspeed": 5.2, ...}]}'


def register(server: Flask, serving: Follower) -> None:
    """Add the routes; both answer from what is already loaded."""
    server.json.dumps = functools.partial(server.json.dumps, allow_nan=False)  # NaN is not JSON

    @server.get("/health")
    def health() -> Response:
        """Answer at once, whatever the registry does."""
        served = serving.now
        return jsonify(
            status="ok",
            version=served.production.version if served.production else None,
            learned_from=served.production.learned_from if served.production else None,
            data=served.frame is not None,
            troubles=sorted(served.troubles),
        )

    @server.get("/results/<any(report, validation):name>.html")
    def results(name: str) -> Response:
        """Show a page that the pipeline has written, with a link back."""
        try:
            text = (serving.data_file.parents[1] / "results" / f"{name}.html").read_text()
        except FileNotFoundError:
            abort(HTTPStatus.NOT_FOUND, f"the pipeline has not written {name}.html yet; run {WHAT_TO_RUN}")
        back = f'<body><nav><a href="{address.link("/")}">← Dashboard</a></nav>'
        return Response(text.replace("<body>", back, 1), headers={"Content-Security-Policy": WRITTEN})

    @server.post("/predict")
    def predict() -> tuple[Response, int]:
        """Return GW for each row of weather, and the version of the model."""
        body, served = request.get_json(), serving.now
        if not isinstance(body, dict) or body.keys() != {"rows"}:
            reason = "The body is not a JSON object with the key `rows` alone."
            return _refusal(HTTPStatus.BAD_REQUEST, reason, expected=EXAMPLE)
        try:
            rows = prediction_requests.from_records(body["rows"])
            if served.model is None:
                return _no_model(served)
            return jsonify(_answer(served, rows)), HTTPStatus.OK
        except (DataError, ModelError) as error:
            is_data = isinstance(error, DataError)
            status = HTTPStatus.UNPROCESSABLE_ENTITY if is_data else HTTPStatus.INTERNAL_SERVER_ERROR
            value = error.value if error.value is None else "; ".join(map(str.strip, str(error.value).splitlines()))
            return _refusal(status, error.what, found=value, expected=error.expected, next=error.next_step)


def _answer(served: Snapshot, rows: pd.DataFrame) -> dict[str, Any]:
    predicted, band = served.predict_with_band(rows)
    columns = {"utc_timestamp": [f"{stamp:{STAMP}}" for stamp in rows["utc_timestamp"]]}
    columns |= {target: predicted[target].tolist() for target in TARGETS}
    for end, values in zip(("low", "high"), band or (), strict=False):
        columns |= {f"{target}_{end}": values[target].tolist() for target in TARGETS}
    production = served.production
    return {
        "model": {name: getattr(production, name) for name in ("name", "version", "run_id", "learned_from")},
        "coverage": served.model.coverage,
        "rows": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    }


def _no_model(served: Snapshot) -> tuple[Response, int]:
    what, next_step = "The model is being loaded.", "ask again in a few seconds"
    if "model" in served.troubles:
        what, next_step = served.troubles["model"].why, "workshop doctor"
    elif served.looked:
        what, next_step = "No model is in production yet.", WHAT_TO_RUN.replace("`", "")
    return _refusal(HTTPStatus.SERVICE_UNAVAILABLE, what, next=next_step)


def _refusal(status: HTTPStatus, what: str, **details: object) -> tuple[Response, int]:
    return jsonify(error=what, **{name: str(value) for name, value in details.items() if value is not None}), status
