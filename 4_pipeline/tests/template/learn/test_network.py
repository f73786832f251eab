"""Networks: loading without running their code, refit, and serving by MLflow."""

from __future__ import annotations

import json
import warnings
import zipfile
from importlib.metadata import version

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from forecast.learn import network, storage
from forecast.learn.network import CapacityFactorNetwork, fit_network
from forecast.learn.storage import LoadedModel, load_folder
from forecast.problem import CAPACITY
from forecast.table.features import DERIVED, INPUTS, inputs, year_ends_of
from forecast.table.schema import FEATURES, TARGETS
from forecast.table.split import split_by_time
from forecast.terms.errors import ModelError
from packaging.requirements import Requirement
from places import check_refusal

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
    """The folder of a network, saved as it is logged."""
    root = tmp_path_factory.mktemp("saved")
    model = fit(later_hours).fitted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in MLflow and in Keras
        options = storage._interface(model, inputs(later_hours.head())[INPUTS]) | network.options(model, root)
        mlflow.pyfunc.save_model(root / "network", **options)
    return root / "network"


def test_network_is_loaded_unchanged(saved, later_hours):
    """The loaded network takes times, has its own capacity figures and predicts finite GW; MLflow serves the same."""
    model = load_folder(saved, "test")
    assert model.takes_time
    assert model.year_ends == year_ends_of(later_hours) != CAPACITY
    assert np.isfinite(model.predict(later_hours)).all(axis=None)
    assert model.predict_with_band(later_hours)[1] is None
    served = mlflow.pyfunc.load_model(str(saved)).predict(inputs(later_hours))
    pd.testing.assert_frame_equal(served, model.predict(later_hours))


def test_plain_network_is_loaded_unchanged(good):
    """A network from weather to power, as the chapters log, predicts the same; the pipeline cannot log one."""
    hours = pd.DataFrame(np.random.default_rng(0).random((8, len(FEATURES))), columns=FEATURES)
    plain = load_folder(good, "good")
    assert np.array_equal(plain.predict(hours), plain.fitted.predict(hours.to_numpy("float32"), verbose=0))
    with pytest.raises(ModelError, match=r"Only a `CapacityFactorNetwork`"):
        network.options(plain.fitted, good)


def test_requirements_of_a_network_name_tensorflow_for_each_platform():
    """The installed distribution is pinned; other platforms get the one that has wheels for them."""
    pins = [Requirement(pin) for pin in network.requirements() if pin.startswith("tensorflow")]
    platforms = {}, {"platform_machine": "aarch64"}, {"sys_platform": "darwin", "platform_machine": "arm64"}
    [local], [arm], [mac] = (
        [pin for pin in pins if pin.marker is None or pin.marker.evaluate(platform)] for platform in platforms
    )
    assert str(local.specifier) == f"=={version(local.name)}"
    assert arm.name == mac.name == "tensorflow"


def test_refit_equals_a_fit_on_all_hours(later_hours):
    """A refit predicts like a network that was fitted on all hours; without the run's parameters it is an error."""
    train, later = split_by_time(later_hours, 1 / 3)
    evaluated, direct = fit(train), fit(later_hours)
    refit = LoadedModel.of(evaluated.refit(later_hours, RUN))
    pd.testing.assert_frame_equal(refit.predict(later), direct.predict(later))
    assert not refit.predict(later).equals(evaluated.predict(later))
    with pytest.raises(ModelError, match="cannot be refitted") as caught:
        evaluated.refit(later_hours, {})
    assert "epochs" in caught.value.value
    assert "promote.refit" in caught.value.next_step


# -- hostile networks --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A plain network saved by MLflow, from which the hostile ones are built."""
    folder = tmp_path_factory.mktemp("good") / "network"
    layered = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
    mlflow.keras.save_model(layered, str(folder), pip_requirements=[])
    load_folder(folder, "good")
    return folder


def keras_lambda(folder, mark):
    """Save a network with a Lambda layer of Python code."""
    source = f"lambda inputs: (__import__('os').makedirs({str(mark)!r}, exist_ok=True), inputs[:, :2])[1]"
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(eval(source))])
    model.save(folder / "data" / "model.keras")
    mark.rmdir()


def insert_layer(layer):
    """Return a function that adds a layer to a network's config, with the paths of the secret and the mark."""

    def build(folder, mark):
        file, secret = folder / "data" / "model.keras", folder.parent / "secret.txt"
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        config = json.loads(members["config.json"])
        paths = json.dumps(layer).replace("MARK", str(mark)).replace("SECRET", str(secret))
        config["config"]["layers"].insert(
            1, json.loads(paths.replace("TRAP", f"cos\nmkdir\n(V{mark}\ntR.".encode().hex()))
        )
        members["config.json"] = json.dumps(config)
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return build


def insert_keras_layer(kind, **config):
    """Return a function that adds one of Keras' layers."""
    return insert_layer({"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None})


HOSTILE = {
    "lambda": keras_lambda,
    # functions and classes of other modules (CVE-2025-1550)
    "function": insert_layer({
        "module": "os", "class_name": "function", "config": "mkdir", "registered_name": "mkdir", "name": "layer",
        "inbound_nodes": [{"args": ["MARK"], "kwargs": {}}],
    }),
    "class": insert_layer({"module": "subprocess", "class_name": "Popen", "config": {"args": ["mkdir", "MARK"]}}),
    # layers that read another file (CVE-2025-12058), run a TensorFlow program, or unpickle a PyTorch module
    "reader": insert_keras_layer("StringLookup", vocabulary="SECRET", name="lookup"),
    "saved model": insert_keras_layer("TFSMLayer", filepath="SECRET", name="other"),
    "torch": insert_keras_layer("TorchModuleWrapper", module="TRAP", name="torch"),
}  # fmt: skip


@pytest.mark.parametrize("build", HOSTILE.values(), ids=HOSTILE)
def test_hostile_network_runs_nothing(good, tmp_path, monkeypatch, build):
    """Loading raises a ModelError that names the model."""
    monkeypatch.chdir(tmp_path)
    check_refusal(good, build, tmp_path)
