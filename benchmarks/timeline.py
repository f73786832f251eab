"""A timeline of one warm run of the pipeline: what each stage waits for, and which processes keep the processors busy.

`python -m benchmarks.timeline` runs `workshop repro --force` in a clone of its own, prints seconds, and draws
`timeline.png`. The bounds of a stage's parts are those that papermill writes into the executed notebook, and the life
of the stage's command.
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
from benchmarks.whole_pipeline import stages
from tests.workplace import processes_of

TICK_SECONDS = 0.05
BIN_SECONDS = 0.5
PARTS = ("DVC", "start of papermill", "kernel starts", "cells", "kernel ends", "MLflow")
KINDS = {
    "kernels": "serve_forks", "workers: fits, pages": "spawn_main", "commands of stages": "dvc_parallel.runner",
    "end of workshop repro": "finish_run", "scheduler": "dask", "tracking server": "mlflow", "FTP server": "ftp_server",
    "workshop repro": "workshop repro", "dashboard": "dashboard",
}  # fmt: skip


def main() -> None:
    """Measure one run, print its seconds and draw it."""
    with running_clone() as clone:
        clone.do("workshop", "repro", cwd=clone.pipeline)  # a model in production, and tables of the chapters
        clone.wait_until_warm()
        wait_until_quiet()
        began, used, commands = _watch(clone)
        parts = _parts(clone, commands, began)
        levels = list(stages(clone))
    parts = parts.loc[[name for name in levels if name in parts.index]]
    print(parts.round(2).to_string(), used.sum().round(2).sort_values(ascending=False).to_string(), sep="\n\n")
    _draw(parts, used)


def _watch(clone: Clone) -> tuple[float, pd.DataFrame, dict[str, list[float]]]:
    """Run the pipeline; return when it began, seconds of processor by kind and time, and the lives of commands."""
    seen: dict[psutil.Process, float] = {}
    used: dict[float, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    commands: dict[str, list[float]] = {}
    kinds: dict[psutil.Process, str] = {}
    for process in processes_of(clone.folder):
        seen[process] = sum(process.cpu_times()[:2])
    roots = [process for process in seen if process.ppid() == 1]
    began = time.time()
    with subprocess.Popen(
        ["workshop", "repro", "--force"], cwd=clone.pipeline, env=clone.environment, stderr=subprocess.DEVNULL
    ) as run:
        roots.append(psutil.Process(run.pid))
        while run.poll() is None:
            now = time.time()
            for process in [*roots, *(each for root in roots for each in root.children(recursive=True))]:
                with contextlib.suppress(psutil.Error, OSError):
                    kind = kinds.get(process) or kinds.setdefault(process, _kind(process))
                    busy = sum(process.cpu_times()[:2])
                    used[(now - began) // BIN_SECONDS * BIN_SECONDS][kind] += busy - seen.get(process, 0)
                    seen[process] = busy
                    if (
                        kind == "commands of stages"
                        and (log := Path(f"/proc/{process.pid}/fd/1").readlink()).suffix == ".log"
                    ):
                        name = log.stem.rpartition(":")[2]
                        commands.setdefault(name, [now - began, 0])[1] = now - began
            time.sleep(TICK_SECONDS)
    return began, pd.DataFrame(used).T.fillna(0).sort_index(), commands


def _kind(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    return next((kind for kind, part in KINDS.items() if part in words), "others")


def _parts(clone: Clone, commands: dict[str, list[float]], began: float) -> pd.DataFrame:
    """Return when each part of each stage begins, and when the last one ends, in seconds from the run's begin."""
    rows = {}
    for name, (start, end) in commands.items():
        file, row = clone.pipeline / "executed" / f"{name}.ipynb", [start] * 4 + [end] * 2 + [end]
        row = [start, start, start, end, end, end]
        if file.exists():
            notebook = nbformat.read(file, 4)
            cells = [cell.metadata.papermill for cell in notebook.cells if cell.cell_type == "code"]
            times = [
                notebook.metadata.papermill.start_time,
                cells[0].start_time,
                cells[-1].end_time,
                notebook.metadata.papermill.end_time,
            ]
            row = [
                start,
                *(
                    datetime.datetime.fromisoformat(each).replace(tzinfo=datetime.UTC).timestamp() - began
                    for each in times
                ),
                end,
            ]
        rows[name] = row
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["command", "papermill", "cells", "cells end", "kernel ended", "end"]
    )


def _draw(parts: pd.DataFrame, used: pd.DataFrame) -> None:
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 7), sharex=True, layout="constrained")
    names = ("imports", "kernel starts", "cells", "kernel ends", "MLflow")
    for number, name in enumerate(names):
        left, right = parts.iloc[:, number], parts.iloc[:, number + 1]
        top.barh(parts.index, right - left, left=left, label=name)
    top.invert_yaxis()
    top.legend(loc="lower left")
    used = used[used.sum().sort_values(ascending=False).index]
    bottom.stackplot(
        used.index, (used / BIN_SECONDS).T, labels=[f"{kind}: {used[kind].sum():.1f} s" for kind in used], step="post"
    )
    bottom.legend(loc="upper left", ncols=2, fontsize=8)
    bottom.set(xlabel="seconds", ylabel="processors")
    figure.savefig(Path(__file__).with_name("timeline.png"), dpi=80)


if __name__ == "__main__":
    main()
