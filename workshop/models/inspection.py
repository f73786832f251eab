"""What the files of a model may hold, checked before a library opens them.

Everything is a fixed list or a limit: what is not named here is refused. A library's own checks come second.
"""

from __future__ import annotations

import json
import math
import re
import stat
import struct
import zipfile
from pathlib import Path

import yaml

from workshop.data.capacity import YEAR_ENDS_GW, YearEnds
from workshop.data.features import DERIVED
from workshop.data.schema import FEATURES, TARGETS
from workshop.errors import ModelError
from workshop.models import source

FOLDER_BYTES = 2 << 30  # a forest of a hundred deep trees, grown on five years of hours, has 0.6 GB
DESCRIPTION_BYTES = 64 << 10  # an MLmodel of ours has 1 KB; YAML is read slowly
DIRECTORY_BYTES = 1 << 20  # the list of what a zip holds: 60 to 100 bytes a member, three members a tree

# What MLflow writes beside the model itself, and what it adds to models that it fetches through the registry.
DESCRIPTION = "MLmodel"
ADDED_ON_DOWNLOAD = {"registered_model_meta"}
PAPERS = {
    DESCRIPTION, "conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json",
    "serving_input_example.json", "data/keras_module.txt", "data/save_format.txt", *ADDED_ON_DOWNLOAD,
}  # fmt: skip
SKOPS_FILE, KERAS_FILE = "model.skops", "data/model.keras"
# A network that is given raw weather: what MLflow runs to serve it, and what it serves. The first is not read here.
SERVED_FILE, NETWORK_FILE, CAPACITY_FILE = "served_network.py", "artifacts/network.keras", "artifacts/capacity.json"
FILES = PAPERS | {SKOPS_FILE, KERAS_FILE, SERVED_FILE, NETWORK_FILE, CAPACITY_FILE} | source.FILES
FOLDERS = {parent.as_posix() for file in FILES for parent in Path(file).parents} - {"."}
LOADERS = ["mlflow.sklearn", "mlflow.keras", "mlflow.tensorflow", "mlflow.pyfunc.loaders.code_model"]

# Estimators whose content is checked here or cannot do harm. Not all of scikit-learn: what is compiled believes the
# numbers that it is given, and reads whatever memory they point to.
ESTIMATORS = {
    "sklearn.dummy.DummyRegressor",
    "sklearn.ensemble._forest.ExtraTreesRegressor",
    "sklearn.ensemble._forest.RandomForestRegressor",
    "sklearn.linear_model._base.LinearRegression",
    "sklearn.linear_model._coordinate_descent.ElasticNet",
    "sklearn.linear_model._coordinate_descent.Lasso",
    "sklearn.linear_model._ridge.Ridge",
    "sklearn.tree._classes.DecisionTreeRegressor",
    "sklearn.tree._classes.ExtraTreeRegressor",
    "workshop.models.regressor.CapacityFactorRegressor",
}
BOOSTING = "sklearn.ensemble._hist_gradient_boosting"
# Estimators that learn from what others derive or divide, and what those hold.
PARTS = {
    f"{BOOSTING}.binning._BinMapper",
    f"{BOOSTING}.gradient_boosting.HistGradientBoostingRegressor",
    f"{BOOSTING}.predictor.TreePredictor",
    "sklearn._loss.link.IdentityLink",
    "sklearn._loss.link.Interval",
    "sklearn._loss.loss.HalfSquaredError",
    "sklearn._loss.loss.PinballLoss",
}
# How skops may build what: by the loader that a file names, the types it may name with it.
SKOPS_TYPES = {
    "DictNode": {"builtins.dict"},
    "JsonNode": {"builtins.str"},
    "ListNode": {"builtins.list"},
    "NdArrayNode": {"numpy.ndarray", "numpy.float64", "numpy.int64", "numpy.uint64"},
    "ObjectNode": ESTIMATORS | PARTS,
    "TreeNode": {"sklearn.tree._tree.Tree"},
    "TupleNode": {"builtins.tuple"},
    "TypeNode": {"builtins.str"},
}
MOST_THREADS = 256
MOST_YEARS = 200  # of figures of installed capacity
MOST_LEVELS = 1000  # of a tree: one that grows until each hour has a leaf of its own has some fifty
SOUND = f"children after parents, known features, at most {MOST_LEVELS} levels"
# What is raised where a file is not of the form that it should have.
UNREADABLE = (
    KeyError, TypeError, ValueError, AttributeError, RuntimeError, OSError, EOFError, MemoryError, zipfile.BadZipFile,
    yaml.YAMLError, struct.error,
)  # fmt: skip


