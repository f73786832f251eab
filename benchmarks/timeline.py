"""Draw a timeline of one warm run of the pipeline: the phases of each stage, and the CPU use by kind of process.

`python -m benchmarks.timeline` forces a run in a temporary clone, prints timings, and draws `timeline.png`. The phases
come from the start and end of a stage's command, and from the times that papermill writes into the executed notebook.
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
from benchmarks.floor import PROCESSORS
from benchmarks.measure import wait_until_quiet
from benchmarks.whole_pipeline import run, stages
from tests.workplace import processes_of

SAMPLE_SECONDS, BIN_SECONDS, PLOT_SECONDS = 0.04, 0.1, 0.5
PHASES = ["papermill connects", "kernel starts", "cells", "kernel ends", "MLflow gets the notebook"]
KINDS = {  # kinds of processes, recognized by a substring of the command line
    "kernels": "serve_forks", "workers: fits, pages": "spawn_main", "commands of stages": "dvc_parallel.runner",
    "scheduler": "dask", "tracking server": "mlflow", "FTP server": "ftpserver",
    "workshop repro": "workshop repro", "dashboard": "dashboard",
}  # fmt: skip


def main() -> None:
    """Measure one run, print its seconds, and draw its timeline."""
    with running_clone() as clone:
        run(clone, "workshop")  # puts a model into production
        clone.wait_until_warm()
        wait_until_quiet()
        phases, cpu_seconds = _watch(clone)
    print(phases.round(2).to_string(), _by_stage(phases, cpu_seconds).round(1).to_string(), sep="\n\n")
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 7), sharex=True, layout="constrained")
    for name in PHASES:
        top.barh(phases.index, phases.shift(-1, axis=1)[name] - phases[name], left=phases[name], label=name)
    top.invert_yaxis()
    top.legend(loc="lower left")
    names = [f"{kind}: {seconds:.1f} s" for kind, seconds in cpu_seconds.sum().items()]
    busy = cpu_seconds.groupby(cpu_seconds.index // PLOT_SECONDS * PLOT_SECONDS).sum() / PLOT_SECONDS
    bottom.stackplot(busy.index, busy.T, labels=names, step="post")
    bottom.legend(loc="upper left", bbox_to_anchor=(1, 1))
    bottom.set(xlabel="seconds", ylabel="busy processors")
    figure.savefig(Path(__file__).with_name("timeline.png"), dpi=80)


def _watch(clone: Clone) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Force a run; return the start of each stage's phases, and the CPU seconds by time and kind of process."""
    previous = {process: sum(process.cpu_times()[:2]) for process in processes_of(clone.folder)}
    roots = [process for process in previous if process.ppid() == 1]
    cpu_seconds: dict[float, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    commands: dict[str, list[float]] = {}  # start and end, by stage
    kinds: dict[psutil.Process, str] = {}
    start, command = time.time(), ["workshop", "repro", "--force"]
    with subprocess.Popen(command, cwd=clone.pipeline, env=clone.environment, stderr=subprocess.DEVNULL) as program:
        roots.append(psutil.Process(program.pid))
        while program.poll() is None:
            now = time.time() - start
            for process in [*roots, *(each for root in roots for each in root.children(recursive=True))]:
                with contextlib.suppress(psutil.Error, OSError):
                    kind = kinds.get(process) or kinds.setdefault(process, _kind(process))
                    seconds = sum(process.cpu_times()[:2])
                    cpu_seconds[now // BIN_SECONDS * BIN_SECONDS][kind] += seconds - previous.get(process, 0)
                    previous[process] = seconds
                    if (log := Path(f"/proc/{process.pid}/fd/1").readlink()).suffix == ".log" and ":" in log.name:
                        commands.setdefault(log.stem.rpartition(":")[2], [now, 0])[1] = now
            time.sleep(SAMPLE_SECONDS)
    rows = {name: _phases(clone, name, start, *commands[name]) for name in stages(clone) if name in commands}
    table = pd.DataFrame(cpu_seconds).T.fillna(0).sort_index()
    return pd.DataFrame(rows, index=[*PHASES, "end"]).T, table[table.sum().sort_values(ascending=False).index]


def _by_stage(phases: pd.DataFrame, cpu_seconds: pd.DataFrame) -> pd.DataFrame:
    """Return wall, idle and CPU seconds from the start of each stage's command to the next one's; trainings are one."""
    starts = phases[PHASES[0]].drop("tracking_store").rename(lambda name: "train" if "train" in name else name)
    starts = starts.groupby(level=0).min().sort_values()
    edges, names = [0, *starts, phases["end"].max()], ["workshop repro starts", *starts.index]
    table = cpu_seconds.groupby(pd.cut(cpu_seconds.index, edges, labels=names), observed=False).sum()
    wall = pd.Series(edges, ["", *names]).diff().dropna()
    table.insert(0, "idle processors", PROCESSORS * wall - table.sum(axis=1))
    table.insert(0, "wall", wall)
    return pd.concat([table, table.sum().to_frame("sum").T])


def _kind(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    return next((kind for kind, part in KINDS.items() if part in command), "Python of stages")


def _phases(clone: Clone, name: str, run_start: float, start: float, end: float) -> list[float]:
    """Return the start of each phase of a stage, and the stage's end; without a notebook, the only phase is `cells`."""
    file = clone.pipeline / "executed" / f"{name}.ipynb"
    if not file.exists():
        return [start] * 3 + [end] * 3
    notebook = nbformat.read(file, 4)
    cells = [cell.metadata.papermill for cell in notebook.cells if cell.cell_type == "code"]
    run = notebook.metadata.papermill
    times = (run.start_time, cells[0].start_time, cells[-1].end_time, run.end_time)
    seconds = (datetime.datetime.fromisoformat(each).replace(tzinfo=datetime.UTC).timestamp() for each in times)
    return [start, *(each - run_start for each in seconds), end]


if __name__ == "__main__":
    main()
