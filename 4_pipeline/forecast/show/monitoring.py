"""Monitoring: errors compared with two baselines, coverage of the band, and inputs outside the training range."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import r2_score

from forecast import problem
from forecast.learn.evaluation import coverage, in_percent
from forecast.problem import Target
from forecast.table.features import installed
from forecast.table.schema import FEATURES, TARGETS
from forecast.terms import steps
from forecast.terms.errors import DataError
from forecast.terms.parameters import FILE, project, read_stage

WINDOW_DAYS = 56  # the state is computed from these last days; in a shorter window, a few storms would dominate
BASELINES = (
    ("the same day of the week before", "the mean of this month and weekday")
    if steps.IS_DAY
    else (f"the same {steps.NAME} of the day before", f"the mean of this month and {steps.NAME}")
)
STATES = ("good", "watch", "bad")
MAX_COVERAGE_POINTS = 10.0  # largest difference from the nominal coverage in the state `good`


def max_bias_percent() -> float:
    """Return the gate's limit for the bias, in percent of the mean: `promote.max_bias_percent` in params.yaml.

    Raises ParameterError if params.yaml cannot be read or its `promote` section is invalid.
    """
    return read_stage(project() / FILE, "promote").max_bias_percent


def state_rule(max_bias_percent: float, *, band: bool) -> str:
    """Return the rule for the state in words; with ``band``, including the condition on the coverage."""
    share = f", and the coverage of the band is within {MAX_COVERAGE_POINTS:.0f} percentage points of the nominal one"
    return (
        f"Good: the bias is at most {max_bias_percent:g} % of the mean{share * band}. Bad: a deviation is more"
        " than twice its limit, or the mean absolute error exceeds that of a baseline. Watch: anything in between."
    )


@dataclass(frozen=True)
class Quality:
    """The quality of the predictions of a target over a period.

    In the target's unit: ``mean`` (measured), ``mae``, ``bias`` (predicted minus measured), ``capacity`` (mean
    installed; NaN if unknown or not used to scale the target) and ``baselines`` (their mean absolute errors by
    name). ``bias_percent``: see `in_percent`. ``coverage`` is the share of rows within the band, ``nominal_coverage``
    the intended share; both are NaN without a band. ``max_bias_percent`` is the largest bias that counts as good.
    """

    target: Target
    mean: float
    mae: float
    bias: float
    bias_percent: float
    capacity: float
    coverage: float
    nominal_coverage: float
    baselines: dict[str, float]
    max_bias_percent: float

    @property
    def nmae_percent(self) -> float:
        """The mean absolute error in percent of the installed capacity."""
        return 100 * self.mae / self.capacity

    @property
    def state(self) -> str:
        """One of `STATES`, according to `state_rule`; a bias or coverage of NaN is ignored."""
        points = 100 * abs(self.coverage - self.nominal_coverage)
        ratio = max(np.nan_to_num([abs(self.bias_percent) / self.max_bias_percent, points / MAX_COVERAGE_POINTS]))
        if ratio > 2 or any(self.mae > error for error in self.baselines.values()):
            return "bad"
        return "watch" if ratio > 1 else "good"

    @property
    def bias_text(self) -> str:
        """The bias as a phrase: `wind power 1.45 GW (15.2 %) too low`."""
        if abs(self.bias) < 0.005:
            return f"{self.target.words} without bias"
        percent = "" if math.isnan(self.bias_percent) else f" ({abs(self.bias_percent):.1f} %)"
        direction = "low" if self.bias < 0 else "high"
        return f"{self.target.words} {abs(self.bias):.2f} {self.target.unit}{percent} too {direction}"


def baselines(frame: pd.DataFrame, training_end: str | None) -> dict[str, pd.DataFrame]:
    """Return the predictions of the `BASELINES` for each row of a processed frame, by name.

    Means are computed on rows up to ``training_end``, or on all rows if it is None. Predictions are NaN where the
    earlier row is missing, or no training row has the same month and time of day (UTC; weekday for daily data).
    """
    stamps = frame["utc_timestamp"]
    local = steps.local(stamps).dt.tz_localize(None)
    by_time = frame.set_index(local)[TARGETS]
    before = by_time.reindex(local - steps.DAY * (7 if steps.IS_DAY else 1)).set_axis(frame.index)
    keys = pd.DataFrame(
        {"month": local.dt.month, "time": local.dt.day_of_week if steps.IS_DAY else local - local.dt.normalize()}
    )
    is_training = stamps <= pd.Timestamp(training_end) if training_end else pd.Series(True, frame.index)
    means = frame.loc[is_training, TARGETS].groupby([keys.loc[is_training, name] for name in keys]).mean()
    usual = means.reindex(pd.MultiIndex.from_frame(keys)).set_axis(frame.index)
    return dict(zip(BASELINES, (before, usual), strict=True))


def baseline_r2(frame: pd.DataFrame, baselines: dict[str, pd.DataFrame]) -> dict[str, float]:
    """Return the R2 of each baseline over the rows of a processed frame, averaged over the targets."""
    r2 = {}
    for name, baseline in baselines.items():
        values = baseline.loc[frame.index].dropna()
        r2[name] = float(r2_score(frame.loc[values.index, TARGETS], values)) if len(values) > 1 else math.nan
    return r2


def qualities(
    frame: pd.DataFrame,
    predicted: pd.DataFrame,
    band: Sequence[pd.DataFrame] | None,
    nominal_coverage: float | None,
    baselines: dict[str, pd.DataFrame],
    max_bias_percent: float,
) -> list[Quality]:
    """Return the quality of the predictions of each target over the rows of a processed frame.

    ``predicted``, both ends of ``band`` and ``baselines`` hold the targets for at least these rows;
    ``max_bias_percent`` is the largest bias that counts as good.
    """
    measured, values = frame[TARGETS], predicted.loc[frame.index, TARGETS]
    shares = coverage(frame, *(end.loc[frame.index] for end in band)) if band and nominal_coverage else {}
    errors, capacities = values - measured, {}
    with contextlib.suppress(DataError):  # if the capacity is unknown for any row
        capacities = dict(installed(frame).mean()[[*problem.CAPACITY]])
    return [
        Quality(
            target,
            mean=float(measured[target.name].mean()),
            mae=float(errors[target.name].abs().mean()),
            bias=float(errors[target.name].mean()),
            bias_percent=in_percent(errors[target.name].mean(), measured[target.name]),
            capacity=capacities.get(target.name, math.nan),
            coverage=shares.get(f"coverage_{target.key}", math.nan),
            nominal_coverage=nominal_coverage or math.nan,
            baselines={
                name: float((baseline.loc[frame.index] - measured)[target.name].abs().mean())
                for name, baseline in baselines.items()
            },
            max_bias_percent=max_bias_percent,
        )
        for target in problem.TARGETS
    ]


def summarize(qualities: Iterable[Quality]) -> str:
    """Return one sentence that states each target's bias and, if known, coverage."""
    qualities = list(qualities)
    text = "Mean prediction: " + ", ".join(each.bias_text for each in qualities)
    known = [each for each in qualities if not math.isnan(each.coverage)]
    if known:
        shares = " and ".join(f"{100 * each.coverage:.0f}" for each in known)
        text += f"; the band covers {shares} % of {steps.NAMES} (nominal: {100 * known[0].nominal_coverage:.0f} %)"
    return f"{text}."


