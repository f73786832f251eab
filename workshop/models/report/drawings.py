"""Figures that need no program to be shown: SVG text, whose colours the page that holds it may set."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from workshop.data.figures import COLOURS, GRID, INK, MEASURED, NAMES
from workshop.data.schema import TARGETS
from workshop.data.weeks import HOURS
from workshop.models.report.evidence import Week
from workshop.models.report.misses import Miss

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A colour of the drawing is a variable of the page, so that a dark page can give another one.
VARIABLES = {INK: "ink", GRID: "line", MEASURED: "measured", COLOURS["solar_GW"]: "solar", COLOURS["wind_GW"]: "wind"}
# Inches, and points of the letters: a page of paper or a desktop, and a phone.
WIDE, NARROW = {"width": 7.2, "letters": 8.0}, {"width": 3.9, "letters": 9.0}
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
BAND_OPACITY = 0.25
SMALL = 4.5  # inches of width, up to which a figure has room for little more than its lines


def week(told: Week, misses: list[Miss], measured_name: str, *, width: float, letters: float) -> str:
    """Return the hours of a week in GW as SVG, solar above, wind below: measured, predicted, band, worst misses.

    Absent hours break the lines. A miss is marked with its number. ``width`` in inches, ``letters`` in points.
    """
    hours = _on_grid(told, told.hours)
    predicted = None if told.predicted is None else _on_grid(told, told.predicted)
    ends = () if told.band is None else [_on_grid(told, end) for end in told.band]
    with _style(letters, f"week {width}"):
        figure = _figure(width, 4.3)
        for axes, target in zip(figure.subplots(2, 1, sharex=True), TARGETS, strict=True):
            if ends:
                band = [end[target] for end in ends]
                axes.fill_between(
                    hours.index, *band, color=COLOURS[target], alpha=BAND_OPACITY, linewidth=0, label="band"
                )
            axes.plot(hours.index, hours[target], ":", color=MEASURED, linewidth=1.6, label=measured_name)
            if predicted is not None:
                axes.plot(hours.index, predicted[target], color=COLOURS[target], linewidth=1.6, label="predicted")
            for miss in (miss for miss in misses if miss.target == target):
                _mark(axes, told, miss)
            axes.set_title(f"{NAMES[target]}, GW", loc="left", fontweight="bold")
            axes.margins(y=0.2)
            axes.set_ylim(bottom=0)
            if width > SMALL:  # elsewhere the words below the figure must do
                axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.01, 0.98), frameon=False, borderaxespad=0.2)
        _days(axes, told.monday, short=width <= SMALL)
        return _svg(figure, _in_words(told, misses, measured_name))


def outlook(rows: pd.DataFrame, *, width: float, letters: float) -> str:
    """Return the energy of weeks in GWh as SVG: what is usual as bars, what was measured as dots.

    ``rows`` has a row a week, in order: `week` (its name) and for each of `TARGETS` the columns `<target>_least`,
    `_middle`, `_most` (of other years) and `_measured`, NaN where there is none.
    """
    with _style(letters, f"outlook {width}"):
        figure = _figure(width, 2.5 if width > SMALL else 4.4, below=0.55, gap=0.4)
        shape = (1, 2) if width > SMALL else (2, 1)
        for axes, target in zip(figure.subplots(*shape), TARGETS, strict=True):
            place, colour = np.arange(len(rows)), COLOURS[target]
            least, middle, most, measured = (
                rows[f"{target}_{name}"] for name in ("least", "middle", "most", "measured")
            )
            axes.bar(place, most - least, 0.62, bottom=least, color=colour, alpha=BAND_OPACITY, label="other years")
            axes.hlines(middle, place - 0.31, place + 0.31, color=colour, linewidth=1.8, label="their middle")
            axes.plot(place, measured, "o", color=INK, markersize=4, label="this year")
            axes.set_title(f"{NAMES[target]}, GWh a week", loc="left", fontweight="bold")
            shown = place[::2] if len(place) > 6 else place
            axes.set_xticks(shown, [rows["week"].iloc[at].partition("-")[2] for at in shown])
            axes.set_ylim(bottom=0)
        axes.legend(ncols=3, loc="upper right", bbox_to_anchor=(1.01, 0.0), borderaxespad=2.4, frameon=False)
        return _svg(
            figure, "What such weeks brought in other years, from the least to the most, and this year's weeks."
        )


def _mark(axes: Axes, told: Week, miss: Miss) -> None:
    at = (miss.at - told.monday).total_seconds() / 3600
    axes.plot([at, at], [miss.measured, miss.predicted], color=INK, linewidth=0.9)
    top = max(miss.measured, miss.predicted)
    circle = {"boxstyle": "circle,pad=0.22", "edgecolor": INK, "facecolor": "white", "linewidth": 0.9}
    axes.annotate(
        str(miss.number), (at, top), (0, 8), textcoords="offset points", ha="center", va="center", bbox=circle
    )


def _days(axes: Axes, monday: pd.Timestamp, *, short: bool) -> None:
    """Mark the days: a line at midnight, the name in the middle."""
    import pandas as pd

    axes.set_xlim(0, HOURS)
    axes.set_xticks(range(0, HOURS + 1, 24), [""] * 8)
    dates = [monday + pd.Timedelta(days=day) for day in range(7)]
    names = [f"{DAYS[day]} {date.day}" + ("" if short else f" {date:%b}") for day, date in enumerate(dates)]
    axes.set_xticks(range(12, HOURS, 24), names, minor=True)


def _on_grid(told: Week, values: pd.DataFrame) -> pd.DataFrame:
    """Return the targets by hours since Monday; those that are absent hold no number."""
    since = (told.hours["utc_timestamp"] - told.monday).dt.total_seconds() // 3600
    return values[TARGETS].set_axis(since.astype(int)).reindex(range(HOURS))


def _figure(width: float, height: float, *, below: float = 0.3, gap: float = 0.24) -> Figure:
    """Return an empty figure, sizes in inches; its margins are fixed, for to fit them takes as long as to draw."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    edges = {"left": 0.42 / width, "right": 1 - 0.08 / width, "bottom": below / height, "top": 1 - 0.25 / height}
    figure.subplots_adjust(**edges, hspace=gap, wspace=0.16)
    return figure


