"""papermill's own tests, with the engine `dask` in the place of papermill's."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
from xml.etree import ElementTree

import pytest
from programs import BIN, required

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
NEEDED = ("ipywidgets", "moto>=5,<5.2", "pytest-env>=1.1,<2", "pytest-mock>=3.14,<4")
PLUGIN = """
from papermill.engines import papermill_engines
from papermill_dask.plugin import DaskEngine

papermill_engines.register(None, DaskEngine)
"""
REASONS = {
    "TestBrokenNotebook2.test": "expects what older kernels print; fails with papermill's engine, too",
    "TestMidCellAutosave.test_end2end_autosave_slow_notebook": "counts calls of a function that no longer writes",
    "TestNotebookHelpers.test_default_start_timeout": "replaces the kernel's client, which here is on a worker",
    "TestNotebookHelpers.test_start_timeout": "replaces the kernel's client, which here is on a worker",
}


def test_papermills_own_tests_pass(warm_cluster, tmp_path):
    """Its source distribution holds them; what fails is named in REASONS."""
    uv = BIN / "uv"
    required("uv", uv.exists())
    papermill = f"papermill=={importlib.metadata.version('papermill')}"
    # `uv` itself downloads no source distribution.
    download = [uv, "tool", "run", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
    subprocess.run([*download, papermill], cwd=tmp_path, check=True)
    with tarfile.open(next(tmp_path.glob("papermill-*.tar.gz"))) as file:
        file.extractall(tmp_path, filter="data")
    (tmp_path / "plugin_with_dask.py").write_text(PLUGIN)
    needed = [f"--with={requirement}" for requirement in (papermill.replace("==", "[all]=="), *NEEDED)]
    command = [uv, "run", "--quiet", "--no-project", *needed, "--", "python", "-m", "pytest", "-p", "plugin_with_dask"]
    environment = warm_cluster.environment | {"VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(tmp_path)}
    subprocess.run(
        [*command, "--quiet", f"--junit-xml={tmp_path}/report.xml", "papermill/tests"],
        cwd=next(tmp_path.glob("papermill-*/")),
        env=environment,
        check=False,
    )
    cases = list(ElementTree.parse(tmp_path / "report.xml").iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    assert len(cases) > 500
    assert {f"{case.get('classname').rpartition('.')[2]}.{case.get('name')}" for case in failed} == set(REASONS)
