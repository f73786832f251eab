"""Hostile models: none of them runs, reads or fills anything, and each is refused in words."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pickle
import resource
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor

from workshop.data.features import INPUTS
from workshop.data.schema import FEATURES, TARGETS
from workshop.errors import ModelError
from workshop.models.loading import TRUSTED_TYPES, _options, load_folder
from workshop.models.regressor import CapacityFactorRegressor

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # in Keras, of TensorFlow
    pytest.mark.filterwarnings("ignore:Operation with range"),  # in MLflow
]

NAME = "models:/wind_solar/7"
SECRET = "a line of another file"
MOST_SECONDS, MOST_MEGABYTES = 5, 250  # seconds of the processor: others may use the machine
CORPUS = {}


def hostile(kind, variants=(None,)):
    """Add what a function makes of a good model to the corpus, once for each variant."""

    def register(build):
        for variant in variants:
            words = f"{build.__name__.replace('_', ' ')} {variant or ''}".strip()
            assert words not in CORPUS
            CORPUS[words] = (kind, build, () if variant is None else (variant,))
        return build

    return register


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A forest and a network, as MLflow saves them: what each hostile model starts from."""
    import keras
    import mlflow

    root = tmp_path_factory.mktemp("good")
    inputs = pd.DataFrame(np.random.default_rng(0).random((20, 4)), columns=FEATURES)
    outputs = pd.DataFrame(inputs.to_numpy()[:, :2], columns=TARGETS)
    forest = RandomForestRegressor(3, random_state=0).fit(inputs, outputs)
    mlflow.sklearn.save_model(forest, root / "forest", skops_trusted_types=TRUSTED_TYPES, pip_requirements=[])
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
    mlflow.keras.save_model(network, str(root / "network"), pip_requirements=[])
    hours = inputs.assign(utc_timestamp=pd.date_range("2014-06-01", periods=20, freq="h"))
    trees = HistGradientBoostingRegressor(max_iter=3, min_samples_leaf=2)
    hours, outputs = (pd.concat([part] * 20, ignore_index=True) for part in (hours, outputs))
    hours["utc_timestamp"] = pd.date_range("2014-06-01", periods=len(hours), freq="h")
    boosting = CapacityFactorRegressor(trees, band=trees, folds=2).fit(hours, outputs)
    mlflow.sklearn.save_model(boosting, root / "boosting", **_options(boosting, hours[INPUTS].head(), root / "copy"))
    for kind in ("forest", "network", "boosting"):
        load_folder(root / kind, NAME)
    return root


def make(words, good, place):
    """Build one model of the corpus; return its folder, and what appears when its trap is sprung."""
    kind, build, variant = CORPUS[words]
    (place / "other.txt").write_text(SECRET)
    folder, mark = place / "model", place / "sprung"
    shutil.copytree(good / kind, folder)
    build(folder, mark, *variant)
    return folder, mark


# What the description says


def describe(folder, change):
    """Change what a model says about itself."""
    file = folder / "MLmodel"
    described = yaml.safe_load(file.read_text())
    change(described["flavors"])
    file.write_text(yaml.safe_dump(described))


