"""Records in SQLite, without a server: processes make and use them at once, and find artifacts beside them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from mlflow_gate import connect

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, to MLflow
WRITER = """
import sys, mlflow_gate
client = mlflow_gate.connect(sys.argv[1])
for _ in range(3):
    run = client.create_run("0").info.run_id
    client.log_metric(run, "done", 1)
    client.create_registered_model(run)
    client.create_model_version(run, f"runs:/{run}/model", run)
"""


def test_processes_that_start_at_once_lose_nothing(tmp_path):
    """On a new file, too: all runs, metrics and versions are there, and nothing else is beside it."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, uri], cwd=tmp_path) for _ in range(3)]
    assert [writer.wait(200) for writer in writers] == [0, 0, 0]
    client = connect(uri)
    runs = {run.info.run_id for run in client.search_runs(["0"], "metrics.done = 1")}
    assert len(runs & {version.run_id for version in client.search_model_versions()}) == 9
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


def test_artifacts_are_beside_the_records_also_in_another_folder(tmp_path):
    """What a server keeps in `mlartifacts` is written and read there."""
    first, second = tmp_path / "first place", tmp_path / "second place"
    client = connect(f"sqlite:///{first}/mlflow.db")
    run = client.create_run(client.create_experiment("e", "mlflow-artifacts:/e")).info.run_id
    (first / "mlartifacts").mkdir()
    client.log_text(run, "kept", "note.txt")
    first.rename(second)
    assert [file.path for file in connect(f"sqlite:///{second}/mlflow.db").list_artifacts(run)] == ["note.txt"]
