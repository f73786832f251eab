"""Evaluate a model: scores on held-out rows, latency and size for the gate, and the effect of each input."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import mlflow_gate
import numpy as np
import pandas as pd
from sklearn.metrics import r2_score

from forecast import problem
from forecast.learn.storage import LoadedModel
from forecast.table import split
from forecast.table.features import INPUTS, assume_capacity, sun_position, to_utc
from forecast.table.schema import FEATURES, STAMP, TARGETS
from forecast.terms import steps
from forecast.terms.quantities import Target

# A model takes either the weather features alone, or the time and the weather features.
SIGNATURES = tuple(f"{', '.join(columns)} -> {', '.join(TARGETS)}" for columns in (FEATURES, INPUTS))
# If the sun is below -12 degrees in the middle of Germany, it is night in the whole country, which spans about 9
# degrees of longitude and 8 of latitude.
NIGHT_ELEVATION_DEGREES = -12.0
LATENCY_REPEATS = 5
IMPORTANCE_ROWS = 2000  # spread evenly over the frame
SHUFFLES = 5
RESPONSE_VALUES = 25
OUTER_SHARE = 0.005  # fraction of an input's values to leave out in each tail, where data are sparse


@dataclass(frozen=True)
class TargetScore:
    """The scores of a model on one target, in the target's unit, except R2 and the percentage.

    ``bias`` is the mean error, negative if the model underpredicts (``bias_percent``: see `in_percent`);
    ``lowest`` is the lowest prediction, and ``night`` the mean absolute prediction at night, for a daytime target.
    """

    r2: float
    mae: float
    bias: float
    bias_percent: float
    lowest: float
    night: float | None = None


@dataclass(frozen=True)
class Scores:
    """The scores of a model on held-out rows; ``r2`` is the mean over the ``targets``, whose keys are `Target.key`.

    ``weekly_errors`` has one value per week with enough rows: the mean absolute error in standard deviations of each
    target, averaged over the targets. ``period`` is the first and last timestamp, ISO 8601 in UTC.
    """

    r2: float
    targets: dict[str, TargetScore]
    finite: bool
    hours: int
    weekly_errors: tuple[float, ...] = ()
    period: tuple[str, str] | None = None

    def metrics(self) -> dict[str, float]:
        """Return the metrics that a run logs: `r2`, and those of each target, named by `Target.metric`."""
        return {"r2": self.r2} | {
            target.metric(name): value
            for target in problem.TARGETS
            for name, value in vars(self.targets[target.key]).items()
            if value is not None
        }


def score(held_out: pd.DataFrame, predicted: pd.DataFrame) -> Scores:
    """Score predictions (columns `TARGETS`) against the measured values of a processed frame."""
    stamps = pd.Series(to_utc(held_out["utc_timestamp"]))
    measured, values = (part[TARGETS].astype(float).set_axis(stamps.index) for part in (held_out, predicted))
    night = is_night(stamps)
    targets = {
        target.key: _score_target(target, measured[target.name], values[target.name], night)
        for target in problem.TARGETS
    }
    ends = steps.local(stamps).iloc[[stamps.argmin(), stamps.argmax()]]
    first, last = (end.isoformat() if steps.IS_DAY else f"{end:{STAMP}}" for end in ends)
    finite = bool(np.isfinite(values).all(axis=None))
    errors = ((values - measured).abs() / measured.std(ddof=0).replace(0, 1)).mean(axis="columns")
    return Scores(
        r2=float(np.mean([each.r2 for each in targets.values()])),
        targets=targets,
        finite=finite,
        hours=len(stamps),
        weekly_errors=tuple(map(float, split.week_means(errors, stamps))) if finite else (),
        period=(first, last),
    )


def _score_target(target: Target, measured: pd.Series, values: pd.Series, night: np.ndarray) -> TargetScore:
    """Return the scores of a target; all are NaN if a prediction is not finite."""
    if not np.isfinite(values).all():
        undefined = dict.fromkeys(("r2", "mae", "bias", "bias_percent", "lowest"), math.nan)
        return TargetScore(**undefined, night=math.nan if target.by_day else None)
    bias = (values - measured).mean()
    return TargetScore(
        r2=float(r2_score(measured, values)),
        mae=float((values - measured).abs().mean()),
        bias=float(bias),
        bias_percent=in_percent(bias, measured),
        lowest=float(values.min()),
        night=float(values[night].abs().sum() / max(1, night.sum())) if target.by_day else None,
    )


def in_percent(error: float, measured: pd.Series) -> float:
    """Return a mean error in percent of the mean absolute measured value; NaN if that is zero.

    A quantity with positive and negative values may have a mean near zero, hence the absolute values.
    """
    size = measured.abs().mean()
    return float(100 * error / size) if size else math.nan


def is_night(utc_timestamp: pd.Series) -> np.ndarray:
    """Return for each step, given its start, whether it is night in all of Germany from start to end.

    The criterion is the sun's elevation, because radiation is also zero at dawn and dusk.
    """
    stamps = to_utc(utc_timestamp)
    highest = [sun_position(stamps, share)["elevation"].to_numpy() for share in (0, 1)]
    return (np.max(highest, axis=0) < NIGHT_ELEVATION_DEGREES) & (not steps.IS_DAY)


# -- for the gate -----------------------------------------------------------------------------------------------------
def evaluate(model: LoadedModel, held_out: pd.DataFrame) -> mlflow_gate.Scores:
    """Score a model on a processed frame for the gate; the blocks are weeks.

    Raises DataError if the model has no installed capacity for the first row, which is used to measure the latency.
    """
    frame = held_out.reset_index(drop=True)
    row, _ = assume_capacity(frame[INPUTS].head(1), model.year_ends if model.takes_time else {})
    scores = score(frame, model.predict(frame).astype(float))
    costs = {"latency_ms": _milliseconds(model, row), "size_MB": (model.size_bytes or 0) / 1e6}
    weeks = {f"week {number}": error for number, error in enumerate(scores.weekly_errors, start=1)}
    facts = {"signature": model.signature}
    return mlflow_gate.Scores(scores.metrics() | costs, weeks, facts, period=scores.period, part=split.TEST_WEEKS)


def _milliseconds(model: LoadedModel, row: pd.DataFrame) -> float:
    """Return the latency of predicting one row: the minimum of a few tries, since other load can only add time."""
    seconds = []
    for _ in range(LATENCY_REPEATS):
        start = time.perf_counter()
        model.predict(row)
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


# -- the effect of the inputs ------------------------------------------------------------------------------------------
def importance(model: LoadedModel, frame: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Return the permutation importance of each input: the drop in R2 when its values are shuffled.

    The index holds `utc_timestamp` (hour and season) and the weather features; the columns are the targets and, as
    `<target>_spread`, the standard deviation of five shuffles. Correlated inputs, such as direct and diffuse radiation,
    share their importance. Breiman (2001), https://doi.org/10.1023/A:1010933404324.
    """
    rows, random = _thin(frame), np.random.default_rng(seed)
    measured = rows[TARGETS].to_numpy()

    columns = INPUTS if model.takes_time else FEATURES
    shuffled = [
        rows.assign(**{column: rows[column].to_numpy()[random.permutation(len(rows))]})
        for column in columns
        for _ in range(SHUFFLES)
    ]
    predicted = np.split(model.predict(pd.concat([rows, *shuffled])).to_numpy(), len(shuffled) + 1)
    baseline, *scores = (r2_score(measured, values, multioutput="raw_values") for values in predicted)
    drops = (baseline - np.array(scores)).reshape(len(columns), SHUFFLES, len(TARGETS))
    names = [*TARGETS, *(f"{name}_spread" for name in TARGETS)]
    return pd.DataFrame(np.hstack([drops.mean(axis=1), drops.std(axis=1)]), index=columns, columns=names)


