"""Predicted and measured: the predictions for a period beside the measurements, and their errors."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import dash_bootstrap_components as dbc
import pandas as pd
import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate
from forecast import problem
from forecast.govern import gate
from forecast.learn.evaluation import in_percent
from forecast.show import figures, monitoring
from forecast.show.monitoring import Quality
from forecast.show.report import signed
from forecast.table import split
from forecast.table.schema import TARGETS
from forecast.terms import steps
from forecast.terms.origin import origin_of

from .. import address, parts, periods, predictions
from ..follower import Follower, Snapshot, cache_per_revision
from ..periods import Period

PATH, TITLE = "/comparison", "Predicted and measured"
PRESETS = {"14": "2 weeks", "31": "Month", "92": "Quarter", "365": "Year", "all": "All"}
MEASURED = {target: f"{target}_measured" for target in TARGETS}
MAX_WEEKS = 53
MONTHS_FROM_DAYS = 60  # a shorter period has too few months to compare
DRAG = "Drag across the figure or the strip to choose a period; double-click to return to the latest two weeks."
FIRST_WEEKS = 8
WEEKS_HEAD = ["Week"]
WEEKS_HEAD += [word for target in problem.TARGETS for word in (f"{target.title} measured", "predicted", "bias")]
ZONES = {steps.CALENDAR: steps.CALENDAR} if steps.IS_DAY else {"UTC": "UTC", steps.ZONE: f"Time in {problem.REGION}"}
DAYS = ("first-day", "last-day")
CHOICES = (*DAYS, "zone")
FIGURES = ("comparison-figure", "residuals-by-hour", "residuals-by-month", "overview")
# Component id -> the property that depends on the period.
OUTPUTS = dict.fromkeys(FIGURES, "figure") | dict.fromkeys(("key-figures", "comparison-weeks"), "children")
OUTPUTS |= {"months-of-residuals": "className", "comparison-adjustment": "children"}
OUTPUTS |= {f"preset-{name}": "active" for name in PRESETS} | {"earlier": "disabled", "later": "disabled"}


def page(snapshot: Snapshot, query: dict[str, str]) -> list:
    """Return the panels for the period in the query (`from`, `to`), by default the latest two weeks."""
    period, adjustment = periods.adjust(snapshot, query.get("from"), query.get("to"))
    content = render(snapshot, period)
    compared = [
        html.Div(content["key-figures"], id="key-figures", **{"aria-live": "polite"}),
        _controls(snapshot, period),
        html.P(adjustment, id="comparison-adjustment", role="status"),
        parts.graph(
            "comparison-figure", content["comparison-figure"], "Measured and predicted over time, with error band"
        ),
        html.P(f"All data: daily means, each target divided by its highest value. {DRAG}", className="hint"),
        parts.graph("overview", content["overview"], "All data; drag across it to choose a period", "strip"),
    ]
    by_month = parts.graph("residuals-by-month", content["residuals-by-month"], "Errors by month", "chart low")
    label = f"Errors by {'day of the week' if steps.IS_DAY else 'hour of the day'}"
    residuals = [
        parts.graph("residuals-by-hour", content["residuals-by-hour"], label, "chart low"),
        html.Div(by_month, id="months-of-residuals", className=content["months-of-residuals"]),
    ]
    hint = f"Means in {figures.UNIT} and bias in percent of the measured mean, for at most the last {MAX_WEEKS} weeks."
    about_errors = f"Predicted minus measured: median and interquartile range over the {steps.NAMES} of the period."
    return [
        dcc.Store(id="latest-period", data=periods.latest(snapshot)),
        dcc.Store(id="comparison-answer"),
        parts.panel("comparison", TITLE, simulation_note(snapshot), compared),
        parts.panel("weeks", "By week", hint, [html.Div(content["comparison-weeks"], id="comparison-weeks")]),
        parts.panel("residuals", "When the errors occur", about_errors, [html.Div(residuals, className="columns")]),
    ]


def register(app: Dash, follower: Follower) -> None:
    """Register the callbacks that run when the user changes the period or the snapshot is replaced."""
    _register_rendering(app, follower)

    @app.callback(
        *(Output(day, "value", allow_duplicate=True) for day in DAYS),
        *(Input(f"preset-{name}", "n_clicks") for name in PRESETS),
        Input("earlier", "n_clicks"),
        Input("later", "n_clicks"),
        *(State(day, "value") for day in DAYS),
    )
    def choose_period(*values: Any) -> Period:
        """Set the period to a preset (the latest days of the data), or shift it by its own length."""
        snapshot, name = follower.now, str(ctx.triggered_id).removeprefix("preset-")
        if snapshot.frame is None:
            raise PreventUpdate
        if name in PRESETS:
            return _preset(snapshot, name)
        (start, end), _ = periods.adjust(snapshot, *values[-2:])
        (first, last), length = periods.full(snapshot), end - start + timedelta(days=1)
        shift = min(length, last - end) if name == "later" else max(-length, first - start)
        return start + shift, end + shift

    @app.callback(
        Output("comparison-file", "data"),
        Input("comparison-csv", "n_clicks"),
        *(State(day, "value") for day in DAYS),
    )
    def download(_clicks: int, start: object, end: object) -> dict:
        """Return the measured and predicted values of the period as CSV."""
        snapshot = follower.now
        period, _ = periods.adjust(snapshot, start, end)
        compared = periods.comparison_of(snapshot, period)
        if compared is None:
            raise PreventUpdate
        measured = compared.frame[["utc_timestamp", *TARGETS]].rename(columns=MEASURED)
        text = predictions.to_csv(measured, compared.predicted, compared.band, compared.champion)
        return dcc.send_string(text, f"predicted {period[0]} to {period[1]}.csv")

    app.clientside_callback(
        ClientsideFunction("figures", "choose_range"),
        *(Output(day, "value", allow_duplicate=True) for day in DAYS),
        Input("comparison-figure", "relayoutData"),
        Input("overview", "selectedData"),
        State("latest-period", "data"),
    )
    app.clientside_callback(ClientsideFunction("figures", "mark_week"), Input("comparison-figure", "hoverData"))
    app.clientside_callback(ClientsideFunction("figures", "save_picture"), Input("comparison-png", "n_clicks"))
    app.clientside_callback(
        ClientsideFunction("address", "keep_period"),
        *(Input(day, "value") for day in DAYS),
        State("latest-period", "data"),
        prevent_initial_call=False,
    )


def _register_rendering(app: Dash, follower: Follower) -> None:
    @app.callback(
        Output("comparison-answer", "data"), *(Input(id_, "value") for id_ in CHOICES), Input("revision", "data")
    )
    def draw_period(start: object, end: object, zone: object, _revision: object) -> dict:
        """Render the chosen period; `assets/figures.js` drops the response if the choices have changed meanwhile."""
        snapshot = follower.now
        period, adjustment = periods.adjust(snapshot, start, end)
        content = render(snapshot, period, zone if zone in tuple(ZONES) else steps.CALENDAR)
        values = content | button_states(snapshot, period) | {"comparison-adjustment": adjustment}
        return {"choices": [start, end, zone], "values": values}

    app.clientside_callback(
        ClientsideFunction("figures", "show_period"),
        *(Output(id_, name) for id_, name in OUTPUTS.items()),
        Input("comparison-answer", "data"),
        *(State(id_, "value") for id_ in CHOICES),
    )

    @app.callback(
        Output("comparison-hint", "children"),
        Output("latest-period", "data"),
        *(Output(day, limit) for day in DAYS for limit in ("min", "max")),
        *(Output(day, "value") for day in DAYS),
        Input("revision", "data"),
        *(State(day, "value") for day in DAYS),
    )
    def follow_data(_revision: object, start: object, end: object) -> tuple:
        """Update the date limits and the note; set the period only if the page was opened before any data existed."""
        snapshot = follower.now
        latest = periods.latest(snapshot)
        period = (no_update, no_update) if periods.parse_day(start) and periods.parse_day(end) else latest
        return simulation_note(snapshot), latest, *periods.full(snapshot) * 2, *period


@cache_per_revision
def render(snapshot: Snapshot, period: Period, zone: str = steps.CALENDAR) -> dict[str, Any]:
    """Return the values of `OUTPUTS` for a period, except the buttons and the note; the figure's times are in ``zone``.

    The figure of errors by month is hidden if the period is too short for it.
    """
    is_short = None in period or (period[1] - period[0]).days < MONTHS_FROM_DAYS
    content = {"overview": overview(snapshot, period), "months-of-residuals": "d-none" if is_short else ""}
    compared = periods.comparison_of(snapshot, period)
    if compared is None:
        text = snapshot.missing("frame", "champion") or "There are no data in this period."
        empty = dict.fromkeys(FIGURES, figures.empty(text)) | {"key-figures": [], "comparison-weeks": []}
        return empty | content
    frame, predicted = compared.frame, compared.predicted
    local = frame.assign(utc_timestamp=frame["utc_timestamp"].dt.tz_convert(zone))
    coverage, name = compared.champion.model.coverage, origin_of(frame).measured_name
    figure = figures.measured_and_predicted(local, predicted, band=compared.band, coverage=coverage, measured_name=name)
    for by in ("hour", "month"):
        content[f"residuals-by-{by}"] = figures.residuals(local, predicted, by=by).update_layout(margin_t=36)
    content["comparison-figure"] = figure.update_layout(margin_t=44, uirevision=" ".join(map(str, (*period, zone))))
    week = snapshot.record.report_week
    link = address.link("/results/report.html")
    report = parts.external_link(f"Weekly report: {week}", link) if week else "There is no weekly report yet."
    start, end = period
    expected = len(steps.of_days(start, end + timedelta(days=1)))
    text = f"{len(frame):,} of {expected:,} {steps.NAMES}, {start:{periods.DAY}} to {end:{periods.DAY}}. "
    training_ends = compared.champion.evaluated_training_end, gate.refit_until(compared.champion.production)
    text += monitoring.training_overlap(frame, *training_ends)
    tiles = html.Div([_tile(each) for each in compared.qualities], className="tiles")
    summary = html.P(monitoring.summarize(compared.qualities), className="summary")
    content["key-figures"] = [summary, tiles, html.P(text, className="hint")]
    return content | {"comparison-weeks": [*weeks(frame, predicted), html.P(report)]}


def overview(snapshot: Snapshot, period: Period) -> go.Figure:
    """Return an overview of all data with the period marked: daily means as shares of each target's maximum, summed."""
    if snapshot.frame is None:
        return figures.empty("")
    local = snapshot.frame.assign(utc_timestamp=steps.local(snapshot.frame["utc_timestamp"]).dt.tz_localize(None))
    means = local.resample("D", on="utc_timestamp")[TARGETS].mean()
    days = (means / snapshot.frame[TARGETS].max()).sum(axis=1, min_count=1)
    figure = go.Figure(go.Scatter(x=days.index, y=days, fill="tozeroy", hoverinfo="skip", line_width=0.5))
    window = {"fillcolor": figures.MEASURED, "opacity": 0.5, "line": {"width": 2, "color": figures.INK}}
    figure.add_vrect(x0=str(period[0]), x1=str(period[1] + timedelta(days=1)), **window)
    figure.update_layout(template=figures.TEMPLATE, dragmode="select", selectdirection="h", margin={"t": 2, "b": 20})
    return figure.update_yaxes(visible=False, fixedrange=True).update_xaxes(fixedrange=True)


