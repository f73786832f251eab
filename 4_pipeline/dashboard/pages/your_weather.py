"""Your weather: hours that the reader hands in as CSV, predicted by the model in production; nothing of it is kept."""

from __future__ import annotations

import base64
import binascii

import address
import dash_bootstrap_components as dbc
import pandas as pd
import parts
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html
from serving import Served, Serving

from workshop.data import figures, weather
from workshop.data.features import INPUTS
from workshop.data.schema import TARGETS, UNITS
from workshop.data.thresholds import RANGES
from workshop.errors import DataError, WorkshopError

PATH, TITLE = "/your-weather", "Your weather"
LARGEST_BYTES = weather.MOST_BYTES
HEAD_ROWS = 12
MEANING = {
    "utc_timestamp": "the hour's start, with its zone",
    "windspeed": "wind speed at 10 m",
    "temperature": "temperature at 2 m",
    "rad_horizontal": "direct radiation on the horizontal",
    "rad_diffuse": "diffuse radiation",
}


def page(_served: Served, _query: dict[str, str]) -> list:
    """Return the page before anything is handed in."""
    upload = dcc.Upload(
        [html.Strong("Drop a CSV file here"), html.Span("or press to choose one", className="hint")],
        id="weather-upload",
        accept=".csv,text/csv",
        max_size=LARGEST_BYTES,
        className="upload",
        className_active="upload over",
        className_reject="upload over",
    )
    example = html.A("Download an example file", href=address.link("/assets/example.csv"), download="weather.csv")
    rows = [[html.Code(name), MEANING[name], UNITS[name], _allowed(name)] for name in INPUTS]
    columns = parts.table(["Column", "Meaning", "Unit", "Allowed"], rows, class_name="columns-needed")
    return [
        html.Div(
            [
                parts.panel(
                    "your-weather",
                    "Your weather",
                    "Hand in hours of weather, and see what the model makes of them.",
                    [
                        html.Div(upload, className="place"),  # Dash loads the upload after the page
                        html.P(
                            id="weather-refused", className="refused", role="alert", **{"data-most": str(LARGEST_BYTES)}
                        ),
                        html.P(
                            f"At most {weather.MOST_ROWS:,} rows and {LARGEST_BYTES / 1e6:g} MB. "
                            "The file is read, answered and forgotten: nothing of it is kept on the server.",
                            className="hint",
                        ),
                        html.P(example),
                    ],
                ),
                parts.panel(
                    "weather-columns",
                    "What the file holds",
                    "CSV in UTF-8, with commas.",
                    [parts.scroll(columns, "The columns of the file")],
                ),
            ],
            className="columns",
        ),
        dcc.Store(id="weather-predicted"),
        dcc.Download(id="weather-file"),
        # Only this line is read out; the figure and the table below it would be a flood.
        html.P(id="weather-said", className="visually-hidden", role="status"),
        dcc.Loading(
            html.Div(id="weather-answer"),
            type="dot",
            delay_show=150,
            parent_className="waiting",
        ),
        dbc.Button("Download the predictions", id="weather-download", className="download", style={"display": "none"}),
    ]


def register(app: Dash, serving: Serving) -> None:
    """Answer to a file; a model that comes into production answers anew, from what is still in the browser."""

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
        """Predict for the file that was handed in."""
        if contents is None:
            return [], "", None, {"display": "none"}
        name = filename if isinstance(filename, str) and filename else "the file"
        try:
            shown, said, predicted = answer(serving.now, weather.from_csv(decoded(contents)), name)
        except WorkshopError as error:
            shown, said, predicted = fault(error, name), "", None  # an alert is read out by itself
        return shown, said, predicted, {} if predicted else {"display": "none"}

    app.clientside_callback(
        ClientsideFunction("address", "download"),
        Output("weather-file", "data"),
        Input("weather-download", "n_clicks"),
        State("weather-predicted", "data"),
        prevent_initial_call=True,
    )


def decoded(contents: object) -> bytes:
    """Return the bytes of what `dcc.Upload` gives: a data URL in base64. Raises DataError: it is none, or too large."""
    _, separator, text = contents.partition(";base64,") if isinstance(contents, str) else ("", "", "")
    if len(text) > LARGEST_BYTES * 4 / 3 + 4:
        raise DataError("The file is too large.", expected=f"at most {LARGEST_BYTES:,} bytes")
    try:
        if separator:
            return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise DataError("The file did not arrive as a browser sends it.", next_step="choose it again")


def answer(served: Served, asked: pd.DataFrame, name: str) -> tuple[list, str, dict | None]:
    """Return what to show of the predictions for checked rows of weather, that in a line, and the file to download.

    Raises WorkshopError when the model cannot be asked for these hours.
    """
    if served.model is None and not served.looked:
        return [parts.banner("The model is being loaded:", "hand the file in again in a few seconds.")], "", None
    if served.model is None or served.production is None:
        return [parts.banner("No model is in production yet:", "there is nothing to predict with.")], "", None
    try:
        predicted, band = served.predict_with_band(asked)
    except DataError as error:  # hours whose installed capacity nobody has published: not the file's reader to mend
        raise DataError(
            error.what, value=error.value, expected=error.expected, next_step="hand in such hours"
        ) from None
    table = asked.assign(**predicted.round(4))
    for end, values in zip(("low", "high"), band or (), strict=False):
        table = table.assign(**{f"{target}_{end}": values[target].round(4) for target in TARGETS})
    by = f"{served.production.name} version {served.production.version}"
    said = f"{name}: {len(asked):,} hour{'s' * (len(asked) > 1)}, by {by}."
    table = table.assign(
        model=f"{served.production.name}/{served.production.version}", version=served.production.version
    )
    table["utc_timestamp"] = table["utc_timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    figure = figures.prediction(asked, predicted, band=band, coverage=served.model.coverage)
    head = [*INPUTS, *TARGETS]
    rows = [
        [
            row.utc_timestamp.replace("T", " ").removesuffix(":00Z"),
            *(f"{getattr(row, column):.2f}" for column in head[1:]),
        ]
        for row in table.head(HEAD_ROWS).itertuples(index=False)
    ]
    shown = [
        parts.graph("weather-figure", figure.update_layout(margin_t=44), "Predicted generation for your weather"),
        parts.scroll(
            parts.table(
                [column if column in TARGETS else f"{column}, {UNITS[column]}" for column in head],
                rows,
                class_name="weather-rows",
            ),
            "The first rows with their predictions",
        ),
    ]
    rest = f"The first {len(rows)} of {len(table):,} rows are listed." if len(table) > len(rows) else ""
    panel = parts.panel(
        "weather-predictions",
        "What the model says",
        f"{said} {rest}",
        shown,
    )
    file = {"content": table.to_csv(index=False), "filename": f"predicted by version {served.production.version}.csv"}
    return [panel], said, file | {"type": "text/csv"}


def fault(error: WorkshopError, name: str) -> list:
    """Return in full what is wrong with a file: what, where, what was allowed, and what to do."""
    said = [("Found", error.value), ("Allowed", error.expected), ("Next", error.next_step)]
    told = [(title, html.Span(_lines(str(text)), className="lines")) for title, text in said if text is not None]
    alert = dbc.Alert([html.Strong(f"{name} was not predicted. "), error.what, parts.facts(told)], color="danger")
    return [html.Div(alert, id="weather-fault")]


def _lines(text: str) -> list:
    return [html.Span(line.strip()) for line in text.splitlines()]


def _allowed(name: str) -> str:
    if name not in RANGES:
        return "such as 2016-06-01T12:00Z"
    least, most = RANGES[name]
    return f"{least:,} to {most:,}"
