"""Networks: loaded without running anything of theirs, fitted again, and served by MLflow."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from importlib.metadata import version

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from forecast.errors import ModelError
from forecast.learn import network, storage
from forecast.learn.network import CapacityFactorNetwork, fit_network
from forecast.learn.storage import LoadedModel, load_folder
from forecast.problem import CAPACITY
from forecast.table.features import DERIVED, INPUTS, inputs, year_ends_of
from forecast.table.schema import FEATURES, TARGETS
from forecast.table.split import split_by_time
from hostile import NAME, Trap, check_refusal
from packaging.requirements import Requirement

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # in Keras, of TensorFlow
RUN = {"epochs": "2", "learning_rate": "0.01", "seed": "1"}


def fit(frame: pd.DataFrame) -> LoadedModel:
    """Return a network fitted on a processed frame."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Normalization(), keras.layers.Dense(len(TARGETS), activation="softplus")]
    layered = keras.Sequential([keras.Input((len(DERIVED),)), *layers])
    fit_network(layered, frame, epochs=2, learning_rate=0.01)
    return LoadedModel.of(CapacityFactorNetwork(layered, year_ends_of(frame)))


@pytest.fixture(scope="module")
def saved(later_hours, tmp_path_factory):
    """A network, saved as it is logged."""
    root = tmp_path_factory.mktemp("saved")
    model = fit(later_hours).fitted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in MLflow and in Keras
        options = storage._interface(model, inputs(later_hours.head())[INPUTS]) | network.options(model, root)
        mlflow.pyfunc.save_model(root / "network", **options)
    return root / "network"


def test_network_comes_back_as_it_was(saved, later_hours):
    """Loaded safely it knows the time and its figures of capacity, and predicts finite GW; MLflow serves the same."""
    model = load_folder(saved, "test")
    assert model.knows_time
    assert model.year_ends == year_ends_of(later_hours) != CAPACITY
    assert np.isfinite(model.predict(later_hours)).all(axis=None)
    assert model.predict_with_band(later_hours)[1] is None
    served = mlflow.pyfunc.load_model(str(saved)).predict(inputs(later_hours))
    pd.testing.assert_frame_equal(served, model.predict(later_hours))


@pytest.mark.parametrize("flavor", ["keras", "tensorflow"])
def test_keras_model_comes_back_as_it_was(tmp_path, flavor):
    """Saved as the chapters train it and loaded, it predicts the same; both of MLflow's ways to save are one format."""
    hours = pd.DataFrame(np.random.default_rng(0).random((8, 6)), columns=[*FEATURES, *TARGETS])
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
    with pytest.raises(ModelError, match=r"expected: +a `CapacityFactorNetwork`"):
        network.options(model, tmp_path)


def test_requirements_of_a_network_name_tensorflow_for_each_platform(saved):
    """Here it is pinned as it is installed; elsewhere by the name under which that platform has wheels."""
    lines = (saved / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines]

    def names(**platform):
        met = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(platform)]
        return [pin.name for pin in met if pin.name.startswith("tensorflow")]

    [here] = names()
    assert f"{here}=={version(here)}" in [line.partition(";")[0] for line in lines]
    assert names(sys_platform="linux", platform_machine="aarch64") == ["tensorflow"]
    assert names(sys_platform="darwin", platform_machine="arm64") == ["tensorflow"]


def test_refit_is_what_the_recipe_makes_of_all_hours(later_hours):
    """It predicts as a network that was fitted on all hours in the first place; without a recipe it is an error."""
    train, later = split_by_time(later_hours, 1 / 3)
    judged, direct = fit(train), fit(later_hours)
    again = LoadedModel.of(judged.refit(later_hours, RUN))
    pd.testing.assert_frame_equal(again.predict(later), direct.predict(later))
    assert not again.predict(later).equals(judged.predict(later))
    with pytest.raises(ModelError, match="cannot be fitted again") as caught:
        judged.refit(later_hours, {})
    assert "epochs" in caught.value.value
    assert "promote.refit" in caught.value.next_step


# -- hostile networks --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A plain network as MLflow saves it: what each hostile one is made from."""
    folder = tmp_path_factory.mktemp("good") / "network"
    layered = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
    mlflow.keras.save_model(layered, str(folder), pip_requirements=[])
    load_folder(folder, NAME)
    return folder


def insert_layer(folder, layer):
    """Add a layer to a network's description."""
    file = folder / "data" / "model.keras"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    described = json.loads(members["config.json"])
    described["config"]["layers"].insert(1, layer)
    members["config.json"] = json.dumps(described)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def keras_lambda(folder, mark):
    """A layer that is Python code."""
    source = f"lambda inputs: (__import__('os').makedirs({str(mark)!r}, exist_ok=True), inputs[:, :2])[1]"
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(eval(source))])
    model.save(folder / "data" / "model.keras")
    mark.rmdir()


def keras_function(folder, mark):
    """A layer that is a function of another module (CVE-2025-1550)."""
    config = {"module": "os", "class_name": "function", "config": "mkdir", "registered_name": "mkdir"}
    inbound = [{"args": [str(mark)], "kwargs": {}}]
    insert_layer(folder, {**config, "name": "layer", "inbound_nodes": inbound})


def keras_class(folder, mark):
    """A layer that is a class of another module."""
    arguments = {"args": ["mkdir", str(mark)]}
    insert_layer(folder, {"module": "subprocess", "class_name": "Popen", "config": arguments})


def keras_reader(folder, mark):
    """A layer of Keras' own that reads another file (CVE-2025-12058)."""
    config = {"vocabulary": str(folder.parent / "secret.txt"), "name": "lookup"}
    insert_layer(
        folder, {"module": "keras.layers", "class_name": "StringLookup", "config": config, "registered_name": None}
    )


def keras_saved_model(folder, mark):
    """A layer that is another program, in TensorFlow's own form."""
    config = {"filepath": str(folder.parent / "secret.txt"), "name": "other"}
    insert_layer(folder, {"module": "keras.layers", "class_name": "TFSMLayer", "config": config})


def keras_torch(folder, mark):
    """A layer that unpickles a module of PyTorch."""
    config = {"module": pickle.dumps(Trap(mark)).hex(), "name": "torch"}
    insert_layer(folder, {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": config})


@pytest.mark.parametrize(
    "build", [keras_lambda, keras_function, keras_class, keras_reader, keras_saved_model, keras_torch]
)
def test_hostile_network_runs_nothing(good, tmp_path, monkeypatch, build):
    """It is refused by a ModelError that names the model."""
    monkeypatch.chdir(tmp_path)
    check_refusal(good, build, tmp_path)
