"""A SQLite store without a server: processes create and use it in parallel, and artifacts are next to it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from mlflow_gate import connect

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from SQLAlchemy, for MLflow
WRITER = """
import sys, mlflow_gate
client = mlflow_gate.connect(sys.argv[1])
for _ in range(3):
    run = client.create_run("0").info.run_id
    client.log_metric(run, "done", 1)
    client.create_registered_model(run)
    client.create_model_version(run, f"runs:/{run}/model", run)
"""


def test_parallel_processes_lose_nothing(tmp_path):
    """Parallel processes create one store with all runs, metrics and versions, and leave no other file."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, uri], cwd=tmp_path) for _ in range(3)]
    assert [writer.wait(200) for writer in writers] == [0, 0, 0]
    client = connect(uri)
    runs = {run.info.run_id for run in client.search_runs(["0"], "metrics.done = 1")}
    assert len(runs & {version.run_id for version in client.search_model_versions()}) == 9
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


def test_artifacts_are_found_when_the_store_is_moved(tmp_path):
    """Artifacts of `mlflow-artifacts:` URIs are written to and read from `mlartifacts` next to the store."""
    first, second = tmp_path / "first place", tmp_path / "second place"
    client = connect(f"sqlite:///{first}/mlflow.db")
    run = client.create_run(client.create_experiment("e", "mlflow-artifacts:/e")).info.run_id
    (first / "mlartifacts").mkdir()
    client.log_text(run, "kept", "note.txt")
    first.rename(second)
    assert [file.path for file in connect(f"sqlite:///{second}/mlflow.db").list_artifacts(run)] == ["note.txt"]
