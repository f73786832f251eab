"""Figures: their traces, and gaps that stay gaps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from forecast.show import figures


@pytest.fixture
def frame() -> pd.DataFrame:
    """Return ten days of hours, from a Monday, with solar and wind generation that rise by 1 MW per hour."""
    hours = pd.date_range("2016-10-03", periods=240, freq="h", tz="UTC")
    rising = np.arange(240) / 1000
    return pd.DataFrame({"utc_timestamp": hours, "solar_GW": rising, "wind_GW": 10 + rising})


@pytest.fixture
def predicted(frame) -> pd.DataFrame:
    """Return predictions that are 1 GW too high."""
    return frame[["solar_GW", "wind_GW"]] + 1


def lines(figure, name: str) -> list[pd.Series]:
    """Return the lines of that name as time series."""
    return [
        pd.Series(np.asarray(trace.y, dtype=float), pd.DatetimeIndex(trace.x))
        for trace in figure.data
        if trace.name == name
    ]


def test_measured_and_predicted_draws_both_targets_in_gigawatts(frame, predicted):
    """Each target has a panel with its unit and the unchanged measured and predicted values."""
    figure = figures.measured_and_predicted(frame, predicted)
    assert figure.layout.yaxis.title.text == "Solar, GW"
    assert figure.layout.yaxis2.title.text == "Wind, GW"
    assert "UTC" in figure.layout.xaxis2.title.text
    solar, wind = lines(figure, "measured")
    assert solar.tolist() == frame["solar_GW"].tolist()
    assert wind.tolist() == frame["wind_GW"].tolist()
    assert lines(figure, "wind predicted")[0].tolist() == predicted["wind_GW"].tolist()
    assert {line.name for line in figure.data if line.line.color == figures.INK} == {"measured"}


def test_measured_and_predicted_breaks_each_line_at_a_missing_hour(frame, predicted):
    """A missing hour is NaN in every line, and no line crosses it."""
    figure = figures.measured_and_predicted(frame.drop(index=[100, 101]), predicted.drop(index=[100, 101]))
    for trace in figure.data:
        values = np.asarray(trace.y, dtype=float)
        assert len(values) == 240
        assert np.flatnonzero(np.isnan(values)).tolist() == [100, 101]
        assert not trace.connectgaps
        assert trace.fill is None
        assert trace.stackgroup is None


def test_measured_and_predicted_fills_the_band_but_no_gap(frame, predicted):
    """The band is filled, each run of hours by itself; the legend shows the nominal coverage."""
    kept = frame.index.drop([100, 101])
    band = tuple(predicted.loc[kept] + width for width in (-2, 2))
    figure = figures.measured_and_predicted(frame.loc[kept], predicted.loc[kept], band=band, coverage=0.8)
    runs = [trace for trace in figure.data if trace.name == "solar band, 80% of hours"]
    assert [len(trace.x) for trace in runs] == [200, 2 * 138]
    assert all(trace.fill == "toself" for trace in runs)
    assert [trace.showlegend for trace in runs] == [True, False]
    high, low = np.split(np.asarray(runs[0].y), 2)
    assert (high - low[::-1]).tolist() == pytest.approx([4] * 100)


def test_measured_and_predicted_draws_a_long_period_as_daily_means():
    """More than 100 days become daily means, and an incomplete day becomes a gap."""
    hours = pd.date_range("2015-01-01", periods=24 * 120, freq="h", tz="UTC")
    frame = pd.DataFrame({"utc_timestamp": hours, "solar_GW": hours.hour / 1.0, "wind_GW": 5.0})
    without = frame.drop(index=[24 * 50 + 3])
    figure = figures.measured_and_predicted(without, without)
    solar = lines(figure, "measured")[0]
    assert "daily means" in figure.layout.xaxis2.title.text
    assert len(solar) == 120
    assert solar.isna().to_numpy().nonzero()[0].tolist() == [50]
    assert solar.dropna().unique().tolist() == [11.5]


@pytest.mark.parametrize(("by", "groups"), [("hour", 24), ("month", 1)])
def test_residuals_are_predicted_minus_measured(frame, predicted, by, groups):
    """Points are medians by hour or month with the interquartile range; overestimates are positive."""
    predicted = predicted.assign(wind_GW=frame["wind_GW"] + np.where(frame.index % 2, 2.0, -4.0))
    solar, wind = figures.residuals(frame, predicted, by=by).data
    assert len(solar.y) == groups
    assert np.allclose(solar.y, 1)
    assert np.allclose(solar.error_y.array, 0)
    if by == "month":
        assert np.allclose([wind.y[0] + wind.error_y.array[0], wind.y[0] - wind.error_y.arrayminus[0]], [2, -4])


def test_by_month_omits_empty_measures():
    """Without a capacity and a band only the bias is drawn."""
    months = {"month": ["2016-01-01", "2016-02-01"], "target": ["wind_GW"] * 2, "bias_percent": [1.0, -1.0]}
    table = pd.DataFrame(months | {"nmae_percent": [float("nan")] * 2, "coverage_percent": [float("nan")] * 2})
    assert [trace.y.tolist() for trace in figures.by_month(table).data] == [[1.0, -1.0]]
    assert len(figures.by_month(table.assign(coverage_percent=80.0)).data) == 2
