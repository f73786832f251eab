"""A logged model is given raw weather and returns GW, also when MLflow serves it."""

from __future__ import annotations

import subprocess

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from sklearn.ensemble import HistGradientBoostingRegressor
from workplace import BIN, clean_environment, free_port, wait_for

from workshop.data import capacity
from workshop.data.features import DERIVED, derive, inputs, targets
from workshop.data.prepare import prepare
from workshop.data.sources import fetch
from workshop.models import loading
from workshop.models.regressor import CapacityFactorNetwork, CapacityFactorRegressor
from workshop.parameters import YearEnd

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # in Keras, of TensorFlow
    pytest.mark.filterwarnings("ignore:Operation with range"),  # in MLflow
]
KINDS = ["trees", "network"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each kind of model that derives features, saved as it is logged; and some hours of the sample, re-dated.

    They are of years, and of a capacity, that only what comes with the data knows.
    """
    import keras

    root = tmp_path_factory.mktemp("saved")
    fetch("sample", root / "raw")
    hours = prepare(root / "raw")[0].iloc[4000:6000].reset_index(drop=True)
    hours["utc_timestamp"] += pd.DateOffset(years=10)
    hours = capacity.mark(hours, {year: YearEnd(solar_GW=80 + year / 100, wind_GW=60) for year in (2022, 2023)})
    trees = HistGradientBoostingRegressor(max_iter=10, random_state=0)
    regressor = CapacityFactorRegressor(trees, band=trees, folds=2).fit(inputs(hours), targets(hours))
    keras.utils.set_random_seed(0)
    scaling = keras.layers.Normalization()
    scaling.adapt(derive(inputs(hours)).to_numpy("float32"))
    layers = [scaling, keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2, activation="softplus")]
    network = CapacityFactorNetwork(keras.Sequential([keras.Input((len(DERIVED),)), *layers]), capacity.of_frame(hours))
    few = inputs(hours.head())
    mlflow.sklearn.save_model(regressor, root / "trees", **loading._sklearn_options(regressor, few))
    (root / "2").mkdir()
    mlflow.pyfunc.save_model(root / "network", **loading._network_options(network, few, root / "2"))
    return root, hours


@pytest.mark.parametrize("kind", KINDS)
def test_model_comes_back_as_it_was(saved, kind):
    """Loaded safely it knows the time and its figures of capacity, and predicts finite GW."""
    root, hours = saved
    model = loading.load_folder(root / kind, "test")
    assert model.knows_time
    assert model.year_ends == capacity.of_frame(hours) != capacity.YEAR_ENDS_GW
    assert np.isfinite(model.predict(hours)).all(axis=None)
    assert (model.predict_band(hours) is None) == (kind == "network")


@pytest.mark.parametrize("kind", KINDS)
def test_mlflow_serves_raw_weather(saved, kind, tmp_path):
    """`mlflow models serve` takes hours and weather as JSON and answers the same GW."""
    root, hours = saved
    port = free_port()
    command = [BIN / "mlflow", "models", "serve", "-m", root / kind, "--env-manager", "local", "-p", str(port)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "-h", "127.0.0.1"], stdout=log, stderr=log, cwd=tmp_path, env=clean_environment()
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(f"{url}/ping") or process.poll() is not None, 90)
        rows = inputs(hours.head(30))
        rows["utc_timestamp"] = rows["utc_timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%S")
        body = {"dataframe_split": rows.to_dict(orient="split", index=False)}
        answer = requests.post(f"{url}/invocations", json=body, timeout=30)
        assert answer.ok, answer.text
        predictions = answer.json()["predictions"]
        served = [list(row.values()) if isinstance(row, dict) else row for row in predictions]
        assert np.allclose(served, loading.load_folder(root / kind, "test").predict(hours.head(30)), rtol=1e-6)
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False


def test_signature_is_in_physical_units(saved):
    """Both kinds are given the hour and the four weather features by name, and return both targets."""
    root, _ = saved
    for kind in KINDS:
        signature = mlflow.models.Model.load(str(root / kind)).signature
        names = ["utc_timestamp", "windspeed", "temperature", "rad_horizontal", "rad_diffuse"]
        assert signature.inputs.input_names() == names
        assert signature.outputs.input_names() == ["solar_GW", "wind_GW"]
