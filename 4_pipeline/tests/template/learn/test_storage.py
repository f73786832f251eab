"""Models are loaded without running anything of theirs."""

from __future__ import annotations

import warnings
from importlib.metadata import version

import mlflow
import numpy as np
import pandas as pd
import pytest
from forecast.errors import ModelError
from forecast.learn import storage
from forecast.learn.models import CapacityFactorNetwork, CapacityFactorRegressor
from forecast.learn.storage import TRUSTED_TYPES, LoadedModel, load_folder
from forecast.problem import CAPACITY
from forecast.table import schema
from forecast.table.features import DERIVED, INPUTS, add_capacity, derive, inputs, targets, year_ends_of
from forecast.table.schema import FEATURES, TARGETS
from packaging.requirements import Requirement
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression


@pytest.fixture(scope="module")
def hours():
    """A few hours of weather and power."""
    rows = [[3.0 + n, 10.0, 50.0 * n, 30.0 * n, 2.0 * n, 1.0 + n] for n in range(8)]
    return pd.DataFrame(rows, columns=[*FEATURES, *TARGETS])


def save(model, folder):
    """Save a scikit-learn model as MLflow does by default."""
    mlflow.sklearn.save_model(model, folder, skops_trusted_types=TRUSTED_TYPES, pip_requirements=[])
    return folder


@pytest.mark.parametrize(
    "model",
    [LinearRegression(), RandomForestRegressor(3, random_state=0, n_jobs=-1)],
    ids=lambda model: type(model).__name__,
)
def test_sklearn_model_comes_back_as_it_was(hours, tmp_path, model):
    """Saved and loaded it predicts the same, as a frame with the targets' names and the rows' index."""
    model.fit(hours[FEATURES], hours[TARGETS])
    loaded = load_folder(save(model, tmp_path / "model"), "test")
    later = hours.set_index(hours.index + 100)
    predicted = loaded.predict(later)
    assert list(predicted.columns) == TARGETS
    assert list(predicted.index) == list(later.index)
    assert predicted.equals(LoadedModel.of(model).predict(later))


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # in Keras, of TensorFlow
@pytest.mark.parametrize("flavor", ["keras", "tensorflow"])
def test_keras_model_comes_back_as_it_was(hours, tmp_path, flavor):
    """Saved as the chapters train it and loaded, it predicts the same; both of MLflow's ways to save are one format."""
    import keras

    normalise = keras.layers.Normalization()
    normalise.adapt(np.array([[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]]))
    constant = keras.initializers.Constant(1.5)
    layers = [normalise, keras.layers.Dense(32, activation="relu", bias_initializer=constant)]
    output = keras.layers.Dense(2, activation="softplus")
    model = keras.Sequential([keras.Input((len(FEATURES),)), *layers, output])
    model.compile(optimizer="adam", loss="mse")
    model.fit(hours[FEATURES].to_numpy("float32"), hours[TARGETS].to_numpy("float32"), verbose=0)
    getattr(mlflow, flavor).save_model(model, str(tmp_path / "model"), pip_requirements=[])
    predicted = load_folder(tmp_path / "model", "test").predict(hours)
    assert predicted.equals(LoadedModel.of(model).predict(hours))


def test_model_that_does_not_exist_is_an_error(candidates):
    """A name, a version and an alias that lead nowhere: the address is named, and the next step."""
    for address in ("models:/wind_solar@nobody", "models:/wind_solar/999", "models:/m-0", "wind_solar"):
        with pytest.raises(ModelError, match="cannot be fetched") as caught:
            storage.load(address)
        assert address in caught.value.value


@pytest.mark.parametrize("answer", [np.nan, np.inf, -1e6])
def test_model_that_predicts_no_power_is_not_loaded(hours, tmp_path, answer):
    """What is no number, or more than any country has, is refused by name when the model is tried out."""
    model = LinearRegression().fit(hours[FEATURES], hours[TARGETS])
    model.intercept_ = np.full(2, answer)
    with pytest.raises(ModelError, match="not plausible") as caught:
        load_folder(save(model, tmp_path / "model"), "version 7")
    assert caught.value.value.startswith("version 7: ")


