"""What dvc.yaml says of a stage is what its notebook does: DVC, and a worker without this disk, see nothing else."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = "forecast"
STAGES = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
NOTEBOOKS = [name for name, stage in STAGES.items() if f"{name}.ipynb" in stage.get("deps", [])]


def paths(stage: str, *kinds: str) -> set[str]:
    """The paths that a stage declares; each is a text, or a mapping from the path to its flags."""
    entries = [entry for kind in kinds for entry in STAGES[stage].get(kind, [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def code(notebook: str) -> str:
    """The code cells of a notebook, as one program."""
    cells = json.loads((PROJECT / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def imports(program: Path) -> set[str]:
    """The files of the package that a program imports, directly or not, inside functions too."""
    finder = ModuleFinder([str(PROJECT)])
    finder.run_script(str(program))
    files = {Path(module.__file__) for module in finder.modules.values() if module.__file__}
    return {str(file.relative_to(PROJECT)) for file in files if file.is_relative_to(PROJECT / PACKAGE)}


@pytest.mark.parametrize("stage", STAGES)
def test_code_of_a_stage_is_among_its_dependencies(stage, tmp_path):
    """Whatever it imports of the package, so that changed code runs it again; `tracking_store` runs each time."""
    program = tmp_path / "program.py"
    if stage in NOTEBOOKS:
        program.write_text(code(stage))
    else:
        program.write_text(f"import {PACKAGE}.__main__")
    if STAGES[stage].get("always_changed"):
        return
    deps = paths(stage, "deps")
    used = {file for file in imports(program) if not file.endswith("__init__.py")}
    if stage not in NOTEBOOKS:  # the commands that it does not call import more
        used = {file for file in used if not file.endswith("/tracking.py")}
    missing = {file for file in used if not any(file == dep or file.startswith(f"{dep}/") for dep in deps)}
    assert used
    assert missing == set()
    needless = {dep for dep in deps if dep.startswith(PACKAGE) and not any(file.startswith(dep) for file in used)}
    assert needless == set(), "changes of this code would run the stage again"
    assert "requirements.txt" in deps


@pytest.mark.parametrize("stage", NOTEBOOKS)
def test_paths_of_a_notebook_are_declared(stage):
    """Each file of data or results that a notebook names is a dependency or an output of its stage."""
    named = {re.sub(r"{[^}]*}", "*", path) for path in re.findall(r'"((?:data|results)/[^"]*)"', code(stage))}
    declared = paths(stage, "deps", "outs", "metrics")
    assert named
    assert {path for path in named if not any(fnmatch(known, path) for known in declared)} == set()
    assert f"executed/{stage}.ipynb" in paths(stage, "outs"), "a branch, or the run cache, shows another run"


@pytest.mark.parametrize("stage", NOTEBOOKS)
def test_command_sets_each_parameter_of_its_notebook(stage):
    """A notebook gets what its section of params.yaml holds, and no parameter keeps its default unseen."""
    cells = json.loads((PROJECT / f"{stage}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    names = set(re.findall(r"^(\w+):", "\n".join(sources), re.MULTILINE))
    command, section = str(STAGES[stage]["cmd"]), yaml.safe_load((PROJECT / "params.yaml").read_text())[stage]
    assert set(re.findall(rf"\$\{{{stage}\.(\w+)\}}", command)) == names
    assert names in (set(), set(section))
    assert stage in " ".join(STAGES[stage]["params"])
