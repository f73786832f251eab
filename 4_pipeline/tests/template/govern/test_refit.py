"""A recipe fitted again on other hours, and predictions for hours that the refit has learned."""

from __future__ import annotations

import pandas as pd
import pytest
from forecast.errors import ModelError
from forecast.govern.refit import refit
from forecast.learn.models import CapacityFactorNetwork, CapacityFactorRegressor, fit_network
from forecast.learn.storage import LoadedModel, predict_as_new
from forecast.raw.prepare import load_or_make
from forecast.table.features import DERIVED, features, inputs, targets, year_ends_of
from forecast.table.schema import TARGETS
from forecast.table.split import split_by_time
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor

TREES = HistGradientBoostingRegressor(max_iter=20, random_state=0)
FITTING = {"epochs": 2, "learning_rate": 0.01}
RUN = {"epochs": "2", "learning_rate": "0.01", "seed": "1"}


@pytest.fixture(scope="module")
def hours(germany_csv):
    """Half a year of the sample, and the hours after its first two thirds."""
    frame = load_or_make(germany_csv)
    half = frame.iloc[:4000].copy()
    half.attrs = frame.attrs
    return half, *split_by_time(half, 1 / 3)


def fit(kind: str, frame: pd.DataFrame):
    """Return a fitted model of a kind."""
    if kind == "network":
        import keras  # takes seconds

        keras.utils.set_random_seed(1)
        layers = [keras.layers.Normalization(), keras.layers.Dense(len(TARGETS), activation="softplus")]
        network = keras.Sequential([keras.Input((len(DERIVED),)), *layers])
        fit_network(network, frame, **FITTING)
        return CapacityFactorNetwork(network, year_ends_of(frame))
    if kind == "forest":
        return RandomForestRegressor(5, random_state=0).fit(features(frame), targets(frame))
    return CapacityFactorRegressor(TREES, watched_share=0.15, band=TREES).fit(inputs(frame), targets(frame))


@pytest.mark.parametrize("kind", ["network", "forest", "boosting"])
def test_refit_is_what_the_recipe_makes_of_all_hours(hours, kind):
    """It predicts as a model that was fitted on all hours in the first place, and not as the one on fewer."""
    whole, train, later = hours
    judged = LoadedModel.of(fit(kind, train))
    again, direct = (LoadedModel.of(model) for model in (refit(judged, whole, RUN), fit(kind, whole)))
    pd.testing.assert_frame_equal(again.predict(later), direct.predict(later))
    assert not again.predict(later).equals(judged.predict(later))
    assert (again.coverage, again.year_ends) == (judged.coverage, direct.year_ends)


def test_model_without_a_recipe_is_an_error(hours):
    """A network whose run logged no parameters cannot be fitted again; the error says what to do."""
    whole, train, _ = hours
    with pytest.raises(ModelError, match="cannot be fitted again") as caught:
        refit(LoadedModel.of(fit("network", train)), whole, {})
    assert "epochs" in caught.value.value
    assert "promote.refit" in caught.value.next_step


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
