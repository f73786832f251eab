"""Privileged tests are skipped without their privileges."""

from __future__ import annotations

import tempfile

import pytest
from programs import pytest_runtest_setup  # noqa: F401 - a hook


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """Set the temporary folder, where MLflow leaves downloads without a target, to one that pytest removes."""
    tempfile.tempdir = str(tmp_path_factory.mktemp("downloads"))
