"""One private cluster for all notebooks of a `dvc-parallel` run, in a process that ends with the run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any

import dask.config

from papermill_dask import tracking
from papermill_dask.config import SECTION
from papermill_dask.errors import EngineError

ENGINE = re.compile(r"--engine[ =]dask\b")
IMPORTS = f"{SECTION}.kernel-imports"
# Modules that libraries import on first use: MLflow for an `mlflow.db` and a model, pandas for a plot and a table.
LATE_IMPORTS = {
    "mlflow": (
        *("mlflow.models.display_utils", "mlflow.pyfunc.scoring_server", "mlflow.tracing.processor.otel", "git"),
        "mlflow.store.tracking.sqlalchemy_workspace_store",
    ),
    "pandas": ("matplotlib.pyplot", "matplotlib.backends.backend_agg", "pandas.io.formats.style", "pyarrow.parquet"),
}
LARGE = ("jax", "keras", "tensorflow", "torch")  # would need up to 0.5 GB, also if few notebooks use them
# A kernel gets all variables of its command, as in the cluster of a single notebook.
VARIABLES = {"DASK_PAPERMILL_DASK__ENVIRONMENT": '["*"]'}
END_SECONDS = 60


@contextlib.contextmanager
def private_cluster(
    commands: Sequence[str], imports: Callable[[], list[str]], *, jobs: int, folder: Path
) -> Iterator[dict[str, str]]:
    """Start a cluster for ``jobs`` notebooks that preloads their ``imports``; yield the variables to connect to it.

    Yield none if fewer than two commands use the engine, or if a cluster is configured. The cluster's log is in
    ``folder``. Raises EngineError if the cluster does not start.
    """
    settings = dask.config.get("scheduler-address", None), dask.config.get(f"{SECTION}.cluster", None)
    is_configured = any(setting is not None for setting in settings) or tracking.TASK_VARIABLE in os.environ
    if is_configured or len([command for command in commands if ENGINE.search(command)]) <= 1:
        yield {}
        return
    # `-P`: the folder's files must not shadow modules.
    words = [sys.executable, "-P", "-m", __name__, str(jobs)]
    log = folder / "papermill-dask.log"
    with log.open("w") as stderr:
        # In a session of its own it gets no Ctrl-C: the notebooks are saved first.
        options: dict[str, Any] = {"stderr": stderr, "env": os.environ | VARIABLES, "start_new_session": True}
        process: Any = subprocess.Popen(words, stdin=PIPE, stdout=PIPE, text=True, **options)
    with process:  # at the end, closes the pipe and waits
        modules = dask.config.get(IMPORTS)
        modules = _with_late_imports(imports()) if modules is None else modules
        with contextlib.suppress(BrokenPipeError):  # it has failed to start
            print(json.dumps(modules), file=process.stdin, flush=True)
        if not (variables := process.stdout.readline()):
            raise EngineError(
                "The private Dask cluster of this run did not start.",
                value=log.read_text().rstrip().rpartition("\n")[2],
                next_step=f"see {log}, or start a scheduler and set DASK_SCHEDULER_ADDRESS",
            )
        yield json.loads(variables)


def _with_late_imports(imports: list[str]) -> list[str]:
    packages = {name.partition(".")[0] for name in imports}
    late = [name for package in LATE_IMPORTS.keys() & packages for name in LATE_IMPORTS[package]]
    late = [name for name in late if importlib.util.find_spec(name.partition(".")[0])]
    return [name for name in [*imports, *late] if name.partition(".")[0] not in LARGE]


def main() -> None:
    """Run a private cluster until standard input is closed, by the end of the run or the kernel after `kill -9`."""
    from papermill_dask.client.cluster import local_cluster
    from papermill_dask.worker.warm_up import kernel_environment, warm_up

    with local_cluster(int(sys.argv[1])) as cluster:
        (worker,) = cluster.workers.values()
        variables = {name: text for name, text in kernel_environment(worker).items() if name.startswith("DASK_")}
        dask.config.set({IMPORTS: json.loads(sys.stdin.readline())})
        warm_up(worker)
        print(json.dumps(variables), flush=True)
        sys.stdin.read()
        signal.alarm(END_SECONDS)  # ends this process if closing the cluster hangs


if __name__ == "__main__":
    main()
