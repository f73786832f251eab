"""A stage depends on its code: what runs again after a change anywhere in the package, and what does not."""

from __future__ import annotations

import ast
import json
import modulefinder
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from workplace import BIN, ROOT, clean_environment

from workshop import fingerprint

NOTEBOOKS = sorted((ROOT / "4_pipeline" / "notebooks").glob("*.ipynb"))
STAGES = {"fetch", *(path.stem for path in NOTEBOOKS)}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package, and a pipeline of which everything is up to date: DVC takes the outputs as they are."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "workshop", root / "workshop", ignore=shutil.ignore_patterns("__pycache__"))
    pipeline = root / "4_pipeline"
    shutil.copytree(ROOT / "4_pipeline" / "notebooks", pipeline / "notebooks")
    (pipeline / "own").mkdir()
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / "4_pipeline" / name, pipeline)
    dvc(pipeline, "init", "--no-scm", "--quiet")
    for stage in fingerprint.stages(pipeline).values():
        for out in [*stage["outs"], *stage.get("metrics", [])]:
            path = pipeline / (out if isinstance(out, str) else next(iter(out)))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(exist_ok=True) if path.suffix == "" else path.write_text(path.name)
    write(root)
    dvc(pipeline, "commit", "--force", "--quiet")
    return root


def dvc(folder: Path, *words: str) -> str:
    """Type a command of DVC's; return what it prints."""
    done = subprocess.run(
        [BIN / "dvc", *words], cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(root: Path) -> None:
    """Write the code of each stage, as the pipeline's first stage does it."""
    fingerprint.write_code(root / "4_pipeline", root / "4_pipeline" / "data" / "code", root)


def stale(root: Path) -> set[str]:
    """Return the stages that DVC would run for their code."""
    write(root)
    status = json.loads(dvc(root / "4_pipeline", "status", "--json"))
    return {stage for stage, changes in status.items() if f"data/code/{stage}.txt" in str(changes)}


def importers(root: Path, folder: Path) -> dict[str, set[str]]:
    """Return the stages that import each module, as the standard library's own finder sees it, from bytecode."""
    shutil.copytree(root / "workshop", folder / "workshop")
    for file in folder.rglob("*.py"):  # the compiler leaves it out
        file.write_text(file.read_text().replace("if TYPE_CHECKING:", "if 0:"))
    imports: dict[str, set[str]] = {}
    for stage in STAGES:
        script = folder / f"{stage}.py"
        notebook = ROOT / "4_pipeline" / "notebooks" / f"{stage}.ipynb"
        cells = json.loads(notebook.read_text())["cells"] if notebook.exists() else []
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        script.write_text("\n".join(code) or "import workshop.data.sources")
        finder = modulefinder.ModuleFinder(path=[str(folder)])
        finder.run_script(str(script))
        for name in finder.modules.keys() - {"__main__"}:
            imports.setdefault(name, set()).add(stage)
    return imports


def name_of(file: Path, root: Path) -> str:
    """Return the name under which a file is imported."""
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.walk
def test_changed_function_makes_those_stages_stale_that_import_it(copy, tmp_path):
    """Functions from all over the package, one at a time."""
    files = sorted((copy / "workshop").rglob("*.py"))
    functions = [
        (file, node.body[-1].lineno)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.body[-1].lineno > node.lineno
    ]
    expected, rooms = importers(copy, tmp_path), set()
    assert set().union(*expected.values()) == STAGES
    for file, line in random.Random(1).sample(functions, 15):
        lines = file.read_text().splitlines(keepends=True)
        indent = lines[line - 1][: len(lines[line - 1]) - len(lines[line - 1].lstrip())]
        file.write_text("".join([*lines[: line - 1], f"{indent}_changed = True\n", *lines[line - 1 :]]))
        assert stale(copy) == expected.get(name_of(file, copy), set()), f"{file}:{line}"
        file.write_text("".join(lines))
        rooms.add(file.parent.name)
    assert rooms >= {"data", "models", "servers", "teaching", "cli"}
    assert stale(copy) == set()


@pytest.mark.parametrize(
    ("file", "before", "after", "stages"),
    [
        ("models/report.py", "def worst(", "# A comment\n\ndef worst(", set()),
        ("models/report.py", '    """', '    """Better said. ', set()),
        ("models/report.py", "if TYPE_CHECKING:\n", "if TYPE_CHECKING:\n    import workshop.cli\n", set()),
        ("models/report.py", "= 3, 6, 0.05", "= 5, 6, 0.05", {"report"}),
        ("models/regressor.py", "0.0", "0.1", STAGES - {"fetch", "prepare", "split", "compare"}),
        ("data/card.md.jinja", "#", "# The", STAGES - {"split", "compare"}),
    ],
)  # fmt: skip
def test_words_and_layout_count_for_nothing(copy, file, before, after, stages):
    """Neither a comment, nor a docstring, nor an import for type checkers; but each value, and a template beside it."""
    path = copy / "workshop" / file
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    assert stale(copy) == stages
    path.write_text(text)


def test_code_is_the_same_for_every_python(copy):
    """The lists of all stages are what another version writes, where there is one on this machine."""
    others = [path for name in ("3.11", "3.12", "3.13") if (path := shutil.which(f"python{name}"))]
    others = [
        path for path in others if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
    ]
    script = "import sys; from pathlib import Path; from workshop.fingerprint import _module\n"
    script += "for file in sorted(Path('workshop').rglob('*.py')): print(_module(file, 0)[0])"
    paths = os.pathsep.join([str(copy), *map(str, BIN.parent.glob("lib/python*/site-packages"))])
    prints = {
        subprocess.run([path, "-c", script], cwd=copy, env=clean_environment() | {"PYTHONPATH": paths}, text=True,
                       capture_output=True, check=True).stdout
        for path in [BIN / "python", *others]
    }  # fmt: skip
    assert len(prints) == 1
