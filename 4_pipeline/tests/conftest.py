"""The sample's raw files and processed table, made once for all tests; no test changes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from forecast.raw.prepare import prepare
from forecast.raw.sources import fetch
from places import germany_csv, one_thread  # noqa: F401 - fixtures
from small_server import candidates, logged, small_hours, small_server  # noqa: F401 - fixtures
from web import Web


@pytest.fixture(scope="session")
def raw(tmp_path_factory) -> Path:
    """A folder with the raw files of the sample, to read only."""
    folder = tmp_path_factory.mktemp("raw")
    fetch("sample", folder)
    return folder


@pytest.fixture
def raw_copy(raw, tmp_path) -> Path:
    """A folder of raw files for a test to damage."""
    return shutil.copytree(raw, tmp_path / "raw")


@pytest.fixture(scope="session")
def prepared(raw):
    """The processed frame and the findings."""
    return prepare(raw)


@pytest.fixture
def web():
    """A web server for the test to fill, and to disturb."""
    served = Web()
    yield served
    served.close()


@pytest.fixture
def frame(prepared):
    """A processed frame for a test to change."""
    return prepared[0].copy()
