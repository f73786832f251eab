"""Predicted and measured: the model's predictions for a period beside the measurements, and their errors."""

from __future__ import annotations

from datetime import timedelta

import dash_bootstrap_components as dbc
import pandas as pd
import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate

from workshop import problem
from workshop.data import figures, sources, split
from workshop.data.schema import TARGETS
from workshop.models.evaluation import coverage

from .. import address, parts, periods, predictions
from ..follower import Follower, Snapshot
from ..periods import Period

PATH, TITLE = "/comparison", "Predicted and measured"
PRESETS = {"14": "2 weeks", "31": "Month", "92": "Quarter", "365": "Year", "all": "All"}
MEASURED = {target: f"{target}_measured" for target in TARGETS}
UNIT = problem.TARGETS[0].unit  # of all targets: their errors have a common mean
MAX_WEEKS = 53
REPORT_WEEK = f" (the latest with {split.WHOLE_ENOUGH:.0%} of its hours, unless params.yaml names another)"
WEEKS_HEAD = ["Week", "Hours"]
WEEKS_HEAD += [word for target in problem.TARGETS for word in (f"{target.title} measured", "predicted", "error")]
ZONES = {"UTC": "UTC", "Europe/Berlin": "German time"}
DAYS = ("first-day", "last-day")
FIGURES = ("comparison-figure", "residuals-by-hour", "residuals-by-month")


def page(snapshot: Snapshot, query: dict[str, str]) -> list:
    """Return the page with the period of the query (`from`, `to`), or the latest two weeks."""
    period, adjustment = periods.chosen(snapshot, query.get("from"), query.get("to"))
    figure, by_hour, by_month, key_figures, weeks = answer(snapshot, period)
    strip = parts.graph("overview", overview(snapshot, period), "All of the data; draw across it for a period", "strip")
    compared = [
        html.Div(key_figures, id="key-figures", **{"aria-live": "polite"}),
        _controls(snapshot, period),
        html.P(adjustment, id="comparison-adjustment", role="status"),
        parts.graph("comparison-figure", figure, "Measured and predicted over time, with error band"),
        strip,
    ]
    report = parts.external_link("The report on one week", address.link("/results/report.html"))
    residuals = [
        parts.graph("residuals-by-hour", by_hour, "Errors by hour of the day", "chart low"),
        parts.graph("residuals-by-month", by_month, "Errors by month", "chart low"),
    ]
    hint = f"Means and errors in {UNIT}, of the last {MAX_WEEKS} weeks at most; the link of a week shows it alone."
    off = "Predicted minus measured in the period: the median, and the middle half of the hours."
    return [
        dcc.Store(id="latest-period", data=periods.latest(snapshot)),
        parts.panel("comparison", TITLE, modelled(snapshot), compared),
        parts.panel(
            "weeks", "Week by week", hint, [html.Div(weeks, id="comparison-weeks"), html.P([report, REPORT_WEEK])]
        ),
        parts.panel("residuals", "When the model is off", off, [html.Div(residuals, className="columns")]),
    ]


# -- callbacks ---------------------------------------------------------------------------------------------------------
def register(app: Dash, follower: Follower) -> None:
    """Answer to the period, and follow the snapshot."""
    _register_controls(app, follower)

    @app.callback(
        *(Output(name, "figure") for name in FIGURES),
        *(Output(name, "children") for name in ("key-figures", "comparison-weeks", "comparison-adjustment")),
        Output("overview", "figure"),
        *(Output(f"preset-{name}", "active") for name in PRESETS),
        Output("earlier", "disabled"),
        Output("later", "disabled"),
        *(Input(day, "value") for day in DAYS),
        Input("zone", "value"),
        Input("revision", "data"),
    )
    def show_period(start, end, zone, _revision):
        """Draw the chosen period."""
        snapshot = follower.now
        period, adjustment = periods.chosen(snapshot, start, end)
        changed = answer(snapshot, period, zone if zone in tuple(ZONES) else "UTC")
        return *changed, adjustment, overview(snapshot, period), *button_states(snapshot, period)

    @app.callback(
        Output("comparison-hint", "children"),
        Output("latest-period", "data"),
        *(Output(day, limit) for day in DAYS for limit in ("min", "max")),
        *(Output(day, "value") for day in DAYS),
        Input("revision", "data"),
        *(State(day, "value") for day in DAYS),
    )
    def follow_data(_revision, start, end):
        """Keep the chosen period; a page that was opened before there was data gets its first one."""
        snapshot = follower.now
        latest = periods.latest(snapshot)
        period = (no_update, no_update) if periods.day(start) and periods.day(end) else latest
        return modelled(snapshot), latest, *periods.whole(snapshot) * 2, *period