class _PlainYaml(yaml.SafeLoader):
    """YAML without references: a few lines with them can stand for more than memory holds."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to parts of itself")
        return super().compose_node(parent, index)


def refusal(name: str, what: str, found: object, expected: str | None = None) -> ModelError:
    """Return the error that says ``what`` about the model ``name`` is refused: ``found`` and not ``expected``."""
    return ModelError(
        what,
        value=f"{name}: {str(found)[:500]}",
        expected=expected,
        next_step="log it with workshop.models.loading.log_model; if others did, find out who can write to the store",
    )


def check_folder(folder: Path, name: str) -> None:
    """Raise ModelError unless a model's folder holds plain files alone, those that MLflow writes, of bounded size."""
    size = 0
    for file in folder.rglob("*"):
        status, path = file.lstat(), file.relative_to(folder).as_posix()
        if stat.S_ISDIR(status.st_mode) and path in FOLDERS:
            continue
        if not stat.S_ISREG(status.st_mode):
            raise refusal(name, "The model holds what is no plain file.", path, f"files, and {', '.join(FOLDERS)}")
        if path not in FILES:
            raise refusal(name, "The model holds a file that no model here has.", path, ", ".join(sorted(FILES)))
        size += status.st_size
        if size > FOLDER_BYTES:
            raise refusal(name, "The model is too large.", f"more than {size} bytes", f"at most {FOLDER_BYTES}")


def read_flavors(folder: Path, name: str) -> dict[str, dict]:
    """Return the flavors that a model's `MLmodel` file names, each with its fields.

    Raise ModelError when there is no such file, it is not plain YAML, or it names code or another loader than ours.
    """
    file = folder / DESCRIPTION
    try:
        if (size := file.stat().st_size) > DESCRIPTION_BYTES:
            raise refusal(name, "The MLmodel file is too large.", f"{size} bytes", f"at most {DESCRIPTION_BYTES}")
        # ruff's S506 knows PyYAML's own safe loaders only.
        flavors = yaml.load(file.read_text(), Loader=_PlainYaml)["flavors"]  # noqa: S506
    except UNREADABLE as error:
        raise refusal(name, "The model has no readable MLmodel file.", error) from None
    if not isinstance(flavors, dict) or not all(
        isinstance(key, str) and isinstance(value, dict) for key, value in flavors.items()
    ):
        raise refusal(name, "The model has no readable MLmodel file.", "its flavors", "names, each with fields")
    # What travels there is for `mlflow models serve`. Nothing here runs it: the same modules are installed.
    if any(fields.get("code") not in (None, source.FOLDER) for fields in flavors.values()):
        raise refusal(name, "The model brings its own code.", "a path `code`", f"none, or `{source.FOLDER}`")
    loader = flavors.get("python_function", {}).get("loader_module")
    if loader not in (None, *LOADERS):
        raise refusal(name, "The model names a loader of its own.", loader, ", ".join(LOADERS))
    return flavors


def open_archive(file: Path, name: str) -> zipfile.ZipFile:
    """Open a zip whose members are stored as they are; raise ModelError for any other.

    skops and Keras write no other kind, and it is as large unpacked as it is on the disk: it cannot be a bomb.
    """
    what, expected = "The model's file is damaged.", "a zip of a few members, stored and not packed"
    try:
        with file.open("rb") as content:
            content.seek(max(0, file.stat().st_size - 42))
            tail = content.read()
        # The record that ends a zip (PKWARE's APPNOTE, 4.3.16), and the locator of a larger record before it (4.3.15).
        signature, *_, directory, _, comment = struct.unpack("<4s4H2LH", tail[-22:])
        if signature != b"PK\5\6" or comment or tail[:4] == b"PK\6\7" or directory > DIRECTORY_BYTES:
            raise refusal(name, what, "no zip, or one with too many members", expected)
        archive = zipfile.ZipFile(file)
    except UNREADABLE as error:
        raise refusal(name, what, error, expected) from None
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        archive.close()
        raise refusal(name, what, "members that are packed", expected)
    if sum(member.file_size for member in members) > file.stat().st_size:
        archive.close()
        raise refusal(name, what, "members that are larger than the file", expected)
    return archive


def check_skops(file: Path, name: str) -> None:
    """Raise ModelError unless a skops file holds a model of nothing but what ``SKOPS_TYPES`` names."""
    with open_archive(file, name) as archive:
        try:
            schema = json.loads(archive.read("schema.json"))
            kind = f"{schema['__module__']}.{schema['__class__']}"
            if schema["__loader__"] != "ObjectNode" or kind in PARTS:
                raise refusal(name, "The file holds no model.", kind, ", ".join(sorted(ESTIMATORS)))
            _check_part(schema, name, {})
            _check_arrays(schema, archive, name)
        except UNREADABLE as error:
            raise refusal(name, "The model's file is damaged.", repr(error)) from None


