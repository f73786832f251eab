"""Many runs of one notebook: each combination of its parameters a notebook on the cluster, one table of them all."""

from __future__ import annotations

import contextlib
import enum
import json
import math
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from papermill_dask.combinations import check_parameters, combinations, file_names, misuse
from papermill_dask.signals import handled
from workshop.errors import EngineError, WorkshopError

if TYPE_CHECKING:
    from distributed import Client

    from papermill_dask.records import Records

MOST_METRICS = 6  # columns of the table
LONGEST_TAG = 5000
TICK_SECONDS = 0.2
STOP_SECONDS = 8.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOWER_IS_BETTER = re.compile(r"(^|[^a-z])(loss|error|rmse|mae|mse|mape|seconds|latency)([^a-z]|$)", re.IGNORECASE)


class Status(enum.StrEnum):
    """How a run of the notebook ended."""

    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    NOT_RUN = "not run"


MLFLOW_STATUS = {Status.DONE: "FINISHED", Status.FAILED: "FAILED", Status.STOPPED: "KILLED"}


@dataclass
class NotebookRun:
    """One run of the notebook.

    ``seconds`` lie between the start of its first cell and the end of its last; ``error`` is a line; ``metrics`` and
    ``run_ids`` are those of its MLflow runs.
    """

    parameters: dict[str, Any]
    output: Path
    task: str
    status: Status = Status.NOT_RUN
    seconds: float | None = None
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    run_ids: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return all there is to know, as JSON can hold it: no NaN, no infinity."""
        return {
            "parameters": {name: _finite(value) for name, value in self.parameters.items()},
            "status": str(self.status),
            "seconds": self.seconds,
            "metrics": {name: _finite(value) for name, value in self.metrics.items()},
            "error": self.error,
            "notebook": str(self.output),
            "run_ids": self.run_ids,
        }


@dataclass(frozen=True)
class Sweep:
    """What became of all runs; ``varied`` are the parameters that differ, ``signal`` is what stopped it early."""

    runs: list[NotebookRun]
    varied: list[str]
    parent_run: str | None = None
    signal: int | None = None

    @property
    def failed(self) -> list[NotebookRun]:
        """The runs that failed."""
        return [run for run in self.runs if run.status is Status.FAILED]

    @property
    def exit_code(self) -> int:
        """0 when all ran well, 1 when any failed, 128 and the signal's number when it was stopped."""
        return 128 + self.signal if self.signal else int(bool(self.failed))

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each run: what varied, status, seconds, and the metrics that tell the runs apart."""
        metrics = _telling_metrics(self.runs)
        rows = []
        for run in self.runs:
            cells = [(name, run.parameters[name]) for name in self.varied]
            cells += [("status", str(run.status)), ("seconds", run.seconds and round(run.seconds, 1))]
            cells += [(name, run.metrics.get(name)) for name in metrics]
            row: dict[str, Any] = {}
            for name, value in cells:
                row[f"{name} (metric)" if name in row else name] = value
            rows.append(row)
        return rows

    def ranked(self, rank_by: str) -> Sweep:
        """Return the same with the best run first: ``METRIC``, or ``METRIC:min``, ``METRIC:max`` to say what is best.

        By itself lower is better for what is named an error, a loss or a time, and higher for all else. Raises
        EngineError, naming those that there are, when no run has that metric.
        """
        metric, least = read_rank(rank_by)
        known = sorted({name for run in self.runs for name in run.metrics})
        if metric not in known:
            raise EngineError(
                "No run has the metric to rank by.",
                value=metric,
                expected=f"one of {', '.join(known)}" if known else "a notebook that logs metrics to an MLflow run",
                next_step="see the table: all that ran is kept",
            )
        sign = 1 if least else -1

        def place(run: NotebookRun) -> tuple[bool, float]:
            value = run.metrics.get(metric, math.nan)
            return (True, 0.0) if math.isnan(value) else (False, sign * value)

        return Sweep(sorted(self.runs, key=place), self.varied, self.parent_run, self.signal)


# -- what to run -----------------------------------------------------------------------------------------------
def read_rank(rank_by: str) -> tuple[str, bool]:
    """Return the metric to rank by, and whether its least value is the best; raises EngineError if that is unclear."""
    metric, colon, best = rank_by.rpartition(":")
    if not colon:
        return rank_by, bool(LOWER_IS_BETTER.search(rank_by))
    if not metric or best not in ("min", "max"):
        raise misuse("The order cannot be read.", rank_by, expected="METRIC, METRIC:min or METRIC:max")
    return metric, best == "min"


def plan(
    notebook: Path, parameters: Mapping[str, Any], sweeps: Iterable[str], output_folder: Path | None = None
) -> list[NotebookRun]:
    """Return the runs to make of a notebook: each combination of ``sweeps`` on top of the fixed ``parameters``.

    Raises EngineError for what can be known before anything runs: no such notebook, parameters that it does not have.
    """
    folder = output_folder or Path("executed") / notebook.stem
    chosen = combinations(sweeps)
    check_parameters(notebook, parameters, chosen[0])
    every = [{**parameters, **combination} for combination in chosen]
    runs = [
        NotebookRun(given, folder / name, f"{notebook.stem}-{uuid.uuid4().hex[:8]}")
        for given, name in zip(every, file_names(notebook.stem, every), strict=True)
    ]
    if any(run.output.resolve() == notebook.resolve() for run in runs):
        raise misuse("The executed notebook would take the notebook's own place.", notebook, expected="another folder")
    return runs


# -- running it ------------------------------------------------------------------------------------------------
def run_many(
    notebook: Path,
    parameters: Mapping[str, Any] | None = None,
    sweeps: Iterable[str] = (),
    output_folder: Path | None = None,
    *,
    tell: Callable[[str], object] = lambda _: None,
) -> Sweep:
    """Run a notebook once for each combination of ``sweeps`` (such as ``"seed=1,2"``) on the cluster; return all runs.

    One that fails stops no other; Ctrl-C, or SIGTERM, stops all, and what was finished is kept. The executed notebooks
    lie in ``output_folder`` (``executed/<name>``), named by their parameters; the MLflow runs, if a tracking server is
    known, lie under one parent. ``tell`` gets lines about how it goes; on a terminal there are bars, too. Raises
    EngineError before anything runs when it cannot, ServiceError when the tracking server is dead.
    """
    from papermill.iorw import local_file_io_cwd
    from tqdm.auto import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from papermill_dask import cluster, placement
    from papermill_dask.attempt import stage_id

    parameters, sweeps = dict(parameters or {}), list(sweeps)
    runs = plan(notebook, parameters, sweeps, output_folder)
    varied = [name for name in runs[0].parameters if name not in parameters] or list(parameters)
    runs[0].output.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # MLflow prints the address of each run that it ends; the standard output is for the result.
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        stack.enter_context(logging_redirect_tqdm([cluster.logger]))
        # papermill keeps the current folder in one place for all threads; so it is the same in each, and put back.
        stack.enter_context(local_file_io_cwd())
        client = stack.enter_context(cluster.connect())
        cluster.wait_for_stage(client, stage_id())  # where the sweep is one
        records = _records(client, notebook, tell)
        if records:
            tags = {"workshop.sweep": " ".join(sweeps)[:LONGEST_TAG]}
            stack.enter_context(records.under(notebook.stem, parameters, tags))
        heard: list[int] = []
        # Collected, instead of an exception wherever they happen to arrive.
        stack.enter_context(handled(STOP_SIGNALS, lambda number, _: heard.append(number)))
        slots = placement.slots(client)
        tell(f"{len(runs)} x {notebook.name}, {slots} at once, on {client.scheduler.address}")
        with tqdm(total=len(runs), desc=notebook.stem, unit="notebook", file=sys.stderr, disable=None) as bar:
            _Execution(notebook, runs, varied, client, records, heard, tell).run(2 * slots, bar)
        sweep = Sweep(runs, varied, records and records.parent, heard[0] if heard else None)
        if records and not sweep.signal:
            records.status = "FAILED" if sweep.failed else "FINISHED"
    return sweep


def _records(client: Client, notebook: Path, tell: Callable[[str], object]) -> Records | None:
    """Return where MLflow runs are made; None when no tracking server is known."""
    from papermill_dask.attempt import tracking_uri
    from papermill_dask.records import Records

    if uri := tracking_uri():
        return Records(client, notebook, uri)
    tell("No MLflow tracking server is known, so nothing is tracked; `workshop up` starts one.")
    return None


class _Execution:
    """The runs on their way, a thread each: loading and saving of some overlaps with the cluster's work on others."""

    def __init__(self, notebook: Path, runs, varied, client: Client, records, heard, tell) -> None:
        from workshop.models.tracking import file_hash

        self._notebook, self._runs, self._varied, self._client = notebook, runs, varied, client
        self._records, self._heard, self._tell = records, heard, tell
        self._hash, self._settled = file_hash(notebook), 0

    def run(self, at_once: int, bar) -> None:
        """Make all runs; return early, with all that runs ended, when a signal was heard."""
        with ThreadPoolExecutor(min(at_once, len(self._runs)), "notebook") as pool:
            pending: dict[Future, NotebookRun] = {}
            try:
                pending |= {pool.submit(self._make, run): run for run in self._runs}
                while pending and not self._heard:
                    for future in wait(pending, TICK_SECONDS, FIRST_COMPLETED).done:
                        self._settle(future, pending.pop(future))
                        bar.update()
                self._stop(pool, pending)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                if any(not future.done() for future in pending):
                    self._client.close()  # ends what still waits for the cluster, so that the pool can end, too

    def _stop(self, pool: ThreadPoolExecutor, pending: dict[Future, NotebookRun]) -> None:
        """End what is left: the cluster's workers stop the kernels, and the notebooks are saved as they are."""
        from distributed import Future as DaskFuture

        if not pending:
            return
        self._say(f"{signal.Signals(self._heard[0]).name}: stopping; what was finished is kept")
        pool.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + STOP_SECONDS
        while len(self._heard) < 2 and time.monotonic() < deadline:
            begun = [
                future for future, run in pending.items() if not future.done() and _seconds(run.output) is not None
            ]
            if not begun:
                break
            # Each time anew: a thread may only now have come to submit its task.
            keys = [run.task for run in self._runs if run.task in self._client.futures]
            self._client.cancel([DaskFuture(key, self._client) for key in keys])
            wait(begun, TICK_SECONDS)

    def _settle(self, future: Future, run: NotebookRun) -> None:
        future.result()  # what is raised here is no notebook's failure
        self._settled += 1
        took = "" if run.seconds is None else f" after {run.seconds:.1f} s"
        why = f": {run.error}" if run.error else ""
        self._say(f"[{self._settled}/{len(self._runs)}] {self._label(run)}: {run.status}{took}{why}")

    def _label(self, run: NotebookRun) -> str:
        return " ".join(f"{name}={run.parameters[name]}" for name in self._varied) or self._notebook.stem

    def _make(self, run: NotebookRun) -> None:
        """Make one run, in a thread of its own; how it ended stands in ``run``."""
        from papermill.exceptions import PapermillExecutionError

        if self._heard:
            return
        try:
            self._execute(run)
            run.status = Status.DONE
        except Exception as error:  # noqa: BLE001 - whatever it is, the other notebooks go on
            stopped = self._heard and not isinstance(error, PapermillExecutionError)
            run.status = Status.STOPPED if stopped else Status.FAILED
            run.error = None if stopped else _in_a_line(error)
        run.seconds = _seconds(run.output)
        if run.status is Status.STOPPED and run.seconds is None:
            run.status = Status.NOT_RUN
            run.output.unlink(missing_ok=True)
            return
        try:
            self._record(run)
        except Exception as error:  # noqa: BLE001 - a tracking server that fails must not hide how the notebook ended
            self._say(f"MLflow did not answer for {self._label(run)}: {_in_a_line(error)}")

    def _record(self, run: NotebookRun) -> None:
        """Note the MLflow runs that the notebook opened, and their metrics; make it one when it opened none."""
        if self._records is None:
            return
        ended = {"parameters": run.parameters, "seconds": run.seconds or 0.0, "status": MLFLOW_STATUS[run.status]}
        run.run_ids, run.metrics = self._records.record(run.task, run.output, **ended)

    def _say(self, line: str) -> None:
        """Tell a line, above the bars."""
        from tqdm.auto import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            self._tell(line)

    def _execute(self, run: NotebookRun) -> None:
        import papermill

        from workshop.models.tracking import file_hash

        run.output.unlink(missing_ok=True)  # of an earlier time
        if file_hash(self._notebook) != self._hash:
            raise EngineError("The notebook was changed while others of its runs were on their way.")
        papermill.execute_notebook(
            _literal(self._notebook),
            _literal(run.output),
            run.parameters,
            engine_name="dask",
            client=self._client,
            task=run.task,
            # Not shown where stderr is no terminal.
            progress_bar={"desc": self._label(run), "leave": False, "file": sys.stderr, "disable": None},
        )


