"""The gate: scores on the held-out period, and the decision whether a candidate replaces the champion."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from workshop.data import weeks
from workshop.data.coverage import STAMP
from workshop.data.features import INPUTS, sun_position, to_utc
from workshop.data.schema import FEATURES, TARGETS

if TYPE_CHECKING:
    import pandas as pd

# Below -12 degrees in the middle of Germany it is night in every federal state: the country spans about 9 degrees of
# longitude and 8 of latitude.
NIGHT_ELEVATION_DEGREES = -12.0
# The two ways in which a model may be asked: with the weather, or with hour and weather.
SIGNATURES = tuple(f"{', '.join(columns)} -> {', '.join(TARGETS)}" for columns in (FEATURES, INPUTS))
METRICS = ("r2", "r2_solar", "r2_wind", "mae_GW", "lowest_GW", "night_solar_GW")  # of the scores, those of a run
LEAST_WEEKS = 6  # with fewer no difference could be told from chance


@dataclass(frozen=True)
class Scores:
    """How a model does on the held-out period; R2 dimensionless, the rest in GW.

    ``weekly_mae_GW`` is the mean absolute error, over both targets, of each week that holds enough of its hours;
    ``period`` the first and the last hour, as ISO 8601 in UTC.
    """

    r2: float
    r2_solar: float
    r2_wind: float
    mae_GW: float
    lowest_GW: float
    night_solar_GW: float
    finite: bool
    hours: int
    weekly_mae_GW: tuple[float, ...] = ()
    period: tuple[str, str] | None = None

    def metrics(self) -> dict[str, float]:
        """Return the numbers that a run logs as its metrics."""
        return {name: float(getattr(self, name)) for name in METRICS}


@dataclass(frozen=True)
class Evaluation:
    """A model before the gate: its scores, and what is known of it.

    ``learned`` is the first and the last hour that it learned from, ``learned_from`` what their source is called,
    ``data`` the hash of that table; None for unknown.
    ``signature`` is as in `SIGNATURES`, ``latency_ms`` the time for one hour, ``size_MB`` that of its files. A model
    that cannot be asked has a ``trouble`` and no scores.
    """

    scores: Scores | None = None
    learned: tuple[str, str] | None = None
    data: str | None = None
    signature: str | None = None
    latency_ms: float = math.nan
    size_MB: float = math.nan
    trouble: str | None = None
    learned_from: str | None = None


@dataclass(frozen=True)
class Policy:
    """What the gate asks for; the section `promote` of `params.yaml`."""

    least_gain: float
    near_tie: float
    alpha: float
    least_r2_solar: float
    least_r2_wind: float
    most_night_solar_GW: float
    most_latency_ms: float
    most_size_MB: float


@dataclass(frozen=True)
class Rule:
    """One rule with what was found, what was allowed, and its verdict."""

    name: str
    value: float | bool | str | None
    limit: str
    passed: bool

    def __str__(self) -> str:
        return f"{self.name} is {self.shown}, not {self.limit}"

    @property
    def shown(self) -> str:
        """The value, as people read it."""
        return f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)


@dataclass(frozen=True)
class Decision:
    """The verdict on a candidate, with all that led to it.

    ``disqualified`` says why the champion's scores do not count; ``forced`` that a person overruled the gate;
    ``learned_from`` whose data the candidate learned from.
    """

    promoted: bool
    reason: str
    rules: tuple[Rule, ...]
    candidate: Scores | None
    champion: Scores | None
    disqualified: str | None = None
    forced: bool = False
    learned_from: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the decision as JSON-able values; a number that is none is None."""
        return _jsonable(asdict(self))


def score(held_out: pd.DataFrame, predicted: pd.DataFrame) -> Scores:
    """Score predictions (``solar_GW``, ``wind_GW``, one row an hour) against the processed frame of the same hours.

    R2 is the mean of the two targets' coefficients of determination (scikit-learn's `r2_score`).
    """
    import numpy as np
    from sklearn.metrics import mean_absolute_error, r2_score

    measured, values = held_out[TARGETS].to_numpy(float), predicted[TARGETS].to_numpy(float)
    stamps = to_utc(held_out["utc_timestamp"])
    period = (f"{stamps.min():{STAMP}}", f"{stamps.max():{STAMP}}")
    finite = bool(np.isfinite(values).all())
    if not finite:
        nan = math.nan
        return Scores(nan, nan, nan, nan, nan, nan, finite=False, hours=len(held_out), period=period)
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
        weekly_mae_GW=_weekly(stamps, np.abs(values - measured).mean(axis=1)),
        period=period,
    )


def _weekly(stamps: pd.DatetimeIndex, misses) -> tuple[float, ...]:
    import pandas as pd

    return tuple(float(mean) for mean in weeks.whole_means(pd.Series(misses), pd.Series(stamps)))


def is_night(utc_timestamp: pd.Series):
    """Tell for each hour (named by its start) whether the sun is down over all of Germany during the whole of it.

    By the sun's elevation, not by radiation: the hours of first and last light have none in the features.
    """
    stamps = to_utc(utc_timestamp)
    highest = [sun_position(stamps, minutes=minutes)["elevation"].to_numpy() for minutes in (0, 60)]
    return (highest[0] < NIGHT_ELEVATION_DEGREES) & (highest[1] < NIGHT_ELEVATION_DEGREES)


