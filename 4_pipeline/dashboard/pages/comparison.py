"""Predicted and measured: the model's predictions for a period beside the measurements, and how far they are off."""

from __future__ import annotations

from datetime import timedelta

import address
import dash_bootstrap_components as dbc
import pandas as pd
import parts
import periods
import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate
from periods import Period
from serving import Follower, Snapshot

from workshop import problem
from workshop.data import figures, sources, split
from workshop.data.schema import TARGETS
from workshop.models.evaluation import coverage

PATH, TITLE = "/comparison", "Predicted and measured"
PRESETS = {"14": "2 weeks", "31": "Month", "92": "Quarter", "365": "Year", "all": "All"}
MEASURED = {target: f"{target}_measured" for target in TARGETS}
MOST_WEEKS = 53
REPORT_WEEK = f" (the latest with {split.WHOLE_ENOUGH:.0%} of its hours, unless params.yaml names another)"
WEEKS_HEAD = ["Week", "Hours"]
WEEKS_HEAD += [word for name in figures.NAMES.values() for word in (f"{name} measured", "predicted", "error")]

ZONES = {"UTC": "UTC", "Europe/Berlin": "German time"}

Answer = tuple[go.Figure, list, list, go.Figure, go.Figure]  # figure, key figures, weeks, and residuals


def page(served: Snapshot, query: dict[str, str]) -> list:
    """Return the page with the period of the query (`from`, `to`), or the latest two weeks."""
    period = periods.chosen(served, query.get("from"), query.get("to"))
    figure, key_figures, weeks, by_hour, by_month = answer(served, period)
    remark = periods.remark(served, query.get("from"), query.get("to"))
    report = address.link("/results/report.html")
    residuals = [
        parts.graph("residuals-by-hour", by_hour, "Errors by hour of the day", "chart low"),
        parts.graph("residuals-by-month", by_month, "Errors by month", "chart low"),
    ]
    return [
        dcc.Store(id="latest-period", data=periods.latest(served)),
        parts.panel(
            "comparison",
            "Predicted and measured",
            modelled(served),
            [
                html.Div(key_figures, id="key-figures", **{"aria-live": "polite"}),
                _controls(served, period),
                html.P(remark, id="comparison-remark", role="status"),
                parts.graph("comparison-figure", figure, "Measured and predicted power over time, with error band"),
                parts.graph(
                    "overview", overview(served, period), "All of the data; draw across it for a period", "strip"
                ),
            ],
        ),
        parts.panel(
            "weeks",
            "Week by week",
            f"Means and errors in GW, of the last {MOST_WEEKS} weeks at most; the link of a week shows it alone.",
            [
                html.Div(weeks, id="comparison-weeks"),
                html.P([parts.external_link("The report on one week", report), REPORT_WEEK]),
            ],
        ),
        parts.panel(
            "residuals",
            "When the model is off",
            "Predicted minus measured in the period: the median, and the middle half of the hours.",
            [html.Div(residuals, className="columns")],
        ),
    ]


