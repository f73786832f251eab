"""A logged model answers to raw weather in GW wherever it is served: by MLflow, too, and without this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys

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
from workshop.models import loading, source
from workshop.models.regressor import CapacityFactorNetwork, CapacityFactorRegressor
from workshop.parameters import YearEnd

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # in Keras, of TensorFlow
    pytest.mark.filterwarnings("ignore:Operation with range"),  # in MLflow
]
KINDS = ["trees", "network"]
# Everything of the environment but this package: an installation that knows it by its name is taken away.
WITHOUT_PACKAGE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path = [folder for folder in sys.path if not __import__("os").path.isdir(folder + "/workshop")]
import importlib.util
assert importlib.util.find_spec("workshop") is None
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
frame = pandas.read_parquet(sys.argv[2])
import workshop
assert workshop.__file__.startswith(sys.argv[1]), workshop.__file__
pandas.DataFrame(model.predict(frame), columns=["solar_GW", "wind_GW"]).to_parquet(sys.argv[3])
"""


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
    mlflow.sklearn.save_model(regressor, root / "trees", **loading._options(regressor, few, root / "1"))
    (root / "2").mkdir()
    mlflow.pyfunc.save_model(root / "network", **loading._network_options(network, few, root / "2"))
    return root, hours


@pytest.mark.parametrize("kind", KINDS)
def test_model_comes_back_as_it_was(saved, kind, caplog):
    """Loaded safely it knows the time, predicts finite GW, and its code is what is installed."""
    root, hours = saved
    model = loading.load_folder(root / kind, "test")
    assert model.knows_time
    assert model.year_ends == capacity.of_frame(hours) != capacity.YEAR_ENDS_GW
    assert np.isfinite(model.predict(hours)).all(axis=None)
    assert (model.predict_band(hours) is None) == (kind == "network")
    assert caplog.text == ""


@pytest.mark.parametrize("kind", KINDS)
def test_model_answers_without_this_package(saved, kind, tmp_path):
    """Where the package is not installed, the code in the model derives the same features, to the last digit."""
    root, hours = saved
    inputs(hours).to_parquet(tmp_path / "hours.parquet")
    program = [sys.executable, "-B", "-W", "ignore", "-c", WITHOUT_PACKAGE, root / kind]
    done = subprocess.run(
        [*program, tmp_path / "hours.parquet", tmp_path / "out.parquet"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = loading.load_folder(root / kind, "test").predict(hours)
    assert np.allclose(pd.read_parquet(tmp_path / "out.parquet"), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_mlflow_serves_raw_weather(saved, kind, tmp_path):
    """`mlflow models serve` takes hours and weather as JSON and answers the same GW."""
    root, hours = saved
    port = free_port()
    command = [BIN / "mlflow", "models", "serve", "-m", root / kind, "--env-manager", "local", "-p", str(port)]
    # The model's folder is shared, and holds no bytecode.
    clean = clean_environment() | {"PYTHONDONTWRITEBYTECODE": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, "-h", "127.0.0.1"], stdout=log, stderr=log, cwd=tmp_path, env=clean)
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


def test_other_code_is_told(saved, tmp_path, caplog):
    """Feature code that has changed since the model was logged is named: here the installed one answers."""
    import shutil

    root, hours = saved
    folder = shutil.copytree(root / "trees", tmp_path / "model")
    module = folder / source.FOLDER / "workshop" / "data" / "features.py"
    module.write_text(module.read_text().replace("minutes=30", "minutes=0"))
    loading.load_folder(folder, "version 7").predict(hours)
    assert "version 7 was logged with another version of data/features.py" in caplog.text
    assert json.dumps("data/capacity.py") not in caplog.text
