"""Compute what chapters 1 to 3 claim, over five seeds: `python tests/teaching/arguments.py NAME`; no name lists all.

Run by hand when a sentence on scores changes: one argument takes from seconds to five minutes, and CI runs none. Its
docstring is the claim. Its numbers come from cells of the notebooks, with the seed in place of their 0.
"""

from __future__ import annotations

import importlib
import os
import re
import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
from forecast.learn.models import CapacityFactorRegressor
from forecast.raw.prepare import load_or_make
from forecast.table.processed import write_csv
from forecast.table.schema import FEATURES, TARGETS
from forecast.table.split import split_by_time
from scipy.stats import loguniform
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.metrics import r2_score
from sklearn.model_selection import ParameterSampler

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "3_projects"))
hourly = sys.modules["scores"] = importlib.import_module("hourly")  # it has the function of chapter 2's scores.py
SPLIT = "2_tracking/honest_split", "imports-of-all data imports ways"


def after(notebook: str, *cells: str, seed: int, **names) -> SimpleNamespace:
    """Return the names that cells of a notebook define; in place of a solution's text its code runs."""
    by_id = {cell.id: cell.source for cell in nbformat.read(ROOT / f"{notebook}.ipynb", as_version=4).cells}
    names = {"r2_score": r2_score, "print": lambda *_: None} | names
    np.random.seed(seed)  # chapter 1 draws without a seed
    for cell in " ".join(cells).split():
        [source] = re.findall(r"```python\n(.+?)\n```", by_id[cell], re.DOTALL) or [by_id[cell]]
        exec(re.sub(r"(random_state=|random_seed\()0\b", rf"\g<1>{seed}", source), names)
    return SimpleNamespace(**names)


def growth(_: int) -> dict:
    """Wind power grows by half and more after 2014 in the same wind, a GW of it by 1.25 at once; 8:00 beats 16:00."""
    table = pd.read_csv("germany.csv", parse_dates=["utc_timestamp"])
    year, wind = table["utc_timestamp"].dt.year, table["windspeed"]
    share = table["wind_GW"].groupby(year).mean() / table["wind_capacity_GW"].groupby(year).mean()
    power, speed = table["wind_GW"].groupby(year).mean(), wind.groupby(year).mean()
    numbers = {"wind power": power[2016] / power[2014], "wind speed": speed[2016] / speed[2014]}
    numbers |= {f"share {each}": share[each] / share[each - 1] for each in (2014, 2015, 2016)}
    numbers |= {
        f"GW at 7 m/s, {each}": table["wind_GW"][(year == each) & (wind.round() == 7)].mean() for each in share.index
    }
    bins, hour = table["rad_horizontal"] // 50, table["utc_timestamp"].dt.hour
    by_bin = table[table["rad_horizontal"] > 5].groupby([bins, hour])["solar_GW"].agg(["mean", "size"])
    sun = by_bin["mean"][by_bin["size"] > 15].unstack()
    return numbers | {"8:00 above 16:00, least of all bins, GW": (sun[8] - sun[16]).min()}


def line(seed: int) -> dict:
    """R2 is about 0.83; 3 % of the hours have wind power below zero, and windy hours far too much."""
    it = after("1_starting_point/model_linreg", "read split score negative-answer-solution", seed=seed)
    too_much = (it.y_pred - it.y_test)["wind_GW"][it.X_test["windspeed"] > 9].mean()
    return {"R2": r2_score(it.y_test, it.y_pred), "below zero": it.answer, "too much, GW": too_much}


def forest_and_network(seed: int) -> dict:
    """R2 of the forest is about 0.87, with depth 6 about 0.86; the network's is a little lower on the same split."""
    import keras  # which takes seconds

    keras.utils.set_random_seed(seed)
    it, scores = after("1_starting_point/model_keras", "read split score apart-answer-solution", seed=seed), {}
    for trees, depth in ((50, 3), (10, 6), (50, 6), (10, 12), (50, 12)):
        forest = RandomForestRegressor(trees, max_depth=depth, n_jobs=-1).fit(it.X_train, it.y_train)
        scores[trees, depth] = r2_score(it.y_test, forest.predict(it.X_test))
    return scores | it.answer | {"forest less network": scores[50, 12] - r2_score(it.y_test, it.y_pred)}


