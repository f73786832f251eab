"""How good a model is over some time: its errors beside two baselines, its band, inputs beyond those it learned."""

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

WINDOW_DAYS = 56  # that the state is about: in a shorter time a few storms decide
BASELINES = (
    ("the same day of the week before", "the mean of this month and weekday")
    if steps.IS_DAY
    else (f"the same {steps.NAME} of the day before", f"the mean of this month and {steps.NAME}")
)
STATES = ("good", "watch", "bad")
GOOD_POINTS = 10.0  # by which the share of rows within the band misses the promised one


def max_bias_percent() -> float:
    """Return the limit of the mean error, in percent of the mean: that of the gate, `promote.max_bias_percent`.

    Raises ParameterError: params.yaml cannot be read, or its section `promote` is not allowed.
    """
    return read_stage(project() / FILE, "promote").max_bias_percent


def rule(max_bias_percent: float, *, band: bool) -> str:
    """Return in words how the state follows from errors and, if there is one, ``band``."""
    share = f", and the share of {steps.NAMES} within the band at most {GOOD_POINTS:.0f} points from the promised one"
    return (
        f"Good: the mean error is at most {max_bias_percent:g} % of the mean{share * band}. Bad: more than twice as"
        " much, or a larger absolute error than one of the baselines. Watch: anything between."
    )


@dataclass(frozen=True)
class Quality:
    """How the predictions of a target do over some time.

    ``mean`` is what was measured, ``mae`` the mean absolute error and ``bias`` the mean error (below zero, too little
    is predicted), in its unit, as ``capacity``, the mean of what was installed: NaN if it is not divided by that.
    ``bias_percent`` is the mean error by `in_percent`, ``inside`` the share of rows within the band, which promises
    ``promised``: NaN without a band. ``baselines`` are the mean absolute errors of `baselines`, by name;
    ``max_bias_percent`` is the limit of a good mean error.
    """

    target: Target
    mean: float
    mae: float
    bias: float
    bias_percent: float
    capacity: float
    inside: float
    promised: float
    baselines: dict[str, float]
    max_bias_percent: float

    @property
    def nmae_percent(self) -> float:
        """The mean absolute error in percent of the installed capacity."""
        return 100 * self.mae / self.capacity

    @property
    def state(self) -> str:
        """One of `STATES`, by the `rule`; NaN does not count."""
        points = 100 * abs(self.inside - self.promised)
        times = max(np.nan_to_num([abs(self.bias_percent) / self.max_bias_percent, points / GOOD_POINTS]))
        if times > 2 or any(self.mae > error for error in self.baselines.values()):
            return "bad"
        return "watch" if times > 1 else "good"

    @property
    def in_words(self) -> str:
        """Its mean error as a part of a sentence: `wind power 1.45 GW (15 %) too low`."""
        if abs(self.bias) < 0.005:
            return f"{self.target.words} right in the mean"
        percent = "" if math.isnan(self.bias_percent) else f" ({abs(self.bias_percent):.0f} %)"
        direction = "low" if self.bias < 0 else "high"
        return f"{self.target.words} {abs(self.bias):.2f} {self.target.unit}{percent} too {direction}"


def baselines(frame: pd.DataFrame, trained_until: str | None) -> dict[str, pd.DataFrame]:
    """Return predictions that need no model for each row of a processed frame, by name (`BASELINES`).

    NaN where the row of the day before is absent, or none of this month and time of day (UTC) was learned: means are
    those of the rows up to ``trained_until``, or of all where that is None. For days it is the same day of the week.
    """
    stamps = frame["utc_timestamp"]
    local = steps.local(stamps).dt.tz_localize(None)
    by_time = frame.set_index(local)[TARGETS]
    before = by_time.reindex(local - steps.DAY * (7 if steps.IS_DAY else 1)).set_axis(frame.index)
    keys = pd.DataFrame(
        {"month": local.dt.month, "time": local.dt.day_of_week if steps.IS_DAY else local - local.dt.normalize()}
    )
    learned = stamps <= pd.Timestamp(trained_until) if trained_until else pd.Series(True, frame.index)
    means = frame.loc[learned, TARGETS].groupby([keys.loc[learned, name] for name in keys]).mean()
    usual = means.reindex(pd.MultiIndex.from_frame(keys)).set_axis(frame.index)
    return dict(zip(BASELINES, (before, usual), strict=True))


def baseline_r2(frame: pd.DataFrame, others: dict[str, pd.DataFrame]) -> dict[str, float]:
    """Return the R2 of each of the `baselines` over rows of a processed frame, the mean of all targets."""
    r2 = {}
    for name, other in others.items():
        values = other.loc[frame.index].dropna()
        r2[name] = float(r2_score(frame.loc[values.index, TARGETS], values)) if len(values) > 1 else math.nan
    return r2


