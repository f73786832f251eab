"""Many runs of one notebook with different parameters, in parallel on the cluster; one table of all runs."""

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
from papermill_dask.config import METADATA, NotebookOptions, tags_of
from papermill_dask.failures import EngineError

TICK_SECONDS = 0.2
Report = Callable[[str], object]


@dataclass
class NotebookRun:
    """One run of the notebook; its ``status`` is `done`, `failed`, `stopped` (also while it waited), or `not run`."""

    parameters: dict[str, Any]
    output: Path
    status: str = "not run"
    seconds: float | None = None
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # of its MLflow runs


@dataclass(frozen=True)
class Sweep:
    """All runs; ``signal`` is the one that stopped them early, if any."""

    runs: list[NotebookRun]
    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """0 when all ran well, 1 when any failed, 128 and the signal's number when it was stopped."""
        return 128 + self.signal if self.signal else int(any(run.status == "failed" for run in self.runs))

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each run: its parameters, status, seconds and metrics, under names of their own."""
        rows = []
        for run in self.runs:
            rows.append(row := dict(run.parameters))
            results = {"status": run.status, "seconds": run.seconds and round(run.seconds, 1)}
            for name, value in (*results.items(), *run.metrics.items()):
                row[f"{name} (result)" if name in row else name] = value
        return rows


def combinations(sweeps: Iterable[str], raw: Container[str] = ()) -> list[dict[str, Any]]:
    """Return all combinations of ``NAME=VALUE,VALUE,...``, the last name varying fastest; `[{}]` for no sweep.

    Values are converted as by papermill's ``-p``, but for the names in ``raw``; a value with a comma needs double
    quotes. Raises EngineError.

    >>> combinations(["n=1,02"]), combinations(["n=1,02"], raw=["n"])
    ([{'n': 1}, {'n': 2}], [{'n': '1'}, {'n': '02'}])
    """
    values: dict[str, list[Any]] = {}
    for sweep in sweeps:
        name, _, text = sweep.partition("=")
        texts = [part.strip() for part in next(csv.reader([text], skipinitialspace=True), [])]
        if not name or not all(texts) or len(set(texts)) < max(len(texts), 1) or name in values:
            raise EngineError(
                "A sweep cannot be read.", value=sweep, expected="NAME=VALUE,VALUE,... with each name and value once"
            )
        values[name] = [_value(name, part, raw) for part in texts]
    return [dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())]


def _value(name: str, text: str, raw: Container[str]) -> Any:
    return text if name in raw else compat.read_parameter(text)


def check_names(names: Sequence[str], place: str, notebook: Path) -> None:
    """Raise EngineError unless all names, from ``place``, are different and can be parameters of the notebook."""
    try:
        cells = json.loads(notebook.read_bytes())["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
        nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
        parameters = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
    except SyntaxError:  # another language
        parameters = set(re.findall(r"\w+", code))
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError("The notebook cannot be read.", value=f"{notebook}: {error!r}") from None
    for number, name in enumerate(names, start=1):
        problems = {
            "it is no identifier": not name.isidentifier() or iskeyword(name),
            "it is there twice": name in names[: number - 1],
            "the notebook's cell tagged `parameters` does not have it": code and name not in parameters,
        }
        for problem in (problem for problem, is_there in problems.items() if is_there):
            value, expected = f"{name!r}, number {number} in {place}: {problem}", ", ".join(sorted(parameters))
            next_step = f"correct the name, or add it to {notebook}"
            raise EngineError(
                "This cannot be the name of a parameter.", value=value, expected=expected, next_step=next_step
            )


def known_tags(options: Mapping[str, Any], notebook: Path, report: Report) -> list[str]:
    """Return the tags to skip that code cells have; report the others, once for all runs."""
    document = json.loads(notebook.read_bytes())
    metadata = {"skip_tags": document["metadata"].get(METADATA, {}).get("skip_tags")}
    given = {"skip_tags": options["skip_tags"]} if "skip_tags" in options else {}
    tags, known = NotebookOptions.of(metadata, given).skip_tags, tags_of(document["cells"])
    if unknown := sorted(set(tags) - known):
        report(f"No code cell has the tag to skip: {', '.join(unknown)}.")
    return [tag for tag in tags if tag in known]


def read_table(content: bytes, place: str, raw: Container[str] = ()) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the header of a CSV file, and the parameters of each other row, those in ``raw`` as they are written.

    Raises EngineError if the file has a fault.

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
            problem = problem or f"line {line} has {len(row) - row.count('')} values, the header {len(names)}"
    if problem or not rows:
        raise EngineError(
            "The table of parameters cannot be read.",
            value=f"{place}: {problem or ('no row below the header' if names else 'it is empty')}",
            expected="a header, and rows with a value for each of its names, separated by commas, in UTF-8",
            next_step="save the file in that form; write None for no value",
        )
    return names, [{name: _value(name, text, raw) for name, text in zip(names, row, strict=True)} for _, row in rows]


def run_many(notebook: Path | str, every: Iterable[Mapping[str, Any]], report: Report = print, **options: Any) -> Sweep:
    """Run a notebook once for each set of parameters in ``every``, in parallel on the cluster; return all runs.

    A failing run stops no other. Ctrl-C, or SIGTERM, stops all; finished runs are kept. The executed notebooks are in
    ``executed/<name>``, numbered in this order. ``report`` is called with lines about the progress;
    ``options`` are those of each notebook, as in `papermill.execute_notebook`.
    """
    from papermill.iorw import local_file_io_cwd

    from papermill_dask.client import cluster, engine, stage

    notebook, every = Path(notebook), list(every)
    check_names(list(dict.fromkeys(itertools.chain(*every))), "the parameters", notebook)
    options["skip_tags"] = known_tags(options, notebook, report)
    folder = Path("executed", notebook.stem)
    folder.mkdir(parents=True, exist_ok=True)
    runs = [NotebookRun(dict(row), folder / f"{notebook.stem}-{n}.ipynb") for n, row in enumerate(every, start=1)]
    signals: list[int] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(stage.ends_with_dvc())
        # papermill has one current folder for all threads; so set it here, and restore it afterwards.
        stack.enter_context(local_file_io_cwd())
        client = stack.enter_context(cluster.connect(max(1, min(len(every), CPU_COUNT))))
        options = {"engine_name": "dask", "client": client, "progress_bar": False} | options
        stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # collected, instead of an exception at any place
        stack.enter_context(engine.handled(stops, lambda number, _: signals.append(number)))
        parallel = sum(worker.notebooks for worker in cluster.query_workers(client))
        report(f"{len(runs)} x {notebook.name}, {parallel} in parallel, on {compat.scheduler_of(client).address}")
        pool = stack.enter_context(ThreadPoolExecutor(max(1, len(runs)), "notebook"))
        queue, active = iter(runs), set[Future[None]]()
        while not signals:
            # Twice as many: some are loaded and saved while the cluster runs others.
            with contextlib.suppress(OSError):  # each notebook reports that the scheduler is lost
                parallel = max(1, cluster.capacity(client))
            new = itertools.islice(queue, max(0, 2 * parallel - len(active)))
            active |= {pool.submit(_execute, run, notebook, options, signals, report) for run in new}
            if not active:
                break
            active = wait(active, TICK_SECONDS, FIRST_COMPLETED).not_done
        if signals:
            report(f"{signal.Signals(signals[0]).name}: stopping; finished runs are kept")
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()  # saves the notebooks as they are; the workers end the kernels
    return Sweep(runs, signals[0] if signals else None)


def _execute(run: NotebookRun, notebook: Path, options: dict[str, Any], signals: Sequence[int], report: Report) -> None:
    """Make one run, in a thread of its own; write its results into ``run``."""
    import papermill

    if signals:
        return
    run.output.unlink(missing_ok=True)  # of an earlier time
    try:
        papermill.execute_notebook(str(notebook), str(run.output), run.parameters, **options)
        run.status = "done"
    except Exception as error:  # noqa: BLE001 - no error stops the other notebooks
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
    "--sweep", "sweeps", multiple=True, metavar="NAME=1,2,3", help="A run for each value; several: each combination."
)
@click.option(
    "--csv", "file", type=click.File("rb"), help="A run for each row of this file; its header names the parameters."
)
@click.option("-r", "--raw", multiple=True, metavar="NAME", help="Leave the values of this parameter as text.")
@click.option("--skip-tags", metavar="TAG,TAG", help="Do not run the cells with one of these tags.")
def main(
    notebook: Path, sweeps: tuple[str, ...], file: BinaryIO | None, raw: tuple[str, ...], skip_tags: str | None
) -> None:
    """Run NOTEBOOK on a Dask cluster once for each set of parameters, and print a table of the runs (CSV).

    \b
    Example:  papermill-sweep train.ipynb --sweep depth=4,8,12
    """
    names, rows = read_table(file.read(), file.name, raw) if file else ([], [{}])
    combined = combinations(sweeps, raw)
    known = [*names, *combined[0]]
    if unknown := sorted({*raw} - {*known}):
        raise click.BadParameter(f"{', '.join(unknown)} is none of {', '.join(known)}", param_hint="--raw")
    places = [*([f"the header of {file.name}"] if file else []), *(["--sweep"] if sweeps else [])]
    check_names(known, ", then ".join(places), notebook)
    every = [parameters | more for parameters in rows for more in combined]
    options = {"skip_tags": skip_tags} if skip_tags else {}  # without it, those of the metadata or the configuration
    sweep = run_many(notebook, every, report=lambda line: click.echo(line, err=True), **options)
    table = sweep.table()
    writer = csv.DictWriter(sys.stdout, dict.fromkeys(itertools.chain(*table)))
    writer.writeheader()
    writer.writerows(table)
    sys.exit(sweep.exit_code)