class Trap:
    """Whoever unpickles this makes a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@hostile("forest", ["pickle", "cloudpickle", None])
def sklearn_downgraded_to(folder, mark, form=None):
    """The description says that the model is a pickle, or does not say what it is."""
    (folder / "model.skops").unlink()
    (folder / "model.pkl").write_bytes(pickle.dumps(Trap(mark)))
    describe(folder, lambda flavors: flavors["sklearn"].update(pickled_model="model.pkl", serialization_format=form))


@hostile("forest")
def pickle_under_the_name_of_skops(folder, mark):
    """The description is as ever, the file is not."""
    (folder / "model.skops").write_bytes(pickle.dumps(Trap(mark)))


@hostile("forest")
def pickle_under_the_name_of_skops_downgraded(folder, mark):
    """The file has a good name, and the description asks for it to be unpickled."""
    (folder / "model.skops").write_bytes(pickle.dumps(Trap(mark)))
    describe(folder, lambda flavors: flavors["sklearn"].update(serialization_format="pickle"))


@hostile("forest", ["alone", "beside skops"])
def code_with_a_loader(folder, mark, how):
    """The model brings a module, and names it as the one that loads it."""
    (folder / "code").mkdir()
    (folder / "code" / "helper.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")

    def change(flavors):
        if how == "alone":
            flavors.clear()
        flavors["python_function"] = {"loader_module": "helper", "code": "code"}

    describe(folder, change)


@hostile("forest")
def loader_that_is_installed(folder, mark):
    """A loader that MLflow has, and which unpickles."""
    describe(folder, lambda flavors: flavors["python_function"].update(loader_module="mlflow.pyfunc.model"))


@hostile("forest", ["python_function", "pytorch", "xgboost", "onnx"])
def other_flavor(folder, mark, flavor):
    """A kind of model that is unpickled, or run."""
    (folder / "python_model.pkl").write_bytes(pickle.dumps(Trap(mark)))

    def change(flavors):
        flavors.clear()
        flavors[flavor] = {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"}

    describe(folder, change)


def _yaml(mark, case):
    return {
        "tag": f"flavors: !!python/object/apply:os.mkdir ['{mark}']",
        # Merged at each level ten times: 10**9 at the last.
        "merges": "\n".join(
            ["a0: &a0 {k: v}", *(f"a{n + 1}: &a{n + 1} {{<<: [{', '.join([f'*a{n}'] * 10)}]}}" for n in range(9))]
        ),
        "laughs": "\n".join(
            [
                "a0: &a0 [x, x]",
                *(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(9)),
                "flavors: *a9",
            ]
        ),
        "depth": "flavors: " + "[" * 20_000,
        "size": "flavors: {sklearn: {x: " + "y" * 20_000_000 + "}}",
        "list": "[1, 2]",
        "numbers": "flavors: 7",
        "names": "flavors: [sklearn, keras]",
        "empty flavor": "flavors: {sklearn: }",
        "no text": "\xff\xfe\x00",
        "impossible date": "flavors: 9999-99-99",
        "lists for names": "flavors: {sklearn: {serialization_format: skops, pickled_model: [a, b]}}",
        "list for loader": "flavors: {python_function: {loader_module: [os]}, keras: {}}",
        "nothing": "",
    }[case]


YAML = [
    "tag", "merges", "laughs", "depth", "size", "list", "numbers", "names", "empty flavor", "no text",
    "impossible date", "lists for names", "list for loader", "nothing",
]  # fmt: skip


@hostile("forest", YAML)
def description_with(folder, mark, case):
    """An MLmodel file that runs something, fills memory, or is of another form."""
    (folder / "MLmodel").write_bytes(_yaml(mark, case).encode("latin-1"))


@hostile("forest")
def no_description(folder, mark):
    """Nothing says what the model is."""
    (folder / "MLmodel").unlink()


# Files that are elsewhere, or no files


PATHS = {
    "outside": "../elsewhere.skops", "a system file": "/etc/passwd", "a folder": "data", "no name": "a\0b",
    "a long name": "x" * 5000,
}  # fmt: skip


@hostile("forest", PATHS)
def path_to(folder, mark, target):
    """The description names a file outside, a folder, or what no file can be called."""
    shutil.copy(folder / "model.skops", folder.parent / "elsewhere.skops")
    describe(folder, lambda flavors: flavors["sklearn"].update(pickled_model=PATHS[target]))


@hostile("forest", ["model.skops", "MLmodel", "conda.yaml"])
def link_of(folder, mark, file):
    """A file of the model is a link to one outside."""
    outside = folder.parent / "outside"
    shutil.move(folder / file, outside)
    (folder / file).symlink_to(outside)


@hostile("network")
def link_of_the_network(folder, mark):
    """The Keras file is a link to one outside."""
    outside = folder.parent / "outside.keras"
    shutil.move(folder / "data" / "model.keras", outside)
    (folder / "data" / "model.keras").symlink_to(outside)


@hostile("network")
def link_of_the_folder(folder, mark):
    """The folder with the Keras file is a link to one outside."""
    shutil.move(folder / "data", folder.parent / "outside")
    (folder / "data").symlink_to(folder.parent / "outside")


@hostile("forest", ["model.skops", "MLmodel"])
def pipe_for(folder, mark, file):
    """Whoever opens the file waits for ever."""
    (folder / file).unlink()
    os.mkfifo(folder / file)


@hostile("forest", ["model.skops", "MLmodel"])
def folder_for(folder, mark, file):
    """A folder has the name of a file."""
    (folder / file).unlink()
    (folder / file).mkdir()


@hostile("forest")
def file_of_many_gigabytes(folder, mark):
    """A file with nothing in it, that says it is larger than memory."""
    with (folder / "model.skops").open("r+b") as file:
        file.truncate(1 << 40)


# What skops may build


def part(loader, kind, **fields):
    """A part of a skops file."""
    module, _, name = kind.rpartition(".")
    return {"__loader__": loader, "__module__": module, "__class__": name, **fields}


def text(value):
    """A text or number in a skops file."""
    return part("JsonNode", "builtins.str", content=json.dumps(value), is_json=True)


def several(*parts, loader="ListNode", kind="builtins.list"):
    """A list in a skops file, or what is said to be one."""
    return part(loader, kind, content=list(parts))


def mapping(content, key="builtins.str"):
    """A dict in a skops file."""
    keys = several(*[part("TypeNode", key) for _ in content])
    return part("DictNode", "builtins.dict", content=content, key_types=keys)


def model_with(inside):
    """A linear model in a skops file, one of whose fields is ``inside``."""
    return part("ObjectNode", "sklearn.linear_model._base.LinearRegression", content=mapping({"coef_": inside}))


def write_skops(folder, schema, members=(), packing=zipfile.ZIP_STORED):
    """Replace a model's file; ``members`` are other files in it."""
    from skops.io._protocol import PROTOCOL

    schema = json.dumps({**schema, "protocol": PROTOCOL, "_skops_version": "0.16"})
    with zipfile.ZipFile(folder / "model.skops", "w", packing) as archive:
        for name, content in [*members, ("schema.json", schema)]:
            archive.writestr(name, content)


