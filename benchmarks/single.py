"""One small notebook through the program `papermill`: its own engine, and ours with warm workers."""

from __future__ import annotations

from benchmarks.measure import Side
from benchmarks.notebooks import import_lines, papermill, write_notebook
from benchmarks.place import Place
from benchmarks.rows import Ratio

TITLE = "One small notebook"
KINDS = ("nothing imported", "the pipeline's imports", "TensorFlow")
PROMISED = {"nothing imported": 1, "the pipeline's imports": 5}


def own(kind: str) -> str:
    """Return the name of papermill's side."""
    return f"`papermill`, {kind}"


def ours(kind: str) -> str:
    """Return the name of our side."""
    return f"`papermill --engine dask`, {kind}"


ROWS = tuple(Ratio(f"one notebook, {kind}", own(kind), ours(kind), PROMISED.get(kind)) for kind in KINDS)


def sides(place: Place) -> list[Side]:
    """Return both engines for each kind of notebook."""
    folder = place.new_folder("single")
    cells = ("", import_lines(place.pipeline / "notebooks"), "import tensorflow")
    found = []
    for number, (kind, cell) in enumerate(zip(KINDS, cells, strict=True)):
        notebook = write_notebook(folder / f"{number}.ipynb", cell, "print(1 + 1)")
        output = folder / f"{number}.out.ipynb"
        found += [
            Side(own(kind), lambda notebook=notebook, output=output: papermill(place, notebook, output)),
            Side(
                ours(kind),
                lambda notebook=notebook, output=output: papermill(place, notebook, output, "--engine", "dask"),
                place.wait_until_warm,
            ),
        ]
    return found
