"""Search a support vector machine for handwritten digits: in one process, on this machine's cores, or on a cluster."""

from __future__ import annotations

import contextlib
import itertools
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import dask
import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from distributed import Client, LocalCluster
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC

SOURCE = Path(__file__).with_name("src")
sys.path.insert(0, str(SOURCE))

from strokes import deskew  # noqa: E402

# scikit-learn sends this process's warning filters to the workers. MLflow's name classes of packages that they lack.
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
NO_CLUSTER = "There is no Dask cluster at {!r}: {}\nGive --cluster none, local, or an address: tcp://HOST:8786."


@contextlib.contextmanager
def workers(cluster: str, data: list[np.ndarray]) -> Iterator[None]:
    """Let joblib work in this process (`none`), on this machine's cores (`local`) or on the Dask cluster at an address.

    Each of a cluster's workers gets the ``data`` once, and keeps it: no array is lost with a worker that dies.
    """
    with contextlib.ExitStack() as stack:
        if cluster == "local":
            # For this user alone: with a key, and not in the folder that Dask shares among all users of a machine.
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(dask.config.set({"temporary-directory": folder}))
            options = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "security": True}
            cluster = stack.enter_context(LocalCluster(**options))
        if cluster == "none":
            stack.enter_context(joblib.parallel_config("sequential", verbose=5))
        else:
            try:
                client = stack.enter_context(Client(cluster, timeout=10))
            except (OSError, ValueError) as error:
                raise click.ClickException(NO_CLUSTER.format(cluster, error)) from None
            check_python(client)
            print(f"{client}\nDask's page: {client.dashboard_link}", flush=True)
            for file in SOURCE.glob("*.py"):  # as they are now; workers that join later get them, too
                client.upload_file(str(file))
            client.amm.stop()  # would leave one copy of what several workers have
            stack.callback(client.amm.start)
            stack.enter_context(joblib.parallel_config("dask", verbose=20, scatter=data))
        yield


def check_python(client: Client) -> None:
    """Raise ClickException when the cluster runs another Python, before anything is sent to it."""
    here = platform.python_version_tuple()[:2]
    scheduler_python = tuple(client.get_versions()["scheduler"]["host"]["python"].split(".")[:2])
    if scheduler_python != here:
        text = "The cluster runs Python {}.{}, and this is {}.{}: what one pickles the other may not read.".format(
            *scheduler_python, *here
        )
        raise click.ClickException(f"{text}\nTake this one there: `BASE` of the Containerfile, or another environment.")


def new_search(space: str, folds: list) -> GridSearchCV:
    """Return the search over a space: the model is our own step, then the support vector machine."""
    model = Pipeline([("deskew", FunctionTransformer(deskew)), ("svc", SVC(kernel="rbf"))])
    grid = SPACES[space] | {"svc__class_weight": [None, "balanced"]}
    return GridSearchCV(model, grid, cv=folds, pre_dispatch="all")  # workers that join later find work


def table(search: GridSearchCV) -> pd.DataFrame:
    """Return a row for each combination, the best first: its parameters, mean and spread of the accuracy, seconds."""
    results = pd.DataFrame(search.cv_results_).sort_values("rank_test_score", kind="stable")
    columns = [name for name in results if name.startswith("param_")]
    return results[[*columns, "mean_test_score", "std_test_score", "mean_fit_time"]]


def heatmap(results: pd.DataFrame) -> plt.Figure:
    """Draw the best accuracy for each C and gamma."""
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
    with workers(cluster, [images, digits, *itertools.chain(*folds)]):
        began = time.perf_counter()
        search = new_search(space, folds).fit(images, digits)
        seconds = time.perf_counter() - began
    accuracy = search.score(test_images, test_digits)
    results = table(search)
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
            code_paths=[str(SOURCE / "strokes.py")],
            serialization_format="skops",
            skops_trusted_types=["strokes.deskew"],
            pip_requirements=str(SOURCE.with_name("requirements.txt")),
        )
        mlflow.log_text(results.to_csv(index=False), "cv_results.csv")
        mlflow.log_figure(heatmap(results), "heatmap.png")


if __name__ == "__main__":
    main()
