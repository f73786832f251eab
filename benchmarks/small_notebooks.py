"""Time small notebooks: a single one, and twenty runs of one that imports pandas and sleeps for half a second."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import nbformat

from benchmarks.clone import Clone
from benchmarks.measure import Side
from benchmarks.table import Row
from tests.workplace import BIN

TITLE = "Small notebooks"
VALUES = range(1, 21)
TRAINING = "train_gradient_boosting.ipynb"
ONE, ONE_DASK = "`papermill`, nothing imported", "`papermill --engine dask`, nothing imported"
IMPORTS, IMPORTS_DASK = "`papermill`, a training's imports", "`papermill --engine dask`, a training's imports"
ONE_ALONE = "`papermill --engine dask`, nothing imported, no server"
IMPORTS_ALONE = "`papermill --engine dask`, a training's imports, no server"
STOCK, STOCK_PAIR = "`papermill`, one after another", "`papermill`, two at a time"
PEER = "execnb, two processes, no kernels"
OURS, OURS_PAIR = "`papermill-sweep`", "`papermill --engine dask`, two at a time"
STOCK_STAGES, OURS_STAGES = "`dvc repro`, papermill's own engine", "`dvc-parallel repro`, engine"
ROWS = (
    Row("one notebook, nothing imported", ONE, ONE_DASK),
    Row("one notebook, a training's imports", IMPORTS, IMPORTS_DASK),
    Row("one notebook without a server, nothing imported", ONE, ONE_ALONE),
    Row("one notebook without a server, a training's imports", IMPORTS, IMPORTS_ALONE),
    Row("20 tiny notebooks", STOCK, OURS),
    Row("20 tiny notebooks", STOCK_PAIR, OURS),
    Row("20 tiny notebooks, each in a kernel of its own", PEER, OURS),
    Row("20 tiny notebooks, one `papermill` process each", STOCK_PAIR, OURS_PAIR),
    Row("20 tiny notebooks as DVC stages", STOCK_STAGES, OURS_STAGES),
)
STAGES = """
stages:
  tiny:
    foreach: [{values}]
    do:
      cmd: papermill {notebook} ${{item}}.ipynb -p i ${{item}} {options}
      outs: ["${{item}}.ipynb"]
"""
# One more job than workers, so that a client is already connected when a worker becomes free.
STAGES_SIDE_BY_SIDE = ("dvc-parallel", "repro", "--jobs", "3")
PEERS = ("execnb==0.3.4", f"pandas=={version('pandas')}")
EXECNB = """
import sys
from execnb.shell import CaptureShell
for i in sys.argv[2:]:
    CaptureShell().execute(sys.argv[1], f"{i}.ipynb", exc_stop=True, inject_code=f"i = {i}", inject_idx=0)
"""


def sides(clone: Clone) -> list[Side]:
    """Return the sides: plain papermill, execnb, and our engine and commands."""
    folder = clone.new_folder("notebooks")
    empty = write_notebook(folder / "empty.ipynb", "", "print(1 + 1)")
    imports = write_notebook(folder / "imports.ipynb", import_lines(clone.pipeline / TRAINING), "print(1 + 1)")
    cells = ("import time\n\nimport pandas as pd", "time.sleep(0.5)\nprint(pd.DataFrame({'i': [i]}))")
    tiny = write_notebook(folder / "tiny.ipynb", *cells, parameters="i = 0")
    peers = install_peers(clone)

    def run_one(notebook: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        output = notebook.with_suffix(".out.ipynb")
        clone.do("papermill", notebook, output, *options, cwd=notebook.parent, environment=environment)

    def run_sweep() -> None:
        values = f"i={','.join(map(str, VALUES))}"
        clone.do("papermill-sweep", tiny.name, "--sweep", values, cwd=tiny.parent)

    dask = ("--engine", "dask")
    warm = clone.wait_until_warm
    return [
        Side(ONE, lambda: run_one(empty)),
        Side(ONE_DASK, lambda: run_one(empty, *dask), warm),
        Side(IMPORTS, lambda: run_one(imports)),
        Side(IMPORTS_DASK, lambda: run_one(imports, *dask), warm),
        Side(ONE_ALONE, lambda: run_one(empty, *dask, environment=clone.fresh_environment)),
        Side(IMPORTS_ALONE, lambda: run_one(imports, *dask, environment=clone.fresh_environment)),
        Side(STOCK, lambda: run_papermill_each(clone, tiny, VALUES, 1)),
        Side(STOCK_PAIR, lambda: run_papermill_each(clone, tiny, VALUES, 2)),
        Side(PEER, lambda: run_execnb(clone, peers / "python", tiny)),
        Side(OURS, run_sweep, warm),
        Side(OURS_PAIR, lambda: run_papermill_each(clone, tiny, VALUES, 2, *dask), warm),
        Side(STOCK_STAGES, lambda: run_stages(clone, ("dvc", "repro"), tiny)),
        Side(OURS_STAGES, lambda: run_stages(clone, STAGES_SIDE_BY_SIDE, tiny, *dask), warm),
    ]


def write_notebook(file: Path, *cells: str, parameters: str | None = None) -> Path:
    """Write a notebook with code ``cells``, after a cell tagged `parameters` if any are given; return the file."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    if parameters:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    nbformat.write(notebook, file)
    return file


