"""Hostile models: none of them runs anything, and none is in production afterwards."""

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
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A linear model as MLflow saves it: what each hostile model is made from."""
    import mlflow

    folder = tmp_path_factory.mktemp("good") / "line"
    weather = pd.DataFrame(np.random.default_rng(0).random((20, len(FEATURES))), columns=FEATURES)
    line = LinearRegression().fit(weather, weather.to_numpy()[:, :2])
    mlflow.sklearn.save_model(line, folder, skops_trusted_types=[*TRUSTED_TYPES], pip_requirements=[])
    load_folder(folder, "good")
    return folder


def describe(folder, **flavors):
    """Replace what a model says about itself."""
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors}))


# -- pickles, and code of the model's own ------------------------------------------------------------------------------
def pickle_for_skops(folder, mark):
    """The file has the good name, and the description asks for it to be unpickled."""
    (folder / "model.skops").write_bytes(pickle.dumps(Trap(mark)))
    describe(folder, sklearn={"pickled_model": "model.skops", "serialization_format": "pickle"})


def pickle_alone(folder, mark):
    """The model is a pickle, which is what scikit-learn models mostly are."""
    (folder / "model.skops").unlink()
    (folder / "model.pkl").write_bytes(pickle.dumps(Trap(mark)))
    describe(folder, sklearn={"pickled_model": "model.pkl", "serialization_format": "cloudpickle"})


def python_model(folder, mark):
    """A pyfunc model: a pickle with methods of its own."""
    (folder / "model.skops").unlink()
    (folder / "python_model.pkl").write_bytes(pickle.dumps(Trap(mark)))
    describe(folder, python_function={"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"})


def code_with_a_loader(folder, mark):
    """The model brings a module, and names it as its loader."""
    (folder / "model.skops").unlink()
    (folder / "code").mkdir()
    (folder / "code" / "helper.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    describe(folder, python_function={"loader_module": "helper", "code": "code"})


def model_from_code(folder, mark):
    """A script that MLflow runs to get the model."""
    (folder / "model.skops").unlink()
    (folder / "model.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    describe(folder, python_function={"loader_module": "mlflow.pyfunc.model", "model_code_path": "model.py"})


def yaml_tag(folder, mark):
    """A description that builds objects when it is read carelessly; the model beside it is gone."""
    (folder / "model.skops").unlink()
    (folder / "MLmodel").write_text(f"flavors: !!python/object/apply:os.mkdir ['{mark}']")


# -- what skops may build ----------------------------------------------------------------------------------------------
def part(loader, kind, **fields):
    """A part of a skops file."""
    module, _, name = kind.rpartition(".")
    return {"__loader__": loader, "__module__": module, "__class__": name, **fields}


def text(value):
    """A text in a skops file."""
    return part("JsonNode", "builtins.str", content=json.dumps(str(value)), is_json=True)


def several(*parts, loader="TupleNode", kind="builtins.tuple"):
    """A tuple in a skops file, or what is said to be one."""
    return part(loader, kind, content=list(parts))


def mapping(content, key="builtins.str"):
    """A dict in a skops file."""
    keys = several(*[part("TypeNode", key) for _ in content], loader="ListNode", kind="builtins.list")
    return part("DictNode", "builtins.dict", content=content, key_types=keys)


def write_skops(folder, inside, arrays=()):
    """Replace a model's file by a linear model, one of whose fields is ``inside``."""
    from skops.io._protocol import PROTOCOL

    schema = part("ObjectNode", "sklearn.linear_model._base.LinearRegression", content=mapping({"coef_": inside}))
    with zipfile.ZipFile(folder / "model.skops", "w") as archive:
        archive.writestr("schema.json", json.dumps({**schema, "protocol": PROTOCOL, "_skops_version": "0.16"}))
        for name, values in arrays:
            content = io.BytesIO()
            np.save(content, np.array(values), allow_pickle=True)
            archive.writestr(name, content.getvalue())


# What is in the file, and the arrays beside it; each builds something when it is read carelessly.
SKOPS = {
    "constructor": lambda mark: [part("ConstructorFromReduceNode", "os.mkdir", content=several(text(mark)))],
    "operator": lambda mark: [
        part("OperatorFuncNode", "operator.call", attrs=several(part("TypeNode", "os.mkdir"), text(mark)))
    ],
    "list": lambda mark: [several(text("mkdir"), text(mark), loader="ListNode", kind="subprocess.check_call")],
    "array": lambda mark: [
        part("NdArrayNode", "subprocess.check_call", type="numpy", file="words.npy"),
        [("words.npy", ["mkdir", str(mark)])],
    ],
    "key": lambda mark: [mapping({str(mark): text(1)}, key="os.mkdir")],
    "loss": lambda mark: [part("LossNode", "os.mkdir", __reduce__={"args": several(text(mark))}, content=mapping({}))],
    "pickle": lambda mark: [
        part("NdArrayNode", "numpy.ndarray", type="numpy", file="x.npy"),
        [("x.npy", np.array([Trap(mark)], dtype=object))],
    ],
}  # fmt: skip


def skops_that_trusts_itself(folder, mark):
    """The description lists the types that are to be trusted."""
    write_skops(folder, *SKOPS["constructor"](mark))
    describe(folder, sklearn={"pickled_model": "model.skops", "skops_trusted_types": ["os.mkdir", "posix.mkdir"]})


HOSTILE = [
    pickle_for_skops, pickle_alone, python_model, code_with_a_loader, model_from_code, yaml_tag,
    skops_that_trusts_itself,
    *(lambda folder, mark, make=make: write_skops(folder, *make(mark)) for make in SKOPS.values()),
]  # fmt: skip


@pytest.mark.parametrize("build", HOSTILE)
def test_hostile_model_runs_nothing(good, tmp_path, monkeypatch, build):
    """It is refused by a ModelError that names the model; six more, of Keras, are in test_network.py."""
    assert len(HOSTILE) == 14
    monkeypatch.chdir(tmp_path)
    check_refusal(good, build, tmp_path)
