"""The layout of the repository and the layers of its imports."""

from __future__ import annotations

import subprocess
import sys

import pytest
from workplace import BIN, ROOT, files_of_tree, run_program

TOP = {
    "README.md", "requirements.txt", "1_starting_point", "2_tracking", "3_projects", "4_pipeline", "server",
    "workshop", "packages", "examples", "benchmarks", "docs", "tests", "pyproject.toml", "Makefile", "CHANGELOG.md",
    "CONTRIBUTING.md", "LICENSE", ".ci", ".dvc", ".github", ".gitlab-ci.yml", ".devcontainer", ".binder", ".gitignore",
    ".env.example", ".pre-commit-config.yaml", ".gitattributes", ".vscode", "environment.yml", "CITATION.cff",
    "SECURITY.md",
}  # fmt: skip
HEAVY = {"mlflow", "tensorflow", "keras", "dask", "distributed", "sklearn", "papermill", "pandas", "dash", "plotly"}
LIGHT_MODULES = [
    "workshop.cli", "workshop.cli.servers", "workshop.settings", "forecast.terms.errors", "forecast.terms.parameters",
    "forecast.__main__",
]  # fmt: skip


def test_top_level_has_only_the_listed_names():
    """The top level has no other files and folders."""
    assert {name.split("/")[0] for name in files_of_tree()} <= TOP


def test_imports_follow_the_layers():
    """There are no cycles; import-linter reads the contracts from pyproject.toml."""
    run_program(BIN / "lint-imports", "--no-cache", cwd=ROOT)


@pytest.mark.parametrize("name", LIGHT_MODULES)
def test_heavy_packages_are_imported_lazily(name):
    """`workshop --help` and `status` are fast because no module imports heavy packages at its top."""
    command = [sys.executable, "-c", f"import sys, {name}; print(*sys.modules)"]
    modules = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY.intersection(modules)
