"""The outlook: what the model says for a period, beside what was measured, and how far it is off."""

from __future__ import annotations

import address
import dash_bootstrap_components as dbc
import pandas as pd
import parts
import periods
import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate
from periods import Period
from serving import Served, Serving

from workshop.data import figures, origin
from workshop.data import weeks as iso_weeks
from workshop.data.schema import TARGETS
from workshop.errors import WorkshopError

PATH, TITLE = "/outlook", "Outlook"
PRESETS = {"14": "2 weeks", "31": "Month", "92": "Quarter", "365": "Year", "all": "All"}
MOST_WEEKS = 53
HEAD = ["", "Mean measured", "Mean predicted", "Mean absolute error"]
WEEKS_HEAD = ["Week", "Hours", "Solar", "model", "error", "Wind", "model", "error"]


def page(served: Served, query: dict[str, str]) -> list:
    """Return the page with the period of the query (`from`, `to`), or the latest two weeks."""
    period = periods.chosen(served, query.get("from"), query.get("to"))
    figure, key_figures, weeks, by_hour, by_month = answers(served, period)
    return [
        dcc.Store(id="outlook-latest", data=periods.latest(served)),
        parts.panel(
            "outlook",
            "Outlook",
            "What the model says for a period, beside what was measured.",
            [
                _controls(served, period),
                html.Div(key_figures, id="outlook-key-figures", **{"aria-live": "polite"}),
                parts.graph("outlook-figure", figure, "Measured and predicted generation over time, with error band"),
                html.P(modelled(served), id="modelled-hint", className="hint"),
            ],
        ),
        parts.panel(
            "weeks",
            "Week by week",
            "Means and mean absolute errors in GW; a week's name shows it alone.",
            [html.Div(weeks, id="outlook-weeks")],
        ),
        parts.panel(
            "residuals",
            "Where it is off",
            "Predicted minus measured in the period: the median, and the middle half of the hours.",
            [
                html.Div(
                    [
                        parts.graph("residuals-by-hour", by_hour, "Residuals by hour of the day", "chart low"),
                        parts.graph("residuals-by-month", by_month, "Residuals by month", "chart low"),
                    ],
                    className="columns",
                )
            ],
        ),
    ]


def register(app: Dash, serving: Serving) -> None:
    """Answer to the period, and follow what is served."""

    @app.callback(
        Output("outlook-figure", "figure"),
        Output("outlook-key-figures", "children"),
        Output("outlook-weeks", "children"),
        Output("residuals-by-hour", "figure"),
        Output("residuals-by-month", "figure"),
        Input("outlook-first-day", "value"),
        Input("outlook-last-day", "value"),
        Input("revision", "data"),
        prevent_initial_call=True,
    )
    def show_outlook(start, end, _revision):
        """Draw the chosen period."""
        served = serving.now
        return answers(served, periods.chosen(served, start, end))

    @app.callback(
        Output("modelled-hint", "children"),
        Output("outlook-latest", "data"),
        Output("outlook-first-day", "min"),
        Output("outlook-first-day", "max"),
        Output("outlook-last-day", "min"),
        Output("outlook-last-day", "max"),
        Output("outlook-first-day", "value"),
        Output("outlook-last-day", "value"),
        Input("revision", "data"),
        State("outlook-first-day", "value"),
        State("outlook-last-day", "value"),
        prevent_initial_call=True,
    )
    def follow_data(_revision, start, end):
        """Keep the period that is there; a page that was opened before there was data gets its first one."""
        served = serving.now
        kept = periods.day(start) and periods.day(end)
        period = (no_update, no_update) if kept else periods.latest(served)
        return modelled(served), periods.latest(served), *periods.days(served) * 2, *period

    @app.callback(
        Output("outlook-first-day", "value", allow_duplicate=True),
        Output("outlook-last-day", "value", allow_duplicate=True),
        *(Input(f"preset-{name}", "n_clicks") for name in PRESETS),
        Input("earlier", "n_clicks"),
        Input("later", "n_clicks"),
        State("outlook-first-day", "value"),
        State("outlook-last-day", "value"),
        prevent_initial_call=True,
    )
    def choose_period(*values):
        """Set the period to the latest days, or move it by its own length."""
        served, chosen = serving.now, str(ctx.triggered_id)
        first, last = periods.days(served)
        if first is None:
            raise PreventUpdate
        name = chosen.removeprefix("preset-")
        if name == "all":
            return first, last
        if name in PRESETS:
            return periods.latest(served, int(name))
        return periods.moved(served, *values[-2:], later=name == "later")

    app.clientside_callback(
        ClientsideFunction("address", "keep_period"),
        Input("outlook-first-day", "value"),
        Input("outlook-last-day", "value"),
        State("outlook-latest", "data"),
    )


def answers(served: Served, period: Period) -> tuple[go.Figure, object, object, go.Figure, go.Figure]:
    """Return all that follows the period: figure, key figures, weeks and residuals; made once for all readers."""
    return served.cached((address.prefix(), PATH, *period), lambda: _answers(served, period))


