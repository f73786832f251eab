"""The sample's raw files and processed table, made once for all tests; no test changes them.

The tests in this folder are about solar and wind power, and are skipped for another `problem`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from forecast.raw.prepare import prepare
from forecast.raw.sources import fetch
from forecast.table.features import add_capacity
from forecast.table.schema import FEATURES, TARGETS
from served import germany_csv  # noqa: F401 - a fixture
from small_server import candidates, logged, small_hours, small_server  # noqa: F401 - fixtures
from web import Web

SUN_AND_WIND = ["solar_GW", "wind_GW", "windspeed", "temperature", "rad_horizontal", "rad_diffuse"]


class Skipped(pytest.Module):
    """A test file that is skipped without being imported."""

    def collect(self):
        """Skip with a reason, which `pytest -ra` prints once for all files."""
        pytest.skip("these tests are about sun and wind, and forecast/problem.py is not: tests/template can be deleted")


def pytest_pycollect_makemodule(module_path, parent):
    """Skip each file if the columns of problem.py are others."""
    if [*TARGETS, *FEATURES] != SUN_AND_WIND:
        return Skipped.from_parent(parent, path=module_path)
    return None


@pytest.fixture(scope="session")
def raw(tmp_path_factory) -> Path:
    """The folder of the sample's raw files; tests only read it."""
    folder = tmp_path_factory.mktemp("raw")
    fetch("sample", folder)
    return folder


@pytest.fixture
def raw_copy(raw, tmp_path) -> Path:
    """A copy of the raw files that a test may damage."""
    return shutil.copytree(raw, tmp_path / "raw")


@pytest.fixture(scope="session")
def prepared(raw):
    """The processed frame and the findings."""
    return prepare(raw)


@pytest.fixture
def web():
    """An HTTP server whose files and faults a test sets."""
    server = Web()
    yield server
    server.close()


@pytest.fixture
def frame(prepared):
    """A copy of the processed frame that a test may change."""
    return prepared[0].copy()


@pytest.fixture(scope="session")
def later_hours(prepared):
    """Hours of the sample, moved by ten years, with installed capacities that only the data contain."""
    hours = prepared[0].iloc[4000:6000].reset_index(drop=True)
    hours["utc_timestamp"] += pd.DateOffset(years=10)
    figures = {"solar_GW": {"2022": 100.2, "2023": 100.3}, "wind_GW": {"2022": 60.0, "2023": 60.0}}
    return add_capacity(hours, figures)
