"""Models are loaded without running their code, and must fit the problem."""

from __future__ import annotations

import contextlib
import warnings

import mlflow
import numpy as np
import pandas as pd
import pytest
from forecast.learn import storage
from forecast.learn.models import CapacityFactorRegressor
from forecast.learn.storage import TRUSTED_TYPES, LoadedModel, load_folder, predict_unseen
from forecast.problem import CAPACITY
from forecast.table.features import INPUTS, features, inputs, targets, year_ends_of
from forecast.table.schema import FEATURES, TARGETS
from forecast.table.split import split_by_time
from forecast.terms.errors import ModelError
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression


@pytest.fixture(scope="module")
def hours():
    """A few hours of weather and power."""
    rows = [[3.0 + n, 10.0, 50.0 * n, 30.0 * n, 2.0 * n, 1.0 + n] for n in range(8)]
    return pd.DataFrame(rows, columns=[*FEATURES, *TARGETS])


def save(model, folder):
    """Save a scikit-learn model as MLflow does by default."""
    mlflow.sklearn.save_model(model, folder, skops_trusted_types=[*TRUSTED_TYPES], pip_requirements=[])
    return folder


@pytest.mark.parametrize(
    "model",
    [LinearRegression(), RandomForestRegressor(3, random_state=0, n_jobs=-1)],
    ids=lambda model: type(model).__name__,
)
def test_sklearn_model_is_loaded_unchanged(hours, tmp_path, model):
    """The loaded model predicts the same, as a frame with the targets as columns and the index of the rows."""
    model.fit(hours[FEATURES], hours[TARGETS])
    loaded = load_folder(save(model, tmp_path / "model"), "test")
    later = hours.set_index(hours.index + 100)
    predicted = loaded.predict(later)
    assert list(predicted.columns) == TARGETS
    assert list(predicted.index) == list(later.index)
    assert predicted.equals(LoadedModel.of(model).predict(later))


def test_missing_model_is_an_error(candidates):
    """An unknown alias, version or model id, or a name alone, is an error with the URI."""
    for uri in ("models:/wind_solar@nobody", "models:/wind_solar/999", "models:/m-0", "wind_solar"):
        with pytest.raises(ModelError, match="cannot be downloaded") as caught:
            storage.load(uri)
        assert uri in caught.value.value


@pytest.mark.parametrize("answer", [np.nan, np.inf, -1e6])
def test_model_with_implausible_predictions_is_not_loaded(hours, tmp_path, answer):
    """A model that predicts NaN, infinity or impossible values at the trial is an error that names the model."""
    model = LinearRegression().fit(hours[FEATURES], hours[TARGETS])
    model.intercept_ = np.full(2, answer)
    with pytest.raises(ModelError, match="not plausible") as caught:
        load_folder(save(model, tmp_path / "model"), "version 7")
    assert caught.value.value.startswith("version 7: ")


# -- models that derive features --------------------------------------------------------------------------------------
def fit(kind: str, frame: pd.DataFrame) -> LoadedModel:
    """Return a model of this kind, fitted on a processed frame."""
    if kind == "forest":
        return LoadedModel.of(RandomForestRegressor(5, random_state=0).fit(features(frame), targets(frame)))
    trees = HistGradientBoostingRegressor(max_iter=10, random_state=0)
    model = CapacityFactorRegressor(trees, validation_fraction=0.15, band=trees, folds=2)
    return LoadedModel.of(model.fit(inputs(frame), targets(frame)))


def test_model_that_derives_features_is_loaded_unchanged(later_hours, tmp_path):
    """The loaded model takes times, has its own capacity figures, and predicts finite GW with a band."""
    regressor = fit("boosting", later_hours).fitted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in MLflow
        options = storage._sklearn_options(regressor, inputs(later_hours.head())[INPUTS])
        mlflow.sklearn.save_model(regressor, tmp_path / "trees", **options)
    model = load_folder(tmp_path / "trees", "test")
    assert model.takes_time
    assert model.year_ends == year_ends_of(later_hours) != CAPACITY
    assert np.isfinite(model.predict(later_hours)).all(axis=None)
    assert model.predict_with_band(later_hours)[1] is not None


@pytest.mark.parametrize("kind", ["forest", "boosting"])
def test_refit_equals_a_fit_on_all_hours(later_hours, kind):
    """A refit predicts like a model that was fitted on all hours, and unlike the evaluated one.

    Hours up to its last training row are predicted by the evaluated model, with its band; later ones by the refit.
    """
    train, later = split_by_time(later_hours, 1 / 3)
    evaluated, direct = fit(kind, train), fit(kind, later_hours)
    refit = LoadedModel.of(evaluated.refit(later_hours, {}))
    pd.testing.assert_frame_equal(refit.predict(later), direct.predict(later))
    assert not refit.predict(later).equals(evaluated.predict(later))
    assert (refit.coverage, refit.year_ends) == (evaluated.coverage, direct.year_ends)
    last = later["utc_timestamp"].iloc[99].isoformat()
    predicted, band = predict_unseen(refit, evaluated, last, later)
    parts = evaluated.predict_with_band(later.iloc[:100]), refit.predict_with_band(later.iloc[100:])
    pd.testing.assert_frame_equal(predicted, pd.concat([parts[0][0], parts[1][0]]))
    for number, end in enumerate(band or ()):
        pd.testing.assert_frame_equal(end, pd.concat([parts[0][1][number], parts[1][1][number]]))
    assert (band is None) == (kind == "forest")
    for without in ((None, last), (evaluated, None)):
        pd.testing.assert_frame_equal(predict_unseen(refit, *without, later)[0], refit.predict(later))


@pytest.mark.parametrize(
    "columns", [(FEATURES[:3], TARGETS), (FEATURES, TARGETS[:1]), ([*FEATURES, TARGETS[0]], TARGETS)]
)
def test_model_of_another_problem_is_an_error(hours, tmp_path, columns):
    """After a change of inputs or targets older versions cannot be loaded; the error does not suggest tampering."""
    old_inputs, old_targets = columns
    old = LinearRegression().fit(hours[old_inputs], hours[old_targets])
    with pytest.raises(ModelError, match="does not match the problem") as error:
        load_folder(save(old, tmp_path / "model"), "version 1")
    assert "who can write" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Operation with range")  # in MLflow
def test_model_of_another_step_or_unit_is_an_error(hours, tmp_path):
    """Column names are the same; the error has the model's step or unit. A model without this metadata is loaded."""
    model = LinearRegression().fit(hours[FEATURES], hours[TARGETS])
    options = storage._sklearn_options(model, hours[FEATURES])
    for changes in ({}, {"step": "0.25 h"}, {"wind_GW": "MW", "windspeed": "km/h"}):
        folder, metadata = tmp_path / "_".join(["model", *changes]), options["metadata"] | changes
        mlflow.sklearn.save_model(model, folder, **options | {"metadata": metadata if changes else None})
        with pytest.raises(ModelError, match="another step") if changes else contextlib.nullcontext() as error:
            storage.load_files(folder, "version 1")
        for name, value in changes.items():
            assert f"{name} {value}, not {options['metadata'][name]}" in error.value.value


class Mean(DummyRegressor):
    """A model of an untrusted type."""


def test_untrusted_type_is_an_error_before_the_model_is_logged(hours):
    """The error names the type and the list to add it to."""
    with pytest.raises(ModelError, match="untrusted") as error:
        storage._sklearn_options(Mean().fit(hours[FEATURES], hours[TARGETS]), hours[FEATURES])
    assert error.value.value == f"{__name__}.Mean"
    assert "TRUSTED_TYPES" in error.value.next_step
