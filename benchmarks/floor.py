"""Measure the pipeline's minimum time: run only the cells, each notebook in a fork of a process with all imports done.

`python -m benchmarks.floor` runs in the pipeline's folder, with the servers' addresses in its environment, and prints
the minimum seconds on two processors. Stages are grouped by their depth in the DAG. A group takes as long as its
longest stage, or half of its CPU seconds, whichever is more; the result is the sum over the groups.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import shlex
import sys
import time
from collections import defaultdict
from pathlib import Path

import nbformat
import psutil
import yaml

PROCESSORS = 2
INLINE = "module://matplotlib_inline.backend_inline"
MODULES = (
    "forecast.__main__", "forecast.learn.evaluation", "forecast.govern.gate", "forecast.learn.models",
    "forecast.raw.prepare", "forecast.raw.sources", "forecast.show.figures", "forecast.show.monitoring",
    "IPython.core.interactiveshell", "keras", "mlflow.keras",
)  # fmt: skip


def main() -> None:
    """Run the stages one after another and print the minimum, in seconds."""
    os.environ["MPLBACKEND"] = INLINE
    imports = yaml.safe_load(Path("../workshop/servers/dask.yaml").read_text())["papermill-dask"]["kernel-imports"]
    for module in (*imports, *MODULES):
        importlib.import_module(module)
    parameters = yaml.safe_load(Path("params.yaml").read_text())
    levels: dict[str, int] = {}  # by output
    walls, cpu_seconds = defaultdict[int, list[float]](list), defaultdict[int, float](float)
    for name, stage in yaml.safe_load(Path("dvc.yaml").read_text())["stages"].items():
        level = 1 + max((levels.get(dep, 0) for dep in stage.get("deps", [])), default=0)
        levels |= {next(iter(out)) if isinstance(out, dict) else out: level for out in stage["outs"]}
        wall, cpu = _measure([stage["cmd"]] if isinstance(stage["cmd"], str) else stage["cmd"], parameters.get(name))
        print(f"  {name}: {wall:.2f} s, {cpu:.2f} CPU seconds", file=sys.stderr)
        walls[level].append(wall)
        cpu_seconds[level] += cpu
    print(sum(max(*walls[level], cpu_seconds[level] / PROCESSORS) for level in walls))


def _measure(commands: list[str], parameters: dict | None) -> tuple[float, float]:
    """Run a stage in a fork; return its wall time and the whole machine's CPU seconds, workers included."""
    before, start = _busy_seconds(), time.perf_counter()
    if (child := os.fork()) == 0:
        with contextlib.suppress(SystemExit):
            for command in commands:
                _run(shlex.split(command), parameters or {})
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError(f"a stage failed: {commands}")
    return time.perf_counter() - start, _busy_seconds() - before


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0)


def _run(command: list[str], parameters: dict) -> None:
    program, *arguments = command
    if program == "papermill":
        _run_cells(Path(arguments[0]), parameters)
    elif program == "python":
        option, name, *sys.argv[1:] = arguments
        if option == "-m":
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            exec(name)  # noqa: S102 - a command from dvc.yaml


def _run_cells(notebook: Path, parameters: dict) -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from matplotlib import interactive
    from matplotlib_inline.backend_inline import configure_inline_support

    shell = InteractiveShell.instance()
    interactive(True)  # otherwise a figure that is not a cell's result would not be rendered
    configure_inline_support(shell, INLINE)  # render figures inline, as in a kernel
    with (
        Path(os.devnull).open("w") as devnull,
        contextlib.redirect_stdout(devnull),
        contextlib.redirect_stderr(devnull),
    ):
        for cell in nbformat.read(notebook, 4).cells:
            if cell.cell_type == "code":
                shell.run_cell(cell.source).raise_error()
                if "parameters" in cell.metadata.get("tags", []):
                    shell.push(parameters)


if __name__ == "__main__":
    main()