def array(values):
    """An array as numpy writes it."""
    content = io.BytesIO()
    np.save(content, np.array(values), allow_pickle=True)
    return content.getvalue()


def _call(mark, way):
    mark = str(mark)
    return {
        "constructor": part(
            "ConstructorFromReduceNode",
            "os.mkdir",
            content=several(text(mark), loader="TupleNode", kind="builtins.tuple"),
        ),
        "operator": part(
            "OperatorFuncNode",
            "operator.call",
            attrs=several(part("TypeNode", "os.mkdir"), text(mark), loader="TupleNode", kind="builtins.tuple"),
        ),
        "list": several(text("mkdir"), text(mark), kind="subprocess.check_call"),
        "set": several(text("mkdir"), text(mark), loader="SetNode", kind="subprocess.check_call"),
        "array": part("NdArrayNode", "subprocess.check_call", type="numpy", file="words.npy"),
        "key": mapping({mark: text(1)}, key="os.mkdir"),
        "loss": part(
            "LossNode",
            "os.mkdir",
            __reduce__={"args": several(text(mark), loader="TupleNode", kind="builtins.tuple")},
            content=mapping({}),
        ),
    }[way]


WAYS = ["constructor", "operator", "list", "array", "key", "loss"]


@hostile("forest", WAYS)
def skops_that_calls_by(folder, mark, way):
    """Each way in which skops calls what a file names."""
    write_skops(folder, model_with(_call(mark, way)), [("words.npy", array(["mkdir", str(mark)]))])


@hostile("forest", WAYS)
def skops_that_trusts_itself_and_calls_by(folder, mark, way):
    """The same, and the description lists the types that it wants to be trusted."""
    skops_that_calls_by(folder, mark, way)
    trusted = ["os.mkdir", "posix.mkdir", "operator.call", "subprocess.check_call"]
    describe(folder, lambda flavors: flavors["sklearn"].update(skops_trusted_types=trusted))


@hostile(
    "forest", ["functools.partial", "builtins.eval", "operator.methodcaller", "sklearn.svm._classes.SVR", "os.mkdir"]
)
def skops_with_an_object_of(folder, mark, kind):
    """Types that are not on the list, some of them scikit-learn's."""
    write_skops(folder, part("ObjectNode", kind, content=mapping({"a": text(1)})))


@hostile(
    "forest",
    ["FunctionNode", "MethodNode", "PartialNode", "RandomStateNode", "SparseMatrixNode", "DefaultDictNode", "Unknown"],
)
def skops_with_a(folder, mark, loader):
    """Parts that no model here has."""
    inner = several(loader="TupleNode", kind="builtins.tuple")
    fields = {
        "func": "fit",
        "obj": model_with(text(1)),
        "args": inner,
        "kwds": mapping({}),
        "main": inner,
    }
    write_skops(folder, model_with(part(loader, "builtins.str", content=fields, type="scipy", file="x")), [("x", b"")])


@hostile("forest")
def skops_of_no_model(folder, mark):
    """Types that are trusted, and nothing that predicts."""
    write_skops(folder, several(text(1)))


@hostile("forest")
def skops_with_a_pickle_inside(folder, mark):
    """An array of objects, which numpy unpickles when it is let."""
    inside = array(np.array([Trap(mark)], dtype=object))
    write_skops(
        folder, model_with(part("NdArrayNode", "numpy.ndarray", type="numpy", file="x.npy")), [("x.npy", inside)]
    )


@hostile("forest")
def skops_with_a_bomb(folder, mark):
    """A small zip with an array of half a gigabyte."""
    schema = part("NdArrayNode", "numpy.ndarray", type="numpy", file="x.npy")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 29,)})
    write_skops(folder, model_with(schema), packing=zipfile.ZIP_DEFLATED)
    packed = zipfile.ZipFile(folder / "model.skops", "a", zipfile.ZIP_DEFLATED, compresslevel=1)
    with packed, packed.open("x.npy", "w") as member:
        member.write(header.getvalue())
        for _ in range(128):
            member.write(bytes(1 << 22))