def report(seed: int) -> dict:
    """R2 of a learned week is too high, that of wind in most weeks by more than in December's, the report's."""
    it = after("1_starting_point/exercises", "setup learned-solution", seed=seed)
    gaps = {("the dashboard", "both"): it.answer}
    for end in pd.date_range("2016-02-29 23:00", periods=6, freq="2ME", tz="UTC"):
        week = it.hours[(end - it.hours["utc_timestamp"]).between(pd.Timedelta(0), pd.Timedelta(hours=167))]
        answer = after("1_starting_point/exercises", "week-solution", seed=seed, **vars(it) | {"week": week}).answer
        gaps |= {(f"{end:%B}", name): answer["with"][i] - answer["without"][i] for i, name in enumerate(TARGETS)}
    return gaps


def ways(seed: int) -> dict:
    """Without its neighbours a forest loses 0.01 to 0.02, a line hardly anything; the end of time costs most."""
    return (-after(*SPLIT, "splits", seed=seed).table.diff().iloc[1:]).stack().to_dict()


def folds(seed: int) -> dict:
    """Both remedies help, the capacity factor more, the two most; at first the last year changes little."""
    table = after(*SPLIT, "errors remedies folds", seed=seed).folds
    return table.assign(mean=table.mean(axis=1)).stack().to_dict()


def sizes(seed: int) -> dict:
    """The capacity factor helps with any step; so does the last year of GW, and with the factor at 25 % only."""
    return after(*SPLIT, "errors remedies held-out step-solution sizes", seed=seed).sizes.stack().to_dict()


def forests(seed: int) -> dict:
    """Depth helps solar power, hardly wind; 40 trees more help the deep forest; all miss nearly 3 GW of wind power."""
    it = after("2_tracking/model_rf", "imports-of-all data fit", seed=seed)
    each = {(trees, depth): it.fit(n_estimators=trees, max_depth=depth) for trees in (10, 50) for depth in (6, 12)}
    scores = {key: hourly.evaluate(it.test, forest.predict(it.test[FEATURES])) for key, forest in each.items()}
    return pd.DataFrame(scores).loc[["r2", "r2_solar", "r2_wind", "bias_wind"]].unstack().to_dict()


def lines(seed: int) -> dict:
    """The line's bias of wind is -2.9 GW of 8.7; without intercept R2 of wind is 0.50, of wind speed alone 0.59."""
    it = after("2_tracking/model_linreg", "imports-of-all split fit", seed=seed)
    scores = hourly.evaluate(it.test, it.predicted.to_numpy()) | {"measured": it.test["wind_GW"].mean()}
    model = it.LinearRegression(fit_intercept=False).fit(it.train[FEATURES], it.train[TARGETS])
    scores["without intercept"] = hourly.evaluate(it.test, model.predict(it.test[FEATURES]))["r2_wind"]
    alone = it.LinearRegression().fit(it.train[["windspeed"]], it.train["wind_GW"])
    return scores | {"wind speed alone": r2_score(it.test["wind_GW"], alone.predict(it.test[["windspeed"]]))}


def last_year(seed: int) -> dict:
    """A forest of GW of the last year has an R2 of 0.90, of capacity factors about 0.93, and a smaller bias."""
    it = after("2_tracking/capacity_factor", "imports-of-all data figure fit predict", seed=seed)
    scores = {
        name: hourly.evaluate(it.test, table.to_numpy())
        for name, table in (("GW", it.in_GW), ("factors", it.shares_in_GW))
    }
    return pd.DataFrame(scores).loc[["r2", "bias_wind"]].unstack().to_dict()


