"""A timeline of one warm run of the pipeline: what each stage waits for, and which processes keep the processors busy.

`python -m benchmarks.timeline` forces a run in a clone of its own, prints seconds, and draws `timeline.png`. The bounds
of a stage's parts are the life of its command, and the times that papermill writes into the executed notebook.
"""

from __future__ import annotations

import contextlib
import datetime
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import psutil

from benchmarks.clone import Clone, running_clone
from benchmarks.measure import wait_until_quiet
from benchmarks.whole_pipeline import run, stages
from tests.workplace import processes_of

TICK_SECONDS, BIN_SECONDS = 0.05, 0.5
PARTS = ["papermill connects", "kernel starts", "cells", "kernel ends", "MLflow gets the notebook"]
KINDS = {  # of processes, by a part of their command line
    "kernels": "serve_forks", "workers: fits, pages": "spawn_main", "commands of stages": "dvc_parallel.runner",
    "scheduler": "dask", "tracking server": "mlflow", "FTP server": "ftpserver",
    "workshop repro": "workshop repro", "dashboard": "dashboard",
}  # fmt: skip


def main() -> None:
    """Measure one run, print its seconds and draw it."""
    with running_clone() as clone:
        run(clone, "workshop")  # a model in production, and tables of the chapters
        clone.wait_until_warm()
        wait_until_quiet()
        parts, used = _watch(clone)
    print(parts.round(2).to_string(), used.sum().round(1).to_string(), sep="\n\n")
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 7), sharex=True, layout="constrained")
    for number, name in enumerate(PARTS):
        top.barh(parts.index, parts.iloc[:, number + 1] - parts.iloc[:, number], left=parts.iloc[:, number], label=name)
    top.invert_yaxis()
    top.legend(loc="lower left")
    names = [f"{kind}: {seconds:.1f} s" for kind, seconds in used.sum().items()]
    bottom.stackplot(used.index, (used / BIN_SECONDS).T, labels=names, step="post")
    bottom.legend(loc="upper left", bbox_to_anchor=(1, 1))
    bottom.set(xlabel="seconds", ylabel="busy processors")
    figure.savefig(Path(__file__).with_name("timeline.png"), dpi=80)


def _watch(clone: Clone) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Force a run; return when the parts of each stage begin and end, and seconds of processor by kind and time."""
    busy = {process: sum(process.cpu_times()[:2]) for process in processes_of(clone.folder)}
    roots = [process for process in busy if process.ppid() == 1]
    used: dict[float, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    commands: dict[str, list[float]] = {}  # of stages: when they begin and end
    kinds: dict[psutil.Process, str] = {}
    began, command = time.time(), ["workshop", "repro", "--force"]
    with subprocess.Popen(command, cwd=clone.pipeline, env=clone.environment, stderr=subprocess.DEVNULL) as program:
        roots.append(psutil.Process(program.pid))
        while program.poll() is None:
            now = time.time() - began
            for process in [*roots, *(each for root in roots for each in root.children(recursive=True))]:
                with contextlib.suppress(psutil.Error, OSError):
                    kind = kinds.get(process) or kinds.setdefault(process, _kind(process))
                    seconds = sum(process.cpu_times()[:2])
                    used[now // BIN_SECONDS * BIN_SECONDS][kind] += seconds - busy.get(process, 0)
                    busy[process] = seconds
                    if (log := Path(f"/proc/{process.pid}/fd/1").readlink()).suffix == ".log" and ":" in log.name:
                        commands.setdefault(log.stem.rpartition(":")[2], [now, 0])[1] = now
            time.sleep(TICK_SECONDS)
    rows = {name: _parts(clone, name, began, *commands[name]) for name in stages(clone) if name in commands}
    table = pd.DataFrame(used).T.fillna(0).sort_index()
    return pd.DataFrame(rows, index=[*PARTS, "end"]).T, table[table.sum().sort_values(ascending=False).index]


def _kind(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    return next((kind for kind, part in KINDS.items() if part in words), "Python of stages")


def _parts(clone: Clone, name: str, began: float, start: float, end: float) -> list[float]:
    """Return when each part of a stage begins, and its end, in seconds; all of a stage without cells is `cells`."""
    file = clone.pipeline / "executed" / f"{name}.ipynb"
    if not file.exists():
        return [start] * 3 + [end] * 3
    notebook = nbformat.read(file, 4)
    cells = [cell.metadata.papermill for cell in notebook.cells if cell.cell_type == "code"]
    whole = notebook.metadata.papermill
    times = (whole.start_time, cells[0].start_time, cells[-1].end_time, whole.end_time)
    read = (datetime.datetime.fromisoformat(each).replace(tzinfo=datetime.UTC).timestamp() for each in times)
    return [start, *(each - began for each in read), end]


if __name__ == "__main__":
    main()