@hostile("forest")
def skops_with_a_bomb_in_a_matrix(folder, mark):
    """The zip is honest, and holds a second one that is not."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("indices", "indptr", "data", "shape", "format"):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array_header_1_0(
                    member, {"descr": "|i1", "fortran_order": False, "shape": (1 << 27,)}
                )
                for _ in range(32):
                    member.write(bytes(1 << 22))
    schema = part("SparseMatrixNode", "scipy.sparse._csr.csr_matrix", type="scipy", file="x.npz")
    write_skops(folder, model_with(schema), [("x.npz", packed.getvalue())])


@hostile("forest")
def skops_with_one_member_many_times(folder, mark):
    """A hundred members that are the same bytes of the file: as large as the file, each."""
    schema = part("NdArrayNode", "numpy.ndarray", type="numpy", file="x.npy")
    write_skops(folder, model_with(schema), [("x.npy", bytes(10_000_000))])
    file = folder / "model.skops"
    content = file.read_bytes()
    start = struct.unpack("<L", content[-6:-2])[0]
    entry = content[start : start + 46 + len("x.npy")]
    directory = entry * 100 + content[start + len(entry) : -22]
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 101, 101, len(directory), start, 0)
    file.write_bytes(content[:start] + directory + end)


@hostile("forest")
def skops_with_a_million_names(folder, mark):
    """A zip whose list of members fills memory."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    entries = 1_000_000
    size = len(entry) * entries
    larger = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, size, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (folder / "model.skops").write_bytes(entry * entries + larger + locator + end)


@hostile("forest")
def skops_with_an_array_that_lies(folder, mark):
    """Sixteen bytes that call themselves an array of a terabyte."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 37,)})
    members = [("x.npy", header.getvalue() + bytes(16))]
    write_skops(folder, model_with(part("NdArrayNode", "numpy.ndarray", type="numpy", file="x.npy")), members)


@hostile("forest")
def skops_with_parts_in_parts(folder, mark):
    """Deeper than Python goes."""
    with zipfile.ZipFile(folder / "model.skops", "w") as archive:
        archive.writestr("schema.json", '{"a":[' * 50_000 + "]}" * 50_000)


@hostile("forest")
def skops_with_parts_of_itself(folder, mark):
    """A list of two of a list of two of ..., forty times: a small file, and a trillion ways through it."""
    inner = {**several(text(1)), "__id__": 1}
    for number in range(2, 42):
        again = {**several(), "__id__": number - 1}
        inner = {**several(inner, again), "__id__": number}
    write_skops(folder, model_with(inner))


@hostile("forest", ["half", "nothing", "other"])
def skops_cut_to(folder, mark, rest):
    """Half a file, an empty one, a zip of something else."""
    file = folder / "model.skops"
    content = file.read_bytes()
    file.write_bytes({"half": content[: len(content) // 2], "nothing": b"", "other": b""}[rest])
    if rest == "other":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("../../sprung", "a name that leads out")


def _edit_trees(folder, change):
    """Change the nodes of a forest's trees."""
    file = folder / "model.skops"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, content in members.items():
        if name.endswith(".npy") and (nodes := np.load(io.BytesIO(content))).dtype.names:
            members[name] = array(change(nodes.copy()))
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@hostile("forest", ["left_child", "right_child", "feature"])
def tree_that_leads_out_by(folder, mark, field):
    """Predicting with it reads memory that is not the tree's."""

    def change(nodes):
        nodes[field][0] = 10**12
        return nodes

    _edit_trees(folder, change)


@hostile("forest")
def tree_without_an_end(folder, mark):
    """Predicting with it goes round for ever."""

    def change(nodes):
        nodes["left_child"][0] = nodes["right_child"][0] = 0
        return nodes

    _edit_trees(folder, change)


def _edit_schema(folder, change):
    """Change each part of a forest's description that is a dict; the first is the whole."""
    with zipfile.ZipFile(folder / "model.skops") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    parts = [json.loads(members.pop("schema.json"))]
    for part_ in parts:
        if isinstance(part_, dict):
            change(part_)
        parts += part_.values() if isinstance(part_, dict) else part_ if isinstance(part_, list) else []
    write_skops(folder, parts[0], members.items())


@hostile("boosting", ["left", "right", "feature_idx"])
def boosted_tree_that_leads_out_by(folder, mark, field):
    """Predicting with it reads memory that is not the tree's."""

    def change(nodes):
        if field in (nodes.dtype.names or ()):
            nodes[field][0] = 2**31
        return nodes

    _edit_trees(folder, change)


@hostile("boosting")
def boosted_tree_without_an_end(folder, mark):
    """Predicting with it goes round for ever."""

    def change(nodes):
        nodes["left"][0] = nodes["right"][0] = 0
        return nodes

    _edit_trees(folder, change)


@hostile("boosting")
def boosted_tree_of_categories(folder, mark):
    """It asks for sets of categories, which are not there."""

    def change(nodes):
        nodes["is_categorical"][0], nodes["bitset_idx"][0] = 1, 2**31
        return nodes

    _edit_trees(folder, change)


