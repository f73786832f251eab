"""The wheel, alone in a new environment, does what its README shows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from programs import clean_environment, free_port, install_alone, run_program

PACKAGE = Path(__file__).resolve().parents[1]

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
def test_wheel_alone_does_what_the_readme_shows(tmp_path):
    """Without further packages the server starts and the store uses it; other schemes are MLflow's own."""
    environment = clean_environment() | {"MLFLOW_FTP_USERNAME": "me", "MLFLOW_FTP_PASSWORD": "secret"}
    python, port = install_alone(PACKAGE, tmp_path) / "python", str(free_port())
    with subprocess.Popen(
        [python.with_name("mlflow-ftp-server"), "--folder", "files", "--port", port],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as server:  # fmt: skip
        try:
            assert b"ready" in server.stdout.readline()
            address = f"ftp://127.0.0.1:{port}/mlflow"
            run_program(python, "-c", PROGRAM, address, cwd=tmp_path, env=environment)
        finally:
            server.terminate()
    assert server.returncode == 0
