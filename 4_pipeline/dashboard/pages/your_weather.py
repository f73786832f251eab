"""Your weather: predictions for hours that the reader uploads as CSV; nothing of the file is kept."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import address
import dash_bootstrap_components as dbc
import pandas as pd
import parts
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html
from serving import Follower, Snapshot

from workshop import problem
from workshop.data import figures, prediction_requests
from workshop.data.features import INPUTS
from workshop.data.schema import RANGES, UNITS
from workshop.errors import DataError, WorkshopError

PATH, TITLE = "/your-weather", "Your weather"
LARGEST_BYTES = prediction_requests.MOST_BYTES
HIDDEN = {"display": "none"}
EXAMPLE = Path(__file__).resolve().parents[1] / "assets" / "example.csv"
MEANING = {"utc_timestamp": "start of the hour, with its zone"} | {
    given.name: given.meaning for given in problem.INPUTS
}


def page(_served: Snapshot, _query: dict[str, str]) -> list:
    """Return the page before a file is uploaded."""
    upload = dcc.Upload(
        [html.Strong("Drop a CSV file here"), html.Span("or press to choose one", className="hint")],
        id="weather-upload",
        max_size=LARGEST_BYTES,
        className="upload",
        className_active="upload over",
        className_reject="upload over",
    )
    example = html.A("Download an example file", href=address.link("/assets/example.csv"), download="weather.csv")
    limits = (
        f"At most {prediction_requests.MOST_ROWS:,} rows and {LARGEST_BYTES / 1e6:g} MB. "
        "The file is read, answered and forgotten: the server keeps nothing of it."
    )
    too_large = {"data-most": str(LARGEST_BYTES)}
    uploading = [
        html.Div(upload, className="place"),  # Dash loads the upload after the page
        html.P(id="weather-refused", className="refused", role="alert", **too_large),
        html.P(limits, className="hint"),
        html.P([parts.button("Try the example", "weather-example"), " ", example]),
    ]
    rows = [[html.Code(name), MEANING[name], UNITS[name], _allowed(name)] for name in INPUTS]
    table = parts.table(["Column", "Meaning", "Unit", "Allowed"], rows, "words")
    columns = [parts.scroll(table, "The columns of the file")]
    panels = [
        parts.panel("your-weather", "Your weather", "Upload hours of weather to get predictions.", uploading),
        parts.panel("weather-columns", "Columns of the file", "CSV in UTF-8, with commas; no cell is empty.", columns),
    ]
    return [
        html.Div(panels, className="columns"),
        dcc.Store(id="weather-predicted"),
        dcc.Download(id="weather-file"),
        # Screen readers read only this line, and not the figure below.
        html.P(id="weather-said", className="visually-hidden", role="status"),
        dcc.Loading(html.Div(id="weather-answer"), type="dot", delay_show=150, parent_className="waiting"),
        dbc.Button("Download the predictions", id="weather-download", className="download", style=HIDDEN),
    ]


def register(app: Dash, serving: Follower) -> None:
    """Answer to a file; when the model changes, predict again from what is still in the browser."""

    @app.callback(
        Output("weather-answer", "children"),
        Output("weather-said", "children"),
        Output("weather-predicted", "data"),
        Output("weather-download", "style"),
        Input("weather-upload", "contents"),
        Input("revision", "data"),
        State("weather-upload", "filename"),
        prevent_initial_call=True,
    )
    def predict(contents, _revision, filename):
        """Predict for the uploaded file."""
        if contents is None:
            return [], "", None, HIDDEN
        name = filename if isinstance(filename, str) and filename else "the file"
        try:
            content, said, predicted = answer(serving.now, prediction_requests.from_csv(decoded(contents)), name)
        except WorkshopError as error:
            content, said, predicted = fault(error, name), "", None  # screen readers read alerts by themselves
        return content, said, predicted, {} if predicted else HIDDEN

    @app.callback(
        Output("weather-upload", "contents"),
        Output("weather-upload", "filename"),
        Input("weather-example", "n_clicks"),
        prevent_initial_call=True,
    )
    def try_example(_clicks):
        """Take the example in place of a file of the reader's."""
        return f"data:text/csv;base64,{base64.b64encode(EXAMPLE.read_bytes()).decode()}", "The example"

    app.clientside_callback(
        ClientsideFunction("address", "download"),
        Output("weather-file", "data"),
        Input("weather-download", "n_clicks"),
        State("weather-predicted", "data"),
        prevent_initial_call=True,
    )


def decoded(contents: object) -> bytes:
    """Return the bytes of the data URL that `dcc.Upload` gives; raise DataError for anything else, or too much."""
    _, separator, text = contents.partition(";base64,") if isinstance(contents, str) else ("", "", "")
    if len(text) > LARGEST_BYTES * 4 / 3 + 4:
        raise DataError("The file is too large.", expected=f"at most {LARGEST_BYTES:,} bytes")
    try:
        if separator:
            return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise DataError("The file did not arrive as a browser sends it.", next_step="choose it again")


def answer(served: Snapshot, rows: pd.DataFrame, name: str) -> tuple[list, str, dict | None]:
    """Return what to show of the predictions for checked rows of weather, a line on them, and the file to download.

    Raises WorkshopError when the model cannot predict for these hours.
    """
    if served.model is None or served.production is None:
        if not served.looked:
            return [parts.banner("The model is being loaded:", "upload the file again in a few seconds.")], "", None
        return [parts.banner("No model is in production yet:", "nothing can be predicted.")], "", None
    try:
        predicted, band = served.predict_with_band(rows)
    except DataError as error:  # hours whose installed capacity is not published: not the reader's to correct
        raise DataError(error.what, value=error.value, expected=error.expected, next_step="upload such hours") from None
    version = served.production.version
    said = f"{name}: {len(rows):,} hour{'s' * (len(rows) > 1)}, by {served.production.name} version {version}."
    if unused := rows.attrs.get("unused"):
        said += f" Not used: {', '.join(unused)[:200]}."
    table = parts.predictions(rows, predicted, band, f"{served.production.name}/{version}")
    figure = figures.prediction(rows, predicted, band=band, coverage=served.model.coverage).update_layout(margin_t=44)
    graph = parts.graph("weather-figure", figure, "Predicted generation for your weather")
    panel = parts.panel("weather-predictions", "Predictions", said, [graph])
    file = {"content": table, "filename": f"predicted by version {version}.csv", "type": "text/csv"}
    return [panel], said, file


def fault(error: WorkshopError, name: str) -> list:
    """Return all that is wrong with a file: what, where, what was allowed, and what to do."""
    facts = [("Found", error.value), ("Allowed", error.expected), ("Next", error.next_step)]
    facts = [(title, html.Span(_lines(str(text)), className="lines")) for title, text in facts if text is not None]
    alert = dbc.Alert([html.Strong(f"{name} was not predicted. "), error.what, parts.facts(facts)], color="danger")
    return [html.Div(alert, id="weather-fault")]


def _lines(text: str) -> list:
    return [html.Span(line.strip()) for line in text.splitlines()]


def _allowed(name: str) -> str:
    return "{:,} to {:,}".format(*RANGES[name]) if name in RANGES else "such as 2016-06-01T12:00Z"