@hostile("boosting", ["n_trees_per_iteration_", "n_features_in_", "coverage"])
def boosting_with_a_false_number_of(folder, mark, number):
    """More outputs than memory holds, other features, a share that is none."""

    def change(found):
        if number in found:
            found[number] = text("much") if number == "coverage" else text(10**9)

    _edit_schema(folder, change)


@hostile("boosting", ["regressors_", "bands_", "margins_"])
def boosting_without_all_of_its(folder, mark, parts):
    """A part of what its targets need is missing."""

    def change(found):
        if parts in found:
            found[parts]["content"] = found[parts]["content"][:1]

    _edit_schema(folder, change)


@hostile("boosting", ["regressors_", "bands_"])
def boosting_whose_part_cannot_predict(folder, mark, parts):
    """A part that is allowed elsewhere stands for a regressor."""

    def change(found):
        if parts in found:
            content = found[parts]["content"]
            where = content if parts == "regressors_" else content[0]["content"]
            where[0] = part("ObjectNode", "sklearn._loss.link.IdentityLink", content=mapping({}))

    _edit_schema(folder, change)


@hostile("boosting")
def boosting_alone(folder, mark):
    """What is a part of a model is no model."""
    from skops.io import dump

    dump(HistGradientBoostingRegressor(max_iter=2).fit(np.zeros((30, 4)), np.zeros(30)), folder / "model.skops")


def _rewrite(folder, change):
    """Change the model itself, as one can who has this package, and keep it by skops."""
    from skops.io import dump, load

    file = folder / "model.skops"
    dump(change(load(file, trusted=TRUSTED_TYPES)), file)


def _bent(tree):
    """A tree that leads out of itself."""
    state = tree.__getstate__()
    state["nodes"]["left_child"][0] = state["nodes"]["right_child"][0] = 10**12
    bent = type(tree)(len(FEATURES), np.array([1] * len(TARGETS)), len(TARGETS))
    bent.__setstate__(state)
    return bent


@hostile("boosting")
def boosting_whose_part_says_it_is_a_composite(folder, mark):
    """A regressor with sound parts that it does not ask, beside trees of its own that lead out."""

    def change(model):
        sound, part = model.regressors_
        part._predictors[0][0].nodes["left"][0] = part._predictors[0][0].nodes["right"][0] = 2**31
        twin = HistGradientBoostingRegressor()
        twin.__dict__.update(sound.__dict__)
        part.regressors_, part.bands_, part.margins_, part.coverage = [twin, twin], [], [], 0.8
        return model

    _rewrite(folder, change)


@hostile("forest")
def tree_that_says_it_is_a_composite(folder, mark):
    """The same of a single tree."""
    from sklearn.linear_model import LinearRegression

    def change(forest):
        tree, line = forest.estimators_[0], LinearRegression().fit(np.eye(6), np.zeros(6))
        tree.tree_ = _bent(tree.tree_)
        tree.regressors_, tree.bands_, tree.margins_, tree.coverage = [line, line], [], [], 0.8
        return tree

    _rewrite(folder, change)


@hostile("forest")
def tree_whose_nodes_are_another_tree(folder, mark):
    """What is looked at are attributes, put beside a tree that leads out."""

    def change(forest):
        tree, outer = forest.estimators_[:2]
        tree.tree_ = _bent(tree.tree_)
        tree.node_count = tree.capacity = 1
        tree.children_left = tree.children_right = np.array([-1])
        tree.feature = np.array([0])
        outer.tree_ = tree
        return outer

    _rewrite(folder, change)


@hostile("boosting", ["once", "again and again"])
def boosted_tree_of_a_single_branch(folder, mark, times):
    """It ends, after a million steps for each hour; or it is shorter, and named a thousand times."""

    def change(model):
        part = model.regressors_[1]
        (tree,) = part._predictors[0]
        count = 1_000_000 if times == "once" else 1000
        nodes = np.zeros(count, tree.nodes.dtype)
        nodes["left"], nodes["right"] = np.arange(1, count + 1), np.minimum(np.arange(2, count + 2), count - 1)
        nodes["is_leaf"][-1] = 1
        tree.nodes = nodes
        part._predictors = [[tree]] * (1 if times == "once" else 1000)
        return model

    _rewrite(folder, change)


@hostile("forest", ["coef_", "intercept_"])
def line_with_a_million(folder, mark, numbers):
    """Each hour would be answered by millions of numbers; a year of them fills memory."""
    from sklearn.linear_model import LinearRegression

    def change(_):
        line = LinearRegression().fit(np.eye(4), np.zeros((4, 2)))
        line.__dict__[numbers] = np.zeros((500_000, 4) if numbers == "coef_" else (500_000, 1, 2))
        return line

    _rewrite(folder, change)