def _register_controls(app: Dash, follower: Follower) -> None:
    @app.callback(
        *(Output(day, "value", allow_duplicate=True) for day in DAYS),
        *(Input(f"preset-{name}", "n_clicks") for name in PRESETS),
        Input("earlier", "n_clicks"),
        Input("later", "n_clicks"),
        *(State(day, "value") for day in DAYS),
    )
    def choose_period(*values):
        """Set the period to the latest days, or shift it by its own length."""
        snapshot, name = follower.now, str(ctx.triggered_id).removeprefix("preset-")
        if snapshot.frame is None:
            raise PreventUpdate
        if name in PRESETS:
            return _preset(snapshot, name)
        return periods.shifted(snapshot, *values[-2:], later=name == "later")

    @app.callback(
        Output("comparison-file", "data"),
        Input("comparison-csv", "n_clicks"),
        *(State(day, "value") for day in DAYS),
    )
    def download(_clicks, start, end):
        """Return the period's hours, measured and predicted, as CSV."""
        snapshot = follower.now
        period, _ = periods.chosen(snapshot, start, end)
        rows = periods.rows_within(snapshot, period)
        if rows.empty:
            raise PreventUpdate
        frame, predicted, band = snapshot.at(rows)
        measured = frame[["utc_timestamp", *TARGETS]].rename(columns=MEASURED)
        model = f"{snapshot.production.name}/{snapshot.production.version}"
        text = predictions.to_csv(measured, predicted, band, model)
        return dcc.send_string(text, f"predicted {period[0]} to {period[1]}.csv")

    app.clientside_callback(
        ClientsideFunction("figures", "choose_range"),
        *(Output(day, "value", allow_duplicate=True) for day in DAYS),
        Input("comparison-figure", "relayoutData"),
        Input("overview", "selectedData"),
    )
    app.clientside_callback(
        ClientsideFunction("figures", "save_picture"), Input("comparison-png", "n_clicks"), prevent_initial_call=True
    )
    app.clientside_callback(
        ClientsideFunction("address", "keep_period"),
        *(Input(day, "value") for day in DAYS),
        State("latest-period", "data"),
        prevent_initial_call=False,
    )


# -- content -----------------------------------------------------------------------------------------------------------
def answer(snapshot: Snapshot, period: Period, zone: str = "UTC") -> tuple[go.Figure, go.Figure, go.Figure, list, list]:
    """Return `FIGURES`, key figures and weeks of a period (in UTC); times in a zone. Made once for all readers."""
    return snapshot.cached((address.prefix(), PATH, *period, zone), lambda: _answer(snapshot, period, zone))


def _answer(snapshot: Snapshot, period: Period, zone: str) -> tuple:
    rows = periods.rows_within(snapshot, period)
    if rows.empty:
        text = snapshot.missing("frame", "production") or "There is no hour of data in this period."
        nothing = figures.empty(text)
        return nothing, nothing, nothing, [], []
    frame, predicted, band = snapshot.at(rows)
    local = frame.assign(utc_timestamp=frame["utc_timestamp"].dt.tz_convert(zone))
    figure = figures.measured_and_predicted(
        local,
        predicted,
        band=band,
        coverage=snapshot.model and snapshot.model.coverage,
        measured_name=sources.origin_of(snapshot.frame).measured_name,
    )
    residuals = [figures.residuals(local, predicted, by=by).update_layout(margin_t=36) for by in ("hour", "month")]
    figure.update_layout(margin_t=44, uirevision=" ".join(map(str, (*period, zone))))
    return figure, *residuals, key_figures(snapshot, rows, period), weeks(frame, predicted)


def overview(snapshot: Snapshot, period: Period) -> go.Figure:
    """Return a strip of all data, as daily means of the sum of the targets, with the period marked."""
    if snapshot.frame is None:
        return figures.empty("")
    days = snapshot.frame.resample("D", on="utc_timestamp")[TARGETS].mean().sum(axis=1, min_count=1)
    figure = go.Figure(go.Scatter(x=days.index, y=days, fill="tozeroy", hoverinfo="skip", line_width=0.5))
    figure.add_vrect(x0=str(period[0]), x1=str(period[1] + timedelta(days=1)), opacity=0.3, line_width=1)
    figure.update_layout(template=figures.TEMPLATE, dragmode="select", selectdirection="h", margin={"t": 2, "b": 20})
    return figure.update_yaxes(visible=False, fixedrange=True).update_xaxes(fixedrange=True)


def _preset(snapshot: Snapshot, name: str) -> Period:
    return periods.whole(snapshot) if name == "all" else periods.latest(snapshot, int(name))


def button_states(snapshot: Snapshot, period: Period) -> list[bool]:
    """Return for each preset whether it is chosen, and for both shifts whether there is no further data."""
    first, last = periods.whole(snapshot)
    return [*(period == _preset(snapshot, name) for name in PRESETS), period[0] == first, period[1] == last]