def _check_part(part, name: str, known: dict):
    """Raise ModelError when a part of a skops file is not allowed; return it without its numbers.

    By these numbers skops knows what it has built already, and takes it again whatever stands there the second time:
    ``known`` are the parts so far. A part within itself, too, would take as long as there are ways through it.
    """
    if isinstance(part, list):
        return [_check_part(item, name, known) for item in part]
    if not isinstance(part, dict):
        return part
    plain = {key: _check_part(value, name, known) for key, value in part.items() if key != "__id__"}
    if "__loader__" in part or "__class__" in part:
        loader, kind = part["__loader__"], f"{part['__module__']}.{part['__class__']}"
        if kind not in SKOPS_TYPES.get(loader, ()):
            allowed = ", ".join(sorted(ESTIMATORS))
            raise refusal(name, "The model holds types that are not trusted.", f"{kind} by {loader}", allowed)
    if "__id__" in part and known.setdefault(part["__id__"], plain) != plain:
        raise refusal(name, "The model's file contradicts itself.", f"part {part['__id__']} twice", "one content each")
    return plain


def _check_arrays(schema, archive: zipfile.ZipFile, name: str) -> None:
    """Raise ModelError when a skops file's arrays take more than it has: one named again and again, or made of nothing.

    skops reads a member anew for each part that names it. Elements without a size are as many as the file cares to say.
    """
    from numpy.lib import format as npy

    members = _named_files(schema)
    size, most = sum(archive.getinfo(member).file_size for member in members), 2 * Path(archive.filename).stat().st_size
    if size > most:
        raise refusal(name, "The model names its arrays too often.", f"{size} bytes in all", f"at most {most}")
    for member in set(members):
        with archive.open(member) as content:
            read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            kind = read_header[npy.read_magic(content)](content)[2]
        if not kind.itemsize:
            raise refusal(name, "The model holds an array of nothing.", f"{member} of {kind}", "numbers")


def _named_files(part) -> list[str]:
    """Return the members that the arrays of a skops file name, as often as they do."""
    if isinstance(part, list):
        return [file for item in part for file in _named_files(item)]
    if not isinstance(part, dict):
        return []
    own = [part["file"]] if part.get("__loader__") == "NdArrayNode" and "file" in part else []
    return own + _named_files(list(part.values()))


def check_estimator(
    model: object, name: str, *, width: int = len(FEATURES), outputs: int = len(TARGETS), most_depth: int = 3
) -> None:
    """Raise ModelError when predicting would take more than the file has: foreign memory, endless time, threads.

    ``width`` is how many numbers the model is given, ``outputs`` how many it returns. scikit-learn checks the types of
    a tree's arrays and not what they say (https://github.com/scikit-learn/scikit-learn/pull/34558).
    """
    from workshop.models.regressor import CapacityFactorRegressor

    if not most_depth:
        raise refusal(name, "The model holds models within models.", type(model).__name__, "forests, and parts of two")
    threads = getattr(model, "n_jobs", None)
    if threads is not None and not (isinstance(threads, int) and threads <= MOST_THREADS):
        raise refusal(name, "The model asks for too many threads.", f"n_jobs={threads}", f"at most {MOST_THREADS}")
    inner = {"width": width, "outputs": outputs, "most_depth": most_depth - 1}
    for estimator in getattr(model, "estimators_", ()):
        check_estimator(estimator, name, **inner)
    # By what it is, and not by what it has: a file can give an object any attribute.
    if isinstance(model, CapacityFactorRegressor):
        _check_composite(model, name, most_depth - 1)
        return
    if (found := getattr(model, "n_outputs_", outputs)) != outputs:
        raise refusal(name, "The model predicts something else.", f"{found} numbers", f"{outputs}")
    if hasattr(model, "tree_") and not _is_sound(model.tree_, width):
        raise refusal(name, "The model holds a broken tree.", "its nodes", SOUND)
    if hasattr(model, "_predictors") and not _is_sound_boosting(model, width):
        raise refusal(name, "The model holds a broken tree.", "its nodes", SOUND)


