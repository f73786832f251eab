"""Figures of one model beside itself and its predecessors: answers around an hour, and scores over time."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workshop.data.figures import COLOURS, MEASURED, NAMES, SCORE_COLOURS, SCORES, TEMPLATE
from workshop.data.schema import TARGETS
from workshop.errors import DataError

COLUMNS = 2  # of panels: two fit a phone


def answers_around(
    table: pd.DataFrame, point: Mapping[str, float], names: Mapping[str, str], *, title: str | None = None
) -> go.Figure:
    """Draw how the prediction in GW follows each input while the others stay where they are: one panel an input.

    ``table`` has the columns `input`, `value`, `solar_GW` and `wind_GW`; ``point`` holds the value at which each input
    stays, marked by a dotted line; ``names`` what each is called, with its unit.
    """
    inputs = list(dict.fromkeys(table["input"]))
    rows = -(-len(inputs) // COLUMNS)
    figure = make_subplots(rows=rows, cols=COLUMNS, shared_yaxes="all", vertical_spacing=0.16, horizontal_spacing=0.06)
    for number, name in enumerate(inputs):
        place = {"row": number // COLUMNS + 1, "col": number % COLUMNS + 1}
        part = table[table["input"] == name]
        for target in TARGETS:
            figure.add_scatter(
                x=part["value"],
                y=part[target],
                name=NAMES[target],
                legendgroup=target,
                showlegend=number == 0,
                mode="lines",
                line={"color": COLOURS[target], "width": 2},
                hovertemplate="%{y:.2f} GW",
                **place,
            )
        figure.add_vline(x=point[name], line={"color": MEASURED, "dash": "dot", "width": 1.5}, **place)
        figure.update_xaxes(title_text=names[name], title_font_size=12, **place)
    figure.update_yaxes(title_text="GW", rangemode="tozero", col=1)
    return figure.update_layout(template=TEMPLATE, title_text=title)


def scores_over_time(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw the R2 of what came into production, move by move, beside that of what it replaced (open circles).

    A row of ``table`` is a move, the first one first: `name`, `r2`, `r2_solar`, `r2_wind` and `replaced_r2`, each score
    on the held-out hours of that move and absent where it was not recorded. Raises DataError when there is none at all.
    """
    shown = [column for column in SCORES if column in table and table[column].notna().any()]
    if not shown:
        raise DataError("There are no scores to draw.", value=f"{len(table)} moves", expected="a score for one of them")
    figure = go.Figure()
    for column in shown:
        figure.add_scatter(
            x=table["name"],
            y=table[column],
            name=SCORES[column],
            mode="lines+markers",
            line={"color": SCORE_COLOURS[column], "width": 3 if column == "r2" else 1.5},
            marker={"size": 9 if column == "r2" else 6},
            hovertemplate="%{y:.3f}",
        )
    if "replaced_r2" in table and table["replaced_r2"].notna().any():
        figure.add_scatter(
            x=table["name"],
            y=table["replaced_r2"],
            name="both, of what it replaced",
            mode="markers",
            marker={"symbol": "circle-open", "size": 13, "color": MEASURED, "line": {"width": 2}},
            hovertemplate="%{y:.3f}",
        )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(title_text="R² on the held-out hours")
    return figure.update_layout(template=TEMPLATE, title_text=title)