def _style(letters: float, name: str):
    import matplotlib as mpl

    return mpl.rc_context(
        {
            "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
            "svg.hashsalt": name,  # the same week gives the same text, and a page of several figures no id twice
            "font.size": letters,
            "axes.titlesize": letters + 0.5,
            "axes.edgecolor": GRID,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": GRID,
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "xtick.color": GRID,
            "ytick.color": GRID,
            "xtick.minor.size": 0,
            "legend.handlelength": 1.4,
            "legend.columnspacing": 1.2,
        }
    )


def _svg(figure: Figure, words: str) -> str:
    """Return a figure as an SVG element that scales, names itself to those who do not see it, and has no ids twice."""
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    # Its style sheet would be one of the whole page.
    unwanted = r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>"
    text = re.sub(unwanted, "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<g) id="[^"]*"', r"\1", text)
    text = re.sub(
        r'<svg([^>]*) width="[^"]*" height="[^"]*"', r'<svg\1 width="100%" stroke-linejoin="round"', text, count=1
    )
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(words)}"', 1)
    text = re.sub(r"font: ([\d.]+px|bold [\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", text)
    text = re.sub(r"(?<=[\d.])\n(?=[LMz])", "", text).replace("#ffffff", "var(--page, #ffffff)")
    for colour, name in VARIABLES.items():
        text = text.replace(colour.lower(), f"var(--{name}, {colour})")
    return text


def _in_words(told: Week, misses: list[Miss], measured_name: str) -> str:
    parts = [f"Solar and wind generation in the week {told.name}, hour by hour: {measured_name}"]
    parts += [" and predicted" if told.predicted is not None else "", ". "]
    ranges = [f"{NAMES[name]} from {told.hours[name].min():.1f} to {told.hours[name].max():.1f} GW" for name in TARGETS]
    marked = f" {len(misses)} of the worst misses are marked; the table below tells of them." if misses else ""
    return "".join(parts) + ", ".join(ranges) + "." + marked
