"""What the page does: follow what is served, and answer to the period and the sliders."""

from __future__ import annotations

import math
from datetime import date, timedelta

import layout
import what_if
from dash import Dash, Input, Output, State, ctx, no_update
from dash.exceptions import PreventUpdate
from serving import Served, Serving


def register(app: Dash, serving: Serving) -> None:
    """Connect the page's parts; no callback waits for anything but the model's own arithmetic."""

    @app.callback(
        Output("revision", "data"),
        Output("model", "children"),
        Output("message", "children"),
        Output("attribution", "children"),
        Output("modelled-hint", "children"),
        Output("what-if-hint", "children"),
        Output("outlook-period", "min_date_allowed"),
        Output("outlook-period", "max_date_allowed"),
        Output("outlook-period", "start_date"),
        Output("outlook-period", "end_date"),
        Input("clock", "n_intervals"),
        State("revision", "data"),
        State("outlook-period", "start_date"),
        State("outlook-period", "end_date"),
        prevent_initial_call=True,
    )
    def follow(_ticks, revision, start, end):
        """Say what is new, if anything is; the rest of the page follows the revision."""
        served = serving.now
        if served.revision == revision:
            raise PreventUpdate
        # A period that is there stays as it is; a page that was opened before there was data gets its first one.
        period = (no_update, no_update) if _day(start) and _day(end) else layout.default_period(served)
        hints = layout.modelled_hint(served), what_if.hint(served)
        told = layout.message(served), layout.attribution(served), *hints
        return served.revision, layout.model(served), *told, *layout.days(served), *period

    @app.callback(
        Output("outlook-figure", "figure"),
        Output("outlook-key-figures", "children"),
        Input("outlook-period", "start_date"),
        Input("outlook-period", "end_date"),
        Input("revision", "data"),
        prevent_initial_call=True,
    )
    def show_outlook(start, end, _revision):
        """Draw the chosen period."""
        served = serving.now
        chosen = period(served, start, end)
        return layout.outlook_figure(served, *chosen), layout.key_figures(served, *chosen)

    @app.callback(
        Output("outlook-period", "start_date", allow_duplicate=True),
        Output("outlook-period", "end_date", allow_duplicate=True),
        *(Input(f"preset-{name}", "n_clicks") for name in layout.PRESETS),
        Input("earlier", "n_clicks"),
        Input("later", "n_clicks"),
        State("outlook-period", "start_date"),
        State("outlook-period", "end_date"),
        prevent_initial_call=True,
    )
    def choose_period(*values):
        """Set the period to the latest days, or move it by its own length."""
        served, chosen = serving.now, str(ctx.triggered_id)
        first, last = layout.days(served)
        if first is None:
            raise PreventUpdate
        name = chosen.removeprefix("preset-")
        if name == "all":
            return first, last
        if name in layout.PRESETS:
            return layout.default_period(served, int(name))
        start, end = period(served, *values[-2:])
        length = end - start + timedelta(days=1)
        if name == "earlier":
            start = max(start - length, first)
            return start, min(start + length - timedelta(days=1), last)
        end = min(end + length, last)
        return max(end - length + timedelta(days=1), first), end

    @app.callback(
        Output("what-if-answers", "children"),
        *(Output(f"{what_if.slider_id(feature)}-value", "children") for feature in what_if.INPUTS),
        *(Input(what_if.slider_id(feature), "value") for feature in what_if.INPUTS),
        Input("revision", "data"),
        prevent_initial_call=True,
    )
    def answer(*values):
        """Predict for the sliders' hour and weather."""
        weather = {feature: number(value, feature) for feature, value in zip(what_if.INPUTS, values[:-1], strict=True)}
        return what_if.answers(serving.now, weather), *(what_if.reading(*item) for item in weather.items())


def number(value: object, feature: str) -> float:
    """Return a slider's value within its range; its first value when it is no number."""
    allowed = what_if.INPUTS[feature]
    try:
        given = float(value)
    except (TypeError, ValueError, OverflowError):
        given = math.nan
    return float(allowed.first if math.isnan(given) else min(max(given, allowed.least), allowed.most))


def period(served: Served, start: object, end: object) -> tuple[date | None, date | None]:
    """Return both days in order and within the data; the latest two weeks when one is absent or no date."""
    first, last = layout.days(served)
    chosen = _day(start), _day(end)
    if first is None or None in chosen:
        return layout.default_period(served)
    start, end = sorted(min(max(day, first), last) for day in chosen)
    return start, end


def _day(value: object) -> date | None:
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError:
        return None
