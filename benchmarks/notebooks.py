"""The notebooks that the benchmarks run, and the programs that run them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat

from benchmarks.place import Place


def write_notebook(file: Path, *cells: str, parameters: str | None = None) -> Path:
    """Write a notebook of code cells, one tagged `parameters` before them if asked for; return its file."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    if parameters:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    nbformat.write(notebook, file)
    return file


def import_lines(folder: Path) -> str:
    """Return what all notebooks in ``folder`` import, as the text of one cell."""
    lines = {}
    for file in sorted(folder.glob("*.ipynb")):
        for cell in nbformat.read(file, as_version=4).cells:
            if cell.cell_type == "code":
                lines |= dict.fromkeys(
                    line for line in cell.source.splitlines() if line.startswith(("import ", "from "))
                )
    return "\n".join(lines)


def output_text(file: Path) -> str:
    """Return all that an executed notebook's cells wrote to their streams."""
    cells = nbformat.read(file, as_version=4).cells
    return "".join(
        output.text for cell in cells for output in cell.get("outputs", []) if output.output_type == "stream"
    )


def papermill(place: Place, notebook: Path, output: Path, *options: object) -> None:
    """Run a notebook through the program `papermill`, with its own engine unless the options name another."""
    place.do("papermill", notebook, output, *map(str, options), cwd=notebook.parent)


def papermill_each(place: Place, notebook: Path, values: Iterable[int], jobs: int, *options: object) -> None:
    """Run a notebook once for each value of its parameter `i`, ``jobs`` programs at a time.

    papermill's own engine loses a kernel start now and then to a port that another kernel has taken; as a person
    would, this runs such a notebook once more.
    """
    outputs = place.new_folder("outputs")

    def run(i: int) -> None:
        words = (place, notebook, outputs / f"{i}.ipynb", "-p", "i", i, *options)
        try:
            papermill(*words)
        except RuntimeError:
            if "dask" in options:
                raise
            papermill(*words)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, values))
