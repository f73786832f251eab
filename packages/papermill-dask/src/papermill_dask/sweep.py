"""Many runs of one notebook, each with other parameters, side by side on the cluster; one table of them all."""

from __future__ import annotations

import contextlib
import csv
import enum
import hashlib
import itertools
import json
import re
import signal
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from papermill_dask.compat import read_parameter
from papermill_dask.config import METADATA
from papermill_dask.errors import EngineError
from papermill_dask.signals import handled

MOST_METRICS = 6  # columns of the table
LONGEST_NAME = 180  # bytes of a file's name: file systems take 255, and saving beside it needs a few
UNSAFE = re.compile(r"[^\w.+=-]")
TICK_SECONDS = 0.2
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Status(enum.StrEnum):
    """How a run of the notebook ended."""

    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    NOT_RUN = "not run"


@dataclass
class NotebookRun:
    """One run of the notebook: its cells took ``seconds``, ``metrics`` are those of its MLflow runs."""

    parameters: dict[str, Any]
    output: Path
    task: str
    status: Status = Status.NOT_RUN
    seconds: float | None = None
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    run_ids: list[str] = field(default_factory=list)

    def read(self) -> None:
        """Read what the executed notebook says of itself."""
        with contextlib.suppress(OSError, ValueError):
            document = json.loads(self.output.read_bytes())
            cells = [cell["metadata"].get("papermill", {}) for cell in document["cells"]]
            times = [cell[name] for cell in cells for name in ("start_time", "end_time") if cell.get(name)]
            if times:
                began, ended = (datetime.fromisoformat(time) for time in (min(times), max(times)))
                self.seconds = (ended - began).total_seconds()
            for run in document["metadata"].get(METADATA, {}).get("runs", []):
                self.run_ids.append(run["run_id"])
                self.metrics = run["metrics"] | self.metrics


@dataclass(frozen=True)
class Sweep:
    """What became of all runs; ``signal`` is what stopped them early."""

    runs: list[NotebookRun]
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
        """Return a row for each run: its parameters, status, seconds, and the metrics that tell the runs apart."""
        names = list(dict.fromkeys(name for run in self.runs for name in run.metrics))
        differ = [name for name in names if len({run.metrics.get(name) for run in self.runs if run.metrics}) > 1]
        return [
            {**run.parameters, "status": str(run.status), "seconds": run.seconds and round(run.seconds, 1)}
            | {name: run.metrics.get(name) for name in (differ or names)[:MOST_METRICS]}
            for run in self.runs
        ]


# -- what to run ---------------------------------------------------------------------------------------------------
def combinations(sweeps: Iterable[str]) -> list[dict[str, Any]]:
    """Return all combinations of ``NAME=VALUE,VALUE,...``, the last name varying fastest; `[{}]` for no sweep.

    Values are read as papermill's ``-p`` does; one that holds a comma stands in double quotes. Raises EngineError.
    """
    values: dict[str, list[Any]] = {}
    for sweep in sweeps:
        name, _, text = sweep.partition("=")
        texts = [part.strip() for part in next(csv.reader([text], skipinitialspace=True), [])]
        if not name or not all(texts) or len(set(texts)) < max(len(texts), 1) or name in values:
            raise EngineError(
                "A sweep cannot be read.", value=sweep, expected="NAME=VALUE,VALUE,... with each name and value once"
            )
        values[name] = [read_parameter(part) for part in texts]
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def read_csv(file: Path) -> list[dict[str, Any]]:
    """Return the sets of parameters in a CSV file: a column for each parameter, a row for each run."""
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines, restkey="", restval=None))
    if not rows or any("" in row or None in row.values() for row in rows):
        raise EngineError(
            "The file of parameters cannot be read.",
            value=file,
            expected="a first line with the parameters' names, and a value for each in every line after it",
        )
    return [{name: read_parameter(text) for name, text in row.items()} for row in rows]


def plan(notebook: Path, every: Iterable[Mapping[str, Any]], output_folder: Path | None = None) -> list[NotebookRun]:
    """Return the runs to make of a notebook, one for each set of parameters; raise EngineError for what cannot run."""
    from papermill import inspect_notebook

    every = [dict(parameters) for parameters in every]
    try:
        known = inspect_notebook(_literal(notebook))
    except Exception as error:  # noqa: BLE001 - papermill's errors are of many kinds, and all say that it is none
        raise EngineError("The notebook cannot be read.", value=f"{notebook}: {error}") from None
    unknown = {name for parameters in every for name in parameters} - known.keys()
    if known and unknown:  # papermill itself only warns
        listed = ", ".join(sorted(unknown))
        raise EngineError(f"{notebook} has no such parameter.", value=listed, expected=f"one of {', '.join(known)}")
    folder = output_folder or Path("executed") / notebook.stem
    runs = [
        NotebookRun(parameters, folder / name, f"{notebook.stem}-{uuid.uuid4().hex[:8]}")
        for parameters, name in zip(every, file_names(notebook.stem, every), strict=True)
    ]
    if any(run.output.resolve() == notebook.resolve() for run in runs):
        raise EngineError("The executed notebook would take the notebook's own place.", value=notebook)
    return runs


