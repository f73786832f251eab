"""Measure a model: its scores on the held-out rows, what the gate needs besides, and the effect of its inputs."""

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

# The two interfaces that a model may have: inputs in, or time and inputs in.
SIGNATURES = tuple(f"{', '.join(columns)} -> {', '.join(TARGETS)}" for columns in (FEATURES, INPUTS))
# Below -12 degrees in the middle of Germany it is night in every federal state: the country spans about 9 degrees of
# longitude and 8 of latitude.
NIGHT_ELEVATION_DEGREES = -12.0
LATENCY_TIMES = 5
IMPORTANCE_ROWS = 2000  # spread evenly over the frame
SHUFFLES = 5
RESPONSE_VALUES = 25
OUTER_SHARE = 0.005  # of the values at either end of an input is left out: there is hardly anything


@dataclass(frozen=True)
class TargetScore:
    """How a model does on one target, in the unit of the target but for R2 and percent.

    ``bias`` is the mean error (below zero, too little is predicted), ``bias_percent`` that by `in_percent`.
    ``lowest`` is the lowest prediction, and ``night`` the mean absolute one while the sun is down, if the target is
    there by day alone.
    """

    r2: float
    mae: float
    bias: float
    bias_percent: float
    lowest: float
    night: float | None = None


@dataclass(frozen=True)
class Scores:
    """How a model does on the held-out period; ``r2`` is the mean of the ``targets``, which are named by `Target.key`.

    ``weekly_errors`` has a number for each week that holds enough of its hours: the mean over the targets of the
    absolute error divided by the target's standard deviation on the held-out hours, so that all units count alike.
    ``period`` is the first and the last hour, as ISO 8601 in UTC.
    """

    r2: float
    targets: dict[str, TargetScore]
    finite: bool
    hours: int
    weekly_errors: tuple[float, ...] = ()
    period: tuple[str, str] | None = None

    def metrics(self) -> dict[str, float]:
        """Return the numbers that a run logs as its metrics: `r2`, and those of each target by `Target.metric`."""
        return {"r2": self.r2} | {
            target.metric(name): value
            for target in problem.TARGETS
            for name, value in vars(self.targets[target.key]).items()
            if value is not None
        }


def score(held_out: pd.DataFrame, predicted: pd.DataFrame) -> Scores:
    """Score predictions (columns `TARGETS`) against the processed frame of the same rows."""
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
    """Return the scores of a target, NaN throughout if a prediction is no number."""
    if not np.isfinite(values).all():
        nothing = dict.fromkeys(("r2", "mae", "bias", "bias_percent", "lowest"), math.nan)
        return TargetScore(**nothing, night=math.nan if target.by_day else None)
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
    """Return a mean error in percent of the mean absolute value; NaN where nothing was measured.

    That is the mean, unless a quantity has both signs: such a mean may be near zero, or change the error's sign.
    """
    size = measured.abs().mean()
    return float(100 * error / size) if size else math.nan


def is_night(utc_timestamp: pd.Series) -> np.ndarray:
    """Return for each step (named by its start) whether the sun is down over all of Germany during the whole of it.

    Decided by the sun's elevation: the radiation of the steps of first and last light is zero, too.
    """
    stamps = to_utc(utc_timestamp)
    highest = [sun_position(stamps, share)["elevation"].to_numpy() for share in (0, 1)]
    return (np.max(highest, axis=0) < NIGHT_ELEVATION_DEGREES) & (not steps.IS_DAY)


# -- what the gate needs ----------------------------------------------------------------------------------------------
def judge(model: LoadedModel, held_out: pd.DataFrame) -> mlflow_gate.Scores:
    """Score a model on a processed frame and time it, for the gate; the blocks are weeks.

    Raises DataError if the model does not know the installed capacity of such times: in use, no row brings it along.
    """
    frame = held_out.reset_index(drop=True)
    row, _ = assume_capacity(frame[INPUTS].head(1), model.year_ends if model.knows_time else {})
    scores = score(frame, model.predict(frame).astype(float))
    costs = {"latency_ms": _milliseconds(model, row), "size_MB": (model.size_bytes or 0) / 1e6}
    weeks = {f"week {number}": error for number, error in enumerate(scores.weekly_errors, start=1)}
    facts = {"signature": model.signature}
    return mlflow_gate.Scores(scores.metrics() | costs, weeks, facts, period=scores.period, part=split.TEST_WEEKS)