def training_overlap(
    frame: pd.DataFrame, training_end: str | pd.Timestamp | None, refit_until: str | None = None
) -> str:
    """Return in words which model predicts the rows, and how many rows are in its training data.

    If a refit is in production, ``refit_until`` is the end of the refit's training data: the refit predicts later
    rows, and the evaluated model predicts earlier rows.
    """
    if training_end is None:
        return f"It is not known whether the model was trained on these {steps.NAMES}."
    last, model, prefix, stamps = pd.Timestamp(training_end), "The model", "", frame["utc_timestamp"]
    if refit_until and (stamps > last).any():
        until, model = pd.Timestamp(refit_until), "The evaluated model"
        later = stamps > until
        prefix = f"The refit in production was trained on {steps.NAMES} up to {steps.date(until)}"
        if later.all():
            return f"{prefix}, so all of these {steps.NAMES} are new to it."
        prefix += f", so the evaluated model predicts those {steps.NAMES}. "
        prefix += (
            f"The refit predicts the {later.sum():,} later {steps.NAMES}, which are new to it. " if later.any() else ""
        )
        stamps = stamps[~later]
    known = stamps <= last
    if not known.any():
        text = f"{prefix}{model} was trained on {steps.NAMES} up to {steps.date(last)}"
        return f"{text}, so all of these {steps.NAMES} are new to it."
    share = "all" if known.all() else f"{known.sum():,} (up to {steps.date(last)})"
    return f"{prefix}{model} was trained on {share} of these {steps.NAMES}; expect larger errors on new {steps.NAMES}."


