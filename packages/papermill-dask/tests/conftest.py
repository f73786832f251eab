"""Fixtures: a Dask cluster whose scheduler and workers are separate processes, and a tracking server."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import programs
import pytest
from hosts import Cluster, new_cluster
from programs import pytest_runtest_setup  # noqa: F401 - a hook


@pytest.fixture(scope="session", autouse=True)
def private_folder() -> Iterator[None]:
    """Set TMPDIR for all test programs to a private folder, with a path short enough for sockets."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = folder = tempfile.mkdtemp()
    tempfile.tempdir = None
    yield
    os.environ.pop("TMPDIR")
    os.environ |= {"TMPDIR": before} if before else {}
    tempfile.tempdir = None
    shutil.rmtree(folder, ignore_errors=True)  # a fork server may be about to end


@pytest.fixture(scope="session")
def warm_cluster(tmp_path_factory) -> Iterator[Cluster]:
    """A scheduler and two workers with one thread and one slot each, whose kernels are forked.

    Client and workers share a Jupyter folder, so that a kernelspec added to it exists on both sides.
    """
    folder = tmp_path_factory.mktemp("cluster")
    imports = {
        "DASK_PAPERMILL_DASK__KERNEL_IMPORTS": '["pandas", "matplotlib"]',
        "JUPYTER_PATH": str(folder / "jupyter"),
    }
    with new_cluster(folder, **imports) as cluster:
        del cluster.environment["TQDM_DISABLE"]
        cluster.start_scheduler()
        for name in ("alpha", "beta"):
            cluster.start_worker(name)
        yield cluster


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory) -> Iterator[str]:
    """The URI of an MLflow tracking server with its own store."""
    with programs.tracking_server(tmp_path_factory.mktemp("tracking")) as (uri, _):
        yield uri
