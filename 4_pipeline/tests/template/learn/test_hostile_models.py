"""Twenty hostile models: none of them runs anything, and none is in production afterwards."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
import yaml
from forecast.errors import ModelError
from forecast.learn.storage import TRUSTED_TYPES, load_folder
from forecast.table.schema import FEATURES, TARGETS
from sklearn.linear_model import LinearRegression

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # in Keras, of TensorFlow
NAME = "models:/wind_solar/7"


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A linear model and a network, as MLflow saves them: what each hostile model is made from."""
    import keras
    import mlflow

    root = tmp_path_factory.mktemp("good")
    weather = pd.DataFrame(np.random.default_rng(0).random((20, 4)), columns=FEATURES)
    power = pd.DataFrame(weather.to_numpy()[:, :2], columns=TARGETS)
    line = LinearRegression().fit(weather, power)
    mlflow.sklearn.save_model(line, root / "line", skops_trusted_types=TRUSTED_TYPES, pip_requirements=[])
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
    mlflow.keras.save_model(network, str(root / "network"), pip_requirements=[])
    for kind in ("line", "network"):
        load_folder(root / kind, NAME)
    return root


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


def skops_constructor(folder, mark):
    """A class that is built with arguments."""
    write_skops(folder, part("ConstructorFromReduceNode", "os.mkdir", content=several(text(mark))))


def skops_operator(folder, mark):
    """A function of `operator`, which calls another."""
    write_skops(
        folder, part("OperatorFuncNode", "operator.call", attrs=several(part("TypeNode", "os.mkdir"), text(mark)))
    )


def skops_list(folder, mark):
    """A list whose class is a function."""
    call = several(text("mkdir"), text(mark), loader="ListNode", kind="subprocess.check_call")
    write_skops(folder, call)


def skops_array(folder, mark):
    """An array whose class is a function."""
    array = part("NdArrayNode", "subprocess.check_call", type="numpy", file="words.npy")
    write_skops(folder, array, [("words.npy", ["mkdir", str(mark)])])


def skops_key(folder, mark):
    """A dict whose keys are made by a function."""
    write_skops(folder, mapping({str(mark): text(1)}, key="os.mkdir"))


def skops_loss(folder, mark):
    """A loss, which is built by what it reduces to."""
    write_skops(folder, part("LossNode", "os.mkdir", __reduce__={"args": several(text(mark))}, content=mapping({})))


def skops_pickle(folder, mark):
    """An array of objects, which numpy can unpickle."""
    inside = np.array([Trap(mark)], dtype=object)
    write_skops(folder, part("NdArrayNode", "numpy.ndarray", type="numpy", file="x.npy"), [("x.npy", inside)])


def skops_that_trusts_itself(folder, mark):
    """The description lists the types that are to be trusted."""
    skops_constructor(folder, mark)
    describe(folder, sklearn={"pickled_model": "model.skops", "skops_trusted_types": ["os.mkdir", "posix.mkdir"]})


# -- what Keras may build ----------------------------------------------------------------------------------------------
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
    import keras

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


HOSTILE = {
    "line": [
        pickle_for_skops, pickle_alone, python_model, code_with_a_loader, model_from_code, yaml_tag, skops_constructor,
        skops_operator, skops_list, skops_array, skops_key, skops_loss, skops_pickle, skops_that_trusts_itself,
    ],
    "network": [keras_lambda, keras_function, keras_class, keras_reader, keras_saved_model, keras_torch],
}  # fmt: skip
CASES = [pytest.param(kind, build, id=build.__name__) for kind, builds in HOSTILE.items() for build in builds]


@pytest.mark.parametrize(("kind", "build"), CASES)
def test_hostile_model_runs_nothing(good, tmp_path, monkeypatch, kind, build):
    """It is refused by a ModelError that names the model; nothing has run, been read or been written."""
    assert len(CASES) == 20
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("a line of another file")
    folder, mark = tmp_path / "model", tmp_path / "sprung"
    shutil.copytree(good / kind, folder)
    build(folder, mark)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelError) as refused:
        load_folder(folder, NAME)
    assert sorted(tmp_path.rglob("*")) == before
    assert NAME in str(refused.value)
    assert "a line of another file" not in str(refused.value)