@hostile("forest")
def skops_that_names_an_array_again_and_again(folder, mark):
    """A hundred arrays that are the same bytes of the file, and each its own in memory."""
    parts = [part("NdArrayNode", "numpy.ndarray", type="numpy", file="x.npy", __id__=number) for number in range(100)]
    write_skops(folder, model_with(several(*parts)), [("x.npy", array(np.zeros(1_000_000)))])


@hostile("boosting")
def boosting_with_an_array_of_nothing(folder, mark):
    """Elements without a size: billions of them take no byte, and minutes to look at."""

    def change(model):
        model.regressors_[0]._bin_mapper.is_categorical_ = np.ndarray((1 << 35,), "V0")
        return model

    _rewrite(folder, change)


@hostile("boosting", ["_in_fit", "predict", "_baseline_prediction"])
def boosting_that_answers_with_an_error_by(folder, mark, field):
    """It is sound, and yet cannot be asked."""

    def change(model):
        values = {"_in_fit": True, "predict": "x", "_baseline_prediction": np.array([["x" * 99]])}
        setattr(model.regressors_[0], field, values[field])
        return model

    _rewrite(folder, change)


@hostile("boosting", [math.nan, math.inf])
def boosting_whose_margin_is(folder, mark, number):
    """A band that ends nowhere."""

    def change(model):
        model.margins_[0] = number
        return model

    _rewrite(folder, change)


@hostile("boosting")
def boosting_beside_code_of_a_gigabyte(folder, mark):
    """A module by a good name, that is larger than what reads it should need."""
    with (folder / "code" / "workshop" / "errors.py").open("r+b") as file:
        file.truncate(1 << 30)
    (folder / "model.skops").unlink()


@hostile("boosting")
def boosting_beside_other_code(folder, mark):
    """A module that no model of ours takes along."""
    (folder / "code" / "workshop" / "sitecustomize.py").write_text(f"import os; os.mkdir({str(mark)!r})")


@hostile("forest", ["n_jobs", "n_outputs", "n_outputs_"])
def forest_with_a_false_number_of(folder, mark, number):
    """More threads than a machine has, more numbers than it can hold."""

    def change(found):
        if number in found:
            found[number] = text(10**9)
        elif number == "n_outputs" and found.get("__loader__") == "TreeNode":
            found["__reduce__"]["args"]["content"][2] = text(10**9)

    _edit_schema(folder, change)


@hostile("forest")
def tree_that_says_one_thing_and_means_another(folder, mark):
    """skops has built a number before, and takes that: a million outputs, and not the two that stand in the tree."""

    def change(found):
        if found.get("__loader__") == "TreeNode":
            found["__reduce__"]["args"]["content"][2]["__id__"] = 5
        elif "n_outputs_" in found:
            found["n_outputs_"] = {**text(10**6), "__id__": 5}

    _edit_schema(folder, change)


# What Keras may build


def rewrite(folder, config=None, weights=None, others=(), packing=zipfile.ZIP_STORED):
    """Change the description or the weights in a model's Keras file, and add members."""
    import h5py

    file = folder / "data" / "model.keras"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if config is not None:
        described = json.loads(members["config.json"])
        members["config.json"] = json.dumps(config(described) or described)
    if weights is not None:
        content = io.BytesIO(members["model.weights.h5"])
        with h5py.File(content, "r+") as opened:
            weights(opened)
        members["model.weights.h5"] = content.getvalue()
    with zipfile.ZipFile(file, "w", packing) as archive:
        for name, content in [*members.items(), *others]:
            archive.writestr(name, content)


@hostile("network")
def keras_with_code(folder, mark):
    """A layer that is Python code."""
    import keras

    source = f"lambda inputs: (__import__('os').makedirs({str(mark)!r}, exist_ok=True), inputs[:, :2])[1]"
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(eval(source))])
    model.save(folder / "data" / "model.keras")
    mark.rmdir()


def _layer(mark, kind):
    """Layers, and what is called a layer, that run, read or fetch something."""
    keras_layer = {"module": "keras.layers", "registered_name": None}
    other = str(mark.parent / "other.txt")
    function = {"class_name": "function", "config": "mkdir", "registered_name": "mkdir"}
    return {
        # CVE-2025-1550: a module and a name in it, whichever.
        "function of os": {"module": "os", **function},
        "function of builtins": {"module": "builtins", **function, "config": "eval"},
        "class of subprocess": {
            "module": "subprocess",
            "class_name": "Popen",
            "config": {"args": ["mkdir", str(mark)]},
        },
        "download": {"module": "keras.utils", "class_name": "function", "config": "get_file"},
        "registered name": {
            "module": "keras.layers",
            "class_name": "Dense",
            "config": {"name": "a", "units": 2},
            "registered_name": "Custom>Dense",
        },
        # CVE-2025-12058: a list of words that is a file of the reader's.
        "list of words": {**keras_layer, "class_name": "StringLookup", "config": {"vocabulary": other}},
        "text": {**keras_layer, "class_name": "TextVectorization", "config": {"vocabulary": other}},
        "saved model": {**keras_layer, "class_name": "TFSMLayer", "config": {"filepath": other}},
        "pickle": {**keras_layer, "class_name": "TorchModuleWrapper", "config": {"module": "gASVAAAA"}},
        "lambda": {"class_name": "__lambda__", "config": {"value": "gASVAAAA"}},
        "huge embedding": {
            **keras_layer,
            "class_name": "Embedding",
            "config": {"input_dim": 10**7, "output_dim": 100},
            "build_config": {"input_shape": [None, 4]},
        },
        "no layer": 7,
        "nothing": None,
    }[kind]


