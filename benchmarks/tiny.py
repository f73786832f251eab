"""Twenty notebooks that import pandas and sleep half a second, on two workers."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import Side
from benchmarks.notebooks import papermill_each, write_notebook
from benchmarks.peer import install_snakemake, run_snakemake
from benchmarks.place import Place
from benchmarks.rows import Ratio

TITLE = "Twenty tiny notebooks"
COUNT = 20
STOCK = "`papermill`, one after another"
STOCK_PAIR = "`papermill`, two at a time"
PEER = "Snakemake, two jobs"
OURS = "a sweep of `papermill-sweep`"
OURS_PAIR = "`papermill --engine dask`, two at a time"
ROWS = (
    Ratio("20 tiny notebooks", STOCK, OURS, 8),
    Ratio("20 tiny notebooks", PEER, OURS, 3),
    Ratio("20 tiny notebooks", STOCK_PAIR, OURS),
    Ratio("20 tiny notebooks, a program each", STOCK_PAIR, OURS_PAIR),
)
VALUES = range(1, COUNT + 1)


def sides(place: Place) -> list[Side]:
    """Return papermill alone, the best peer, and ours."""
    notebook = tiny_notebook(place)
    snakemake = install_snakemake(place)
    return [
        Side(STOCK, lambda: papermill_each(place, notebook, VALUES, 1)),
        Side(STOCK_PAIR, lambda: papermill_each(place, notebook, VALUES, 2)),
        Side(PEER, lambda: run_snakemake(place, snakemake, notebook, COUNT)),
        Side(OURS, lambda: sweep(place, notebook, COUNT), place.wait_until_warm),
        Side(OURS_PAIR, lambda: papermill_each(place, notebook, VALUES, 2, "--engine", "dask"), place.wait_until_warm),
    ]


def settle(place: Place) -> None:
    """Let each program run once."""
    notebook = tiny_notebook(place)
    papermill_each(place, notebook, [1], 1)
    papermill_each(place, notebook, [1, 2], 2, "--engine", "dask")
    sweep(place, notebook, 2)


def tiny_notebook(place: Place) -> Path:
    """Return the notebook, in a folder of its own."""
    cells = ("import time\n\nimport pandas as pd", "time.sleep(0.5)\nprint(pd.DataFrame({'i': [i]}))")
    return write_notebook(place.new_folder("tiny") / "tiny.ipynb", *cells, parameters="i = 0")


def sweep(place: Place, notebook: Path, count: int) -> None:
    """Run a notebook for each value of its parameter `i` from 1 to ``count``, in one command."""
    values = ",".join(map(str, range(1, count + 1)))
    place.do("papermill-sweep", notebook.name, "--sweep", f"i={values}", cwd=notebook.parent)
