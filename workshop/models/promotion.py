"""The gate: scores on the held-out period, and the decision whether a candidate replaces the champion."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from workshop.data.features import sun_position, to_utc
from workshop.data.schema import TARGETS

if TYPE_CHECKING:
    import pandas as pd

# Below -12 degrees in the middle of Germany it is night in every federal state: the country spans about 9 degrees of
# longitude and 8 of latitude.
NIGHT_ELEVATION_DEGREES = -12.0


@dataclass(frozen=True)
class Scores:
    """How a model does on the held-out period; R2 dimensionless, the rest in GW."""

    r2: float
    r2_solar: float
    r2_wind: float
    mae_GW: float
    lowest_GW: float
    night_solar_GW: float
    finite: bool
    hours: int

    def metrics(self) -> dict[str, float]:
        """Return the numbers that a run logs as its metrics."""
        return {name: float(value) for name, value in asdict(self).items() if name not in ("finite", "hours")}


@dataclass(frozen=True)
class Policy:
    """What the gate asks for; the section `promote` of `params.yaml`."""

    least_gain: float
    least_r2: float
    most_night_solar_GW: float


@dataclass(frozen=True)
class Rule:
    """One rule with what was found, what was allowed, and its verdict."""

    name: str
    value: float | bool
    limit: str
    passed: bool


@dataclass(frozen=True)
class Decision:
    """The verdict on a candidate, with all that led to it."""

    promoted: bool
    reason: str
    rules: tuple[Rule, ...]
    candidate: Scores
    champion: Scores | None

    def as_dict(self) -> dict:
        """Return the decision as JSON-able values."""
        return asdict(self)


def score(held_out: pd.DataFrame, predicted: pd.DataFrame) -> Scores:
    """Score predictions (``solar_GW``, ``wind_GW``, one row an hour) against the processed frame of the same hours.

    R2 is the mean of the two targets' coefficients of determination (scikit-learn's `r2_score`).
    """
    import numpy as np
    from sklearn.metrics import mean_absolute_error, r2_score

    measured, values = held_out[TARGETS].to_numpy(float), predicted[TARGETS].to_numpy(float)
    finite = bool(np.isfinite(values).all())
    if not finite:
        nan = math.nan
        return Scores(nan, nan, nan, nan, nan, nan, finite=False, hours=len(held_out))
    each = r2_score(measured, values, multioutput="raw_values")
    night = is_night(held_out["utc_timestamp"])
    return Scores(
        r2=float(each.mean()),
        r2_solar=float(each[0]),
        r2_wind=float(each[1]),
        mae_GW=float(mean_absolute_error(measured, values)),
        lowest_GW=float(values.min()),
        night_solar_GW=float(np.abs(values[night, 0]).mean()) if night.any() else 0.0,
        finite=True,
        hours=len(held_out),
    )


def is_night(utc_timestamp: pd.Series):
    """Tell for each hour (named by its start) whether the sun is down over all of Germany during the whole of it.

    By the sun's elevation, not by radiation: the hours of first and last light have none in the features.
    """
    stamps = to_utc(utc_timestamp)
    highest = [sun_position(stamps, minutes=minutes)["elevation"].to_numpy() for minutes in (0, 60)]
    return (highest[0] < NIGHT_ELEVATION_DEGREES) & (highest[1] < NIGHT_ELEVATION_DEGREES)


def decide(candidate: Scores, champion: Scores | None, policy: Policy) -> Decision:
    """Decide from scores on the same held-out hours; without a champion the candidate has only the rules to pass."""
    rules = [
        Rule("finite", candidate.finite, "every prediction is a number", candidate.finite),
        Rule("non_negative", candidate.lowest_GW, ">= 0 GW", candidate.lowest_GW >= 0),
        Rule(
            "night_solar",
            candidate.night_solar_GW,
            f"<= {policy.most_night_solar_GW:g} GW while the sun is down",
            candidate.night_solar_GW <= policy.most_night_solar_GW,
        ),
        Rule("least_r2", candidate.r2, f">= {policy.least_r2:g}", candidate.r2 >= policy.least_r2),
    ]
    if champion is not None:
        # A champion that predicts no numbers any more has no score that could be beaten.
        least = champion.r2 + policy.least_gain if champion.finite else -math.inf
        better = candidate.r2 > champion.r2 and candidate.r2 >= least if champion.finite else candidate.finite
        rules.append(Rule("beats_champion", candidate.r2, f"> {champion.r2:.4f} by {policy.least_gain:g}", better))
    failed = [rule for rule in rules if not rule.passed]
    if failed:
        reason = "refused: " + "; ".join(f"{rule.name} is {rule.value:.4g}, not {rule.limit}" for rule in failed)
    elif champion is None:
        reason = "promoted: every rule passed and nothing was in production yet"
    else:
        reason = f"promoted: R2 {candidate.r2:.4f} beats the champion's {champion.r2:.4f}"
    return Decision(not failed, reason, tuple(rules), candidate, champion)
