"""Models are loaded without running anything of theirs."""

from __future__ import annotations

import hashlib
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


@pytest.mark.filterwarnings("ignore:Operation with range")  # in MLflow
def test_model_whose_files_were_changed_is_refused(in_workplace, hours):
    """Who can write to the artifact store, checksums included, still cannot change a model: the database knows it."""
    from workshop.models import loading, tracking
    from workshop.servers.artifacts import names

    model = RandomForestRegressor(3, random_state=0).fit(hours[FEATURES], hours[TARGETS])
    with tracking.start_run("tampered"):
        uri = loading.log_model(model, hours)
    assert loading.load(uri).predict(hours).equals(LoadedModel.of(model).predict(hours))
    (file,) = in_workplace.settings.artifacts.rglob(f"{uri.removeprefix('models:/')}/**/MLmodel")
    file.write_bytes(file.read_bytes() + b"\n")
    (file.parent / names.mark_of("MLmodel", hashlib.sha256(file.read_bytes()).hexdigest())).mkdir()
    with pytest.raises(ModelError, match="not those that were logged"):
        loading.load(uri)


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
