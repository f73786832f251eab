"""Models are loaded without running anything of theirs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
from sklearn.linear_model import Lasso, LinearRegression, Ridge
from sklearn.tree import DecisionTreeRegressor

from workshop.data.schema import FEATURES, TARGETS
from workshop.errors import ModelError
from workshop.models.loading import TRUSTED_TYPES, LoadedModel, load_folder


@pytest.fixture(scope="module")
def hours():
    """A few hours of weather and power."""
    rows = [[3.0 + n, 10.0, 50.0 * n, 30.0 * n, 2.0 * n, 1.0 + n] for n in range(8)]
    return pd.DataFrame(rows, columns=[*FEATURES, *TARGETS])


def save(model, folder):
    """Save a scikit-learn model as MLflow does by default."""
    import mlflow

    mlflow.sklearn.save_model(model, folder, skops_trusted_types=TRUSTED_TYPES, pip_requirements=[])
    return folder


@pytest.mark.parametrize(
    "model",
    [
        DecisionTreeRegressor(max_depth=2),
        DummyRegressor(),
        ExtraTreesRegressor(3, bootstrap=True, random_state=0),
        Lasso(),
        LinearRegression(),
        RandomForestRegressor(3, random_state=0, n_jobs=-1),
        Ridge(alpha=0.5),
    ],
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


def networks():
    """Networks as the chapters build them, and one of the other layers."""
    import keras

    def sequence(*layers):
        return keras.Sequential([keras.Input((len(FEATURES),)), *layers, keras.layers.Dense(2, activation="softplus")])

    normalise = keras.layers.Normalization()
    normalise.adapt(np.array([[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]]))
    constant = keras.initializers.Constant(1.5)
    return {
        "chapter 2 and 3": sequence(normalise, keras.layers.Dense(32, activation="relu", bias_initializer=constant)),
        "chapter 4": sequence(normalise, *[keras.layers.Dense(32, activation="relu") for _ in range(2)]),
        "other layers": sequence(
            keras.layers.BatchNormalization(),
            keras.layers.Dense(8, kernel_regularizer="l2"),
            keras.layers.Activation("tanh"),
            keras.layers.Dropout(0.1, seed=1),
        ),
    }


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # in Keras, of TensorFlow
@pytest.mark.parametrize("kind", ["chapter 2 and 3", "chapter 4", "other layers"])
@pytest.mark.parametrize("flavor", ["keras", "tensorflow"])
def test_keras_model_comes_back_as_it_was(hours, tmp_path, kind, flavor):
    """Saved as it was trained and loaded, it predicts the same; both of MLflow's ways to save it are one format."""
    import mlflow

    model = networks()[kind]
    model.compile(optimizer="adam", loss="mse")
    model.fit(hours[FEATURES].to_numpy("float32"), hours[TARGETS].to_numpy("float32"), verbose=0)
    getattr(mlflow, flavor).save_model(model, str(tmp_path / "model"), pip_requirements=[])
    predicted = load_folder(tmp_path / "model", "test").predict(hours)
    assert predicted.equals(LoadedModel.of(model).predict(hours))


def test_model_that_is_not_there_is_told(candidates):
    """A name, a version and an alias that lead nowhere: the address is named, and the next step."""
    from workshop.models import loading

    for address in ("models:/wind_solar@nobody", "models:/wind_solar/999", "models:/m-0", "wind_solar"):
        with pytest.raises(ModelError, match="cannot be fetched") as caught:
            loading.load(address)
        assert address in caught.value.value


@pytest.mark.parametrize("answer", [np.nan, np.inf, -1e6])
def test_model_that_predicts_no_power_is_not_loaded(hours, tmp_path, answer):
    """What is no number, or more than any country has, is refused by name when the model is tried out."""
    model = LinearRegression().fit(hours[FEATURES], hours[TARGETS])
    model.intercept_ = np.full(2, answer)
    with pytest.raises(ModelError, match="not plausible") as caught:
        load_folder(save(model, tmp_path / "model"), "version 7")
    assert caught.value.value.startswith("version 7: ")


@pytest.mark.filterwarnings("ignore:Operation with range")  # in MLflow
def test_rehearsal_leaves_nothing(tmp_path, monkeypatch):
    """What warm processes do before the first model is kept opens no run and leaves no file."""
    import mlflow

    from workshop.models import loading

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    loading.rehearse()
    assert mlflow.active_run() is None
    assert list(tmp_path.iterdir()) == []
