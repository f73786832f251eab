"""Your inputs: predictions for the rows of an uploaded CSV file, which is not stored."""

from __future__ import annotations

import base64

import dash_bootstrap_components as dbc
import pandas as pd
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html
from dash.development.base_component import Component
from forecast import problem
from forecast.show import figures
from forecast.table.features import INPUTS, LATER_YEARS, assume_capacity, last_year
from forecast.table.schema import CAPACITIES, STAMP
from forecast.terms import steps
from forecast.terms.errors import PipelineError

from .. import parts, predictions, requests
from ..follower import Follower, Snapshot

PATH, TITLE = "/your-weather", "Your inputs"
MAX_BYTES = requests.MAX_BYTES


def page(snapshot: Snapshot, _query: dict[str, str]) -> list:
    """Return the page as it is before a file is uploaded."""
    invitation = [html.Strong("Drop a CSV file here"), html.Span("or click to choose one", className="hint")]
    over = dict.fromkeys(("className_active", "className_reject"), "upload over")
    upload = dcc.Upload(invitation, id="weather-upload", max_size=MAX_BYTES, className="upload", **over)
    link = html.A("Download an example file", href=example(snapshot), download="weather.csv")
    limits = f"At most {requests.MAX_ROWS:,} rows and {MAX_BYTES / 1e6:g} MB. The file is not stored."
    if snapshot.champion and snapshot.champion.year_ends:
        last = last_year(snapshot.champion.year_ends)
        limits += f" The installed capacity is known until the end of {last}. For the next {LATER_YEARS} years the"
        limits += " last value is assumed and marked. For other times, add the columns"
        limits += f" {' and '.join(CAPACITIES.values())}."
    uploading = [
        html.Div(upload, className="place"),  # reserves space for the upload component, which Dash loads late
        html.P(id="weather-error", className="error", role="alert", **{"data-max": str(MAX_BYTES)}),
        html.P(limits, className="hint"),
        html.P([parts.button("Try the example", "weather-example"), " ", link]),
    ]
    form = "CSV in UTF-8, separated by commas; numbers as 1234.5; no empty cells."
    panels = [
        parts.panel("your-weather", TITLE, f"Upload inputs, one row per {steps.NAME}, to get predictions.", uploading),
        parts.panel("weather-columns", "Columns of your CSV file", form, [_columns()]),
    ]
    return [
        html.Div(panels, className="columns"),
        # Screen readers announce only this line, not the figure below.
        html.P(id="weather-status", className="visually-hidden", role="status"),
        dcc.Loading(html.Div(id="weather-answer"), type="dot", delay_show=150, parent_className="waiting"),
    ]


def _columns() -> Component:
    """Return a table of the columns that an uploaded file may have: meaning, unit and allowed values."""
    start = requests.START.removeprefix("the ") + ", with time zone"
    rows = [[html.Code("utc_timestamp"), start, "UTC", f"such as {requests.EXAMPLE}"]]
    rows += [
        [html.Code(each.name), each.meaning, each.unit, "{:,} to {:,}".format(*each.possible)]
        for each in problem.INPUTS
    ]
    rows += [
        [html.Code(CAPACITIES[each.name]), f"installed capacity of {each.plants}", each.unit, "optional"]
        for each in problem.TARGETS
        if each.name in CAPACITIES
    ]
    return parts.table("Columns of your CSV file", ["Column", "Meaning", "Unit", "Allowed"], rows, "words")


def register(app: Dash, follower: Follower) -> None:
    """Register the callbacks; when the model or the data change, the uploaded file is predicted again."""

    @app.callback(
        Output("weather-answer", "children"),
        Output("weather-status", "children"),
        Input("weather-upload", "contents"),
        Input("revision", "data"),
        State("weather-upload", "filename"),
    )
    def predict(contents: str | None, _revision: object, filename: str | None) -> tuple[list, str]:
        """Predict the rows of the uploaded file."""
        if contents is None:
            return [], ""
        name = filename[:80] if filename else "weather.csv"
        content = base64.b64decode(contents.partition(";base64,")[2])  # of a data URL
        try:
            return answer(follower.now, requests.from_csv(content, name), name)
        except PipelineError as error:
            facts = [("Found", error.value), ("Allowed", error.expected), ("What to do", error.next_step)]
            facts = [(title, html.Span(str(text), className="lines")) for title, text in facts if text is not None]
            what = [html.Strong(f"No predictions for {name}. "), error.what, parts.facts(facts)]
            # The status stays empty, because screen readers announce the alert anyway.
            return [html.Div(dbc.Alert(what, color="danger"), id="weather-fault")], ""

    @app.callback(
        Output("weather-upload", "contents"),
        Output("weather-upload", "filename"),
        Input("weather-example", "n_clicks"),
    )
    def try_example(_clicks: int) -> tuple[str, str]:
        """Load the example as if the user had uploaded it."""
        return example(follower.now), "The example"

    app.clientside_callback(
        ClientsideFunction("address", "download"),
        Output("weather-file", "data"),
        Input("weather-download", "n_clicks"),
        State("weather-predicted", "data"),
    )


def example(snapshot: Snapshot) -> str:
    """Return an example CSV file as a data URL: the inputs of the data's last rows, or only the header without data."""
    rows = pd.DataFrame(columns=INPUTS) if snapshot.frame is None else snapshot.frame[INPUTS].tail(72)
    content = rows.to_csv(index=False, date_format=STAMP).encode()
    return f"data:text/csv;base64,{base64.b64encode(content).decode()}"


def answer(snapshot: Snapshot, rows: pd.DataFrame, name: str) -> tuple[list, str]:
    """Return the components that show predictions for validated rows, and a status line.

    Raises PipelineError if the model cannot predict these rows.
    """
    if (champion := snapshot.champion) is None:
        return [parts.banner(snapshot.missing("champion"), "Upload the file again later.")], ""
    uploaded, (rows, origin) = rows, assume_capacity(rows, champion.year_ends)
    predicted, band = champion.predict_with_band(rows)
    status = f"{name}: {len(rows):,} {steps.NAME}{'s' * (len(rows) > 1)}, predicted by {champion.production}."
    if unused := rows.attrs.get("unused"):
        status += f" Unused columns: {', '.join(unused)[:200]}."
    if assumed := (origin == "assumed").sum():
        last = last_year(champion.year_ends)
        status += f" For {assumed:,} of these, the installed capacity is assumed to be that of the end of {last}."
    if len(rows) == 1:
        content = html.Div(parts.prediction(snapshot, predicted, band), className="tiles")
    else:
        figure = figures.prediction(rows, predicted, band=band, coverage=champion.model.coverage)
        content = parts.graph("weather-figure", figure.update_layout(margin_t=44), "Predictions for your inputs")
    table = predictions.to_csv(uploaded.assign(capacity=origin), predicted, band, champion)
    filename = f"predicted by version {champion.production.version}.csv"
    download = [
        dcc.Store(id="weather-predicted", data={"content": table, "filename": filename, "type": "text/csv"}),
        dcc.Download(id="weather-file"),
        dbc.Button("Download the predictions", id="weather-download", className="download"),
    ]
    return [parts.panel("weather-predictions", "Predictions", status, [content]), *download], status