LAYERS = [
    "function of os", "function of builtins", "class of subprocess", "download", "registered name", "list of words",
    "text", "saved model", "pickle", "lambda", "huge embedding", "no layer", "nothing",
]  # fmt: skip


@hostile("network", LAYERS)
def keras_with_a_layer_of(folder, mark, kind):
    """A layer that is none of the workshop's."""
    rewrite(folder, config=lambda described: described["config"]["layers"].insert(1, _layer(mark, kind)))


@hostile("network", ["activation", "kernel_initializer", "kernel_constraint", "quantization_config", "dtype"])
def keras_with_a_function_for(folder, mark, setting):
    """A layer of the workshop's, one of whose settings is something else."""

    def change(described):
        described["config"]["layers"][1]["config"][setting] = _layer(mark, "function of os")

    rewrite(folder, config=change)


def _grow(described, way):
    layers = described["config"]["layers"]
    dense = layers[1]
    if way == "units":
        dense["config"]["units"] = 2 * 10**8
        layers.pop()
    elif way == "inputs":
        layers[0]["config"]["batch_shape"] = dense["build_config"]["input_shape"] = [None, 10**8]
    elif way == "built for":
        dense["build_config"]["input_shape"] = [None, 10**8]
    elif way == "rank":
        dense["config"]["lora_rank"] = 10**8
    elif way == "many layers":
        layers[1:1] = [layers[1]] * 10_000
    elif way == "rows":
        name, dtype = "normalization", "float32"
        settings = {"name": name, "dtype": dtype, "axis": [0], "mean": None, "variance": None, "invert": False}
        normalization = {"module": "keras.layers", "class_name": "Normalization", "config": settings}
        layers.insert(1, {**normalization, "build_config": {"input_shape": [10**9, 4]}})


@hostile("network", ["units", "inputs", "built for", "rank", "many layers", "rows"])
def keras_that_grows_by(folder, mark, way):
    """A few bytes that ask for gigabytes of weights."""
    rewrite(folder, config=lambda described: _grow(described, way))


def _spoil(file, mark, way):
    import h5py

    (path,) = [path for path in ("layers/dense/vars",) if path in file]
    group = file[path]
    other = str(mark.parent / "other.txt")
    del group["0"]
    if way == "link":
        group["0"] = h5py.SoftLink("/layers/dense_1/vars/0")
    elif way == "link outside":
        group["0"] = h5py.ExternalLink(other, "/secret")
    elif way == "numbers outside":
        group.create_dataset("0", (4, 8), "u1", external=[(other, 0, 32)])
    elif way == "view outside":
        layout = h5py.VirtualLayout((4, 8), "f4")
        layout[:] = h5py.VirtualSource(other, "x", (4, 8))
        group.create_virtual_dataset("0", layout)
    elif way == "nothing behind it":
        group.create_dataset("0", (1 << 14, 1 << 14), "f4", chunks=(1024, 1024))
    elif way == "packed":
        group.create_dataset("0", data=np.zeros((4096, 4096), "f4"), compression="gzip")
    elif way == "circle":
        group["0"] = file["layers"]
    elif way == "objects":
        group.create_dataset("0", data=["a", "b"], dtype=h5py.string_dtype())
    elif way == "type":
        group["0"] = np.dtype("f4")


@hostile(
    "network",
    [
        "link",
        "link outside",
        "numbers outside",
        "view outside",
        "nothing behind it",
        "packed",
        "circle",
        "objects",
        "type",
    ],
)
def keras_whose_weights_are_a(folder, mark, way):
    """Weights that lie in another file, or nowhere."""
    rewrite(folder, weights=lambda file: _spoil(file, mark, way))


@hostile("network")
def keras_with_a_bomb(folder, mark):
    """Members that are packed."""
    rewrite(
        folder,
        weights=lambda file: file.create_dataset("x", data=np.zeros(1 << 27, "u1")),
        packing=zipfile.ZIP_DEFLATED,
    )