def qualities(
    frame: pd.DataFrame,
    predicted: pd.DataFrame,
    band: Sequence[pd.DataFrame] | None,
    promised: float | None,
    others: dict[str, pd.DataFrame],
    max_bias_percent: float,
) -> list[Quality]:
    """Return the quality of each target over the rows of a processed frame.

    ``predicted``, both ends of the ``band`` and ``others`` (`baselines`) have the targets of the same rows or more;
    ``max_bias_percent`` is the limit of a good mean error.
    """
    measured, values = frame[TARGETS], predicted.loc[frame.index, TARGETS]
    shares = coverage(frame, *(end.loc[frame.index] for end in band)) if band and promised else {}
    errors, capacities = values - measured, {}
    with contextlib.suppress(DataError):  # not known for all rows
        capacities = dict(installed(frame).mean()[[*problem.CAPACITY]])
    return [
        Quality(
            target,
            mean=float(measured[target.name].mean()),
            mae=float(errors[target.name].abs().mean()),
            bias=float(errors[target.name].mean()),
            bias_percent=in_percent(errors[target.name].mean(), measured[target.name]),
            capacity=capacities.get(target.name, math.nan),
            inside=shares.get(f"coverage_{target.key}", math.nan),
            promised=promised or math.nan,
            baselines={
                name: float((other.loc[frame.index] - measured)[target.name].abs().mean())
                for name, other in others.items()
            },
            max_bias_percent=max_bias_percent,
        )
        for target in problem.TARGETS
    ]


def sentence(qualities: Iterable[Quality]) -> str:
    """Return how good the predictions are, in words."""
    qualities = list(qualities)
    text = ", ".join(each.in_words for each in qualities)
    known = [each for each in qualities if not math.isnan(each.inside)]
    if known:
        shares = " and ".join(f"{100 * each.inside:.0f}" for each in known)
        text += f"; the band holds {shares} % of {steps.NAMES}, {100 * known[0].promised:.0f} expected"
    return text[0].upper() + text[1:] + "."


def training_overlap(
    frame: pd.DataFrame, trained_until: str | pd.Timestamp | None, refit_until: str | None = None
) -> str:
    """Return which model predicts some rows, and how many of these it was trained on: there its errors are smaller.

    ``refit_until`` is the last step that the refit of the model learned, if that is in production: it predicts the
    rows after that one, and the judged model those before.
    """
    if trained_until is None:
        return f"Whether the model was trained on these {steps.NAMES} is not known."
    last, model, prefix, stamps = pd.Timestamp(trained_until), "The model", "", frame["utc_timestamp"]
    if refit_until and (stamps > last).any():
        until, model = pd.Timestamp(refit_until), "The judged model"
        later = stamps > until
        if later.all():
            text = f"The refit in production was trained on {steps.NAMES} up to {steps.date(until)}"
            return f"{text}: all of these are new to it."
        prefix = f"The refit in production has learned the {steps.NAMES} up to {steps.date(until)}"
        prefix += ": the judged model predicts them. "
        prefix += (
            f"The {later.sum():,} later {steps.NAMES} are predicted by the refit, and new to it. "
            if later.any()
            else ""
        )
        stamps = stamps[~later]
    known = stamps <= last
    if not known.any():
        return f"{prefix}{model} was trained on {steps.NAMES} up to {steps.date(last)}: all of these are new to it."
    share = "all" if known.all() else f"{known.sum():,} (up to {steps.date(last)})"
    return f"{prefix}{model} was trained on {share} of these {steps.NAMES}: its errors on new ones are larger."


def overall(qualities: Iterable[Quality]) -> str:
    """Return the worst of the targets' states."""
    return max((each.state for each in qualities), key=STATES.index, default="good")


def next_step(qualities: Sequence[Quality], decision: Mapping[str, Any], version: str) -> str:
    """Return the state of the version in production, whether the gate refused a candidate since, and what to do.

    ``qualities`` are those of the `latest` rows. ``decision`` is the content of `results/decision.json`; it counts if
    it left the ``version`` in production.
    """
    state = overall(qualities)
    worst = [each for each in qualities if each.state == state]
    text = f"{sentence(worst)[:-1]}, over {WINDOW_DAYS // 7} weeks: {state}."
    if decision.get("experiment") or (decision.get("production") or {}).get("version") != version:
        decision = {}
    is_refused = not decision.get("promoted", True)
    if is_refused:
        failed = ", ".join(each["name"] for each in decision.get("findings", []) if not each["passed"])
        text += f" The last candidate was refused ({failed})."
    if state != "bad":
        return f"{text} {'There is nothing to do.' if state == 'good' else 'Look again when the next data are there.'}"
    scores = [(decision.get(name) or {}).get("metrics", {}) for name in ("candidate", "champion")]
    errors = [[each.get(of.target.metric("mae")) or math.nan for each in scores] for of in worst]
    if not decision:
        step = "`dvc repro` puts a candidate before the gate"
    elif is_refused and all(candidate < champion for candidate, champion in errors):
        step = "`mlflow-gate promote --force --why REASON` overrules the gate: the candidate's errors were smaller"
    else:
        step = f"training again on the same {steps.NAMES} does not help: wait for more of them, or change the model"
    return f"{text} Look at the data of these weeks first (results/findings.json). If they are right, {step}."


def latest(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the last `WINDOW_DAYS` of a processed frame."""
    stamps = frame["utc_timestamp"]
    return frame[stamps > stamps.iloc[-1] - pd.Timedelta(days=WINDOW_DAYS)]


def unlearned(frame: pd.DataFrame, trained_until: str | None) -> dict[str, tuple[float, float, float]]:
    """Return the lowest and highest learned value of each input, and the share of later rows that lie beyond them.

    Empty where it is not known which rows were learned, or none is later.
    """
    is_learned = frame["utc_timestamp"] <= pd.Timestamp(trained_until or "1900-01-01T00:00Z")
    learned, later = frame[is_learned], frame[~is_learned]
    if learned.empty or later.empty:
        return {}
    ends = {name: (float(learned[name].min()), float(learned[name].max())) for name in FEATURES}
    return {name: (*both, float((~later[name].between(*both)).mean())) for name, both in ends.items()}
