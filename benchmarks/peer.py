"""The best peer: Snakemake, in an environment of its own, running the `papermill` of ours."""

from __future__ import annotations

from pathlib import Path

from benchmarks.place import Place
from tests.workplace import BIN

SNAKEMAKE = "snakemake==9.27.1"
SNAKEFILE = """
rule all:
    input: expand("{{i}}.ipynb", i=range(1, {count} + 1))

rule run:
    input: "{notebook}"
    output: "{{i}}.ipynb"
    shell: "papermill {{input}} {{output}} -p i {{wildcards.i}}"
"""


def install_snakemake(place: Place) -> Path:
    """Install Snakemake with uv, beside the clone; return its program."""
    environment = place.folder / "snakemake"
    if not environment.exists():
        place.do("uv", "venv", "--quiet", "--python", BIN / "python", environment)
        place.do("uv", "pip", "install", "--quiet", "--python", environment / "bin" / "python", SNAKEMAKE)
    return environment / "bin" / "snakemake"


def run_snakemake(place: Place, snakemake: Path, notebook: Path, count: int) -> None:
    """Run a notebook for each value of its parameter `i` from 1 to ``count``, two jobs at a time."""
    folder = place.new_folder("snakemake-run")
    (folder / "Snakefile").write_text(SNAKEFILE.format(count=count, notebook=notebook))
    place.do(snakemake, "--cores", "2", "--retries", "1", "--quiet", "all", cwd=folder)
    if len(list(folder.glob("*.ipynb"))) != count:
        raise RuntimeError("Snakemake ran something else")
