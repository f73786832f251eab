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
# Lines of .py and .sh; to go down to 5,800, 2,150, 3,500, 3,500, 900, 1,060, 1,900, 700, 450, 1,350 and 900.
BUDGETS = {
    "4_pipeline/forecast/": 6_230,
    "4_pipeline/dashboard/": 2_515,
    "workshop/": 3_978,
    "packages/papermill-dask/": 3_915,
    "packages/dvc-parallel/": 1_140,
    "packages/mlflow-ftp/": 1_200,
    "packages/mlflow-gate/": 2_415,
    "server/room/": 1_057,
    "server/team/": 440,
    "examples/": 1_000,
    "benchmarks/": 1_055,
}


def test_top_level_holds_what_the_design_names():
    """Nothing else appears at the top."""
    assert {name.split("/")[0] for name in files_of_tree()} <= TOP


@pytest.mark.parametrize("folder", BUDGETS)
def test_code_keeps_its_budget(folder):
    """Lines as the formatter leaves them, without tests. A commit of its own changes one, and says why."""
    names = [name for name in files_of_tree("*.py", "*.sh") if name.startswith(folder) and "tests/" not in name]
    assert sum(len((ROOT / name).read_text().splitlines()) for name in names) <= BUDGETS[folder]


def test_tests_and_texts_keep_their_budget():
    """Lines of the tests, which are to go down to 22,000, and words of the pages."""
    tests = [name for name in files_of_tree("*.py") if "tests/" in name]
    assert sum(len((ROOT / name).read_text().splitlines()) for name in tests) <= 26_090
    assert sum(len((ROOT / name).read_text().split()) for name in files_of_tree("*.md")) <= 32_000


def test_imports_point_down_and_never_in_circles():
    """Arrows go from the command line to the errors; import-linter reads its contracts from pyproject.toml."""
    run_program(BIN / "lint-imports", "--no-cache", cwd=ROOT)


@pytest.mark.parametrize("name", LIGHT_MODULES)
def test_heavy_packages_are_imported_where_they_are_needed(name):
    """`workshop --help` and `status` are fast because nothing heavy is imported at a module's top."""
    command = [sys.executable, "-c", f"import sys, {name}; print(*sys.modules)"]
    modules = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY.intersection(modules)
