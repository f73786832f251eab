"""The table, its models, and the scores and rules by which the gate decides."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import mlflow.sklearn
import numpy as np
import pandas as pd
import yaml
from mlflow_gate import Comparison, ConfigError, Gate, Registry, Scores
from pandas.api.types import is_float_dtype, is_numeric_dtype
from pandas.util import hash_pandas_object
from sklearn import calibration, compose, datasets, impute, metrics, model_selection, preprocessing, tree
from sklearn.pipeline import Pipeline, make_pipeline

FOLDER = Path(__file__).parent
PARAMETERS = yaml.safe_load((FOLDER / "params.yaml").read_text())
TABLE, GATE, SCORE = PARAMETERS["table"], PARAMETERS["gate"], PARAMETERS["score"]
ID, TARGET, GROUP = TABLE["id"], TABLE["target"], TABLE["group"]
NAMED = [TARGET, *([GROUP] if GROUP else [])]
KEY = "key of the row"  # by which split, folds and gate know a row
MAX_CLASSES = 20  # a target of whole numbers with more values is an amount
MIN_KEYS = 10  # rows, or groups, of each class
MIN_BLOCKS = 6  # of the gate's paired test
NUMBER = r"-?(\d+|\d{1,3}([.,' ]\d{3})+)([.,]\d+)?"  # in the notation of any country
MAX_EQUAL = 0.1  # if more rows are equal to others, as in a table of few categories, they are different cases
BLOCKS = 20  # of the paired test; in a table with groups, each group is a block


# -- rows ----------------------------------------------------------------------------------------------------------
def read() -> pd.DataFrame:
    """Return the table of the file in params.yaml; without one, scikit-learn's breast cancer data."""
    if TABLE["file"]:
        try:
            return pd.read_csv(FOLDER / TABLE["file"], **TABLE["read_csv"])
        except (OSError, ValueError) as error:
            step = "correct `file`, or set `read_csv`, such as {encoding: cp1252} or {sep: ';'}"
            raise ConfigError(f"{TABLE['file']} cannot be read.", value=error, next_step=step) from None
    rows = datasets.load_breast_cancer(as_frame=True).frame.rename_axis("id").reset_index()
    return rows.assign(malignant=1 - rows.pop("target"))  # scikit-learn's 1 is benign


