"""What a model goes by: how much each input matters, and how the answer follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop.data.features import INPUTS, derive
from workshop.data.schema import FEATURES, TARGETS

if TYPE_CHECKING:
    import pandas as pd

    from workshop.models.loading import LoadedModel

HOURS = 2000  # as many are looked at, spread evenly over the frame
REPEATS = 5
GRID = 25  # values of an input that are tried
OUTER_SHARE = 0.005  # of the values at either end of an input is left out: hardly an hour is there


def importance(model: LoadedModel, frame: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Return by how much R2 falls when the values of one input are shuffled among the hours of a processed frame.

    A row for each of `utc_timestamp` (which stands for hour and season) and the weather features; columns are the
    targets and, as `<target>_spread`, the standard deviation of five shuffles. Permutation importance after Breiman
    (2001), https://doi.org/10.1023/A:1010933404324. Inputs that go together (direct and diffuse radiation) share
    theirs: each can stand in for the other.
    """
    import numpy as np
    import pandas as pd
    from sklearn.metrics import r2_score

    hours, random = _thin(frame), np.random.default_rng(seed)
    measured = hours[TARGETS].to_numpy()

    def r2(changed: pd.DataFrame) -> np.ndarray:
        return r2_score(measured, model.predict(changed).to_numpy(), multioutput="raw_values")

    whole, rows = r2(hours), {}
    for column in INPUTS if model.knows_time else FEATURES:
        shuffled = [
            hours.assign(**{column: hours[column].to_numpy()[random.permutation(len(hours))]}) for _ in range(REPEATS)
        ]
        falls = np.array([whole - r2(changed) for changed in shuffled])
        rows[column] = [*falls.mean(axis=0), *falls.std(axis=0)]
    return pd.DataFrame.from_dict(rows, orient="index", columns=[*TARGETS, *(f"{name}_spread" for name in TARGETS)])


def responses(model: LoadedModel, frame: pd.DataFrame) -> pd.DataFrame:
    """Return how the mean prediction follows each weather feature while all else stays as it was.

    A row for each of 25 values of each feature: `feature`, `value` (in its unit) and the mean prediction in GW of each
    target. Partial dependence after Friedman (2001), https://doi.org/10.1214/aos/1013203451. Where inputs go together,
    some of these hours are ones that never were.
    """
    import numpy as np
    import pandas as pd

    hours = _thin(frame, HOURS // 4)
    rows = []
    for feature in FEATURES:
        ends = frame[feature].quantile([OUTER_SHARE, 1 - OUTER_SHARE])
        values = np.linspace(*ends, GRID)
        everywhere = pd.concat([hours.assign(**{feature: value}) for value in values], ignore_index=True)
        means = model.predict(everywhere).groupby(np.repeat(np.arange(GRID), len(hours))).mean()
        rows.append(means.assign(feature=feature, value=values))
    return pd.concat(rows, ignore_index=True)[["feature", "value", *TARGETS]]


def coverage(frame: pd.DataFrame, low: pd.DataFrame, high: pd.DataFrame) -> dict[str, float]:
    """Return the share of a processed frame's hours whose generation lies between ``low`` and ``high``, ends included.

    `coverage_solar` counts the hours with the sun up only, NaN without any: at night every band that holds zero is
    right.
    """
    inside = ((frame[TARGETS] >= low[TARGETS]) & (frame[TARGETS] <= high[TARGETS])).to_numpy()
    day = derive(frame)["sun_elevation"].to_numpy() > 0
    solar = float(inside[day, 0].mean()) if day.any() else float("nan")
    return {"coverage_solar": solar, "coverage_wind": float(inside[:, 1].mean())}


def _thin(frame: pd.DataFrame, most: int = HOURS) -> pd.DataFrame:
    """Return at most so many rows, spread evenly over the frame."""
    import numpy as np

    return frame.iloc[np.unique(np.linspace(0, len(frame) - 1, most).round().astype(int))].reset_index(drop=True)
