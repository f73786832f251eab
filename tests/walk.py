"""A chapter, followed as by an attendee: the commands of its text block by block, and its notebooks."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import nbformat
import yaml
from nbclient import NotebookClient
from nbformat import NotebookNode


class Block(NamedTuple):
    """A fenced block: the number of its step, its language (`bash`, `yaml` or `python`) and its text."""

    step: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the commands, parameters and code in the numbered steps (`### 1. ...`) of a chapter's page."""
    blocks_of_page = []
    steps = re.findall(r"^### (\d+)\. (.*?)(?=^###? |\Z)", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for number, text in steps:
        fences = re.findall(r"^ *```(bash|yaml|python)\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
        blocks_of_page += [Block(int(number), language, block) for language, block in fences]
    return blocks_of_page


class Walk:
    """A shell that keeps its current folder, and an editor for a code file."""

    def __init__(self, folder: Path, environment: dict[str, str], code: Path):
        self.folder = self.here = folder
        self.environment, self.code = environment, code

    def follow(self, block: Block, *, exit_code: int = 0) -> str:
        """Run a block, or write its parameters to `params.yaml` or its line of code; return stdout and stderr."""
        if block.language == "yaml":
            merge(self.folder / "params.yaml", yaml.safe_load(block.text))
            return ""
        if block.language == "python":
            left = re.escape(block.text.partition(" = ")[0])
            text, count = re.subn(rf"^{left} = .*\n", block.text, self.code.read_text(), flags=re.MULTILINE)
            assert count == 1, block.text
            self.code.write_text(text)
            return ""
        script = f'set -e\n{block.text}\npwd > "$WALK_HERE"\n'
        note = self.folder.parent / ".walk"
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.here, env=self.environment | {"WALK_HERE": str(note)}, text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False,
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert done.returncode == exit_code, f"{block.text}\n{output}"
        if not exit_code:
            self.here = Path(note.read_text().strip())
            note.unlink()
        return output


def merge(file: Path, changes: dict) -> None:
    """Write parameters of stages into a YAML file."""
    content = yaml.safe_load(file.read_text())
    for stage, values in changes.items():
        content[stage] |= values
    file.write_text(yaml.safe_dump(content, sort_keys=False))


def solution_of(cell: nbformat.NotebookNode) -> str:
    """Return the code in a solution's text cell."""
    [code] = re.findall(r"```python\n(.+?)\n```", cell.source, flags=re.DOTALL)
    return code


def solve(notebook: nbformat.NotebookNode) -> None:
    """Write the solutions into the exercise cells, above the check in their last line."""
    tagged = {tag: [] for tag in ("exercise", "solution")}
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", []):
            tagged[tag].append(cell)
    for answer, solution in zip(*tagged.values(), strict=True):
        answer.source = f"{solution_of(solution)}\n\n{answer.source.splitlines()[-1]}"


def execute(folder: Path, name: str, environment: dict[str, str], *, solved: bool = False) -> None:
    """Run a notebook in a new kernel and save it with its outputs."""
    path = folder / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    if solved:
        solve(notebook)
    try:
        run_in(folder, notebook, environment)
    finally:
        nbformat.write(notebook, path)


def run_in(folder: Path, notebook: NotebookNode, environment: dict[str, str], seconds: int = 300) -> NotebookNode:
    """Run the cells of a notebook in a new kernel and return it with their outputs."""
    place = {"metadata": {"path": folder}}
    return NotebookClient(notebook, timeout=seconds, kernel_name="python3", resources=place).execute(env=environment)
