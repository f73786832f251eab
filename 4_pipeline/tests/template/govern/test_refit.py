"""A recipe fitted again on other hours, and predictions for hours that the refit has learned."""

from __future__ import annotations

import pandas as pd
import pytest
from forecast.learn.models import CapacityFactorRegressor
from forecast.learn.storage import LoadedModel, predict_as_new
from forecast.raw.prepare import load_or_make
from forecast.table.features import features, inputs, targets
from forecast.table.split import split_by_time
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor

TREES = HistGradientBoostingRegressor(max_iter=20, random_state=0)


@pytest.fixture(scope="module")
def hours(germany_csv):
    """Half a year of the sample, and the hours after its first two thirds."""
    frame = load_or_make(germany_csv)
    half = frame.iloc[:4000].copy()
    half.attrs = frame.attrs
    return half, *split_by_time(half, 1 / 3)


def fit(kind: str, frame: pd.DataFrame):
    """Return a fitted model of a kind."""
    if kind == "forest":
        return RandomForestRegressor(5, random_state=0).fit(features(frame), targets(frame))
    return CapacityFactorRegressor(TREES, watched_share=0.15, band=TREES).fit(inputs(frame), targets(frame))


@pytest.mark.parametrize("kind", ["forest", "boosting"])
def test_refit_is_what_the_recipe_makes_of_all_hours(hours, kind):
    """It predicts as a model that was fitted on all hours in the first place, and not as the one on fewer."""
    whole, train, later = hours
    judged = LoadedModel.of(fit(kind, train))
    again, direct = (LoadedModel.of(model) for model in (judged.refit(whole, {}), fit(kind, whole)))
    pd.testing.assert_frame_equal(again.predict(later), direct.predict(later))
    assert not again.predict(later).equals(judged.predict(later))
    assert (again.coverage, again.year_ends) == (judged.coverage, direct.year_ends)


def test_hours_that_a_refit_learned_are_predicted_by_the_judged_model(hours):
    """Up to the last one, by the judged model, with its band; later ones by the refit; without one all by the model."""
    whole, train, later = hours
    model, judged = (LoadedModel.of(fit("boosting", part)) for part in (whole, train))
    last = later["utc_timestamp"].iloc[99]
    predicted, band = predict_as_new(model, judged, last.isoformat(), later)
    ends = [*judged.predict_with_band(later.iloc[:100])[1]], [*model.predict_with_band(later.iloc[100:])[1]]
    pd.testing.assert_frame_equal(predicted.iloc[:100], judged.predict(later.iloc[:100]))
    pd.testing.assert_frame_equal(predicted.iloc[100:], model.predict(later.iloc[100:]))
    for end, *parts in zip(band, *ends, strict=True):
        pd.testing.assert_frame_equal(end, pd.concat(parts))
    for without in ((None, last.isoformat()), (judged, None)):
        pd.testing.assert_frame_equal(predict_as_new(model, *without, later)[0], model.predict(later))