def clean(raw: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that have a target, indexed by id, with their key: numbers as floats, other columns as text.

    The key is the group or else the id. Raises ConfigError, with the column or the row, if a column is missing, an id
    is missing or repeated, numbers are text, or a class is too small.
    """
    if unknown := {ID, *NAMED, *TABLE["leave_out"]} - {*raw}:
        step = f"choose from {[*raw]}; if the separator is not a comma: `read_csv: {{sep: ';', decimal: ','}}`"
        raise ConfigError("params.yaml names columns that the table lacks.", value=unknown, next_step=step)
    if len(wrong := raw.loc[raw[ID].isna() | raw[ID].duplicated(), ID]):
        step = "correct these rows, or choose another `id`; what several rows have in common is a `group`"
        raise ConfigError(
            f"{len(wrong)} ids are missing or repeated (by row, from 0).", value=wrong.head().to_dict(), next_step=step
        )
    rows = raw.set_index(ID).dropna(subset=NAMED)
    for name in rows.columns.drop(NAMED[1:]):
        is_number, texts = is_numeric_dtype(rows[name]), rows[name].dropna().astype("str")
        if not is_number and name not in TABLE["leave_out"] and texts.str.fullmatch(NUMBER).mean() > 0.5:
            odd = texts[pd.to_numeric(texts, errors="coerce").isna()]
            step = "correct them, or set `read_csv`, such as {na_values: ['?']}, {decimal: ','}, {thousands: '.'}"
            value = [*(odd if len(odd) else texts).unique()[:5]]
            raise ConfigError(f"{name} contains numbers that are text.", value=value, next_step=step)
        if name != TARGET:
            rows[name] = rows[name].astype(float if is_number else "str")
    rows[TARGET] = read_target(rows[TARGET])
    rows[KEY] = rows[GROUP].convert_dtypes().astype("str").str.strip() if GROUP else _keys(rows)
    counts = rows[KEY].groupby(np.where(is_amount(rows), "rows", rows[TARGET].astype("str"))).nunique()
    if counts.min() < MIN_KEYS or len(counts) < 2 - is_amount(rows):
        step = f"have {MIN_KEYS} {'groups' if GROUP else 'rows'} or more, and as many of each of two or more classes"
        raise ConfigError(f"Too little to learn {TARGET} from.", value=counts.nsmallest(5).to_dict(), next_step=step)
    return rows


def _keys(rows: pd.DataFrame) -> pd.Series:
    """Return the ids, where rows that are equal but for their id have the id of the first."""
    ids, contents = rows.index.to_series().astype("str"), hash_pandas_object(rows, index=False)
    is_normal = contents.duplicated().mean() > MAX_EQUAL
    return ids if is_normal else ids.groupby(contents).transform("first")


def read_target(values: pd.Series) -> pd.Series:
    """Return amounts as floats, two classes as 0 and 1, more classes as text."""
    is_number = is_numeric_dtype(values)
    if is_number and ((values % 1).any() or values.nunique() > MAX_CLASSES):
        return values.astype(float)
    names, positive = (values.astype(int) if is_number else values).astype("str"), str(TABLE["positive"])
    if names.nunique() != 2:
        return names
    if positive not in {*names}:
        step = f"set `positive` to one of {sorted({*names})}, in quotation marks"
        raise ConfigError(f"Which {TARGET} is to be found?", value=positive, next_step=step)
    return (names == positive).astype(int)


def is_amount(rows: pd.DataFrame) -> bool:
    """Return whether the target is a number, not a class."""
    return is_float_dtype(rows[TARGET])


def split(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return training and test rows, shuffled.

    A hash of its key decides, so a row keeps its part when the table grows, and the rows of a key are never divided.
    """
    shares = hash_pandas_object(rows[KEY], index=False, hash_key=f"{TABLE['seed']:016}").to_numpy() / 2**64
    shuffled, test_rows = shares.argsort(kind="stable"), (shares < TABLE["test_share"]).sum()
    if (count := rows[KEY].iloc[shuffled[:test_rows]].nunique()) < MIN_BLOCKS:
        step = "raise `test_share`, choose another `seed`, or wait for more data"
        raise ConfigError(f"Too few test {'groups' if GROUP else 'rows'}.", value=count, next_step=step)
    return rows.iloc[shuffled[test_rows:]], rows.iloc[shuffled[:test_rows]]


def giveaways(rows: pd.DataFrame) -> pd.Series:
    """Return how well each column alone, or the id, predicts the target (of amounts: their order); 1 is perfectly."""
    sample = rows.sample(min(len(rows), 5000), random_state=1)
    columns = features(sample).join(sample[[TARGET]]).reset_index()
    codes = columns.apply(lambda column: column if is_numeric_dtype(column) else column.astype("category").cat.codes)
    target, score = codes.pop(TARGET).rank(method="dense"), model_selection.cross_val_score
    model = (tree.DecisionTreeRegressor if is_amount(rows) else tree.DecisionTreeClassifier)(random_state=1)
    options = {"scoring": skill_of(rows), "cv": folds(sample)}
    return codes.apply(lambda column: score(model, column.to_frame(), target, **options).mean())


# -- models --------------------------------------------------------------------------------------------------------
def features(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that a model may use."""
    return rows.drop(columns=[*NAMED, KEY, *TABLE["leave_out"]])


def skill_of(rows: pd.DataFrame) -> str:
    """Return scikit-learn's scorer of the share of a constant prediction's squared error that a model avoids."""
    return "r2" if is_amount(rows) else "d2_brier_score"


def folds(rows: pd.DataFrame) -> list[tuple]:
    """Return training and validation rows of each fold of cross-validation; a group is never divided."""
    splitter = model_selection.GroupKFold() if is_amount(rows) else model_selection.StratifiedGroupKFold()
    return [*splitter.split(rows, rows[TARGET], rows[KEY])]


def search(name: str, rows: pd.DataFrame) -> model_selection.GridSearchCV:
    """Return the search for the best options of a model in params.yaml; the preprocessing is part of the model."""
    options, kind = dict(PARAMETERS["models"][name]), "amounts" if is_amount(rows) else "classes"
    estimators = {each: options.pop(each, None) for each in ("classes", "amounts")}
    lists = {each: values if isinstance(values, list) else [values] for each, values in options.items()}
    try:
        estimator = resolve_name(str(estimators[kind]))(**{each: values[0] for each, values in lists.items()})
        _ = kind == "amounts" or estimator.predict_proba
    except (AttributeError, ImportError, IndexError, TypeError, ValueError) as error:
        step = f"name a class in params.yaml, such as `{kind}: sklearn.ensemble.ExtraTreesClassifier`"
        raise ConfigError(f"{name} has no valid estimator for {kind}.", value=repr(error), next_step=step) from None
    numbers = make_pipeline(impute.SimpleImputer(strategy="median", add_indicator=True), preprocessing.StandardScaler())
    texts = preprocessing.OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=30, sparse_output=False)
    columns = compose.make_column_transformer((numbers, [*features(rows).select_dtypes("number")]), remainder=texts)
    model = Pipeline([("columns", columns), ("estimator", estimator)])
    grid = {f"estimator__{each}": values for each, values in lists.items()}
    scoring = skill_of(rows) if SCORE == "skill" else SCORE
    return model_selection.GridSearchCV(model, grid, scoring=scoring, cv=folds(rows), error_score="raise")


def with_threshold(model: Any, rows: pd.DataFrame) -> Any:
    """Return a model of two classes with the threshold that has the best F-score in cross-validation."""
    scoring = metrics.make_scorer(metrics.fbeta_score, beta=PARAMETERS["beta"])
    tuned = model_selection.TunedThresholdClassifierCV(model, scoring=scoring, cv=folds(rows))
    try:
        return tuned.fit(features(rows), rows[TARGET])
    except ValueError:  # the model predicts the same for every row of a fold, as for very few rows
        return model


# -- the gate --------------------------------------------------------------------------------------------------------
def evaluate(model: Any, rows: pd.DataFrame) -> Scores:
    """Return a model's skill, the scores that params.yaml names, and the mean squared error of each block."""
    inputs, target, scores = rows[[*model.feature_names_in_]], rows[TARGET], {}
    if is_amount(rows):
        truth, predicted = target.to_frame(), model.predict(inputs)[:, None]
    else:
        truth, predicted = pd.DataFrame({name: target == name for name in model.classes_}), model.predict_proba(inputs)
    errors = ((truth - predicted) ** 2).sum(axis=1, skipna=False)
    scores["skill"] = 1 - errors.mean() / ((truth - truth.mean()) ** 2).sum(axis=1).mean()
    if "calibration_error" in GATE["rules"]:
        shares = calibration.calibration_curve(target, predicted[:, 1], n_bins=10, strategy="quantile")
        scores["calibration_error"] = abs(np.subtract(*shares)).mean()
    for name in {SCORE, *GATE["rules"]} - scores.keys():
        scores[name] = metrics.get_scorer(name)(model, inputs, target)
    blocks = rows[GROUP] if GROUP else hash_pandas_object(rows[KEY], index=False) % BLOCKS
    return Scores(scores, errors.groupby(blocks).mean())


def held_out() -> pd.DataFrame:
    """Return the test rows, indexed by key."""
    rows = pd.read_parquet(FOLDER / "data" / "test.parquet")
    return rows.set_axis(pd.Index(rows[KEY]))


def gate() -> Gate:
    """Return the gate of the registered model, with the rules of params.yaml."""
    if unknown := {SCORE, *GATE["rules"]} - {"skill", "calibration_error", *metrics.get_scorer_names()}:
        step = "correct `score` or `rules` in params.yaml; `sklearn.metrics.get_scorer_names()` lists the names"
        raise ConfigError("There are no such scores.", value=unknown, next_step=step)
    decision = FOLDER / "results" / "decision.json"
    registry = Registry("tumours", load=lambda files: mlflow.sklearn.load_model(str(files)), decision=decision)
    comparison = Comparison(SCORE, near_tie=GATE["near_tie"])
    return Gate(registry, evaluate, held_out, GATE["rules"], comparison, candidate=decision)
