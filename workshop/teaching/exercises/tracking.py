"""The exercises of chapter 2: a run of one's own, the best run by search, and an alias."""

from __future__ import annotations

from workshop.models.tracking import connect
from workshop.settings import EXPERIMENT, REGISTERED_MODEL
from workshop.teaching.exercises import exercise
from workshop.teaching.exercises.runs import finished_run

TOLERANCE = 0.001
TAG = "exercise"
CHALLENGER = "challenger"


@exercise("2.1", "a run of your own, with parameter, metric and tag")
def own_run(answer: str) -> str | None:
    """Look for a finished run under this id, and compare what it holds with the truth of the data."""
    run = finished_run(answer)
    if isinstance(run, str):
        return run
    if connect().get_experiment(run.info.experiment_id).name != EXPERIMENT:
        return f"this run is not in the experiment {EXPERIMENT}: `mlflow.set_experiment` comes first."
    if run.data.tags.get(TAG) != "2.1":
        return f"this run has no tag `{TAG}` with the value `2.1`: look at `tags=`."
    if run.data.params.get("features") != "windspeed":
        return "this run has no parameter `features` with the value `windspeed`."
    if "r2_wind" not in run.data.metrics:
        return "this run has no metric `r2_wind`."
    if abs(run.data.metrics["r2_wind"] - _r2_of_wind_alone()) > TOLERANCE:
        return "the metric `r2_wind` of this run is another number: train and score as the task says, for wind alone."
    return None


@exercise("2.2", "the run with the smallest mean error, found by `search_runs`")
def smallest_error(answer: str) -> str | None:
    """Compare the run's error with the smallest of all."""
    run = finished_run(answer)
    if isinstance(run, str):
        return run
    client = connect()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    query = "attributes.status = 'FINISHED' and metrics.mae_GW > 0"
    runs = client.search_runs([experiment.experiment_id], query, order_by=["metrics.mae_GW ASC"]) if experiment else []
    if not runs:
        return "no run has the metric `mae_GW` yet: run the notebooks of the chapter first."
    errors = {run.info.run_id: run.data.metrics["mae_GW"] for run in runs}
    if answer not in errors:
        return "the answer is no id of a finished run with the metric `mae_GW`."
    if errors[answer] > errors[runs[0].info.run_id]:  # several runs may share the smallest
        return f"another run has a smaller error than {errors[answer]:.3f} GW: look at the order."
    return None


@exercise("2.3", "an alias for the latest version")
def challenger(answer: str) -> str | None:
    """Compare the version that the alias points at with the latest one."""
    client = connect()
    versions = client.search_model_versions(f"name = '{REGISTERED_MODEL}'")
    if not versions:
        return f"`{REGISTERED_MODEL}` has no version yet: run compare_runs first."
    latest = max(int(version.version) for version in versions)
    if str(answer) != str(latest):
        return f"it is not the number of the latest version of `{REGISTERED_MODEL}`."
    aliases = client.get_registered_model(REGISTERED_MODEL).aliases
    if CHALLENGER not in aliases:
        return f"`{REGISTERED_MODEL}` has no alias `{CHALLENGER}` yet."
    if str(aliases[CHALLENGER]) != str(latest):
        return f"the alias `{CHALLENGER}` points at version {aliases[CHALLENGER]}, which is not the latest one."
    return None


def _r2_of_wind_alone() -> float:
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import r2_score

    from workshop.data.prepare import load_or_make
    from workshop.data.split import split_by_time
    from workshop.settings import get_settings

    train, test = split_by_time(load_or_make(get_settings().root / "2_tracking" / "germany.csv"), test_fraction=0.2)
    model = LinearRegression().fit(train[["windspeed"]], train["wind_GW"])
    return r2_score(test["wind_GW"], model.predict(test[["windspeed"]]))
