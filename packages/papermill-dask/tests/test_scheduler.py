"""JupyterLab's notebook jobs, with a Jupyter server, jupyter-scheduler and a cluster."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from hosts import new_cluster, notebook
from programs import BIN, free_port, running, wait_for

# It pins an older pytz than the workshop; `make test-packages RESOLUTION=highest` installs it.
pytest.importorskip("jupyter_scheduler", reason="the extra [scheduler] is not installed")


@dataclass(frozen=True)
class Server:
    """A Jupyter server on ``port`` with root folder ``folder``."""

    port: int
    folder: Path

    def request(self, path: str, method: str = "GET", **body: Any) -> Any:
        """Send a request to the REST API and return its response."""
        data, headers = json.dumps(body).encode() if body else None, {"Authorization": "token secret"}
        url = f"http://127.0.0.1:{self.port}/{path}"
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def create(self, name: str, **options: Any) -> str:
        """Create a job for a notebook in the folder; return its id."""
        body = {"name": name, "input_uri": f"{name}.ipynb", "runtime_environment_name": "any"} | options
        return self.request("scheduler/jobs", "POST", **body)["job_id"]

    def wait(self, job: str) -> dict[str, Any]:
        """Wait for a job to end and return its description."""

        def has_ended() -> dict[str, Any] | None:
            description = self.request(f"scheduler/jobs/{job}")
            # A job that has not started also has the status STOPPED.
            has_finished = description["start_time"] and description["status"] in {"COMPLETED", "FAILED", "STOPPED"}
            return description if has_finished else None

        return wait_for(has_ended)

    def download(self, job: str) -> dict[str, str]:
        """Return the contents of a job's files, by format."""
        self.request(f"scheduler/jobs/{job}/download_files")
        wait_for(lambda: all(file["file_path"] for file in self.request(f"scheduler/jobs/{job}")["job_files"]))
        files = {file["file_format"]: file for file in self.request(f"scheduler/jobs/{job}")["job_files"]}
        return {kind: (self.folder / file["file_path"]).read_text() for kind, file in files.items()}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Jupyter server whose jobs run on a cluster of one worker."""
    folder = tmp_path_factory.mktemp("jupyter")
    port, home = free_port(), folder / "home"
    home.mkdir()
    with new_cluster(folder / "cluster") as cluster:
        cluster.start_scheduler()
        cluster.start_worker("alpha")
        variables = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")}
        (folder / "DATA").mkdir()
        command = [
            BIN / "jupyter", "server", "--no-browser", "--allow-root", f"--ServerApp.root_dir={home}",
            f"--ServerApp.port={port}", "--IdentityProvider.token=secret",
            "--Scheduler.execution_manager_class=papermill_dask.scheduler.DaskExecutionManager",
        ]  # fmt: skip
        url = f"http://127.0.0.1:{port}/api/status?token=secret"
        with running(command, home, url, cluster.environment | variables):
            yield Server(port, home)


def test_job_runs_on_the_cluster_with_its_parameters_and_formats(server):
    """A job runs on the worker with its parameters; its notebook and its HTML page can be downloaded."""
    source = "import os, psutil\nprint('a' * count, name, psutil.Process(os.getppid()).parent().cmdline()[2:4])"
    notebook(server.folder / "train.ipynb", "# tags: parameters\ncount: int = 1\nname = ''", source)
    parameters = {"count": "3", "name": "'it'"}
    job = server.create("train", output_formats=["ipynb", "html"], parameters=parameters)
    assert server.wait(job)["status"] == "COMPLETED"
    files = server.download(job)
    cell = nbformat.reads(files["ipynb"], as_version=4).cells[-1]
    assert cell.outputs[0].text.startswith("aaa it ['worker', 'tcp://")
    assert "aaa it [" in files["html"]


def test_failed_job_has_the_error(server):
    """A failed job has the cell's error and the notebook up to it; a rejected job has the engine's error."""
    notebook(server.folder / "fails.ipynb", "print('before')", "1 / 0", "print('after')")
    job = server.create("fails", output_formats=["ipynb"])
    ended = server.wait(job)
    assert (ended["status"], ended["status_message"]) == ("FAILED", "ZeroDivisionError: division by zero")
    cells = nbformat.reads(server.download(job)["ipynb"], as_version=4).cells
    statuses = [cell.metadata.papermill.status for cell in cells if "papermill" in cell.metadata]
    assert statuses == ["completed", "failed", "pending"]

    notebook(server.folder / "rejected.ipynb", "1", papermill_dask={"resources": {"GPU": 1}})
    ended = server.wait(server.create("rejected", output_formats=["ipynb"]))
    assert ended["status"] == "FAILED"
    assert "resource GPU=0 instead of 1" in ended["status_message"]


def test_stopped_job_ends_its_kernel(server):
    """After *Stop* in JupyterLab the kernel on the worker ends within seconds."""
    source = (
        "import os\nfrom pathlib import Path\nPath({!r}).write_text(str(os.getpid()))\nimport time\ntime.sleep(600)"
    )
    file = server.folder / "kernel.pid"
    notebook(server.folder / "long.ipynb", source.format(str(file)))
    job = server.create("long", output_formats=["ipynb"])
    pid = int(wait_for(lambda: file.exists() and file.read_text()))
    server.request(f"scheduler/jobs/{job}", "PATCH", status="STOPPED")
    assert server.wait(job)["status"] == "STOPPED"
    wait_for(lambda: not psutil.pid_exists(pid), 20)
