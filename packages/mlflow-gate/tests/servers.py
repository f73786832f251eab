"""`mlflow server`, started as a user does, on a free port and in a temporary folder."""

from __future__ import annotations

import os
from types import SimpleNamespace

import programs
import pytest


@pytest.fixture(scope="session", autouse=True)
def tracking(tmp_path_factory):
    """Start a server and set MLFLOW_TRACKING_URI to it, for the tests and for the examples in docstrings."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch, programs.tracking_server(folder) as (uri, process):
        for name in [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_"))]:
            patch.delenv(name)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield SimpleNamespace(folder=folder, uri=uri, process=process)
