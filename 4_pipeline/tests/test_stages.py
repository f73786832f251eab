"""dvc.yaml declares all that a notebook reads, writes and imports: DVC and remote workers use nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = "forecast"
STAGES = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
NOTEBOOKS = [name for name, stage in STAGES.items() if f"{name}.ipynb" in stage.get("deps", [])]


def paths(stage: str, *kinds: str) -> set[str]:
    """Return the paths that a stage declares; an entry is a string, or a mapping from the path to its flags."""
    entries = [entry for kind in kinds for entry in STAGES[stage].get(kind, [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def code(notebook: str) -> str:
    """Return the code cells of a notebook as one program."""
    cells = json.loads((PROJECT / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def modules(dep: str) -> list[str]:
    """Return the Python files of a dependency, which is a file or a folder."""
    files = [PROJECT / dep] if dep.endswith(".py") else (PROJECT / dep).rglob("*.py")
    return [str(file.relative_to(PROJECT)) for file in files if file.name != "__init__.py"]


def missing(folder: Path) -> list[list[str]]:
    """Return stage and file of each undeclared import that `dvc-parallel check` reports."""
    program = Path(sys.executable).with_name("dvc-parallel")
    done = subprocess.run([program, "check"], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (int(bool(done.stdout)), "")
    return [re.findall(r"^(\w+): add (\S+)", line)[0] for line in done.stdout.splitlines()]


def test_code_of_a_stage_is_among_its_dependencies(tmp_path):
    """A stage declares exactly the modules that it imports, so that only changes of its code run it again."""
    assert missing(PROJECT) == []
    for file in PROJECT.glob("*.ipynb"):
        shutil.copy(file, tmp_path)
    shutil.copytree(PROJECT / PACKAGE, tmp_path / PACKAGE)
    (tmp_path / "own").symlink_to(PROJECT / "own")
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    code_deps = {name: {dep for dep in paths(name, "deps") if dep.startswith(PACKAGE)} for name in STAGES}
    bare = {name: stage | {"deps": [*paths(name, "deps") - code_deps[name]]} for name, stage in STAGES.items()}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": bare}))
    subprocess.run([Path(sys.executable).with_name("dvc"), "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    used = {(stage, file) for stage, file in missing(tmp_path)}
    declared = {(name, dep) for name, deps in code_deps.items() for dep in deps}
    unused = [(name, dep) for name, dep in declared if not used & {(name, file) for file in modules(dep)}]
    assert unused == [], "changes of this code would run the stage again"
    assert [name for name, deps in code_deps.items() if deps and "requirements.txt" not in paths(name, "deps")] == []


@pytest.mark.parametrize("stage", NOTEBOOKS)
def test_paths_of_a_notebook_are_declared(stage):
    """Each path in data/ or results/ that a notebook uses is a dependency or an output of its stage."""
    named = {re.sub(r"{[^}]*}", "*", path) for path in re.findall(r'"((?:data|results)/[^"]*)"', code(stage))}
    declared = paths(stage, "deps", "outs", "metrics")
    assert named
    assert {path for path in named if not any(fnmatch(known, path) for known in declared)} == set()
    assert f"executed/{stage}.ipynb" in paths(stage, "outs"), "a branch, or the run cache, shows another run"


@pytest.mark.parametrize("stage", NOTEBOOKS)
def test_command_sets_each_parameter_of_its_notebook(stage):
    """The command sets all parameters of the notebook from params.yaml, so that none silently keeps its default."""
    cells = json.loads((PROJECT / f"{stage}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    names = set(re.findall(r"^(\w+):", "\n".join(sources), re.MULTILINE))
    command, section = str(STAGES[stage]["cmd"]), yaml.safe_load((PROJECT / "params.yaml").read_text())[stage]
    assert set(re.findall(rf"\$\{{{stage}\.(\w+)\}}", command)) == names
    if stage.startswith("train_"):
        assert set(STAGES[stage]["params"]) == {f"{stage}.{name}" for name in names}, "its title trains again"
        section = section["limits"]
    assert names in (set(), set(section))
    assert stage in " ".join(STAGES[stage]["params"])
