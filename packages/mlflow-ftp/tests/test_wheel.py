"""The distribution, alone in an environment of its own, does what its README shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import free_port, required

PACKAGE = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).with_name("uv")

PROGRAM = """
import importlib.util, os, pathlib, sys
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
assert [name for name in ("workshop", "dask", "papermill", "dvc") if importlib.util.find_spec(name)] == []
os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:5000"
assert type(get_artifact_repository("mlflow-artifacts:/x")) is MlflowArtifactsRepository
assert "mlflow_ftp.repository" not in sys.modules
store = get_artifact_repository(sys.argv[1])
assert type(store).__module__ == "mlflow_ftp.repository"
pathlib.Path("model").write_bytes(b"weights")
store.log_artifact("model", "run")
assert pathlib.Path(store.download_artifacts("run/model", ".")).read_bytes() == b"weights"
store.delete_artifacts()
assert store.list_artifacts() == []
"""


@pytest.mark.timeout(600)
def test_wheel_alone_keeps_its_readme(tmp_path):
    """Installed without anything else, the server starts, the store uses it, and other schemes are MLflow's."""
    required("uv", UV.exists())

    def run(*command: str | Path) -> None:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHON"))}
    environment |= {"MLFLOW_FTP_USERNAME": "me", "MLFLOW_FTP_PASSWORD": "secret"}
    python, port = tmp_path / "venv" / "bin" / "python", str(free_port())
    shutil.copytree(PACKAGE, tmp_path / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "tests"))
    run(UV, "build", "--quiet", "--wheel", "--out-dir", tmp_path, tmp_path / "source")
    run(UV, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
    (wheel,) = tmp_path.glob("*.whl")
    run(UV, "pip", "install", "--quiet", "--python", python, wheel)
    with subprocess.Popen(
        [python.with_name("mlflow-ftp-server"), "--folder", "files", "--port", port],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as server:  # fmt: skip
        try:
            assert b"ready" in server.stdout.readline()
            address = f"ftp://127.0.0.1:{port}/mlflow"
            run(python, "-c", PROGRAM, address)
        finally:
            server.terminate()
    assert server.returncode == 0
