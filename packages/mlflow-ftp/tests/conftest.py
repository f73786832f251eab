"""Privileged tests are skipped where their powers are missing."""

from __future__ import annotations

import tempfile

import pytest
from programs import pytest_runtest_setup  # noqa: F401 - a hook


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """What MLflow downloads without a target, and leaves, is below the folder that pytest removes."""
    tempfile.tempdir = str(tmp_path_factory.mktemp("downloads"))
