"""The layout shows the architecture."""

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


def test_top_level_holds_what_the_design_names():
    """Nothing else appears at the top."""
    assert {name.split("/")[0] for name in files_of_tree()} <= TOP


def test_imports_point_down_and_never_in_circles():
    """Arrows go from the command line to the errors; import-linter reads its contracts from pyproject.toml."""
    run_program(BIN / "lint-imports", "--no-cache", cwd=ROOT)


@pytest.mark.parametrize("name", LIGHT_MODULES)
def test_heavy_packages_are_imported_where_they_are_needed(name):
    """`workshop --help` and `status` are fast because nothing heavy is imported at a module's top."""
    command = [sys.executable, "-c", f"import sys, {name}; print(*sys.modules)"]
    modules = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY.intersection(modules)
