"""Parameter sweeps: run a notebook with many sets of parameters in parallel on the cluster."""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import itertools
import json
import re
import signal
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from keyword import iskeyword
from pathlib import Path
from typing import Any, BinaryIO

import click
from dask.system import CPU_COUNT

from papermill_dask import compat
from papermill_dask.config import METADATA, NotebookOptions, cell_tags
from papermill_dask.errors import EngineError

POLL_SECONDS = 0.2
Report = Callable[[str], object]


@dataclass
class NotebookRun:
    """One run of a sweep; ``status`` is `done`, `failed`, `stopped` (possibly before it started) or `not run`."""

    parameters: dict[str, Any]
    output: Path
    status: str = "not run"
    seconds: float | None = None
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # logged to MLflow by the notebook


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Parameters
    ----------
    runs : list of NotebookRun
        The runs, in the order of the parameter sets.
    signal : int, optional
        Number of the signal that stopped the sweep.
    """

    runs: list[NotebookRun]
    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """0 if no run failed, 1 if any failed, 128 + the signal's number if the sweep was stopped."""
        return 128 + self.signal if self.signal else int(any(run.status == "failed" for run in self.runs))

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each run: parameters, status, seconds and metrics; duplicate names get a suffix."""
        rows = []
        for run in self.runs:
            rows.append(row := dict(run.parameters))
            results = {"status": run.status, "seconds": run.seconds and round(run.seconds, 1)}
            for name, value in (*results.items(), *run.metrics.items()):
                row[f"{name} (result)" if name in row else name] = value
        return rows


def combinations(sweeps: Iterable[str], raw: Container[str] = ()) -> list[dict[str, Any]]:
    """Return all combinations of parameter values, the last name varying fastest.

    Parameters
    ----------
    sweeps : iterable of str
        ``NAME=VALUE,VALUE,...``, with double quotes around values that contain a comma.
    raw : container of str
        Names of parameters whose values stay strings; other values are converted as papermill's ``-p`` does.

    Returns
    -------
    list of dict
        One dict of parameters per combination; a single empty dict if ``sweeps`` is empty.

    Raises
    ------
    EngineError
        A sweep is invalid.

    Examples
    --------
    >>> combinations(["n=1,02"]), combinations(["n=1,02"], raw=["n"])
    ([{'n': 1}, {'n': 2}], [{'n': '1'}, {'n': '02'}])
    """
    values: dict[str, list[Any]] = {}
    for sweep in sweeps:
        name, _, text = sweep.partition("=")
        texts = [part.strip() for part in next(csv.reader([text], skipinitialspace=True), [])]
        if not name or not all(texts) or len(set(texts)) < max(len(texts), 1) or name in values:
            expected = "NAME=VALUE,VALUE,... without duplicate names or values"
            raise EngineError("Invalid sweep.", value=sweep, expected=expected)
        values[name] = [_convert(name, part, raw) for part in texts]
    return [dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())]


def _convert(name: str, text: str, raw: Container[str]) -> Any:
    return text if name in raw else compat.parse_parameter(text)


def check_parameter_names(names: Sequence[str], source: str, notebook: Path) -> None:
    """Raise EngineError, citing ``source``, unless ``names`` are distinct parameters of the notebook."""
    try:
        cells = json.loads(notebook.read_bytes())["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
        nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
        parameters = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
    except SyntaxError:  # another language
        parameters = set(re.findall(r"\w+", code))
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError("Reading the notebook failed.", value=f"{notebook}: {error!r}") from None
    for number, name in enumerate(names, start=1):
        problems = {
            "not an identifier": not name.isidentifier() or iskeyword(name),
            "duplicate": name in names[: number - 1],
            "not in the notebook's cell tagged `parameters`": code and name not in parameters,
        }
        for problem in (problem for problem, is_present in problems.items() if is_present):
            value, expected = f"{name!r}, number {number} in {source}: {problem}", ", ".join(sorted(parameters))
            next_step = f"correct the name, or add the parameter to {notebook}"
            raise EngineError("Invalid parameter name.", value=value, expected=expected, next_step=next_step)


def existing_tags(options: Mapping[str, Any], notebook: Path, report: Report) -> list[str]:
    """Return the tags to skip that occur on code cells; report the other tags once instead of in each run."""
    document = json.loads(notebook.read_bytes())
    metadata = {"skip_tags": document["metadata"].get(METADATA, {}).get("skip_tags")}
    keywords = {"skip_tags": options["skip_tags"]} if "skip_tags" in options else {}
    tags, known = NotebookOptions.resolve(metadata, keywords).skip_tags, cell_tags(document["cells"])
    if unknown := sorted(set(tags) - known):
        report(f"No code cell has these tags to skip: {', '.join(unknown)}.")
    return [tag for tag in tags if tag in known]


def read_table(content: bytes, source: str, raw: Container[str] = ()) -> tuple[list[str], list[dict[str, Any]]]:
    """Parse a CSV file; return its header and a set of parameters for each row. Columns named in ``raw`` stay strings.

    Raises EngineError, naming ``source``, if the file is invalid.

    >>> read_table(b"n,place\\n1,north\\n2,south\\n", "table.csv")
    (['n', 'place'], [{'n': 1, 'place': 'north'}, {'n': 2, 'place': 'south'}])
    """
    problem = None
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), ""), skipinitialspace=True, strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        rows, problem = [], str(error)
    (_, names), *rows = rows or [(0, [])]
    if len(names) == 1 and (separator := re.search(r"[;\t|]", names[0])):
        problem = f"column 1 is {names[0]!r}; the separator seems to be {separator[0]!r}"
    for line, row in rows:
        if len(row) != len(names) or "" in row:
            problem = problem or f"line {line} has {len(row) - row.count('')} values, but the header has {len(names)}"
    if problem or not rows:
        raise EngineError(
            "Reading the table of parameters failed.",
            value=f"{source}: {problem or ('no row below the header' if names else 'the file is empty')}",
            expected="CSV in UTF-8, separated by commas: a header, and a value for each column in every row",
            next_step="save the file in this format; write None for each missing value",
        )
    return names, [{name: _convert(name, text, raw) for name, text in zip(names, row, strict=True)} for _, row in rows]


def run_many(
    notebook: Path | str, parameter_sets: Iterable[Mapping[str, Any]], report: Report = print, **options: Any
) -> Sweep:
    """Run a notebook for each set of parameters, in parallel on the cluster.

    A failed run does not stop the others. Ctrl-C or SIGTERM stops all; finished runs are kept. The executed notebooks
    are in ``executed/<name>``, numbered in the order of the parameter sets.

    Parameters
    ----------
    notebook : Path or str
        The notebook's path.
    parameter_sets : iterable of mapping
        Parameters of each run, by name.
    report : callable
        Called with progress messages.
    **options
        Options for every notebook, as in `papermill.execute_notebook`.

    Returns
    -------
    Sweep
        All runs.

    Raises
    ------
    EngineError
        A parameter name or an option is invalid, or the cluster is unavailable.
    """
    from papermill.iorw import local_file_io_cwd

    from papermill_dask.client import cluster, engine, stage

    notebook, parameter_sets = Path(notebook), list(parameter_sets)
    check_parameter_names(list(dict.fromkeys(itertools.chain(*parameter_sets))), "the parameters", notebook)
    options["skip_tags"] = existing_tags(options, notebook, report)
    folder = Path("executed", notebook.stem)
    folder.mkdir(parents=True, exist_ok=True)
    runs = [NotebookRun(dict(row), folder / f"{notebook.stem}-{n}.ipynb") for n, row in enumerate(parameter_sets, 1)]
    signals: list[int] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(stage.terminate_with_dvc())
        # papermill's working folder is global to all threads: set it once, and restore it afterwards.
        stack.enter_context(local_file_io_cwd())
        client = stack.enter_context(cluster.connect(max(1, min(len(parameter_sets), CPU_COUNT))))
        options = {"engine_name": "dask", "client": client, "progress_bar": False} | options
        stop_signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # only recorded: raising could interrupt any code
        stack.enter_context(engine.handle_signals(stop_signals, lambda number, _: signals.append(number)))
        parallel = sum(worker.notebooks for worker in cluster.query_workers(client))
        report(f"{len(runs)} x {notebook.name}, {parallel} in parallel, on {compat.scheduler_of(client).address}")
        pool = stack.enter_context(ThreadPoolExecutor(max(1, len(runs)), "notebook"))
        queue, active = iter(runs), set[Future[None]]()
        while not signals:
            # Submit twice as many runs as there are slots, so that some can be loaded and saved while others run.
            with contextlib.suppress(OSError):  # each run reports a lost scheduler itself
                parallel = max(1, cluster.capacity(client))
            new = itertools.islice(queue, max(0, 2 * parallel - len(active)))
            active |= {pool.submit(_execute, run, notebook, options, signals, report) for run in new}
            if not active:
                break
            active = wait(active, POLL_SECONDS, FIRST_COMPLETED).not_done
        if signals:
            report(f"{signal.Signals(signals[0]).name}: stopping; finished runs are kept")
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()  # makes each run save its unfinished notebook, and the workers kill the kernels
    return Sweep(runs, signals[0] if signals else None)


def _execute(run: NotebookRun, notebook: Path, options: dict[str, Any], signals: Sequence[int], report: Report) -> None:
    """Execute one run and store its results in ``run``."""
    import papermill

    if signals:
        return
    run.output.unlink(missing_ok=True)  # left by an earlier sweep
    try:
        papermill.execute_notebook(str(notebook), str(run.output), run.parameters, **options)
        run.status = "done"
    except Exception as error:  # noqa: BLE001 - a failed run does not stop the others
        run.status = "stopped" if signals else "failed"
        name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
        run.error = f"{name}: {text}".splitlines()[0]
    with contextlib.suppress(OSError, ValueError):
        document = json.loads(run.output.read_bytes())
        run.seconds = document["metadata"]["papermill"]["duration"]
        for mlflow_run in document["metadata"].get(METADATA, {}).get("runs", []):
            run.metrics = mlflow_run["metrics"] | run.metrics
    report(f"{run.output.stem}: {run.status}{f' ({run.error})' if run.error else ''}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="papermill-dask")
@click.argument("notebook", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--sweep", "sweeps", multiple=True, metavar="NAME=1,2,3", help="Run once per value; repeat to run all combinations."
)
@click.option(
    "--csv", "file", type=click.File("rb"), help="Run once per row of this file; its header names the parameters."
)
@click.option("-r", "--raw", multiple=True, metavar="NAME", help="Keep the values of this parameter as strings.")
@click.option("--skip-tags", metavar="TAG,TAG", help="Skip cells with any of these tags.")
def main(
    notebook: Path, sweeps: tuple[str, ...], file: BinaryIO | None, raw: tuple[str, ...], skip_tags: str | None
) -> None:
    """Run NOTEBOOK on a Dask cluster for each set of parameters, and print a table of the runs as CSV.

    \b
    Example:  papermill-sweep train.ipynb --sweep depth=4,8,12
    """
    names, rows = read_table(file.read(), file.name, raw) if file else ([], [{}])
    combined = combinations(sweeps, raw)
    known = [*names, *combined[0]]
    if unknown := sorted({*raw} - {*known}):
        raise click.BadParameter(f"unknown: {', '.join(unknown)}; allowed: {', '.join(known)}", param_hint="--raw")
    sources = [*([f"the header of {file.name}"] if file else []), *(["--sweep"] if sweeps else [])]
    check_parameter_names(known, ", then ".join(sources), notebook)
    parameter_sets = [row | combination for row in rows for combination in combined]
    options = {"skip_tags": skip_tags} if skip_tags else {}  # otherwise the metadata or Dask's configuration applies
    sweep = run_many(notebook, parameter_sets, report=lambda line: click.echo(line, err=True), **options)
    table = sweep.table()
    writer = csv.DictWriter(sys.stdout, dict.fromkeys(itertools.chain(*table)))
    writer.writeheader()
    writer.writerows(table)
    sys.exit(sweep.exit_code)