def import_lines(file: Path) -> str:
    """Return a notebook's import lines."""
    lines = "\n".join(cell.source for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code")
    return "\n".join(line for line in lines.splitlines() if line.startswith(("import ", "from ")))


def run_papermill(clone: Clone, notebook: Path, output: Path, *options: object) -> None:
    """Run a notebook with the `papermill` command."""
    clone.do("papermill", notebook, output, *map(str, options), cwd=notebook.parent)


def run_papermill_each(clone: Clone, notebook: Path, values: Iterable[int], jobs: int, *options: object) -> None:
    """Run a notebook once for each value of its parameter `i`, ``jobs`` processes at a time.

    With papermill's own engine a kernel sometimes fails to start because another one has taken its port, so retry once.
    """
    outputs = clone.new_folder("outputs")

    def run(i: int) -> None:
        arguments = (clone, notebook, outputs / f"{i}.ipynb", "-p", "i", i, *options)
        try:
            run_papermill(*arguments)
        except RuntimeError:
            if "dask" in options:
                raise
            run_papermill(*arguments)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, values))


def install_peers(clone: Clone) -> Path:
    """Install execnb in a separate environment; return its folder of executables."""
    environment = clone.folder / "peers"
    if not environment.exists():
        clone.do("uv", "venv", "--quiet", "--python", BIN / "python", environment)
        options = ("--quiet", "--compile-bytecode", "--python", environment / "bin" / "python")
        clone.do("uv", "pip", "install", *options, *PEERS)
    for packages in (environment, BIN.parent):
        if not next(packages.glob("lib/*/site-packages/yaml/__pycache__/*.pyc"), None):
            raise RuntimeError(f"{packages} has no compiled modules (.pyc): each start would compile its imports")
    return environment / "bin"


def run_execnb(clone: Clone, python: Path, notebook: Path) -> None:
    """Run a notebook for each value of its parameter `i` with execnb, half of the values in each of two processes."""
    folder = clone.new_folder("execnb")

    def run(values: Iterable[int]) -> None:
        clone.do(python, "-c", EXECNB, notebook, *map(str, values), cwd=folder)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, (VALUES[::2], VALUES[1::2])))
    if len(list(folder.glob("*.ipynb"))) != len(VALUES):
        raise RuntimeError("execnb did not write all notebooks")


def run_stages(clone: Clone, program: tuple[str, ...], notebook: Path, *options: str) -> float:
    """Run a new DVC pipeline with a stage for each value of a notebook's parameter `i`; return the seconds."""
    folder = clone.new_folder("stages")
    values = ", ".join(map(str, VALUES))
    (folder / "dvc.yaml").write_text(STAGES.format(values=values, notebook=notebook, options=" ".join(options)))
    clone.do("dvc", "init", "--quiet", "--no-scm", cwd=folder)
    start = time.perf_counter()
    clone.do(*program, cwd=folder)
    seconds = time.perf_counter() - start
    if len(list(folder.glob("*.ipynb"))) != len(VALUES):
        raise RuntimeError(f"`{' '.join(program)}` did not write all notebooks")
    return seconds