@hostile("network")
def keras_with_assets(folder, mark):
    """Files that Keras unpacks, one with a name that leads out."""
    rewrite(folder, others=[("assets/../../../sprung", "x"), ("assets/words.txt", "x")])


@hostile("network", ["depth", "no json", "list", "functional", "huge number"])
def keras_described_by(folder, mark, form):
    """A description of another form."""
    config = {
        "depth": '{"module":"keras","config":' * 20_000,
        "no json": "\0",
        "list": "[]",
        "functional": '{"module": "keras", "class_name": "Functional", "config": {"layers": []}}',
        "huge number": "9" * 10_000,
    }[form]
    file = folder / "data" / "model.keras"
    with zipfile.ZipFile(file) as archive:
        weights = archive.read("model.weights.h5")
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("config.json", config), ("metadata.json", "{}"), ("model.weights.h5", weights)):
            archive.writestr(name, content)


@hostile("network", ["half", "other"])
def keras_cut_to(folder, mark, rest):
    """Half a file; a zip of something else."""
    file = folder / "data" / "model.keras"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    if rest == "other":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("readme", "nothing")


@hostile("network", ["model.h5", "second.keras", "saved_model.pb", "custom_objects.cloudpickle", "keras_module.pkl"])
def keras_beside(folder, mark, name):
    """Files of the kinds that are not safe, beside the one that is."""
    (folder / "data" / name).write_bytes(pickle.dumps(Trap(mark)))


@hostile("network", ["model.h5", "saved_model.pb"])
def keras_only_as(folder, mark, name):
    """An old format alone."""
    (folder / "data" / "model.keras").rename(folder / "data" / name)


@hostile("network")
def keras_of_torch(folder, mark):
    """A network for another library, which unpickles."""
    (folder / "data" / "keras_module.txt").write_text("os")
    (folder / "data" / "model.keras").write_bytes(pickle.dumps(Trap(mark)))


# What must hold for each


@pytest.mark.parametrize("words", CORPUS)
def test_hostile_model_is_refused(good, tmp_path, monkeypatch, words):
    """It is a ModelError that names the model; nothing has run, been written or told, little time and memory went."""
    monkeypatch.chdir(tmp_path)
    folder, mark = make(words, good, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ModelError) as refused:
        load_folder(folder, NAME)
    assert time.process_time() - began < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024 < MOST_MEGABYTES
    assert sorted(tmp_path.rglob("*")) == before
    assert not mark.exists()
    assert "helper" not in sys.modules
    told = str(refused.value)
    assert NAME in told
    assert SECRET not in told
    assert len(told) < 2000


# The traps are traps


def _skops_load(folder):
    import skops.io

    file = folder / "model.skops"
    return skops.io.load(file, trusted=skops.io.get_untrusted_types(file=file))


def _keras_load(folder):
    import keras

    return keras.saving.load_model(folder / "data" / "model.keras", safe_mode=False)


def _unpickle_inside(folder):
    with zipfile.ZipFile(folder / "model.skops") as archive:
        return np.load(io.BytesIO(archive.read("x.npy")), allow_pickle=True)


CARELESS = {
    "pickle under the name of skops": lambda folder: pickle.loads((folder / "model.skops").read_bytes()),
    "description with tag": lambda folder: yaml.unsafe_load((folder / "MLmodel").read_text()),
    "code with a loader alone": lambda folder: runpy.run_path(folder / "code" / "helper.py"),
    "skops with a pickle inside": _unpickle_inside,
    "keras with code": _keras_load,
    **{f"skops that calls by {way}": _skops_load for way in WAYS},
}


@pytest.mark.parametrize("words", CARELESS)
def test_trap_is_sprung_by_careless_loading(good, tmp_path, words):
    """What the corpus looks for is what happens to whoever unpickles, trusts what a file lists, or leaves safe mode."""
    folder, mark = make(words, good, tmp_path)
    with contextlib.suppress(Exception):
        CARELESS[words](folder)
    assert mark.exists()


CARELESS_PROGRAM = f"""
import sys, numpy, skops.io
print("ready", flush=True)
skops.io.load(sys.argv[1], trusted={TRUSTED_TYPES}).predict(numpy.full((1000, 4), 0.5))
"""


@pytest.mark.parametrize(
    ("words", "crashes"),
    [
        ("tree that leads out by left_child", True),
        ("tree without an end", False),
        ("skops with parts of itself", False),
    ],
)
def test_trusted_types_are_not_enough(good, tmp_path, words, crashes):
    """A file that holds nothing but trusted types ends the process that uses it, or keeps it busy for ever."""
    folder, _ = make(words, good, tmp_path)
    program = [sys.executable, "-W", "ignore", "-c", CARELESS_PROGRAM, folder / "model.skops"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        if crashes:
            assert process.wait(60) == -signal.SIGSEGV
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
            process.kill()
