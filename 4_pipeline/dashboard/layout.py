"""What the page looks like: components from what is served; nothing here reads, asks or remembers."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dash_bootstrap_components as dbc
import pandas as pd
import plotly.graph_objects as go
import what_if
from dash import dcc, html
from serving import Served

from workshop.data import figures, origin
from workshop.data.schema import TARGETS
from workshop.errors import WorkshopError

CLOCK_MILLISECONDS = 2000
WHAT_TO_RUN = "`make run`, or `workshop up` and then `cd 4_pipeline && dvc repro`"
KINDS = {
    "train_linreg": "linear regression",
    "train_rf": "random forest",
    "train_keras": "neural network",
    "train_gradient_boosting": "gradient boosting",
}
PRESETS = {"14": "2 weeks", "31": "Month", "92": "Quarter", "365": "Year", "all": "All"}
DEFAULT_DAYS = 14


# -- the whole page --------------------------------------------------------------------------------------------------
def page(served: Served) -> html.Div:
    """Return the page, filled: a reader sees the answer with the first view, and nothing jumps."""
    first, last = days(served)
    start, end = default_period(served)
    return html.Div(
        [
            html.A("Skip to the outlook", href="#outlook", className="skip-link"),
            dcc.Interval(id="clock", interval=CLOCK_MILLISECONDS),
            dcc.Store(id="revision", data=served.revision),
            html.Header(
                [
                    html.Div(
                        [
                            html.P("Germany, hourly", className="eyebrow"),
                            html.H1("Solar and wind power"),
                            html.P("From an hour's weather to gigawatts, by the model now in production."),
                        ],
                        className="title",
                    ),
                    html.Section(
                        model(served), id="model", className="model", **{"aria-label": "The model that speaks"}
                    ),
                ],
                className="masthead",
            ),
            html.Div(message(served), id="message", role="status", **{"aria-live": "polite"}),
            html.Main([_outlook(served, first, last, start, end), what_if.panel(served)]),
            html.Footer(
                [
                    html.P(attribution(served), id="attribution"),
                    html.P("All times are UTC; a value stands for the hour that begins then."),
                ]
            ),
        ],
        className="page",
    )


def _outlook(served: Served, first: date | None, last: date | None, start: date | None, end: date | None):
    presets = [
        dbc.Button(label, id=f"preset-{name}", size="sm", color="light", n_clicks=0, title=f"The latest: {label}")
        for name, label in PRESETS.items()
    ]
    return html.Section(
        [
            html.Div(
                [
                    html.H2("Outlook", id="outlook-title"),
                    html.P("What the model says for a period, beside what was measured.", className="hint"),
                ],
                className="head",
            ),
            html.Div(
                [
                    html.Fieldset(
                        [
                            html.Legend("Period"),
                            dcc.DatePickerRange(
                                id="outlook-period",
                                start_date=start,
                                end_date=end,
                                min_date_allowed=first,
                                max_date_allowed=last,
                                display_format="D MMM YYYY",
                                first_day_of_week=1,
                                minimum_nights=0,
                                start_date_placeholder_text="First day",
                                end_date_placeholder_text="Last day",
                                start_date_id="outlook-first-day",
                                end_date_id="outlook-last-day",
                            ),
                        ]
                    ),
                    html.Fieldset(
                        [html.Legend("Latest"), html.Div(presets, className="presets", role="group")],
                    ),
                    html.Fieldset(
                        [
                            html.Legend("Move"),
                            html.Div(
                                [
                                    dbc.Button("← Earlier", id="earlier", size="sm", color="light", n_clicks=0),
                                    dbc.Button("Later →", id="later", size="sm", color="light", n_clicks=0),
                                ],
                                className="presets",
                                role="group",
                            ),
                        ]
                    ),
                ],
                className="controls",
            ),
            html.Div(key_figures(served, start, end), id="outlook-key-figures", **{"aria-live": "polite"}),
            dcc.Graph(
                id="outlook-figure",
                figure=outlook_figure(served, start, end),
                config={"displayModeBar": False, "responsive": True},
                className="chart",
            ),
            html.P(modelled_hint(served), id="modelled-hint", className="hint"),
        ],
        id="outlook",
        className="panel outlook",
        **{"aria-labelledby": "outlook-title"},
    )


# -- its parts that change --------------------------------------------------------------------------------------------
def model(served: Served) -> list:
    """Say which version speaks, of what kind, how good it is and since when, with the way to its run."""
    production = served.production
    if production is None:
        return [html.P("no model yet", id="model-version", className="version")]
    kind = KINDS.get(production.stage or "", production.stage or served.model.kind)
    facts = [
        ("Kind", html.Span(kind, id="model-kind")),
        ("R² held out", html.Span("not recorded" if production.r2 is None else f"{production.r2:.3f}", id="model-r2")),
        ("In production since", html.Span(moment(production.since), id="model-since")),
    ]
    parts = [
        html.P(f"{production.name} version {production.version}", id="model-version", className="version"),
        html.Dl([html.Div([html.Dt(name), html.Dd(fact)]) for name, fact in facts]),
    ]
    if production.run_url:
        link = html.A(
            "Its run in MLflow ↗", id="model-run-link", href=production.run_url, target="_blank", rel="noopener"
        )
        parts.append(link)
    return parts


def message(served: Served) -> list:
    """Say what is missing and what to run, or since when and why the page cannot follow; empty when all is well."""
    alerts = []
    if not served.looked:
        return [dbc.Alert("Looking for the data and the model in production …", color="light")]
    if served.frame is None and "data" not in served.troubles:
        alerts.append(_alert("There is no data yet.", f"Run {WHAT_TO_RUN}."))
    if served.production is None and not {"registry", "model"} & set(served.troubles):
        alerts.append(_alert("No model is in production yet.", f"Run {WHAT_TO_RUN}."))
    for subject, trouble in served.troubles.items():
        goes_on = served.production and subject != "data"
        rest = f" Version {served.production.version} goes on answering." if goes_on else ""
        since = f"Since {trouble.since:%H:%M:%S} UTC, {trouble.since:%d %B}:"
        alerts.append(_alert(since, trouble.why + rest))
    return alerts


def attribution(served: Served) -> str:
    """Return whose data is shown; nothing before there is any."""
    return "" if served.frame is None else origin.of_frame(served.frame).attribution


def modelled_hint(served: Served) -> str:
    """Return what has to be said beside generation that nobody measured."""
    told = origin.of_frame(served.frame)
    return f"“Measured” is modelled here: the source {told.source} simulates generation." if told.modelled else ""


def _alert(head: str, text: str) -> dbc.Alert:
    """Return a banner; what stands between backticks is shown as something to type."""
    pieces = [html.Code(piece) if number % 2 else piece for number, piece in enumerate(text.split("`"))]
    return dbc.Alert([html.Strong(head), " ", *pieces], color="warning")


def key_figures(served: Served, start: date | None, end: date | None) -> html.Table | None:
    """Return the means and the mean absolute error of the period, in GW, for solar and wind."""
    chosen = _period(served, start, end)
    if chosen is None:
        return None
    frame, predicted = chosen
    rows = []
    for target in TARGETS:
        error = (predicted[target] - frame[target]).abs().mean()
        cells = [frame[target].mean(), predicted[target].mean(), error]
        rows.append(
            html.Tr(
                [
                    html.Th(figures.NAMES[target], scope="row", className=target.removesuffix("_GW")),
                    *(html.Td([f"{value:.2f}", html.Small(" GW")]) for value in cells),
                ]
            )
        )
    hours = 24 * ((end - start).days + 1)
    head = ["", "Mean measured", "Mean predicted", "Mean absolute error"]
    return html.Table(
        [
            html.Caption(f"{len(frame):,} of {hours:,} hours, {start:%d %b %Y} to {end:%d %b %Y}"),
            html.Thead(html.Tr([html.Th(name, scope="col") for name in head])),
            html.Tbody(rows),
        ],
        className="key-figures",
    )


def outlook_figure(served: Served, start: date | None, end: date | None) -> go.Figure:
    """Return the figure of the period, or one that says why there is none."""
    if served.frame is None or served.predicted is None:
        what = "no data" if served.frame is None else "no model in production"
        return figures.empty(f"There is {what} yet." if served.looked else "One moment …")
    chosen = _period(served, start, end)
    if chosen is None:
        return figures.empty("There is no hour of data in this period.")
    try:
        figure = figures.measured_and_predicted(
            *chosen,
            band=band(served, chosen[0].index),
            coverage=served.model.coverage if served.model else None,
            measured_name=origin.of_frame(served.frame).measured_name,
        )
    except WorkshopError as error:
        return figures.empty(error.what)
    return figure.update_layout(margin_t=44, uirevision=f"{start} {end}")


def band(served: Served, rows: pd.Index) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Return both ends of the error band in some rows of the data; None when the model has none."""
    return None if served.band is None else tuple(end.loc[rows] for end in served.band)


