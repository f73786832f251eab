"""Hostile models: loading them is an error, and runs none of their code."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
import yaml
from forecast.learn.storage import TRUSTED_TYPES, load_folder
from forecast.table.schema import FEATURES
from places import check_refusal
from sklearn.linear_model import LinearRegression


class Trap:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A linear model saved by MLflow, from which the hostile ones are built."""
    import mlflow

    folder = tmp_path_factory.mktemp("good") / "line"
    weather = pd.DataFrame(np.random.default_rng(0).random((20, len(FEATURES))), columns=FEATURES)
    line = LinearRegression().fit(weather, weather.to_numpy()[:, :2])
    mlflow.sklearn.save_model(line, folder, skops_trusted_types=[*TRUSTED_TYPES], pip_requirements=[])
    load_folder(folder, "good")
    return folder


def describe(folder, **flavors):
    """Replace the flavors in a model's MLmodel file."""
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors}))


# -- pickles and custom code -------------------------------------------------------------------------------------------
def pickle_for_skops(folder, mark):
    """A pickle named model.skops, with a serialization format of `pickle`."""
    (folder / "model.skops").write_bytes(pickle.dumps(Trap(mark)))
    describe(folder, sklearn={"pickled_model": "model.skops", "serialization_format": "pickle"})


def pickle_alone(folder, mark):
    """A pickle, the most common format of scikit-learn models."""
    (folder / "model.skops").unlink()
    (folder / "model.pkl").write_bytes(pickle.dumps(Trap(mark)))
    describe(folder, sklearn={"pickled_model": "model.pkl", "serialization_format": "cloudpickle"})


def python_model(folder, mark):
    """A pickled PythonModel of the pyfunc flavor."""
    (folder / "model.skops").unlink()
    (folder / "python_model.pkl").write_bytes(pickle.dumps(Trap(mark)))
    describe(folder, python_function={"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"})


def code_with_a_loader(folder, mark):
    """A model with a module of its own, which is named as the loader."""
    (folder / "model.skops").unlink()
    (folder / "code").mkdir()
    (folder / "code" / "helper.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    describe(folder, python_function={"loader_module": "helper", "code": "code"})


def model_from_code(folder, mark):
    """A model from code: a script that MLflow would run."""
    (folder / "model.skops").unlink()
    (folder / "model.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    describe(folder, python_function={"loader_module": "mlflow.pyfunc.model", "model_code_path": "model.py"})


def yaml_tag(folder, mark):
    """An MLmodel file with a YAML tag that an unsafe loader would execute; the model itself is deleted."""
    (folder / "model.skops").unlink()
    (folder / "MLmodel").write_text(f"flavors: !!python/object/apply:os.mkdir ['{mark}']")


# -- skops files -------------------------------------------------------------------------------------------------------
def node(loader, kind, **fields):
    """Return a node of a skops schema."""
    module, _, name = kind.rpartition(".")
    return {"__loader__": loader, "__module__": module, "__class__": name, **fields}


def text(value):
    """Return the node of a string."""
    return node("JsonNode", "builtins.str", content=json.dumps(str(value)), is_json=True)


def sequence(*parts, loader="TupleNode", kind="builtins.tuple"):
    """Return the node of a tuple, or of another type with the same content."""
    return node(loader, kind, content=list(parts))


def mapping(content, key="builtins.str"):
    """Return the node of a dict."""
    keys = sequence(*[node("TypeNode", key) for _ in content], loader="ListNode", kind="builtins.list")
    return node("DictNode", "builtins.dict", content=content, key_types=keys)


def write_skops(folder, inside, arrays=()):
    """Replace a model's file by a linear model with the node ``inside`` as its ``coef_``."""
    from skops.io._protocol import PROTOCOL

    schema = node("ObjectNode", "sklearn.linear_model._base.LinearRegression", content=mapping({"coef_": inside}))
    with zipfile.ZipFile(folder / "model.skops", "w") as archive:
        archive.writestr("schema.json", json.dumps({**schema, "protocol": PROTOCOL, "_skops_version": "0.16"}))
        for name, values in arrays:
            content = io.BytesIO()
            np.save(content, np.array(values), allow_pickle=True)
            archive.writestr(name, content.getvalue())


# A node, and the arrays beside the schema; a loader that trusts the file would run code.
SKOPS = {
    "constructor": lambda mark: [node("ConstructorFromReduceNode", "os.mkdir", content=sequence(text(mark)))],
    "operator": lambda mark: [
        node("OperatorFuncNode", "operator.call", attrs=sequence(node("TypeNode", "os.mkdir"), text(mark)))
    ],
    "list": lambda mark: [sequence(text("mkdir"), text(mark), loader="ListNode", kind="subprocess.check_call")],
    "array": lambda mark: [
        node("NdArrayNode", "subprocess.check_call", type="numpy", file="words.npy"),
        [("words.npy", ["mkdir", str(mark)])],
    ],
    "key": lambda mark: [mapping({str(mark): text(1)}, key="os.mkdir")],
    "loss": lambda mark: [node("LossNode", "os.mkdir", __reduce__={"args": sequence(text(mark))}, content=mapping({}))],
    "pickle": lambda mark: [
        node("NdArrayNode", "numpy.ndarray", type="numpy", file="x.npy"),
        [("x.npy", np.array([Trap(mark)], dtype=object))],
    ],
}  # fmt: skip


def skops_that_trusts_itself(folder, mark):
    """An MLmodel file that declares its own trusted types."""
    write_skops(folder, *SKOPS["constructor"](mark))
    describe(folder, sklearn={"pickled_model": "model.skops", "skops_trusted_types": ["os.mkdir", "posix.mkdir"]})


HOSTILE = [
    pickle_for_skops, pickle_alone, python_model, code_with_a_loader, model_from_code, yaml_tag,
    skops_that_trusts_itself,
    *(lambda folder, mark, make=make: write_skops(folder, *make(mark)) for make in SKOPS.values()),
]  # fmt: skip


@pytest.mark.parametrize("build", HOSTILE)
def test_hostile_model_runs_nothing(good, tmp_path, monkeypatch, build):
    """Loading raises a ModelError that names the model; hostile Keras models are in test_network.py."""
    assert len(HOSTILE) == 14
    monkeypatch.chdir(tmp_path)
    check_refusal(good, build, tmp_path)
