"""Figures of models: what they draw around an hour, and of each that was in production."""

from __future__ import annotations

import pandas as pd
import pytest

from workshop.data import model_figures
from workshop.errors import DataError


def test_answers_around_draws_a_panel_for_each_input():
    """Both targets over each input's values, and a line where the point is."""
    table = pd.DataFrame(
        {
            "input": ["windspeed"] * 2 + ["hour"] * 3,
            "value": [0.0, 16.0, 0, 1, 2],
            "solar_GW": [1.0, 1.0, 0.0, 2.0, 3.0],
            "wind_GW": [0.0, 20.0, 5.0, 5.0, 5.0],
        }
    )
    figure = model_figures.answers_around(
        table, {"windspeed": 7.5, "hour": 1}, {"windspeed": "Wind, m/s", "hour": "Hour"}
    )
    solar, wind, _, by_hour = figure.data
    assert wind.x.tolist() == [0.0, 16.0]
    assert wind.y.tolist() == [0.0, 20.0]
    assert solar.y.tolist() == [1.0, 1.0]
    assert by_hour.xaxis == "x2"
    assert [shape.x0 for shape in figure.layout.shapes] == [7.5, 1]
    assert figure.layout.xaxis.title.text == "Wind, m/s"


def test_scores_over_time_draws_each_move_beside_what_it_replaced():
    """Scores stand in the order of the moves; one that was not recorded is left out, not drawn as zero."""
    table = pd.DataFrame(
        {"name": ["1: v1", "2: v2"], "r2": [0.7, 0.8], "r2_wind": [None, 0.75], "replaced_r2": [None, 0.7]}
    )
    both, wind, replaced = model_figures.scores_over_time(table).data
    assert (list(both.x), list(both.y)) == (["1: v1", "2: v2"], [0.7, 0.8])
    assert pd.isna(wind.y[0])
    assert replaced.mode == "markers"


def test_scores_over_time_needs_a_score():
    """Moves without any score are an error that says so."""
    with pytest.raises(DataError, match="no scores"):
        model_figures.scores_over_time(pd.DataFrame({"name": ["1: v1"], "r2": [None]}))