def _answers(served: Served, period: Period) -> tuple[go.Figure, object, object, go.Figure, go.Figure]:
    rows = periods.hours(served, period)
    if rows is None:
        nothing = figures.empty(_why_nothing(served))
        return nothing, [], html.P(_why_nothing(served), className="hint"), nothing, nothing
    try:
        figure = figures.measured_and_predicted(
            *rows,
            band=periods.band(served, rows[0].index),
            coverage=served.model.coverage if served.model else None,
            measured_name=origin.of_frame(served.frame).measured_name,
        )
        residuals = [figures.residuals(*rows, by=part).update_layout(margin_t=36) for part in ("hour", "month")]
    except WorkshopError as error:
        nothing = figures.empty(error.what)
        return nothing, [], None, nothing, nothing
    figure.update_layout(margin_t=44, uirevision=" ".join(map(str, period)))
    learned_until = served.production.learned_until if served.production else None
    told = [key_figures(*rows, period), html.P(novelty(rows[0], learned_until), className="hint")]
    return figure, told, weeks(*rows), *residuals


def novelty(frame: pd.DataFrame, learned_until: str | None) -> str:
    """Return how many of some hours the model learned from: it misses those by less than new ones."""
    if learned_until is None:
        return ""
    last = pd.Timestamp(learned_until)
    known = frame["utc_timestamp"] <= last
    if not known.any():
        return f"New to the model: it learned from hours up to {last:%d %b %Y}."
    share = "all" if known.all() else f"{known.sum():,}"
    return f"The model learned from {share} of these hours (up to {last:%d %b %Y}): it misses new ones by more."


def modelled(served: Served) -> str:
    """Return what has to be said beside generation that nobody measured."""
    told = origin.of_frame(served.frame)
    return f"“Measured” is modelled here: the source {told.source} simulates generation." if told.modelled else ""


def key_figures(frame: pd.DataFrame, predicted: pd.DataFrame, period: Period) -> html.Table:
    """Return the means and the mean absolute error of a period, in GW, for solar and wind."""
    start, end = period
    errors = (predicted[TARGETS] - frame[TARGETS]).abs()
    rows = [
        [
            html.Span(figures.NAMES[target], className=f"key {target.removesuffix('_GW')}"),
            *([f"{part[target].mean():.2f}", html.Small(" GW")] for part in (frame, predicted, errors)),
        ]
        for target in TARGETS
    ]
    hours = 24 * ((end - start).days + 1)
    caption = f"{len(frame):,} of {hours:,} hours, {start:%d %b %Y} to {end:%d %b %Y}"
    return parts.table(HEAD, rows, caption=caption, class_name="key-figures")


def weeks(frame: pd.DataFrame, predicted: pd.DataFrame) -> list:
    """Return the key figures of each week (ISO 8601, UTC), the latest first; of a long period the last year's."""
    mondays = iso_weeks.mondays(frame["utc_timestamp"])
    every = pd.concat(
        {"measured": frame[TARGETS], "predicted": predicted[TARGETS], "error": (predicted - frame)[TARGETS].abs()},
        axis=1,
    )
    means, hours = every.groupby(mondays).mean(), mondays.value_counts()
    rows = []
    for monday, mean in list(means.iterrows())[: -MOST_WEEKS - 1 : -1]:
        link = address.of_period(PATH, monday.date(), (monday + pd.Timedelta(days=6)).date())
        numbers = [f"{mean[part, target]:.2f}" for target in TARGETS for part in ("measured", "predicted", "error")]
        rows.append([html.A(iso_weeks.name_of(monday), href=link, className="inside"), hours[monday], *numbers])
    shown = parts.scroll(parts.table(WEEKS_HEAD, rows, class_name="weeks"), "Key figures of each week")
    more = len(means) - len(rows)
    return [shown, *([html.P(f"{more} earlier weeks are not listed.", className="hint")] if more else [])]


def _why_nothing(served: Served) -> str:
    if not served.looked:
        return "One moment …"
    if served.frame is None:
        return "There is no data yet."
    if served.predicted is None:
        return "There is no model in production yet."
    return "There is no hour of data in this period."


def _controls(served: Served, period: Period) -> html.Div:
    least, most = periods.days(served)
    ends = zip(("first", "last"), ("First day", "Last day"), period, strict=True)
    days = [
        part
        for end, label, day in ends
        for part in (
            html.Label(label, htmlFor=f"outlook-{end}-day", className="visually-hidden"),
            # The browser's own calendar: known to keyboards, screen readers and thumbs.
            dbc.Input(id=f"outlook-{end}-day", type="date", value=day, min=least, max=most, debounce=400, size="sm"),
        )
    ]
    presets = [_button(label, f"preset-{name}", f"The latest: {label}") for name, label in PRESETS.items()]
    moves = [_button("← Earlier", "earlier"), _button("Later →", "later")]
    return html.Div(
        [
            html.Fieldset([html.Legend("Period"), html.Div(days, className="days")]),
            html.Fieldset([html.Legend("Latest"), html.Div(presets, className="presets")]),
            html.Fieldset([html.Legend("Move"), html.Div(moves, className="presets")]),
        ],
        className="controls",
    )


def _button(label: str, id_: str, title: str | None = None) -> dbc.Button:
    return dbc.Button(label, id=id_, size="sm", color="light", n_clicks=0, title=title)