def file_names(stem: str, every: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a notebook's file name for each set of parameters: safe, and different also where case is ignored."""
    names: dict[str, str] = {}
    for parameters in every:
        wanted = "".join(f"__{name}={value}" for name, value in parameters.items())
        short = (stem + UNSAFE.sub("_", wanted)).encode()[:LONGEST_NAME].decode(errors="ignore")
        if short != stem + wanted or short.casefold() in names:
            short += "__" + hashlib.sha256(repr(parameters).encode()).hexdigest()[:8]
        names[short.casefold()] = f"{short}.ipynb"
    return list(names.values())


# -- running it ----------------------------------------------------------------------------------------------------
def run_many(
    notebook: Path,
    every: Iterable[Mapping[str, Any]],
    output_folder: Path | None = None,
    *,
    tell: Callable[[str], object] = lambda _: None,
) -> Sweep:
    """Run a notebook once for each set of parameters in ``every``, side by side on the cluster; return all runs.

    One that fails stops no other; Ctrl-C, or SIGTERM, stops all, and what was finished is kept. The executed notebooks
    lie in ``output_folder`` (``executed/<name>``), named by their parameters. ``tell`` gets lines about how it goes.
    Raises EngineError before anything runs when it cannot.
    """
    from papermill.iorw import local_file_io_cwd

    from papermill_dask import cluster, stage

    runs = plan(notebook, every, output_folder)
    runs[0].output.parent.mkdir(parents=True, exist_ok=True)
    heard: list[int] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(stage.ends_with_dvc())
        # papermill keeps the current folder in one place for all threads; so it is the same in each, and put back.
        stack.enter_context(local_file_io_cwd())
        client = stack.enter_context(cluster.connect())
        # Collected, instead of an exception wherever they happen to arrive.
        stack.enter_context(handled(STOP_SIGNALS, lambda number, _: heard.append(number)))
        at_once = sum(worker.notebooks for worker in cluster.survey(client))
        tell(f"{len(runs)} x {notebook.name}, {at_once} at once, on {client.scheduler.address}")
        # More threads: loading and saving of some overlaps with the cluster's work on others.
        pool = stack.enter_context(ThreadPoolExecutor(min(2 * at_once, len(runs)), "notebook"))
        pending = {pool.submit(_execute, run, notebook, client, heard): run for run in runs}
        settled = itertools.count(1)
        while pending and not heard:
            for future in wait(pending, TICK_SECONDS, FIRST_COMPLETED).done:
                run = pending.pop(future)
                why = f": {run.error}" if run.error else ""
                tell(f"[{next(settled)}/{len(runs)}] {run.output.stem}: {run.status}{why}")
        if pending:
            tell(f"{signal.Signals(heard[0]).name}: stopping; what was finished is kept")
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()  # its notebooks are saved as they are, and the workers end their kernels
    return Sweep(runs, heard[0] if heard else None)


def _execute(run: NotebookRun, notebook: Path, client, heard: Sequence[int]) -> None:
    """Make one run, in a thread of its own; how it ended stands in ``run``."""
    import papermill

    if heard:
        return
    run.output.unlink(missing_ok=True)  # of an earlier time
    try:
        papermill.execute_notebook(
            _literal(notebook),
            _literal(run.output),
            run.parameters,
            engine_name="dask",
            client=client,
            task=run.task,
            progress_bar=False,
        )
        run.status = Status.DONE
    except papermill.PapermillExecutionError as error:
        run.status, run.error = Status.FAILED, f"{error.ename}: {error.evalue}".splitlines()[0]
    except Exception as error:  # noqa: BLE001 - whatever it is, the other notebooks go on
        run.status = Status.STOPPED if heard else Status.FAILED
        run.error = None if heard else f"{type(error).__name__}: {getattr(error, 'what', error)}".splitlines()[0]
    run.read()
    if run.status is Status.STOPPED and run.seconds is None:
        run.status = Status.NOT_RUN
        run.output.unlink(missing_ok=True)


def _literal(path: Path) -> str:
    """Return a path as papermill takes it literally: it fills in parameters between braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


# -- the command line ----------------------------------------------------------------------------------------------
@click.command()
@click.argument("notebook", type=click.Path(dir_okay=False, path_type=Path))
@click.option("-p", "fixed", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of all runs.")
@click.option("--sweep", "sweeps", multiple=True, metavar="NAME=1,2,3", help="A run for each value, and combination.")
@click.option("--csv", "file", type=click.Path(exists=True, path_type=Path), help="A run for each row of this file.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of the executed notebooks.")
def main(notebook: Path, fixed, sweeps, file: Path | None, output: Path | None) -> None:
    """Run NOTEBOOK on a Dask cluster once for each set of parameters, and print a table of the runs (CSV)."""
    common = {name: read_parameter(value) for name, value in fixed}
    rows = read_csv(file) if file else [{}]
    every = [{**common, **row, **chosen} for row in rows for chosen in combinations(sweeps)]
    done = run_many(notebook, every, output, tell=lambda line: click.echo(line, err=True))
    table = done.table()
    writer = csv.DictWriter(sys.stdout, table[0])
    writer.writeheader()
    writer.writerows(table)
    sys.exit(done.exit_code)