def _preset(snapshot: Snapshot, name: str) -> Period:
    return periods.full(snapshot) if name == "all" else periods.latest(snapshot, int(name))


def button_states(snapshot: Snapshot, period: Period) -> dict[str, bool]:
    """Return whether each preset is active, and whether each shift button is disabled."""
    first, last = periods.full(snapshot)
    are_active = {f"preset-{name}": period == _preset(snapshot, name) for name in PRESETS}
    return are_active | {"earlier": period[0] == first, "later": period[1] == last}


def _tile(quality: Quality) -> html.Div:
    target, unit = quality.target, quality.target.unit
    hint = f"measured mean {quality.mean:.2f} {unit}, mean absolute error {quality.mae:.2f}, bias"
    hint += f" {signed(quality.bias, 2)} {unit}" + f", {quality.coverage:.0%} within the band" * (quality.coverage >= 0)
    baselines = [f"{name} {error:.2f} {unit}" for name, error in quality.baselines.items() if not math.isnan(error)]
    hint += "; baselines: " * bool(baselines) + ", ".join(baselines)
    if math.isnan(quality.nmae_percent):
        return parts.tile(f"{target.title}, mean absolute error", f"{quality.mae:.2f}", unit, hint, target.colour)
    name = f"{target.title}, mean absolute error as a share of installed capacity"
    return parts.tile(name, f"{quality.nmae_percent:.1f}", "%", hint, target.colour)


