"""Notebooks on a cluster of Dask Gateway, with server, proxy and workers on this machine."""

from __future__ import annotations

import sys

import nbformat
import psutil
import pytest
from hosts import notebook
from programs import BIN, clean_environment, free_port, run_program, running, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the wheel of the gateway's proxy is for Linux")
CONFIGURATION = """
from dask_gateway_server.backends.local import UnsafeLocalBackend
c.DaskGateway.backend_class = UnsafeLocalBackend
c.DaskGateway.address = "127.0.0.1:{api}"
c.UnsafeLocalBackend.clusters_directory = "{folder}"
c.Proxy.address = "127.0.0.1:{port}"
# The default commands, `dask-scheduler` and `dask-worker`, no longer exist in Dask.
c.ClusterConfig.scheduler_cmd = ["{bin}/dask", "scheduler"]
c.ClusterConfig.worker_cmd = ["{bin}/dask", "worker"]
c.ClusterConfig.worker_memory = "1 G"
"""
FACTORIES = """
from dask_gateway import Gateway

def cluster():
    cluster = Gateway("http://127.0.0.1:{port}").new_cluster()
    cluster.adapt(minimum=0, maximum=1)
    return cluster
"""
OWN_CLIENT = (
    "from distributed import Client\nwith Client() as client:\n    assert client.submit(sum, [1, 2]).result() == 3"
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """The port of a gateway whose clusters are local processes."""
    folder, port = tmp_path_factory.mktemp("gateway"), free_port()
    (folder / "config.py").write_text(CONFIGURATION.format(api=free_port(), folder=folder, port=port, bin=BIN))
    command = [BIN / "dask-gateway-server", "--config", folder / "config.py"]
    with running(command, folder, f"http://127.0.0.1:{port}/api/health"):
        yield port
        assert not list(folder.glob("*/dask.pem")), "a cluster is left"


def test_notebooks_run_on_a_cluster_of_a_gateway(gateway, tmp_path):
    """A sweep waits for an adaptive cluster's first worker and closes it; a notebook's client uses its certificates."""
    notebook(tmp_path / "in.ipynb", "# tags: parameters\nn = 0", "import os\nprint(n, os.getppid())", OWN_CLIENT)
    (tmp_path / "factories.py").write_text(FACTORIES.format(port=gateway))
    variables = {"DASK_PAPERMILL_DASK__CLUSTER": "factories:cluster", "PYTHONPATH": str(tmp_path)}
    command = [BIN / "papermill-sweep", "in.ipynb", "--sweep", "n=1,2"]
    table = run_program(*command, cwd=tmp_path, env=clean_environment() | variables, timeout=180)
    assert [row.split(",")[1] for row in table.splitlines()] == ["status", "done", "done"]
    cells = nbformat.read(tmp_path / "executed/in/in-2.ipynb", as_version=4).cells
    number, supervisor = map(int, cells[-2].outputs[0].text.split())
    assert number == 2
    wait_for(lambda: not psutil.pid_exists(supervisor), 30)
