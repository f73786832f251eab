"""The dashboard for programs: `POST /predict`, `GET /health`, and what both look like at `GET /openapi.json`."""

from __future__ import annotations

import functools
from http import HTTPStatus
from typing import Any

import pandas as pd
from flask import Flask, Response, jsonify, request
from guard import json_body
from layout import WHAT_TO_RUN
from serving import Served, Serving

from workshop.data import weather
from workshop.data.features import INPUTS
from workshop.data.schema import TARGETS, UNITS
from workshop.data.thresholds import RANGES
from workshop.errors import DataError, ModelError

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def register(server: Flask, serving: Serving) -> None:
    """Add the routes; none of them waits for anything but the model's own arithmetic."""
    server.json.dumps = functools.partial(server.json.dumps, allow_nan=False)  # NaN is no JSON

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

    @server.post("/predict")
    def predict() -> tuple[Response, int]:
        """Return GW for each row of weather, and which version says so."""
        if not request.is_json:
            return _refusal(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is not JSON.", next="Content-Type: application/json"
            )
        body = json_body()
        if not isinstance(body, dict) or body.keys() != {"rows"}:
            return _refusal(
                HTTPStatus.BAD_REQUEST,
                "The body is not a JSON object with the key `rows` alone.",
                expected='{"rows": [{"utc_timestamp": "2016-06-01T12:00:00Z", "windspeed": 5.2, ...}]}',
            )
        served = serving.now
        try:
            rows = weather.from_records(body["rows"])
            if served.model is None:
                what, next_step = "The model is being looked for.", "ask again in a few seconds"
                if served.looked:
                    what, next_step = "No model is in production yet.", WHAT_TO_RUN.replace("`", "")
                if "model" in served.troubles:
                    what, next_step = served.troubles["model"].why, "workshop doctor"
                return _refusal(HTTPStatus.SERVICE_UNAVAILABLE, what, next=next_step)
            return jsonify(_answer(served, rows)), HTTPStatus.OK
        except (DataError, ModelError) as error:
            found = (
                "; ".join(line.strip() for line in str(error.value).splitlines()) if error.value is not None else None
            )
            told = {"found": found, "expected": error.expected, "next": error.next_step}
            is_asked = isinstance(error, DataError)
            status = HTTPStatus.UNPROCESSABLE_ENTITY if is_asked else HTTPStatus.INTERNAL_SERVER_ERROR
            return _refusal(status, error.what, **told)

    @server.get("/openapi.json")
    def openapi() -> Response:
        """Describe these routes."""
        return jsonify(DESCRIPTION)


def _answer(served: Served, rows: pd.DataFrame) -> dict[str, Any]:
    predicted, band = served.predict_with_band(rows)
    columns = {"utc_timestamp": [f"{stamp:{TIME_FORMAT}}" for stamp in rows["utc_timestamp"]]}
    columns |= {target: predicted[target].tolist() for target in TARGETS}
    for end, values in zip(("low", "high"), band or (), strict=False):
        columns |= {f"{target}_{end}": values[target].tolist() for target in TARGETS}
    production = served.production
    return {
        "model": {name: getattr(production, name) for name in ("name", "version", "run_id", "learned_from")},
        "coverage": served.model.coverage,
        "rows": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    }


def _refusal(status: HTTPStatus, what: str, **told: object) -> tuple[Response, int]:
    return jsonify(error=what, **{name: str(value) for name, value in told.items() if value is not None}), status


# -- what it looks like ------------------------------------------------------------------------------------------------
def _object(properties: dict[str, dict], required: list[str] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def _number(unit: str, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    limits = {"minimum": least, "maximum": most}
    return {"type": "number", "description": unit} | {name: at for name, at in limits.items() if at is not None}


def _responses(*failures: HTTPStatus, **content: Any) -> dict[str, Any]:
    failed = _object({name: {"type": "string"} for name in ("error", "found", "expected", "next")}, ["error"])
    told = {"200": ("The answer.", content)} | {str(int(code)): (code.phrase, failed) for code in failures}
    return {
        code: {"description": words, "content": {"application/json": {"schema": schema}}}
        for code, (words, schema) in told.items()
    }


_TIME = {"type": "string", "format": "date-time", "description": "The start of an hour, with its zone"}
_TEXT = {"type": "string"}
_SOURCE = {"type": ["string", "null"], "description": "Whose data the model learned from"}
_WEATHER = {"utc_timestamp": _TIME} | {name: _number(UNITS[name], *RANGES[name]) for name in INPUTS[1:]}
_POWER = {name: _number("GW") for name in TARGETS}
_BAND = {f"{target}_{end}": _number("GW") for target in TARGETS for end in ("low", "high")}
_PREDICTIONS = _object(
    {
        "model": _object(dict.fromkeys(("name", "version", "run_id"), _TEXT) | {"learned_from": _SOURCE}),
        "coverage": {"type": ["number", "null"], "description": "Share of hours within low and high"},
        "rows": {
            "type": "array",
            "items": _object({"utc_timestamp": _TIME} | _POWER | _BAND, ["utc_timestamp", *TARGETS]),
        },
    }
)
_ROWS = {"type": "array", "minItems": 1, "maxItems": weather.MOST_ROWS, "items": _object(_WEATHER)}
_HEALTH = _object(
    {
        "status": {"const": "ok"},
        "version": {"type": ["string", "null"]},
        "learned_from": _SOURCE,
        "data": {"type": "boolean"},
        "troubles": {"type": "array", "items": _TEXT},
    }
)
DESCRIPTION = {
    "openapi": "3.1.0",
    "info": {"title": "Solar and wind power of Germany", "version": "1"},
    "paths": {
        "/predict": {
            "post": {
                "summary": "Predict solar and wind power for hours of weather.",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": _object({"rows": _ROWS})}},
                },
                "responses": _responses(
                    HTTPStatus.BAD_REQUEST,
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                    HTTPStatus.UNPROCESSABLE_ENTITY,
                    HTTPStatus.INTERNAL_SERVER_ERROR,
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    **_PREDICTIONS,
                ),
            }
        },
        "/health": {"get": {"summary": "Say what is served.", "responses": _responses(**_HEALTH)}},
    },
}