def simulation_note(snapshot: Snapshot) -> str:
    """Return a note if the “measured” values are modelled, else an empty string."""
    source = origin_of(snapshot.frame)
    return f"“Measured” values are modelled (source: {source.source})." if source.modelled else ""


def weeks(frame: pd.DataFrame, predicted: pd.DataFrame) -> list:
    """Return tables of the means and biases of the complete ISO weeks, latest first.

    All but the first `FIRST_WEEKS` are collapsed. The worst bias of each target is marked; incomplete weeks are listed.
    """
    by_week = split.mondays(frame["utc_timestamp"])
    means = pd.concat({"measured": frame[TARGETS], "predicted": predicted[TARGETS]}, axis=1).groupby(by_week).mean()
    is_complete = by_week.value_counts().sort_index() >= split.MIN_WEEK_ROWS
    partial, means = means.index[~is_complete], means[is_complete].iloc[::-1][:MAX_WEEKS]
    errors = means["predicted"] - means["measured"]
    rows = []
    for monday, mean in means.iterrows():
        first = monday.tz_convert(steps.CALENDAR).date()
        link = f"{address.link(PATH)}?from={first}&to={first + timedelta(days=6)}"
        cells = [html.A(split.name_of(monday), href=link, className="inside")]
        for target in TARGETS:
            error, measured = errors.loc[monday, target], mean["measured", target]
            percent = in_percent(error, frame.loc[by_week == monday, target])
            text = "not measured" if math.isnan(percent) else f"{signed(percent)} %"
            is_worst = len(means) > 1 and abs(error) == errors[target].abs().max()
            cells += [f"{measured:.2f}", f"{mean['predicted', target]:.2f}"]
            cells.append(html.Mark([text, html.Small(" worst")]) if is_worst else text)
        rows.append(cells)
    content = [parts.table("Complete weeks", WEEKS_HEAD, rows[:FIRST_WEEKS], "weeks")] if rows else []
    if more := rows[FIRST_WEEKS:]:
        table = parts.table("Earlier weeks", WEEKS_HEAD, more, "weeks")
        content.append(html.Details([html.Summary(f"{len(more)} more weeks"), table]))
    if len(partial):
        names = ", ".join(map(split.name_of, partial))
        content.append(html.P(f"Incomplete weeks, left out: {names}.", className="hint"))
    return content


