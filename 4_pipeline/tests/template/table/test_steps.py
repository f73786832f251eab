"""Other time steps: own files of minutes and of days, read by a copy of the package with another `STEP`."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pandas as pd
import pytest
from places import PROJECT

READ = """
import json, sys, pandas as pd
from pathlib import Path
from forecast.terms.errors import DataError
from forecast.terms.parameters import Fetch
from forecast.raw import prepare, sources
csv = {"file": "own.csv", "time": {"column": "time", "zone": sys.argv[1]}, "attribution": "ours"}
csv["columns"] = {"solar_GW": {"column": "solar_GW", "unit": sys.argv[2]}}
csv["capacity"] = {year: {"solar_GW": 100, "wind_GW": 100} for year in (2014, 2015)}
try:
    sources.fetch("csv", Path("raw"), Fetch(source="csv", csv=csv))
    frame, findings = prepare.prepare(Path("raw"), 2015, 2015)
except DataError as error:
    sys.exit(str(error))
frame.to_parquet("frame.parquet")
"""
OTHERS = {"wind_GW": 1.0, "windspeed": 5.0, "temperature": 8.0, "rad_horizontal": 90.0, "rad_diffuse": 80.0}


@pytest.fixture
def read(tmp_path):
    """Return a function that reads an own file of local times; it returns the frame, or the error message."""

    def read(step: str, times: list[str], values: object = 2.0, zone: str = "Europe/Berlin", unit: str = "GW"):
        shutil.copytree(PROJECT / "forecast", tmp_path / "forecast", dirs_exist_ok=True)
        problem = tmp_path / "forecast" / "problem.py"
        problem.write_text(problem.read_text().replace('STEP = "h"', f'STEP = "{step}"').replace(" by_day=True,", ""))
        pd.DataFrame({"time": times, "solar_GW": values} | OTHERS).to_csv(tmp_path / "own.csv", index=False)
        command = [sys.executable, "-c", READ, zone, unit]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.stderr if done.returncode else pd.read_parquet(tmp_path / "frame.parquet")

    return read


def local(first: str, last: str, freq: str) -> list[str]:
    """Return the local times of Berlin from ``first`` to before ``last``, without their UTC offset."""
    times = pd.date_range(first, last, freq=freq, tz="Europe/Berlin", inclusive="left")
    return [f"{time:%Y-%m-%dT%H:%M}" for time in times]


@pytest.mark.parametrize("step", ["15min", "30min"])
@pytest.mark.parametrize(
    ("first", "last", "hours"), [("2015-10-25", "2015-10-27", 49), ("2015-03-29", "2015-03-31", 47)]
)
def test_rows_keep_their_order_at_a_clock_change(read, step, first, last, hours):
    """In autumn the times of one hour occur twice; in spring those of one hour do not occur."""
    times = local(first, last, step)
    frame = read(step, times, range(len(times)))
    assert len(frame) * pd.Timedelta(step) == pd.Timedelta(hours=hours)
    assert set(frame["utc_timestamp"].diff().dropna()) == {pd.Timedelta(step)}
    assert frame["solar_GW"].tolist() == list(range(len(times)))


def test_days_start_at_local_midnight(read):
    """A date is a day of the time zone; GWh are divided by the 23, 24 or 25 hours of their day."""
    days = local("2015-01-01", "2016-01-01", "D")
    frame = read("D", [day[:10] for day in days], 24.0, unit="GWh")
    starts = pd.date_range("2015-01-01", "2015-12-31", freq="D", tz="Europe/Berlin")
    assert frame["utc_timestamp"].tolist() == starts.tz_convert("UTC").tolist()
    assert set(frame["solar_capacity_GW"]) == {100}  # from the first day on
    hours = (24 / frame["solar_GW"]).round(6).set_axis(starts)
    assert hours[hours != 24].to_dict() == {starts[87]: 23, starts[297]: 25}


@pytest.mark.parametrize(
    ("step", "of_file", "words"),
    [
        ("D", "h", ["are 1 hours apart", "one row per day", 'STEP = "h"', 'resample("D").mean()']),
        ("15min", "h", ["are 1 hours apart", "one row per quarter hour", 'STEP = "h" in forecast/problem.py\n']),
        ("D", "7D", ["are 168 hours apart", "use a file of daily values: these"]),
    ],
)
def test_file_of_another_step_is_an_error_with_the_fix(read, step, of_file, words):
    """The error shows how to resample finer rows, or which STEP fits; coarser rows need another file."""
    message = read(step, local("2015-05-01", "2015-05-20", of_file))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("step", "freq", "form", "zone", "words"),
    [
        ("D", "D", "%Y-%m-%d 12:00", "Europe/Berlin", 'set time.format: "%Y-%m-%d 12:00" in params.yaml'),
        ("D", "D", "%Y-%m-%d 23:59:59", "Europe/Berlin", "days that start at 00:00 in Europe/Berlin"),
        ("D", "D", "%Y-%m-%dT00:00:00Z", "Europe/Berlin", '"%Y-%m-%dT00:00:00Z" in params.yaml (fetch.csv); or'),
        ("D", "D", "%Y-%m-%dT00:00+01:00", "Europe/Berlin", '"%Y-%m-%dT00:00+01:00" in params.yaml (fetch.csv); or'),
        ("D", "D", "%Y-%m-%dT06:00:00", "Europe/Berlin", '"%Y-%m-%dT06:00:00" in params.yaml'),
        ("30min", "30min", "%Y-%m-%dT%H:%M", "Asia/Kathmandu", "start at 00:00, 00:30, ... UTC"),
        ("30min", "30min", "%Y-%m-%dT%H:%M", "Asia/Kathmandu", "time.zone: '+05:30'"),
        ("h", "h", "%Y-%m-%dT%H:%M:07", "UTC", '"%Y-%m-%dT%H:00:07"'),
        ("15min", "15min", "%Y-%m-%dT%H:%M:07", "UTC", '"%Y-%m-%dT%H:%M:07"'),
    ],
)
def test_times_off_the_step_are_errors_with_the_format_to_set(read, step, freq, form, zone, words):
    """Days stamped at noon, at their last second, at UTC midnight or at six; zones with quarter hours; a late clock."""
    days = pd.date_range("2015-03-01", "2015-04-10", freq=freq, tz="UTC")
    assert words in read(step, days.strftime(form).tolist(), zone=zone)