# -- periods and times ------------------------------------------------------------------------------------------------
def days(served: Served) -> tuple[date | None, date | None]:
    """Return the first and the last day of the data (UTC), or None twice."""
    if served.frame is None:
        return None, None
    stamps = served.frame["utc_timestamp"]
    return stamps.iloc[0].date(), stamps.iloc[-1].date()


def default_period(served: Served, length_days: int = DEFAULT_DAYS) -> tuple[date | None, date | None]:
    """Return the latest days of the data, both ends included, or None twice."""
    first, last = days(served)
    if last is None:
        return None, None
    return max(first, last - timedelta(days=length_days - 1)), last


def _period(served: Served, start: date | None, end: date | None):
    """Return measured and predicted of the period, or None when there is nothing to compare."""
    if served.frame is None or served.predicted is None or start is None or end is None:
        return None
    ends = pd.Timestamp(start, tz="UTC"), pd.Timestamp(end, tz="UTC") + pd.Timedelta(days=1)
    within = slice(*served.frame["utc_timestamp"].searchsorted(ends))
    chosen = served.frame.iloc[within], served.predicted.iloc[within]
    return None if chosen[0].empty else chosen


def moment(text: str | None) -> str:
    """Return an ISO time as people write it, in UTC; what is no time is shown as it is."""
    try:
        time = datetime.fromisoformat(text).astimezone(UTC)
    except (TypeError, ValueError):
        return text or "not recorded"
    return f"{time:%d %b %Y, %H:%M} UTC"