def epochs(seed: int) -> dict:
    """A little is gained up to 30 epochs, and hardly anything later; another seed changes the score more."""
    it = after("2_tracking/model_keras", "imports-of-all data imports layers", seed=seed)
    scores = [0]
    for more in (12, 18, 15):
        it.model.fit(it.x, it.y, epochs=more, batch_size=256, validation_split=0.1, verbose=0)
        scores.append(hourly.evaluate(it.test, it.model.predict(it.test[FEATURES].to_numpy(), verbose=0))["r2"])
    return dict(zip(("12 epochs", "gain to 30", "gain to 45"), np.diff(scores), strict=True)) | {"30": scores[2]}


def choosing(seed: int) -> dict:
    """The best of 14 boostings on half of the held-out weeks loses most of its lead on the other half."""
    cells = "train-gradient-boosting-02 train-gradient-boosting-08 train-gradient-boosting-10"
    classes = {each.__name__: each for each in (CapacityFactorRegressor, HistGradientBoostingRegressor)}
    it = after("4_pipeline/train_gradient_boosting", cells, seed=seed, loguniform=loguniform, **classes)
    train, test = split_by_time(load_or_make(Path("germany.csv")), 0.2)
    model = it.model.set_params(level_days=182)
    tried = ParameterSampler(it.distributions, 14, random_state=seed)
    predicted = [model.set_params(**each).fit(train, train[TARGETS]).predict(test) for each in tried]
    weeks, leads = test["utc_timestamp"].dt.strftime("%G-%V"), []
    for division in range(30):
        half = weeks.isin(weeks.drop_duplicates().sample(frac=0.5, random_state=division))
        parts = [[r2_score(test[TARGETS][rows], each[rows]) for each in predicted] for rows in (half, ~half)]
        leads.append([scores[np.argmax(parts[0])] - np.mean(scores) for scores in parts])
    return dict(zip(("lead where chosen", "lead on the other half"), np.mean(leads, axis=0), strict=True))


def sun(seed: int) -> dict:
    """The solar elevation adds 0.002, all for wind; to a forest of solar alone it adds 0.003, and the hour 0.005."""
    table = hourly.read_frame("germany.csv")
    elevation = runpy.run_path(str(ROOT / "3_projects/sun/train.py"))["elevation"]
    table["hour"], table["sun"] = table["utc_timestamp"].str[11:13].astype(int), elevation(table["utc_timestamp"])
    (train, test), scores = hourly.split_by_time(table, 0.2), {}
    for targets in (TARGETS, "solar_GW"):
        for extra in ("", "sun", "hour"):
            inputs = [*FEATURES, *extra.split()]
            forest = RandomForestRegressor(20, max_depth=10, random_state=seed, n_jobs=-1)
            predicted = forest.fit(train[inputs], train[targets]).predict(test[inputs])
            r2 = r2_score(test[targets], predicted, multioutput="raw_values")
            scores |= {(str(targets), extra, name): each for name, each in zip(TARGETS, r2, strict=False)}
    return {key: r2 - scores[key[0], "", key[2]] for key, r2 in scores.items() if key[1]}


ARGUMENTS = (
    growth, line, forest_and_network, report, ways, folds, sizes, lines, forests, last_year, epochs, choosing, sun,
)  # fmt: skip

if __name__ == "__main__":
    os.environ |= {"MPLBACKEND": "Agg", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    chosen = [each for each in ARGUMENTS if each.__name__ in sys.argv]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_csv(load_or_make(Path("germany.csv")), Path("germany.csv"))
        for each in chosen or ARGUMENTS:
            print(f"{each.__name__}: {each.__doc__}")
            if chosen:
                numbers = pd.DataFrame([each(seed) for seed in range(5)])
                print(
                    numbers.agg(["mean", "min", "max"])
                    .T.set_axis(["mean", "least", "most"], axis=1)
                    .round(4)
                    .to_string()
                )