def key_figures(snapshot: Snapshot, rows: pd.Index, period: Period) -> list:
    """Return tiles with the means, errors and the share of hours within the band, and a line on the period."""
    frame, predicted, band = snapshot.at(rows)
    errors = (predicted[TARGETS] - frame[TARGETS]).abs().mean()
    tiles = [
        parts.tile(
            f"{target.title}, mean predicted",
            f"{predicted[target.name].mean():.2f}",
            UNIT,
            f"measured {frame[target.name].mean():.2f} {UNIT}, mean absolute error {errors[target.name]:.2f} {UNIT}",
            target.colour,
        )
        for target in problem.TARGETS
    ]
    of_all = "mean of " + " and ".join(target.key for target in problem.TARGETS)
    tiles.append(parts.tile("Mean absolute error", f"{errors.mean():.2f}", UNIT, of_all))
    if band and snapshot.model.coverage:
        shares = coverage(frame, *band)
        percents = " / ".join(f"{100 * shares[f'coverage_{target.key}']:.0f}" for target in problem.TARGETS)
        names = " / ".join(target.key + " by day" * target.by_day for target in problem.TARGETS)
        hint = f"{names}; expected {100 * snapshot.model.coverage:.0f} %"
        tiles.append(parts.tile("Hours within the band", percents, "%", hint))
    start, end = period
    text = f"{len(rows):,} of {24 * ((end - start).days + 1):,} hours, {start:{periods.DAY}} to {end:{periods.DAY}}. "
    text += training_overlap(frame, snapshot.production.learned_until)
    return [html.Div(tiles, className="tiles"), html.P(text, className="hint")]


def training_overlap(frame: pd.DataFrame, learned_until: str | None) -> str:
    """Return how many of some hours the model was trained on: its errors are smaller there than on new ones."""
    if learned_until is None:
        return ""
    last = pd.Timestamp(learned_until)
    known = frame["utc_timestamp"] <= last
    if not known.any():
        return f"The model was trained on hours up to {last:{periods.DAY}}: all of these are new to it."
    share = "all" if known.all() else f"{known.sum():,} (up to {last:{periods.DAY}})"
    return f"The model was trained on {share} of these hours: its errors on new ones are larger."


def modelled(snapshot: Snapshot) -> str:
    """Return a note on generation that was not measured; empty for measured data."""
    source = sources.origin_of(snapshot.frame)
    return f"“Measured” is modelled here: the source {source.source} simulates generation." if source.modelled else ""


def weeks(frame: pd.DataFrame, predicted: pd.DataFrame) -> list:
    """Return the means and errors of each week (ISO 8601, UTC), the latest first; of a long period the last year's."""
    mondays = split.mondays(frame["utc_timestamp"])
    errors = (predicted - frame)[TARGETS].abs()
    every = pd.concat({"measured": frame[TARGETS], "predicted": predicted[TARGETS], "error": errors}, axis=1)
    means, hours = every.groupby(mondays).mean(), mondays.value_counts()
    rows = []
    for monday, mean in list(means.iterrows())[: -MAX_WEEKS - 1 : -1]:
        link = f"{address.link(PATH)}?from={monday.date()}&to={(monday + pd.Timedelta(days=6)).date()}"
        numbers = [f"{mean[part, target]:.2f}" for target in TARGETS for part in ("measured", "predicted", "error")]
        rows.append([html.A(split.name_of(monday), href=link, className="inside"), hours[monday], *numbers])
    return [parts.table("Key figures of each week", WEEKS_HEAD, rows, "weeks")]


def _controls(snapshot: Snapshot, period: Period) -> html.Div:
    first, last = periods.whole(snapshot)
    days = []
    for id_, day in zip(DAYS, period, strict=True):
        days += [
            html.Label(id_.replace("-", " ").capitalize(), htmlFor=id_, className="visually-hidden"),
            # The browser's own calendar: known to keyboards, screen readers and thumbs.
            dbc.Input(id=id_, type="date", value=day, min=first, max=last, debounce=400, size="sm"),
        ]
    *are_chosen, is_first, is_last = button_states(snapshot, period)
    presets = [
        parts.button(label, f"preset-{name}", f"The latest: {label}", active=is_chosen)
        for (name, label), is_chosen in zip(PRESETS.items(), are_chosen, strict=True)
    ]
    shifts = [
        parts.button("← Earlier", "earlier", disabled=is_first),
        parts.button("Later →", "later", disabled=is_last),
    ]
    zones = [
        html.Label("Times of the figure", htmlFor="zone", className="visually-hidden"),
        dbc.Select(id="zone", options=ZONES, value="UTC", size="sm"),
    ]
    saved = [parts.button("Picture", "comparison-png"), parts.button("Table", "comparison-csv", "CSV")]
    saved.append(dcc.Download(id="comparison-file"))
    return parts.groups({"Period": days, "Latest": presets, "Move": shifts, "Times": zones, "Download": saved})