def decide(candidate: Evaluation, champion: Evaluation | None, policy: Policy) -> Decision:
    """Decide from what both showed on the same held-out hours; nothing is read or changed.

    Without a champion, or with one that is disqualified, the candidate has only the rules to pass. A champion is
    disqualified when it cannot be asked, answers with other than numbers, or may have learned from held-out hours.
    Raises ValueError: the two were scored on different hours.
    """
    scores = candidate.scores
    disqualified = None if champion is None else _disqualification(champion)
    rules = [Rule("loads", candidate.trouble or True, "it loads and answers", scores is not None)]
    if scores is not None:
        rules += _rules(candidate, scores, policy)
        if champion is not None and disqualified is None:
            if (scores.hours, scores.period) != (champion.scores.hours, champion.scores.period):
                raise ValueError("candidate and champion were scored on different hours")
            rules += _contest(scores, champion.scores, policy)
    failed = [rule for rule in rules if not rule.passed]
    if failed:
        reason = "refused: " + "; ".join(map(str, failed))
    elif champion is None:
        reason = "promoted: every rule passed and nothing was in production yet"
    elif disqualified:
        reason = f"promoted: every rule passed and the champion is disqualified: {disqualified}"
    else:
        tested = next((rule for rule in rules if rule.name == "paired_test"), None)
        verb = "is in a near-tie with" if tested else "beats"
        reason = f"promoted: R2 {scores.r2:.4f} {verb} the champion's {champion.scores.r2:.4f}"
        reason += f", and its weekly errors are smaller (p {tested.shown})" if tested else ""
    beaten = champion.scores if champion else None
    learned_from = candidate.learned_from
    return Decision(not failed, reason, tuple(rules), scores, beaten, disqualified, learned_from=learned_from)


def _rules(candidate: Evaluation, scores: Scores, policy: Policy) -> Iterator[Rule]:
    """Hold a candidate against what does not depend on any champion."""
    yield Rule("finite", scores.finite, "every prediction is a number", scores.finite)
    for name, value, least, unit in (
        ("non_negative", scores.lowest_GW, 0.0, " GW"),
        ("least_r2_solar", scores.r2_solar, policy.least_r2_solar, ""),
        ("least_r2_wind", scores.r2_wind, policy.least_r2_wind, ""),
    ):
        yield Rule(name, value, f">= {least:g}{unit}", value >= least)
    for name, value, most, unit in (
        ("night_solar", scores.night_solar_GW, policy.most_night_solar_GW, " GW while the sun is down"),
        ("latency", candidate.latency_ms, policy.most_latency_ms, " ms for an hour"),
        ("size", candidate.size_MB, policy.most_size_MB, " MB"),
    ):
        yield Rule(name, value, f"<= {most:g}{unit}", value <= most)
    fits = candidate.signature in SIGNATURES
    yield Rule("signature", candidate.signature, "weather, or hour and weather, to GW of solar and wind", fits)
    yield Rule("data_known", candidate.data, "the hash of the table it learned from", bool(candidate.data))
    unseen = _overlap(candidate.learned, scores.period)
    yield Rule("unseen", unseen or "held-out hours are new to it", "learned from other hours than these", not unseen)


def _contest(scores: Scores, champion: Scores, policy: Policy) -> Iterator[Rule]:
    """Hold a candidate against the champion: by R2, and in a near-tie by a paired test as well.

    The test is Wilcoxon's signed-rank test (Biometrics Bulletin 1945, 1(6), 80-83), one-sided, on the errors of weeks:
    those of hours depend on one another. Where no least gain is asked for, it decides a near-tie alone.
    """
    gain = scores.r2 - champion.r2
    near = abs(gain) <= policy.near_tie  # what is no number is neither near nor greater
    alone = near and policy.least_gain == 0
    limit = f"> {policy.least_gain:g} in R2 over the champion's {champion.r2:.4f}"
    limit += f", or within {policy.near_tie:g} of it and better by the paired test" if alone else ""
    yield Rule("beats_champion", gain, limit, alone or gain > policy.least_gain)
    if near:
        p = chance_of_better(scores.weekly_mae_GW, champion.weekly_mae_GW)
        yield Rule(
            "paired_test", p, f"p <= {policy.alpha:g}: smaller weekly errors than the champion's", p <= policy.alpha
        )


def chance_of_better(candidate: tuple[float, ...], champion: tuple[float, ...]) -> float:
    """Return the probability that weekly errors come out this much smaller than the champion's by chance alone.

    1 when fewer than six weeks differ. Weeks of the same error tell nothing; they are left out beforehand, since with
    them SciPy takes the normal distribution instead of the exact one, which four weeks are enough to get under 0.05.
    """
    from scipy.stats import wilcoxon

    differences = [one - other for one, other in zip(candidate, champion, strict=True) if one != other]
    if len(differences) < LEAST_WEEKS:
        return 1.0
    return float(wilcoxon(differences, alternative="less").pvalue)


def _disqualification(champion: Evaluation) -> str | None:
    if champion.scores is None:
        return champion.trouble or "it cannot be asked"
    if not champion.scores.finite:
        return "it does not answer with numbers"
    return _overlap(champion.learned, champion.scores.period)


def _overlap(learned: tuple[str, str] | None, held_out: tuple[str, str] | None) -> str | None:
    """Say why a model may know held-out hours; None when it cannot. Times of one ISO format sort as text."""
    if learned is None or held_out is None:
        return "the hours it learned from are not known"
    if learned[1] < held_out[0] or held_out[1] < learned[0]:
        return None
    return f"it learned from {learned[0]} to {learned[1]}, and {held_out[0]} to {held_out[1]} is held out"


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _jsonable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
