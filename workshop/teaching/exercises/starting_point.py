"""The exercises of chapter 1: what random splits, cleanings of one's own and learned hours do to a score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop.teaching.exercises import exercise

if TYPE_CHECKING:
    from pandas import DataFrame

TOLERANCE = 0.001
LIMITS = (13, 14, 15, 20)  # m/s: the five cleanings of the chapter have these four limits
TREES = 20  # as in the dashboard of the chapter


@exercise("1.1", "what neighbouring hours and added plants do to a score")
def splits(answer: dict[str, float]) -> str | None:
    """Compare the R2 of linear regression on random hours, on whole weeks and on the end of time."""
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import r2_score
    from sklearn.model_selection import GroupKFold, cross_val_predict, train_test_split

    from workshop.data.schema import FEATURES, TARGETS

    if not isinstance(answer, dict) or set(answer) != {"hours", "weeks", "end"}:
        return "the answer is a dict with the keys hours, weeks, end, and an R2 for each."
    hours, model = _hours(), LinearRegression()
    if not _is(answer["hours"], _r2(model, *_split(hours))):
        return "the R2 for `hours` differs: learn from `train`, score on `test`."
    weeks = hours["utc_timestamp"].dt.strftime("%G-%V")
    predicted = cross_val_predict(model, hours[FEATURES], hours[TARGETS], groups=weeks, cv=GroupKFold(5))
    if not _is(answer["weeks"], r2_score(hours[TARGETS], predicted)):
        return "the R2 for `weeks` differs: predict all hours, with the week as `groups`, and take one R2 of them all."
    if not _is(answer["end"], _r2(model, *train_test_split(hours, test_size=0.2, shuffle=False))):
        return "the R2 for `end` differs: the last fifth is held out in the order of time, `shuffle=False`."
    return None


@exercise("1.2", "what the four wind limits do to the score of one model")
def cleanings(answer: dict[int, float]) -> str | None:
    """Compare the R2 of linear regression after each cleaning."""
    from sklearn.linear_model import LinearRegression

    if not isinstance(answer, dict) or set(answer) != set(LIMITS):
        return f"the answer is a dict with the keys {', '.join(map(str, LIMITS))} (m/s) and an R2 for each."
    hours = _hours()
    for limit in LIMITS:
        train, test = _split(hours[hours["windspeed"] < limit])
        if not _is(answer[limit], _r2(LinearRegression(), train, test)):
            return f"the R2 for the limit {limit} m/s differs: split after the cleaning, with `random_state=0`."
    return None


@exercise("1.3", "how much a score on learned hours flatters")
def learned_hours(answer: float) -> str | None:
    """Compare the difference with that of the same forest."""
    from sklearn.ensemble import RandomForestRegressor

    if not 0 < abs(float(answer)) < 1:  # said before anything is trained
        return "the answer is a number between 0 and 1: a difference of two R2."
    train, test = _split(_hours())
    forest = RandomForestRegressor(n_estimators=TREES, n_jobs=-1, random_state=0)
    held_out, learned = _r2(forest, train, test), _r2(forest, train, train)
    if _is(answer, held_out - learned):
        return "the size is right and the sign is not: R2 on the learned hours minus R2 on the held-out ones."
    if not _is(answer, learned - held_out):
        return f"it is not R2 on `train` minus R2 on `test` of a forest of {TREES} trees with `random_state=0`."
    return None


def _hours() -> DataFrame:
    """Return the table of the chapter's notebooks."""
    from workshop.data.prepare import load_or_make
    from workshop.settings import get_settings

    return load_or_make(get_settings().root / "1_starting_point" / "germany.csv")


def _split(hours: DataFrame) -> list[DataFrame]:
    """Return train and test as the notebook draws them."""
    from sklearn.model_selection import train_test_split

    return train_test_split(hours, test_size=0.2, random_state=0)


def _r2(model, train: DataFrame, test: DataFrame) -> float:
    from sklearn.metrics import r2_score

    from workshop.data.schema import FEATURES, TARGETS

    return r2_score(test[TARGETS], model.fit(train[FEATURES], train[TARGETS]).predict(test[FEATURES]))


def _is(answer: float, truth: float) -> bool:
    return abs(float(answer) - truth) < TOLERANCE