def worst_state(qualities: Iterable[Quality]) -> str:
    """Return the worst state of the targets."""
    return max((each.state for each in qualities), key=STATES.index, default="good")


def next_step(qualities: Sequence[Quality], decision: Mapping[str, Any], version: str) -> str:
    """Return sentences on the state of the version in production, on the last candidate, and on the next step.

    ``qualities`` is the quality on the `latest` rows. ``decision`` is the content of `results/decision.json`; it is
    ignored if another version is in production now.
    """
    state = worst_state(qualities)
    worst = [each for each in qualities if each.state == state]
    text = f"{summarize(worst)[:-1]}, over {WINDOW_DAYS // 7} weeks: {state}."
    if decision.get("experiment") or (decision.get("production") or {}).get("version") != version:
        decision = {}
    is_refused = not decision.get("promoted", True)
    if is_refused:
        failed = ", ".join(each["name"] for each in decision.get("findings", []) if not each["passed"])
        text += f" The gate refused the last candidate ({failed})."
    if state != "bad":
        return f"{text} {'Nothing to do.' if state == 'good' else 'Check again when new data arrive.'}"
    scores = [(decision.get(name) or {}).get("metrics", {}) for name in ("candidate", "champion")]
    errors = [[each.get(of.target.metric("mae")) or math.nan for each in scores] for of in worst]
    if not decision:
        step = "train a new candidate with `dvc repro`"
    elif is_refused and all(candidate < champion for candidate, champion in errors):
        step = "consider `mlflow-gate promote --force --why REASON`: the refused candidate had smaller errors"
    else:
        step = f"wait for more {steps.NAMES} or change the model: training again on the same data does not help"
    return f"{text} Check the data of these weeks first (results/findings.json). If the data are right, {step}."


def latest(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the last `WINDOW_DAYS` of a processed frame."""
    stamps = frame["utc_timestamp"]
    return frame[stamps > stamps.iloc[-1] - pd.Timedelta(days=WINDOW_DAYS)]


def input_ranges(frame: pd.DataFrame, training_end: str | None) -> dict[str, tuple[float, float, float]]:
    """Return minimum and maximum of each input in the training data, and the share of later rows outside that range.

    Empty if the training data are not known, or if there are no later rows.
    """
    if not training_end:
        return {}
    is_training = frame["utc_timestamp"] <= pd.Timestamp(training_end)
    training, later = frame[is_training], frame[~is_training]
    if training.empty or later.empty:
        return {}
    ends = {name: (float(training[name].min()), float(training[name].max())) for name in FEATURES}
    return {name: (*both, float((~later[name].between(*both)).mean())) for name, both in ends.items()}
