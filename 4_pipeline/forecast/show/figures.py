"""Plotly figures of data and predictions, shared by notebooks and dashboard: frame in, figure out."""

from __future__ import annotations

from calendar import day_abbr
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from forecast import problem
from forecast.table.schema import QUANTITIES, TARGETS, UNITS
from forecast.terms import steps
from forecast.terms.errors import DataError, require_columns

COLOURS = {target.name: target.colour for target in problem.TARGETS}
NAMES = {target.name: target.title for target in problem.TARGETS}
INPUT_NAMES = {"utc_timestamp": "Season" if steps.IS_DAY else f"{steps.NAME.capitalize()} and season"} | {
    each.name: each.title for each in problem.INPUTS
}
CATEGORIES = [each.name for each in problem.INPUTS if each.usual_mean is None and each.slider.step == 1]
INK, GRID, MEASURED = "#1b2a3a", "#e6eaee", "#6b7885"
UNIT = " or ".join(dict.fromkeys(target.unit for target in problem.TARGETS))  # label of an axis that all targets share
SCORES = {"r2": ("all", INK)} | {each.metric("r2"): (each.title.lower(), each.colour) for each in problem.TARGETS}
MAX_DAYS_OF_STEPS = 100  # longer periods are drawn as daily means, since steps would be narrower than a pixel
BINS = 60
COLORBAR_TICKS = [0, steps.A_DAY, steps.A_WEEK, steps.A_MONTH]
MAX_ROWS_WITH_MARKERS = 48
TIME_AXIS = "x" if len(TARGETS) == 1 else f"x{len(TARGETS)}"  # the x axis of the last panel, which all panels share
AXIS_TITLE = {"font": {"size": 13}, "standoff": 8}
TIME_FORMATS = [
    {"dtickrange": [None, 86_399_999], "value": "%H:%M\n%-d %b %Y"},
    {"dtickrange": [86_400_000, "M1"], "value": "%-d %b\n%Y"},
    {"dtickrange": ["M1", None], "value": "%b\n%Y"},
]

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "Inter, 'Segoe UI', system-ui, sans-serif", "size": 13, "color": INK},
        "colorway": [*reversed(COLOURS.values()), "#009E73", "#CC79A7", "#56B4E9", "#D55E00"],
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 48, "r": 12, "t": 76, "b": 44},
        "title": {"x": 0, "xref": "paper", "y": 1, "yanchor": "top", "pad": {"t": 14}, "font": {"size": 16}},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "white", "bordercolor": GRID, "font": {"color": INK}},
        "xaxis": {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "automargin": True, "title": AXIS_TITLE},
        "yaxis": {"gridcolor": GRID, "zerolinecolor": "#b9c3cb", "automargin": True, "title": AXIS_TITLE},
    }
)