def responses(model: LoadedModel, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the partial dependence of the predictions on each weather feature.

    Each row has `feature`, one of its 25 values (`value`) and the mean prediction of each target at this value. If
    inputs are correlated, these means include combinations that never occur. Friedman (2001),
    https://doi.org/10.1214/aos/1013203451.
    """
    rows = _thin(frame, IMPORTANCE_ROWS // 4)
    table = []
    for feature in FEATURES:
        low, high = frame[feature].quantile([OUTER_SHARE, 1 - OUTER_SHARE])
        values = np.linspace(low, high, RESPONSE_VALUES)
        grid = pd.concat([rows.assign(**{feature: value}) for value in values], ignore_index=True)
        means = model.predict(grid).groupby(np.repeat(np.arange(RESPONSE_VALUES), len(rows))).mean()
        table.append(means.assign(feature=feature, value=values))
    return pd.concat(table, ignore_index=True)[["feature", "value", *TARGETS]]


def coverage(frame: pd.DataFrame, low: pd.DataFrame, high: pd.DataFrame) -> dict[str, float]:
    """Return the coverage of the error bands as `coverage_<key>`: the share of rows between ``low`` and ``high``.

    For a daytime target, count only rows with the sun up (NaN if there are none): at night, any band contains zero.
    The solar elevation is computed unless ``frame`` has a column `sun_elevation`.
    """
    known = frame.get("sun_elevation")
    day = (sun_position(to_utc(frame["utc_timestamp"]))["elevation"] if known is None else known).to_numpy() > 0
    shares = {}
    for target in problem.TARGETS:
        inside = frame[target.name].between(low[target.name], high[target.name])
        shares[f"coverage_{target.key}"] = float((inside[day] if target.by_day else inside).mean())
    return shares


def _thin(frame: pd.DataFrame, max_rows: int = IMPORTANCE_ROWS) -> pd.DataFrame:
    """Return at most ``max_rows`` rows, spread evenly over the frame."""
    return frame.iloc[np.unique(np.linspace(0, len(frame) - 1, max_rows).round().astype(int))].reset_index(drop=True)