def register(app: Dash, serving: Follower) -> None:
    """Answer to the period, and follow what is served."""

    @app.callback(
        Output("comparison-figure", "figure"),
        Output("key-figures", "children"),
        Output("comparison-weeks", "children"),
        Output("residuals-by-hour", "figure"),
        Output("residuals-by-month", "figure"),
        Output("comparison-remark", "children"),
        Output("overview", "figure"),
        *(Output(f"preset-{name}", "active") for name in PRESETS),
        Output("earlier", "disabled"),
        Output("later", "disabled"),
        Input("first-day", "value"),
        Input("last-day", "value"),
        Input("zone", "value"),
        Input("revision", "data"),
        prevent_initial_call=True,
    )
    def show_period(start, end, zone, _revision):
        """Draw the chosen period."""
        served = serving.now
        period = periods.chosen(served, start, end)
        about = periods.remark(served, start, end), overview(served, period), *states(served, period)
        return *answer(served, period, zone if zone in tuple(ZONES) else "UTC"), *about

    @app.callback(
        Output("comparison-file", "data"),
        Input("comparison-csv", "n_clicks"),
        State("first-day", "value"),
        State("last-day", "value"),
        prevent_initial_call=True,
    )
    def download(_clicks, start, end):
        """Return the period's hours, measured and predicted, as CSV."""
        served = serving.now
        period = periods.chosen(served, start, end)
        rows = periods.rows_within(served, period)
        if rows.empty:
            raise PreventUpdate
        measured = served.frame.loc[rows, ["utc_timestamp", *TARGETS]].rename(columns=MEASURED)
        band = served.band and tuple(part.loc[rows] for part in served.band)
        production = served.production
        text = parts.predictions(measured, served.predicted.loc[rows], band, f"{production.name}/{production.version}")
        return dcc.send_string(text, f"power {period[0]} to {period[1]}.csv")

    @app.callback(
        Output("comparison-hint", "children"),
        Output("latest-period", "data"),
        *(Output(f"{end}-day", limit) for end in ("first", "last") for limit in ("min", "max")),
        Output("first-day", "value"),
        Output("last-day", "value"),
        Input("revision", "data"),
        State("first-day", "value"),
        State("last-day", "value"),
        prevent_initial_call=True,
    )
    def follow_data(_revision, start, end):
        """Keep the chosen period; a page that was opened before there was data gets its first one."""
        served = serving.now
        is_chosen = periods.day(start) and periods.day(end)
        period = (no_update, no_update) if is_chosen else periods.latest(served)
        return modelled(served), periods.latest(served), *periods.whole(served) * 2, *period

    @app.callback(
        Output("first-day", "value", allow_duplicate=True),
        Output("last-day", "value", allow_duplicate=True),
        *(Input(f"preset-{name}", "n_clicks") for name in PRESETS),
        Input("earlier", "n_clicks"),
        Input("later", "n_clicks"),
        State("first-day", "value"),
        State("last-day", "value"),
        prevent_initial_call=True,
    )
    def choose_period(*values):
        """Set the period to the latest days, or move it by its own length."""
        served, name = serving.now, str(ctx.triggered_id).removeprefix("preset-")
        if served.frame is None:
            raise PreventUpdate
        if name == "all":
            return periods.whole(served)
        if name in PRESETS:
            return periods.latest(served, int(name))
        return periods.moved(served, *values[-2:], later=name == "later")

    app.clientside_callback(
        ClientsideFunction("figures", "choose_range"),
        Output("first-day", "value", allow_duplicate=True),
        Output("last-day", "value", allow_duplicate=True),
        Input("comparison-figure", "relayoutData"),
        Input("overview", "selectedData"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("figures", "save_picture"), Input("comparison-png", "n_clicks"), prevent_initial_call=True
    )
    app.clientside_callback(
        ClientsideFunction("address", "keep_period"),
        Input("first-day", "value"),
        Input("last-day", "value"),
        State("latest-period", "data"),
    )


def answer(served: Snapshot, period: Period, zone: str = "UTC") -> Answer:
    """Return all that follows the period, its days in UTC and times in a zone; made once for all readers."""
    return served.cached((address.prefix(), PATH, *period, zone), lambda: _answer(served, period, zone))


def _answer(served: Snapshot, period: Period, zone: str) -> Answer:
    rows = periods.rows_within(served, period)
    if rows.empty:
        nothing = figures.empty(_why_nothing(served))
        return nothing, [], [], nothing, nothing
    frame, predicted = served.frame.loc[rows], served.predicted.loc[rows]
    shown = frame.assign(utc_timestamp=frame["utc_timestamp"].dt.tz_convert(zone))
    figure = figures.measured_and_predicted(
        shown,
        predicted,
        band=served.band and tuple(end.loc[rows] for end in served.band),
        coverage=served.model and served.model.coverage,
        measured_name=sources.origin_of(served.frame).measured_name,
    )
    residuals = [figures.residuals(shown, predicted, by=by).update_layout(margin_t=36) for by in ("hour", "month")]
    figure.update_layout(margin_t=44, uirevision=" ".join(map(str, (*period, zone))))
    return figure, key_figures(served, rows, period), weeks(frame, predicted), *residuals


def overview(served: Snapshot, period: Period) -> go.Figure:
    """Return a strip of all data, as daily means of both powers together, with the period marked."""
    if served.frame is None:
        return figures.empty("")
    days = served.cached(
        ("days",), lambda: served.frame.set_index("utc_timestamp")[TARGETS].sum(axis=1).resample("D").mean()
    )
    figure = go.Figure(go.Scatter(x=days.index, y=days, fill="tozeroy", hoverinfo="skip", line_width=0.5))
    figure.add_vrect(x0=str(period[0]), x1=str(period[1] + timedelta(days=1)), opacity=0.3, line_width=1)
    figure.update_layout(template=figures.TEMPLATE, dragmode="select", selectdirection="h", margin={"t": 2, "b": 20})
    return figure.update_yaxes(visible=False, fixedrange=True).update_xaxes(fixedrange=True)


def states(served: Snapshot, period: Period) -> list[bool]:
    """Tell of each preset whether it is chosen, and of both moves whether there is nothing further."""
    whole = periods.whole(served)
    presets = [period == (whole if name == "all" else periods.latest(served, int(name))) for name in PRESETS]
    return [*presets, period[0] == whole[0], period[1] == whole[1]]


def key_figures(served: Snapshot, rows: pd.Index, period: Period) -> list:
    """Return tiles with the means, errors and the share of hours within the band, and a line on the period."""
    start, end = period
    length = end - start + timedelta(days=1)
    before = periods.rows_within(served, (start - length, start - timedelta(days=1)))
    frame, predicted = served.frame.loc[rows, TARGETS], served.predicted.loc[rows, TARGETS]
    errors = (served.predicted[TARGETS] - served.frame[TARGETS]).abs()
    tiles = [
        parts.tile(
            f"{figures.NAMES[target]}, mean predicted",
            f"{predicted[target].mean():.2f}",
            "GW",
            f"measured {frame[target].mean():.2f} GW, mean absolute error {errors.loc[rows, target].mean():.2f} GW",
            target.removesuffix("_GW"),
        )
        for target in TARGETS
    ]
    stamps, learned_until = served.frame["utc_timestamp"], served.production and served.production.learned_until
    # Errors on learned hours are smaller: they say nothing about those on new ones.
    is_fair = len(before) and (not learned_until or (stamps[before.union(rows)] <= learned_until).nunique() == 1)
    against = "mean of " + " and ".join(target.key for target in problem.TARGETS)
    if is_fair:
        against += f"; {errors.loc[before].mean().mean():.2f} GW in as many days before"
    tiles.append(parts.tile("Mean absolute error", f"{errors.loc[rows].mean().mean():.2f}", "GW", against))
    if served.band and served.model and served.model.coverage:
        shares = coverage(served.frame.loc[rows], *(end.loc[rows] for end in served.band))
        *others, last = [
            (f"of {target.key}{' by day' if target.by_day else ''}", f"{100 * shares[f'coverage_{target.key}']:.0f}")
            for target in problem.TARGETS
        ]
        hint = "; ".join([last[0], *(f"{words} {share} %" for words, share in others)])
        hint += f"; expected {100 * served.model.coverage:.0f} %"
        tiles.append(parts.tile("Hours within the band", last[1], "%", hint))
    said = f"{len(rows):,} of {24 * length.days:,} hours, {start:{periods.DAY}} to {end:{periods.DAY}}. "
    said += novelty(served.frame.loc[rows], learned_until)
    return [html.Div(tiles, className="tiles"), html.P(said, className="hint")]


def novelty(frame: pd.DataFrame, learned_until: str | None) -> str:
    """Return how many of some hours the model was trained on: its errors are smaller there than on new ones."""
    if learned_until is None:
        return ""
    last = pd.Timestamp(learned_until)
    until = f"{last:{periods.DAY}}"
    known = frame["utc_timestamp"] <= last
    if not known.any():
        return f"The model was trained on hours up to {until}: all of these are new to it."
    share = "all" if known.all() else f"{known.sum():,}"
    return f"The model was trained on {share} of these hours (up to {until}): its errors on new ones are larger."


def modelled(served: Snapshot) -> str:
    """Return a remark on generation that was not measured; empty for measured data."""
    source = sources.origin_of(served.frame)
    return f"“Measured” is modelled here: the source {source.source} simulates generation." if source.modelled else ""


def weeks(frame: pd.DataFrame, predicted: pd.DataFrame) -> list:
    """Return the means and errors of each week (ISO 8601, UTC), the latest first; of a long period the last year's."""
    mondays = split.mondays(frame["utc_timestamp"])
    errors = (predicted - frame)[TARGETS].abs()
    every = pd.concat({"measured": frame[TARGETS], "predicted": predicted[TARGETS], "error": errors}, axis=1)
    means, hours = every.groupby(mondays).mean(), mondays.value_counts()
    rows = []
    for monday, mean in list(means.iterrows())[: -MOST_WEEKS - 1 : -1]:
        link = address.of_period(PATH, monday.date(), (monday + pd.Timedelta(days=6)).date())
        numbers = [f"{mean[part, target]:.2f}" for target in TARGETS for part in ("measured", "predicted", "error")]
        rows.append([html.A(split.name_of(monday), href=link, className="inside"), hours[monday], *numbers])
    return [parts.scroll(parts.table(WEEKS_HEAD, rows, "weeks"), "Key figures of each week")]


def _why_nothing(served: Snapshot) -> str:
    if not served.looked:
        return "One moment …"
    if served.frame is None:
        return "There is no data yet."
    if served.predicted is None:
        return "There is no model in production yet."
    return "There is no hour of data in this period."


def _controls(served: Snapshot, period: Period) -> html.Div:
    least, most = periods.whole(served)
    days = []
    for end, day in zip(("first", "last"), period, strict=True):
        days += [
            html.Label(f"{end.capitalize()} day", htmlFor=f"{end}-day", className="visually-hidden"),
            # The browser's own calendar: known to keyboards, screen readers and thumbs.
            dbc.Input(id=f"{end}-day", type="date", value=day, min=least, max=most, debounce=400, size="sm"),
        ]
    *are_chosen, is_first, is_last = states(served, period)
    presets = [
        parts.button(label, f"preset-{name}", f"The latest: {label}", active=is_chosen)
        for (name, label), is_chosen in zip(PRESETS.items(), are_chosen, strict=True)
    ]
    moves = [
        parts.button("← Earlier", "earlier", disabled=is_first),
        parts.button("Later →", "later", disabled=is_last),
    ]
    zones = [
        html.Label("Times of the figure", htmlFor="zone", className="visually-hidden"),
        dbc.Select(id="zone", options=ZONES, value="UTC", size="sm"),
    ]
    saved = [parts.button("Picture", "comparison-png"), parts.button("Table", "comparison-csv", "CSV")]
    saved.append(dcc.Download(id="comparison-file"))
    return parts.groups({"Period": days, "Latest": presets, "Move": moves, "Times": zones, "Download": saved})