def measured_and_predicted(
    frame: pd.DataFrame,
    predicted: pd.DataFrame,
    *,
    band: tuple[pd.DataFrame, pd.DataFrame] | None = None,
    coverage: float | None = None,
    title: str | None = None,
    measured_name: str = "measured",
) -> go.Figure:
    """Draw measured (dark) and predicted (coloured) values over time, one panel per target.

    ``frame`` is a processed frame; ``predicted`` holds the targets for the same rows in the same order. ``band`` is the
    lower and upper bound of an error band with nominal ``coverage``, each a frame like ``predicted``. ``measured_name``
    labels the dark line. Missing steps appear as gaps. More than 100 complete days are drawn as daily means without
    a band, since a band for single steps does not apply to means. Times are in the time zone of ``frame``. Raises
    DataError if there are no rows, a column is missing, or the numbers of rows differ.
    """
    measured, predicted = (_over_time(part) for part in _aligned(frame, predicted))
    means = [_daily_means(part) for part in (measured, predicted)]
    daily = not steps.IS_DAY and means[1].notna().all(axis=1).sum() > MAX_DAYS_OF_STEPS
    ends = () if daily or band is None else [_over_time(_aligned(frame, end)[1]) for end in band]
    if daily:
        measured, predicted = means
    figure = make_subplots(rows=len(TARGETS), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for row, target in enumerate(TARGETS, start=1):
        _add_lines(figure, target, row, (measured_name, measured), predicted, ends, coverage)
        axis = {"title_text": QUANTITIES[target].label, "fixedrange": True, "rangemode": "tozero", "anchor": TIME_AXIS}
        figure.update_yaxes(**axis, row=row, col=1)
    # All panels share the x axis of the last one, which has the hover line and the axis label.
    figure.update_traces(xaxis=TIME_AXIS).update_layout(hoversubplots="axis")
    for row in range(1, len(TARGETS)):
        figure.update_layout({f"xaxis{row}".removesuffix("1"): None})
    _label_times(figure, measured, daily=daily)
    return figure.update_layout(template=TEMPLATE, title_text=title)


def _label_times(figure: go.Figure, measured: pd.DataFrame, *, daily: bool) -> None:
    """Label the time axis with its zone, and draw a line through all panels at the mouse pointer."""
    name = "days, " * steps.IS_DAY + f"{measured.index.tz or 'UTC'}"
    if daily:
        partial_days = int(measured.isna().any(axis=1).sum())
        name += ", daily means" + f"; {partial_days} incomplete days are left out" * bool(partial_days)
    spike = {"showspikes": True, "spikemode": "across", "spikethickness": 1, "spikedash": "dot", "spikecolor": MEASURED}
    hover = "%a, %-d %b %Y" + ", %H:%M" * (not daily and not steps.IS_DAY)
    figure.update_xaxes(
        title_text=name, tickformatstops=TIME_FORMATS, hoverformat=hover, row=len(TARGETS), col=1, **spike
    )


def _add_lines(
    figure: go.Figure,
    target: str,
    row: int,
    measured: tuple[str, pd.DataFrame],
    predicted: pd.DataFrame,
    ends: Sequence[pd.DataFrame],
    coverage: float | None,
) -> None:
    """Add a target's band and lines to a row of `measured_and_predicted`."""
    if ends:
        low, high = (end[target] for end in ends)
        _add_band(figure, low, high, target, coverage, row)
    bounds = np.column_stack([end[target] for end in ends]) if ends else None
    value = f"%{{y:.2f}} {UNITS[target]}"
    with_band = value + " (%{customdata[0]:.1f} to %{customdata[1]:.1f})" * bool(ends)
    lines = (
        (*measured, {"color": INK, "width": 2}, row == 1, f"{NAMES[target].lower()} {value}"),
        (f"{NAMES[target].lower()} predicted", predicted, {"color": COLOURS[target], "width": 1.6}, True, with_band),
    )
    for name, part, line, in_legend, hover in lines:
        # Do not set `fill`: plotly would fill across gaps.
        figure.add_scatter(
            x=part.index.tz_localize(None),  # plotly ignores the zone, and copies timezone-aware times one by one
            y=part[target],
            name=name,
            showlegend=in_legend,
            mode="lines",
            connectgaps=False,
            line=line,
            customdata=bounds,
            hovertemplate=hover,
            row=row,
            col=1,
        )


def scores(table: pd.DataFrame) -> go.Figure:
    """Draw the scores of models as grouped bars, one group per row of ``table``.

    The index holds the models' names; the columns are `r2` (the mean) and `r2_<target>`.
    """
    figure = go.Figure()
    for column, (name, colour) in SCORES.items():
        figure.add_bar(
            y=[str(model) for model in table.index],
            x=table[column].to_numpy(),
            name=name,
            orientation="h",
            marker_color=colour,
            texttemplate="%{x:.3f}",
            textposition="auto",
            hovertemplate="%{x:.4f}",
        )
    # Plotly draws rows and bars from the bottom up, but tables are read from the top down.
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(title_text="R2 (1 is perfect, 0 is no better than the mean)", zeroline=True)
    return figure.update_layout(
        template=TEMPLATE, title_text="R2 on the validation weeks", hovermode="y unified", bargroupgap=0.08
    )


def predicted_against_measured(frame: pd.DataFrame, predicted: pd.DataFrame) -> go.Figure:
    """Draw a 2D histogram of predicted (y) against measured (x), one panel per target.

    There are 60 by 60 bins with a logarithmic colour scale; the dotted line marks perfect predictions. For
    arguments and errors, see `measured_and_predicted`.
    """
    measured, predicted = _aligned(frame, predicted)
    figure = make_subplots(rows=1, cols=len(TARGETS), horizontal_spacing=0.1, subplot_titles=[*NAMES.values()])
    for column, target in enumerate(TARGETS, start=1):
        x, y = measured[target].to_numpy(), predicted[target].to_numpy()
        low, high = (float(reduce([x, y])) for reduce in (np.nanmin, np.nanmax))
        low, high = min(low, 0.0), max(high, low + 1e-6)
        counts, edges, _ = np.histogram2d(x, y, bins=BINS, range=[[low, high]] * 2)
        with np.errstate(divide="ignore"):
            shades = np.where(counts > 0, np.log10(counts), np.nan).T
        centres = (edges[:-1] + edges[1:]) / 2
        figure.add_heatmap(
            x=centres,
            y=centres,
            z=shades,
            customdata=counts.T,
            colorscale=_colorscale(COLOURS[target]),
            zmin=-0.5,  # keeps bins with a single count visible
            showscale=False,
            hoverongaps=False,
            hovertemplate="measured %{x:.1f}, predicted %{y:.1f} "
            f"{UNITS[target]}: %{{customdata}} {steps.NAMES}<extra></extra>",
            row=1,
            col=column,
        )
        diagonal = {"x": [low, high], "y": [low, high], "line": {"color": INK, "dash": "dot", "width": 1}}
        figure.add_scatter(mode="lines", hoverinfo="skip", showlegend=False, row=1, col=column, **diagonal)
        figure.update_xaxes(title_text=f"measured, {UNITS[target]}", range=[low, high], row=1, col=column)
        axis = "x" if column == 1 else f"x{column}"
        names = {"title_text": f"predicted, {UNITS[target]}", "scaleanchor": axis}
        figure.update_yaxes(range=[low, high], row=1, col=column, **names)
    return figure.update_layout(template=TEMPLATE, hovermode="closest")


def generation(
    frame: pd.DataFrame, *, held_out_from: pd.Timestamp | None = None, title: str | None = None
) -> go.Figure:
    """Draw the targets of a processed frame over time, one panel each.

    More than 100 complete days are drawn as daily means. The time from ``held_out_from`` on is shaded. Raises DataError
    if there are no rows or a column is missing.
    """
    figure = measured_and_predicted(frame, frame, title=title)
    figure.data = [trace for trace in figure.data if "predicted" in trace.name]
    for trace, target in zip(figure.data, TARGETS, strict=True):
        trace.name = NAMES[target].lower()
    if held_out_from is not None:
        end = frame["utc_timestamp"].max()
        span = {"type": "rect", "xref": TIME_AXIS, "x0": held_out_from, "x1": end}
        figure.add_shape(yref="paper", y0=0, y1=1, fillcolor=INK, opacity=0.08, line_width=0, **span)
        note = {"text": "held out", "showarrow": False, "yref": "y domain", "y": 1, "yanchor": "top"}
        figure.add_annotation(x=held_out_from + (end - held_out_from) / 2, xref=TIME_AXIS, **note)
    return figure


def prediction(
    inputs: pd.DataFrame,
    predicted: pd.DataFrame,
    *,
    band: tuple[pd.DataFrame, pd.DataFrame] | None = None,
    coverage: float | None = None,
) -> go.Figure:
    """Draw predictions without measurements over time, one panel per target.

    ``inputs`` has a column `utc_timestamp`; for the other arguments and errors, see `measured_and_predicted`.
    """
    frame = inputs[["utc_timestamp"]].assign(**{target: predicted[target].to_numpy() for target in TARGETS})
    figure = measured_and_predicted(frame, predicted, band=band, coverage=coverage)
    figure.data = [trace for trace in figure.data if trace.name != "measured"]
    for trace in figure.select_traces(selector={"mode": "lines"}):
        if len(frame) <= MAX_ROWS_WITH_MARKERS or _has_isolated_points(pd.Series(trace.y)):
            trace.mode = "lines+markers"
    return figure


def residuals(frame: pd.DataFrame, predicted: pd.DataFrame, *, by: Literal["hour", "month"] = "hour") -> go.Figure:
    """Draw the residuals (predicted minus measured) by hour of the day (weekday for daily data) or by month.

    Points are medians, bars are interquartile ranges. For arguments and errors, see `measured_and_predicted`.
    """
    measured, predicted = _aligned(frame, predicted)
    errors = predicted - measured
    weekly = by == "hour" and steps.IS_DAY
    groups = errors.index.day_of_week if weekly else getattr(errors.index, by)
    quantiles = errors.groupby(groups).quantile([0.25, 0.5, 0.75]).unstack()
    figure = go.Figure()
    for target, offset in zip(TARGETS, np.linspace(-0.15, 0.15, len(TARGETS)), strict=True):
        low, median, high = (quantiles[target, level] for level in (0.25, 0.5, 0.75))
        figure.add_scatter(
            x=median.index + offset,  # side by side
            y=median,
            name=NAMES[target],
            mode="markers",
            marker={"color": COLOURS[target], "size": 7},
            error_y={"array": high - median, "arrayminus": median - low, "color": COLOURS[target], "width": 0},
            hovertemplate=f"%{{y:+.2f}} {UNITS[target]}",
        )
    if weekly:
        figure.update_xaxes(range=[-0.5, 6.5], tickvals=list(range(7)), ticktext=list(day_abbr))
    elif by == "hour":
        figure.update_xaxes(title_text=f"hour of the day, {errors.index.tz or 'UTC'}", range=[-0.5, 23.5], dtick=3)
    else:
        figure.update_xaxes(range=[0.5, 12.5], tickvals=list(range(1, 13)), ticktext=list("JFMAMJJASOND"))
    figure.update_yaxes(title_text=f"residual, {UNIT}", zeroline=True)
    return figure.update_layout(template=TEMPLATE, hovermode="closest")


def by_month(table: pd.DataFrame, refit_until: str | None = None) -> go.Figure:
    """Draw the quality of predictions by month, one panel per measure and one line per target.

    ``table`` has the columns `month` (its first day), `target` and, in percent, `nmae_percent`, `bias_percent` and
    `coverage_percent`; an empty column has no panel. A dotted line marks ``refit_until``; the refit
    predicts only later hours.
    """
    panels = {
        "nmae_percent": "Error, % of the capacity",
        "bias_percent": "Bias, % of the mean",
        "coverage_percent": f"{steps.NAMES.capitalize()} within the band, %",
    }
    panels = {name: title for name, title in panels.items() if table.empty or table[name].notna().any()}
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for row, (column, title) in enumerate(panels.items(), start=1):
        for target, rows in table.groupby("target"):
            figure.add_scatter(
                x=rows["month"],
                y=rows[column].round(1),
                name=NAMES[target],
                legendgroup=target,
                showlegend=row == 1,
                mode="lines+markers",
                line_color=COLOURS[target],
                hovertemplate=NAMES[target].lower() + " %{y} %<extra></extra>",
                row=row,
                col=1,
            )
        figure.update_yaxes(title_text=title, fixedrange=True, rangemode="tozero", row=row, col=1)
    if refit_until and not table.empty and refit_until[:7] < table["month"].max()[:7]:
        figure.add_vline(x=refit_until[:10], line_dash="dot", line_color=INK)
    figure.update_xaxes(tickformatstops=TIME_FORMATS, hoverformat="%B %Y")
    return figure.update_layout(template=TEMPLATE, margin_t=44)


def weekly_errors(errors: Mapping[str, Sequence[float | None]]) -> go.Figure:
    """Draw each model's weekly errors (as in `Scores.weekly_errors`) over the same period, one line per model."""
    figure = go.Figure()
    for (name, values), colour in zip(errors.items(), (INK, *COLOURS.values()), strict=False):
        weeks = list(range(1, len(values) + 1))
        figure.add_scatter(x=weeks, y=values, name=name, mode="lines", line_color=colour, hovertemplate="%{y:.3f}")
    figure.update_xaxes(title_text=f"week of the held-out {steps.NAMES}")
    figure.update_yaxes(title_text="error in standard deviations", rangemode="tozero")
    return figure.update_layout(template=TEMPLATE, margin_t=44)


def missing(table: pd.DataFrame) -> go.Figure:
    """Draw a heatmap of the missing steps by year (rows) and month (columns), from `prepare.missing_by_month`.

    The square-root colour scale makes single hours visible; NaN is not drawn.
    """
    figure = go.Figure()
    figure.add_heatmap(
        x=[f"{pd.Timestamp(2000, month, 1):%b}" for month in table.columns],
        y=[str(year) for year in table.index],
        z=np.sqrt(table.to_numpy(float)),
        text=table.astype(object).where(table.notna(), "").to_numpy(),
        texttemplate="%{text}",
        hoverongaps=False,
        zmin=0,
        zmax=float(np.sqrt(max(steps.A_DAY, table.max(axis=None)))),
        colorscale=[(0, "#b7dbc8"), (0.35, "#f0d58a"), (1, "#d55e00")],
        colorbar={
            "title": {"text": steps.NAMES, "font": {"size": 13}},
            "tickvals": np.sqrt(COLORBAR_TICKS),
            "ticktext": COLORBAR_TICKS,
            "thickness": 12,
        },
        xgap=3,
        ygap=3,
        hovertemplate="%{x} %{y}: %{text} " + steps.NAMES + " missing<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_xaxes(showgrid=False, side="top")
    return figure.update_layout(template=TEMPLATE, hovermode="closest")


def _add_band(
    figure: go.Figure, low: pd.Series, high: pd.Series, target: str, coverage: float | None, row: int
) -> None:
    """Fill the area between two series, one gapless run at a time: plotly would also fill the gaps."""
    known = low.notna()
    runs = known.ne(known.shift()).cumsum()[known]
    for number, (_, hours) in enumerate(low[known].groupby(runs)):
        outline = pd.concat([high[hours.index], hours[::-1]])
        figure.add_scatter(
            x=outline.index.tz_localize(None),
            y=outline,
            name=f"{NAMES[target].lower()} band" + (f", {coverage:.0%} of {steps.NAMES}" if coverage else ""),
            legendgroup=f"band {target}",
            showlegend=number == 0,
            mode="none",
            fill="toself",
            fillcolor=COLOURS[target],
            opacity=0.22,
            hoverinfo="skip",
            row=row,
            col=1,
        )


def importance(table: pd.DataFrame) -> go.Figure:
    """Draw permutation importance as grouped bars, one group per input.

    ``table`` comes from `evaluation.importance`: the index holds the inputs; the columns are the targets (drop in R2)
    and `<target>_spread` (its standard deviation over the shuffles).
    """
    figure = go.Figure()
    for target in TARGETS:
        figure.add_bar(
            y=[INPUT_NAMES.get(name, name) for name in table.index],
            x=table[target],
            error_x={"array": table[f"{target}_spread"], "thickness": 1},
            name=NAMES[target],
            orientation="h",
            marker_color=COLOURS[target],
            hovertemplate="%{x:.3f}",
        )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(title_text="loss of R² when the input is shuffled")
    return figure.update_layout(
        template=TEMPLATE, title_text="Which inputs matter", hovermode="y unified", bargroupgap=0.08
    )


def responses(
    table: pd.DataFrame,
    *,
    point: Mapping[str, float] | None = None,
    names: Mapping[str, str] | None = None,
    title: str | None = "How predictions respond to each input",
    ranges: Mapping[str, Sequence[float]] | None = None,
) -> go.Figure:
    """Draw the response of the predictions to each feature, one panel each, two panels per row.

    ``table`` has the columns `feature`, `value` and the targets. Dotted lines mark the values of ``point``; ``names``
    are axis titles. ``ranges`` has two or four sorted values per feature: the outer range is shaded, the inner one
    darker.
    """
    names = names or {name: QUANTITIES[name].label for name in table["feature"].unique()}
    features = list(dict.fromkeys(table["feature"]))
    figure = make_subplots(
        rows=-(-len(features) // 2), cols=2, shared_yaxes="all", vertical_spacing=0.16,
        horizontal_spacing=0.04,
    )  # fmt: skip
    for number, feature in enumerate(features):
        place = {"row": number // 2 + 1, "col": number % 2 + 1}
        rows = table[table["feature"] == feature]
        for target in TARGETS:
            figure.add_scatter(
                x=rows["value"],
                y=rows[target],
                name=NAMES[target],
                legendgroup=target,
                showlegend=number == 0,
                mode="lines",
                line={"color": COLOURS[target], "width": 2, "shape": "hvh" if feature in CATEGORIES else "linear"},
                hovertemplate=f"%{{y:.2f}} {UNITS[target]}",
                **place,
            )
        _add_ranges(figure, place, (ranges or {}).get(feature, ()), point[feature] if point else None)
        figure.update_xaxes(title_text=names[feature], title_font_size=12, **place)
    axis_title = UNIT if point else f"mean prediction, {UNIT}"
    figure.update_yaxes(title_text=axis_title, rangemode="tozero", col=1)
    return figure.update_layout(template=TEMPLATE, title_text=title)


def _add_ranges(figure: go.Figure, place: dict[str, int], ends: Sequence[float], point: float | None) -> None:
    """Shade the ranges between ``ends`` in a panel of `responses`, and draw a line at ``point``."""
    for first, last in zip(ends[: len(ends) // 2], reversed(ends), strict=False):
        shade = {"fillcolor": MEASURED, "opacity": 0.12, "line_width": 0, "layer": "below"}
        figure.add_vrect(x0=first, x1=last, **shade, **place)
    if point is not None:
        figure.add_vline(x=point, line={"color": MEASURED, "dash": "dot", "width": 1.5}, **place)


def learning_curve(
    losses: Sequence[float], validation_losses: Sequence[float] | None = None, *, unit: str = ""
) -> go.Figure:
    """Draw the training and validation loss (mean squared error) of a network by epoch."""
    figure = go.Figure()
    for name, values in (("training", losses), ("validation", validation_losses)):
        if values is not None:
            epochs = list(range(1, len(values) + 1))
            figure.add_scatter(x=epochs, y=list(values), mode="lines+markers", name=name)
    figure.update_xaxes(title_text="epoch")
    figure.update_yaxes(title_text=f"mean squared error, {unit}".rstrip(", "), rangemode="tozero")
    return figure.update_layout(template=TEMPLATE, hovermode="closest")


def levels(table: pd.DataFrame) -> go.Figure:
    """Draw each target's level: its sum divided by the sum expected from the inputs. ``table`` is indexed by time."""
    figure = go.Figure()
    for name, values in table.items():
        line = {"color": COLOURS[name], "shape": "hv"}
        figure.add_scatter(x=table.index, y=values, mode="lines", name=NAMES[name], line=line)
    figure.update_yaxes(title_text="measured / expected")
    return figure.update_layout(template=TEMPLATE, title_text="Level by period")


def empty(text: str) -> go.Figure:
    """Return a placeholder: a figure without axes that shows ``text``."""
    figure = go.Figure().add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure.update_layout(template=TEMPLATE)


def _aligned(frame: pd.DataFrame, predicted: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the measured and the predicted targets as frames indexed by time (local time for daily data)."""
    require_columns(frame.columns, ["utc_timestamp", *TARGETS], "The frame")
    require_columns(predicted.columns, TARGETS, "The frame of predictions")
    if len(frame) != len(predicted) or frame.empty:
        raise DataError(
            "The predictions do not match the frame." if len(frame) != len(predicted) else "There is nothing to draw.",
            value=f"{len(frame)} rows in the frame, {len(predicted)} predictions",
            expected="at least one row, and one prediction per row",
        )
    times = pd.DatetimeIndex(steps.local(frame["utc_timestamp"]) if steps.IS_DAY else frame["utc_timestamp"])
    return tuple(pd.DataFrame(part[TARGETS].to_numpy(float), times, TARGETS) for part in (frame, predicted))


def _over_time(values: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each step from the first to the last; missing steps are NaN."""
    ordered = values.sort_index()
    return ordered.reindex(steps.grid(*ordered.index[[0, -1]]))


def _daily_means(values: pd.DataFrame) -> pd.DataFrame:
    """Return the means of complete days in the index's zone; a day without its night would have too high a mean."""
    days = values.resample("D")
    return days.mean().where(days.count() == steps.A_DAY)


def _has_isolated_points(values: pd.Series) -> bool:
    """Return whether any value has gaps on both sides, so that a line would not show it."""
    known = values.notna()
    return bool((known & ~known.shift(1, fill_value=False) & ~known.shift(-1, fill_value=False)).any())


def _colorscale(colour: str) -> Sequence[tuple[float, str]]:
    return [(0, "#ffffff"), (0.6, colour), (1, INK)]