def _literal(path: Path) -> str:
    """Return a path as papermill takes it literally: it fills in parameters between braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _seconds(executed: Path) -> float | None:
    """Return how long the cells of an executed notebook took; None when none was run."""
    try:
        cells = [cell["metadata"].get("papermill", {}) for cell in json.loads(executed.read_bytes())["cells"]]
    except (OSError, ValueError):
        return None
    times = [cell[name] for cell in cells for name in ("start_time", "end_time") if cell.get(name)]
    return (datetime.fromisoformat(max(times)) - datetime.fromisoformat(min(times))).total_seconds() if times else None


def _in_a_line(error: Exception) -> str:
    from papermill.exceptions import PapermillExecutionError

    name, text = type(error).__name__, str(error)
    if isinstance(error, PapermillExecutionError):
        name, text = error.ename, error.evalue
    elif isinstance(error, WorkshopError):
        text = error.what
    return f"{name}: {text.strip()}".splitlines()[0]


# -- the table -------------------------------------------------------------------------------------------------
def _telling_metrics(runs: list[NotebookRun]) -> list[str]:
    """Return the metrics for the table: those that differ between runs before those that do not, as many as fit."""
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    differ = [name for name in names if len({run.metrics.get(name) for run in runs if run.metrics}) > 1]
    return (differ or names)[:MOST_METRICS]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