def _milliseconds(model: LoadedModel, row: pd.DataFrame) -> float:
    """Return the time of a prediction for one row: the least of some, as other work only adds to it."""
    seconds = []
    for _ in range(LATENCY_TIMES):
        began = time.perf_counter()
        model.predict(row)
        seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds)


# -- the effect of the inputs ------------------------------------------------------------------------------------------
def importance(model: LoadedModel, frame: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Return by how much R2 falls when the values of one input are shuffled among the rows of a processed frame.

    A row for each of `utc_timestamp` (which stands for hour and season) and the weather features; columns are the
    targets and, as `<target>_spread`, the standard deviation of five shuffles. Permutation importance after Breiman
    (2001), https://doi.org/10.1023/A:1010933404324. Inputs that go together (direct and diffuse radiation) share
    theirs: each can stand in for the other.
    """
    rows, random = _thin(frame), np.random.default_rng(seed)
    measured = rows[TARGETS].to_numpy()

    columns = INPUTS if model.knows_time else FEATURES
    shuffled = [
        rows.assign(**{column: rows[column].to_numpy()[random.permutation(len(rows))]})
        for column in columns
        for _ in range(SHUFFLES)
    ]
    predicted = np.split(model.predict(pd.concat([rows, *shuffled])).to_numpy(), len(shuffled) + 1)
    whole, *scores = (r2_score(measured, values, multioutput="raw_values") for values in predicted)
    falls = (whole - np.array(scores)).reshape(len(columns), SHUFFLES, len(TARGETS))
    names = [*TARGETS, *(f"{name}_spread" for name in TARGETS)]
    return pd.DataFrame(np.hstack([falls.mean(axis=1), falls.std(axis=1)]), index=columns, columns=names)


def responses(model: LoadedModel, frame: pd.DataFrame) -> pd.DataFrame:
    """Return how the mean prediction follows each weather feature while all else stays as it was.

    A row for each of 25 values of each feature: `feature`, `value` (in its unit) and the mean prediction of each
    target. Partial dependence after Friedman (2001), https://doi.org/10.1214/aos/1013203451. Where inputs go together,
    some of these combinations never occur.
    """
    rows = _thin(frame, IMPORTANCE_ROWS // 4)
    table = []
    for feature in FEATURES:
        low, high = frame[feature].quantile([OUTER_SHARE, 1 - OUTER_SHARE])
        values = np.linspace(low, high, RESPONSE_VALUES)
        everywhere = pd.concat([rows.assign(**{feature: value}) for value in values], ignore_index=True)
        means = model.predict(everywhere).groupby(np.repeat(np.arange(RESPONSE_VALUES), len(rows))).mean()
        table.append(means.assign(feature=feature, value=values))
    return pd.concat(table, ignore_index=True)[["feature", "value", *TARGETS]]


def coverage(frame: pd.DataFrame, low: pd.DataFrame, high: pd.DataFrame) -> dict[str, float]:
    """Return `coverage_<key>`: the share of rows whose value lies between ``low`` and ``high``, ends included.

    Of a target that is there by day only the rows with the sun up count, NaN without any: at night every band that
    holds zero is right.
    """
    day = sun_position(to_utc(frame["utc_timestamp"]))["elevation"].to_numpy() > 0
    shares = {}
    for target in problem.TARGETS:
        inside = frame[target.name].between(low[target.name], high[target.name])
        shares[f"coverage_{target.key}"] = float((inside[day] if target.by_day else inside).mean())
    return shares


def _thin(frame: pd.DataFrame, most: int = IMPORTANCE_ROWS) -> pd.DataFrame:
    """Return at most so many rows, spread evenly over the frame."""
    return frame.iloc[np.unique(np.linspace(0, len(frame) - 1, most).round().astype(int))].reset_index(drop=True)