def _controls(snapshot: Snapshot, period: Period) -> html.Div:
    first, last = periods.full(snapshot)
    days = []
    for id_, day in zip(DAYS, period, strict=True):
        days += [
            html.Label(id_.replace("-", " ").capitalize(), htmlFor=id_, className="visually-hidden"),
            # A native date input works with keyboards, screen readers and touch screens.
            dbc.Input(id=id_, type="date", value=day, min=first, max=last, debounce=400, size="sm"),
        ]
    states = button_states(snapshot, period)
    presets = [
        parts.button(label, id_, f"Latest: {label}", active=states[id_])
        for id_, label in ((f"preset-{name}", label) for name, label in PRESETS.items())
    ]
    shifts = [parts.button("← Earlier", "earlier", disabled=states["earlier"])]
    shifts.append(parts.button("Later →", "later", disabled=states["later"]))
    zones = [
        html.Label("Time zone of the figure", htmlFor="zone", className="visually-hidden"),
        dbc.Select(id="zone", options=ZONES, value=steps.CALENDAR, size="sm"),
    ]
    saved = [parts.button("Picture", "comparison-png"), parts.button("Table", "comparison-csv", "CSV")]
    saved.append(dcc.Download(id="comparison-file"))
    groups = {"Period": days, "Latest": presets, "Shift": shifts, "Time zone": zones, "Download": saved}
    sets = [html.Fieldset([html.Legend(name), html.Div(group, className="group")]) for name, group in groups.items()]
    return html.Div(sets, className="controls")