def _check_composite(model, name: str, most_depth: int) -> None:
    """Raise ModelError unless a model of two targets has a regressor for each, and two or none for its band."""
    bands = [end for pair in model.bands_ for end in pair]
    right = len(model.regressors_) == len(TARGETS) and len(bands) in (0, 2 * len(TARGETS))
    if not right or len(model.margins_) != len(model.bands_) or any(len(pair) != 2 for pair in model.bands_):
        raise refusal(name, "The model has not what its targets need.", "its parts", ", ".join(TARGETS))
    check_capacity(model.year_ends_, name)
    numbers = [*model.margins_, model.coverage]
    if not all(isinstance(number, float) and math.isfinite(number) for number in numbers) or not 0 < numbers[-1] < 1:
        raise refusal(name, "The model's band is no number.", f"margins and coverage {numbers}", "numbers, and a share")
    for regressor in [*model.regressors_, *bands]:
        if not hasattr(regressor, "predict"):
            raise refusal(name, "A part of the model cannot predict.", type(regressor).__name__, "a regressor")
        check_estimator(regressor, name, width=len(DERIVED), outputs=1, most_depth=most_depth)


def read_capacity(folder: Path, name: str) -> YearEnds:
    """Return the figures of installed capacity beside a network; raise ModelError when they are none.

    A network that was logged before figures came with the data has no such file, and learned with Germany's.
    """
    file = folder / CAPACITY_FILE
    if not file.exists():
        return YEAR_ENDS_GW
    try:
        if (size := file.stat().st_size) > DESCRIPTION_BYTES:
            raise refusal(name, "The file of capacities is too large.", f"{size} bytes", f"at most {DESCRIPTION_BYTES}")
        year_ends = json.loads(file.read_text())
    except UNREADABLE as error:
        raise refusal(name, "The model has no readable file of capacities.", error) from None
    check_capacity(year_ends, name)
    return year_ends


def check_capacity(year_ends: object, name: str) -> None:
    """Raise ModelError unless these are figures of installed capacity in GW, by target and by year."""

    def is_sound(ends: object) -> bool:
        return (
            isinstance(ends, dict)
            and 2 <= len(ends) <= MOST_YEARS
            and all(isinstance(year, str) and re.fullmatch(r"[12]\d{3}", year) for year in ends)
            and all(type(GW) in (int, float) and 0 < GW < math.inf for GW in ends.values())
        )

    if not isinstance(year_ends, dict) or set(year_ends) != set(TARGETS) or not all(map(is_sound, year_ends.values())):
        expected = f"GW at the ends of at least two years, for {' and '.join(TARGETS)}"
        raise refusal(name, "The model's figures of installed capacity cannot be used.", year_ends, expected)


def _is_sound_boosting(model, width: int) -> bool:
    """Tell whether each tree of a histogram gradient boosting ends, and asks for nothing but our features."""
    import numpy as np
    from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor

    trees = [tree for trees in model._predictors for tree in trees]
    plain = model.n_features_in_ == width and model.n_trees_per_iteration_ == 1 and model._preprocessor is None
    if not plain or model._baseline_prediction.shape != (1, 1) or any(len(trees) != 1 for trees in model._predictors):
        return False
    return not np.any(model._bin_mapper.is_categorical_) and all(
        type(tree) is TreePredictor
        and tree.nodes.ndim == 1
        and len(tree.nodes)
        and not tree.nodes["is_categorical"].any()
        and _is_way_down(
            tree.nodes["left"], tree.nodes["right"], tree.nodes["feature_idx"], tree.nodes["is_leaf"] == 0, width
        )
        for tree in trees
    )


def _is_sound(tree, width: int) -> bool:
    """Tell whether each way down a tree ends, within its nodes and the features."""
    from sklearn.tree._tree import Tree

    # First: the arrays below are as long as the count says, whatever there is.
    if type(tree) is not Tree or tree.node_count < 1 or tree.node_count != tree.capacity:
        return False
    left = tree.children_left
    return _is_way_down(left, tree.children_right, tree.feature, left != -1, width)  # -1 marks a leaf


def _is_way_down(left, right, feature, inner, width: int) -> bool:
    """Tell whether from each inner node two ways lead to later ones, by a feature that there is, and soon to an end."""
    import numpy as np

    parents = np.flatnonzero(inner)
    sound = (
        (left[inner] > parents).all()
        and (right[inner] > parents).all()
        and (np.maximum(left, right)[inner] < len(left)).all()
        and (feature[inner] >= 0).all()
        and (feature[inner] < width).all()
    )
    # No node is reached twice, or the levels below would grow without end.
    if not sound or (len(parents) and np.bincount(np.concatenate([left[inner], right[inner]]).astype(int)).max() > 1):
        return False
    level = np.zeros(1, int)
    for _ in range(MOST_LEVELS):
        level = level[inner[level]]
        if not len(level):
            return True
        level = np.concatenate([left[level], right[level]])
    return False
