"""A Dask cluster as any site has one, a scheduler and two workers, each a process of its own; a tracking server."""

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
    """Have all programs of the tests use a folder of their own for temporary files, with a short path for sockets."""
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
    """A scheduler and two workers of one thread and one `notebook` each, whose kernels are forked.

    The workers see the client's Jupyter folder, so that a kernel put into `kernelspecs` is known on both sides.
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
    """The address of an MLflow tracking server with a store of its own."""
    with programs.tracking_server(tmp_path_factory.mktemp("tracking")) as (uri, _):
        yield uri
