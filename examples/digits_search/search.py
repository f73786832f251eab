"""Tune a support vector machine for handwritten digits in one process, on this machine's cores, or on a cluster."""

from __future__ import annotations

import contextlib
import itertools
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from distributed import Client
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC

SRC = Path(__file__).with_name("src")
sys.path.insert(0, str(SRC))

from strokes import deskew  # noqa: E402

# Undo MLflow's warning filters: scikit-learn would send them to the workers, which lack packages the filters use.
with warnings.catch_warnings():
    import mlflow

SPACES = {
    "small": {"svc__C": [1e-4, 1, 1e4], "svc__gamma": [1e-3, 1, 1e3]},
    "large": {
        "deskew__kw_args": [{"strength": strength} for strength in (0, 0.5, 1)],
        "svc__C": np.logspace(-2, 4, 7).tolist(),
        "svc__gamma": np.logspace(-5, 1, 7).tolist(),
    },
}
NO_CLUSTER = "There is no Dask cluster at {!r}: {}\nSet --cluster to none, local, or tcp://HOST:8786."


@contextlib.contextmanager
def parallel_backend(cluster: str, data: list[np.ndarray]) -> Iterator[None]:
    """Set joblib's backend: this process (`none`), this machine's cores (`local`), or the Dask cluster at an address.

    Each worker of a cluster gets its own copy of the ``data`` once, so no array is lost when a worker dies.
    """
    with contextlib.ExitStack() as stack:
        if cluster in ("none", "local"):  # on one machine, joblib's own processes are faster than Dask's workers
            backend = "sequential" if cluster == "none" else "loky"
            stack.enter_context(joblib.parallel_config(backend, n_jobs=-1, verbose=5))
        else:
            try:
                client = stack.enter_context(Client(cluster, timeout=10))
            except (OSError, ValueError) as error:
                raise click.ClickException(NO_CLUSTER.format(cluster, error)) from None
            check_python(client)
            print(f"{client}\nDask dashboard: {client.dashboard_link}", flush=True)
            for file in SRC.glob("*.py"):  # workers that join later get the modules, too
                client.upload_file(str(file))
            client.amm.stop()  # Dask's memory manager would delete copies of the data
            stack.callback(client.amm.start)
            stack.enter_context(joblib.parallel_config("dask", verbose=20, scatter=data))
        yield


def check_python(client: Client) -> None:
    """Raise ClickException if the cluster runs another Python version; call this before sending it any pickles."""
    client_python = platform.python_version_tuple()[:2]
    scheduler_python = tuple(client.get_versions()["scheduler"]["host"]["python"].split(".")[:2])
    if scheduler_python != client_python:
        text = "The cluster runs Python {}.{} and this program {}.{}: pickles may not load across versions.".format(
            *scheduler_python, *client_python
        )
        raise click.ClickException(f"{text}\nUse the same version: change `BASE` in the Containerfile, or your Python.")


def new_search(space: str, folds: list) -> GridSearchCV:
    """Return the grid search over a space; the model is `deskew` followed by a support vector machine."""
    model = Pipeline([("deskew", FunctionTransformer(deskew)), ("svc", SVC(kernel="rbf"))])
    grid = SPACES[space] | {"svc__class_weight": [None, "balanced"]}
    return GridSearchCV(model, grid, cv=folds, pre_dispatch="all")  # so that workers that join later also get tasks


def results_table(search: GridSearchCV) -> pd.DataFrame:
    """Return one row per combination, best first: parameters, mean and std of the accuracy, fit seconds."""
    results = pd.DataFrame(search.cv_results_).sort_values("rank_test_score", kind="stable")
    columns = [name for name in results if name.startswith("param_")]
    return results[[*columns, "mean_test_score", "std_test_score", "mean_fit_time"]]


def heatmap(results: pd.DataFrame) -> plt.Figure:
    """Plot the best accuracy for each C and gamma."""
    best = results.pivot_table("mean_test_score", "param_svc__C", "param_svc__gamma", aggfunc="max")
    figure, axes = plt.subplots(figsize=(1.2 + 0.9 * best.shape[1], 1.2 + 0.6 * best.shape[0]), layout="constrained")
    axes.imshow(best, vmin=0, vmax=1, aspect="auto")
    for (row, column), accuracy in np.ndenumerate(best):
        color = "black" if accuracy > 0.6 else "white"
        axes.text(column, row, f"{accuracy:.3f}", ha="center", va="center", color=color)
    axes.set_xticks(range(best.shape[1]), best.columns.map("{:g}".format))
    axes.set_yticks(range(best.shape[0]), best.index.map("{:g}".format))
    axes.set(xlabel="gamma", ylabel="C", title="Accuracy, mean of 3 folds")
    return figure


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cluster", default="none", help="none, local, or the address of a Dask scheduler.", show_default=True)
@click.option("--space", type=click.Choice(list(SPACES)), default="small", show_default=True)
def main(cluster: str, space: str) -> None:
    """Search, print the best combinations, and log one run to MLflow.

    \b
    Example:  python search.py --cluster local
    """
    images, digits = load_digits(return_X_y=True)
    images, test_images, digits, test_digits = train_test_split(
        images, digits, test_size=0.3, random_state=0, stratify=digits
    )
    folds = list(StratifiedKFold(3).split(images, digits))
    with parallel_backend(cluster, [images, digits, *itertools.chain(*folds)]):
        start = time.perf_counter()
        search = new_search(space, folds).fit(images, digits)
        seconds = time.perf_counter() - start
    accuracy = search.score(test_images, test_digits)
    results = results_table(search)
    print(results.head(10).to_string(index=False))
    print(f"best: {search.best_params_}\nheld-out accuracy: {accuracy:.4f}")
    mlflow.set_experiment("digits_search")
    with mlflow.start_run(run_name=f"{cluster}, {space}"):
        mlflow.log_params({"cluster": cluster, "space": space} | search.best_params_)
        scores = {"cross_validated_accuracy": search.best_score_, "held_out_accuracy": accuracy}
        mlflow.log_metrics(scores | {"search_seconds": seconds})
        mlflow.sklearn.log_model(
            search.best_estimator_,
            name="model",
            code_paths=[str(SRC / "strokes.py")],
            serialization_format="skops",
            skops_trusted_types=["strokes.deskew"],
            pip_requirements=str(SRC.with_name("requirements.txt")),
        )
        mlflow.log_text(results.to_csv(index=False), "cv_results.csv")
        mlflow.log_figure(heatmap(results), "heatmap.png")


if __name__ == "__main__":
    main()
