"""Models are loaded without running anything of theirs."""

from __future__ import annotations

import os
import pickle
import zipfile

import pandas as pd
import pytest
import yaml
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression

from workshop.data.schema import FEATURES, TARGETS
from workshop.errors import ModelError
from workshop.models.loading import TRUSTED_TYPES, LoadedModel, load_folder


@pytest.fixture(scope="module")
def hours():
    """A few hours of weather and power."""
    rows = [[3.0 + n, 10.0, 50.0 * n, 30.0 * n, 2.0 * n, 1.0 + n] for n in range(8)]
    return pd.DataFrame(rows, columns=[*FEATURES, *TARGETS])


class Trap:
    """Whoever unpickles this makes a folder."""

    def __init__(self, sprung):
        self.sprung = sprung

    def __reduce__(self):
        return os.mkdir, (str(self.sprung),)


def save(model, folder):
    """Save a scikit-learn model as MLflow does by default."""
    import mlflow

    mlflow.sklearn.save_model(model, folder, skops_trusted_types=TRUSTED_TYPES, pip_requirements=[])
    return folder


@pytest.mark.parametrize(
    "model", [LinearRegression(), RandomForestRegressor(3, random_state=0)], ids=["line", "forest"]
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


def test_model_that_is_a_pickle_is_refused_unopened(hours, tmp_path):
    """A model's own words say that it is a pickle: it is not opened."""
    folder = save(LinearRegression().fit(hours[FEATURES], hours[TARGETS]), tmp_path / "model")
    sprung = tmp_path / "sprung"
    (folder / "model.pkl").write_bytes(pickle.dumps(Trap(sprung)))
    described = yaml.safe_load((folder / "MLmodel").read_text())
    described["flavors"]["sklearn"] |= {"pickled_model": "model.pkl", "serialization_format": "cloudpickle"}
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    with pytest.raises(ModelError, match="not of a kind"):
        load_folder(folder, "test")
    assert not sprung.exists()


def test_model_that_calls_a_pickle_skops_is_refused(hours, tmp_path):
    """The description lies about the file: nothing in it is run."""
    folder = save(LinearRegression().fit(hours[FEATURES], hours[TARGETS]), tmp_path / "model")
    sprung = tmp_path / "sprung"
    (folder / "model.skops").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ModelError):
        load_folder(folder, "test")
    assert not sprung.exists()


def test_model_that_names_its_own_trusted_types_is_refused(hours, tmp_path):
    """Which types are trusted is said here and not by the model."""
    import skops.io

    folder = save(LinearRegression().fit(hours[FEATURES], hours[TARGETS]), tmp_path / "model")
    skops.io.dump({"trap": Trap(tmp_path / "sprung")}, folder / "model.skops")
    described = yaml.safe_load((folder / "MLmodel").read_text())
    described["flavors"]["sklearn"]["skops_trusted_types"] = ["posix.mkdir", "os.mkdir", "builtins.eval"]
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    with pytest.raises(ModelError, match=r"not trusted|damaged"):
        load_folder(folder, "test")
    assert not (tmp_path / "sprung").exists()


def test_model_file_outside_its_folder_is_refused(hours, tmp_path):
    """A path that leads out of the model is not followed."""
    folder = save(LinearRegression().fit(hours[FEATURES], hours[TARGETS]), tmp_path / "model")
    described = yaml.safe_load((folder / "MLmodel").read_text())
    described["flavors"]["sklearn"]["pickled_model"] = "../elsewhere.skops"
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    with pytest.raises(ModelError, match="outside"):
        load_folder(folder, "test")


@pytest.mark.parametrize("damage", ["cut", "empty", "no description"])
def test_model_that_is_damaged_is_an_error_in_words(hours, tmp_path, damage):
    """Half a file, an empty one, none: ModelError with the model's name."""
    folder = save(LinearRegression().fit(hours[FEATURES], hours[TARGETS]), tmp_path / "model")
    file = folder / "model.skops"
    if damage == "no description":
        (folder / "MLmodel").unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 if damage == "cut" else 0])
    with pytest.raises(ModelError, match="models:/wind_solar/7"):
        load_folder(folder, "models:/wind_solar/7")


def test_keras_model_with_code_inside_is_refused(tmp_path):
    """A Keras file with a Lambda layer, which is Python code, does not load."""
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda inputs: inputs[:, :2])])
    (tmp_path / "data").mkdir()
    model.save(tmp_path / "data" / "model.keras")
    (tmp_path / "MLmodel").write_text("flavors: {keras: {data: data}}")
    with pytest.raises(ModelError, match="safe mode"):
        load_folder(tmp_path, "test")


def test_keras_file_that_is_something_else_is_refused(tmp_path):
    """A zip that is no model ends in words."""
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("readme", "nothing")
    (tmp_path / "MLmodel").write_text("flavors: {keras: {data: data}}")
    with pytest.raises(ModelError):
        load_folder(tmp_path, "test")
