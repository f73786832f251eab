"""Run papermill's own tests with the engine `dask` as default."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
from xml.etree import ElementTree

import pytest
from programs import BIN, required

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
REQUIREMENTS = ("ipywidgets", "moto>=5,<5.2", "pytest-env>=1.1,<2", "pytest-mock>=3.14,<4")
PLUGIN = """
from papermill.engines import papermill_engines
from papermill_dask.plugin import DaskEngine

papermill_engines.register(None, DaskEngine)
"""
REASONS = {
    "TestBrokenNotebook2.test": "expects the output of older kernels; also fails with papermill's engine",
    "TestMidCellAutosave.test_end2end_autosave_slow_notebook": "counts calls of a function that no longer writes",
    "TestNotebookHelpers.test_default_start_timeout": "replaces the kernel client, which is on a worker here",
    "TestNotebookHelpers.test_start_timeout": "replaces the kernel client, which is on a worker here",
}


def test_papermills_own_tests_pass(warm_cluster, tmp_path):
    """The tests in papermill's source distribution pass, except for those in REASONS."""
    uv = BIN / "uv"
    required("uv", uv.exists())
    papermill = f"papermill=={importlib.metadata.version('papermill')}"
    # `uv` cannot download source distributions.
    download = [uv, "tool", "run", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
    subprocess.run([*download, papermill], cwd=tmp_path, check=True)
    with tarfile.open(next(tmp_path.glob("papermill-*.tar.gz"))) as file:
        file.extractall(tmp_path, filter="data")
    (tmp_path / "plugin_with_dask.py").write_text(PLUGIN)
    extras = [f"--with={requirement}" for requirement in (papermill.replace("==", "[all]=="), *REQUIREMENTS)]
    command = [uv, "run", "--quiet", "--no-project", *extras, "--", "python", "-m", "pytest", "-p", "plugin_with_dask"]
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