# -- models that derive features --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def saved(germany_csv, tmp_path_factory):
    """Each kind of model that derives features, saved as it is logged; and some hours of the sample, re-dated.

    They are of years, and of a capacity, that only what comes with the data knows.
    """
    import keras

    root = tmp_path_factory.mktemp("saved")
    hours = schema.read(germany_csv).iloc[4000:6000].reset_index(drop=True)
    hours["utc_timestamp"] += pd.DateOffset(years=10)
    figures = {"solar_GW": {"2022": 100.2, "2023": 100.3}, "wind_GW": {"2022": 60.0, "2023": 60.0}}
    hours = add_capacity(hours, figures)
    trees = HistGradientBoostingRegressor(max_iter=10, random_state=0)
    regressor = CapacityFactorRegressor(trees, band=trees, folds=2).fit(inputs(hours), targets(hours))
    keras.utils.set_random_seed(0)
    scaling = keras.layers.Normalization()
    scaling.adapt(derive(inputs(hours)).to_numpy("float32"))
    layers = [scaling, keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2, activation="softplus")]
    network = CapacityFactorNetwork(keras.Sequential([keras.Input((len(DERIVED),)), *layers]), year_ends_of(hours))
    few = inputs(hours.head())[INPUTS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in MLflow and in Keras
        mlflow.sklearn.save_model(regressor, root / "trees", **storage._sklearn_options(regressor, few))
        (root / "2").mkdir()
        mlflow.pyfunc.save_model(root / "network", **storage._network_options(network, few, root / "2"))
    return root, hours


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # in Keras, of TensorFlow
@pytest.mark.parametrize("kind", ["trees", "network"])
def test_deriving_model_comes_back_as_it_was(saved, kind):
    """Loaded safely it knows the time and its figures of capacity, and predicts finite GW; MLflow serves the same."""
    root, hours = saved
    model = load_folder(root / kind, "test")
    assert model.knows_time
    assert model.year_ends == year_ends_of(hours) != CAPACITY
    assert np.isfinite(model.predict(hours)).all(axis=None)
    assert (model.predict_with_band(hours)[1] is None) == (kind == "network")
    if kind == "network":
        served = mlflow.pyfunc.load_model(str(root / kind)).predict(inputs(hours))
        pd.testing.assert_frame_equal(served, model.predict(hours))


def test_requirements_of_a_network_name_tensorflow_for_each_platform(saved):
    """Here it is pinned as it is installed; elsewhere by the name under which that platform has wheels."""
    lines = (saved[0] / "network" / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines]

    def names(**platform):
        met = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(platform)]
        return [pin.name for pin in met if pin.name.startswith("tensorflow")]

    [here] = names()
    assert f"{here}=={version(here)}" in [line.partition(";")[0] for line in lines]
    assert names(sys_platform="linux", platform_machine="aarch64") == ["tensorflow"]
    assert names(sys_platform="darwin", platform_machine="arm64") == ["tensorflow"]


@pytest.mark.parametrize(
    "columns", [(FEATURES[:3], TARGETS), (FEATURES, TARGETS[:1]), ([*FEATURES, TARGETS[0]], TARGETS)]
)
def test_model_of_another_problem_says_so(hours, tmp_path, columns):
    """A change of inputs or targets leaves older versions unusable; the error names that and suspects nobody."""
    inputs_then, targets_then = columns
    old = LinearRegression().fit(hours[inputs_then], hours[targets_then])
    with pytest.raises(ModelError, match="does not fit the problem") as error:
        load_folder(save(old, tmp_path / "model"), "version 1")
    assert "windspeed, temperature, rad_horizontal, rad_diffuse in, solar_GW, wind_GW out" in str(error.value)
    assert "commit" in error.value.next_step
    assert "who can write" not in str(error.value)
