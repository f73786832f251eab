"""Data that begin or end in the middle of a year: no false warning, and a real fault is still found."""

from __future__ import annotations

import pandas as pd
import pytest
from forecast.raw.prepare import left_out, missing_by_month, prepare
from forecast.raw.sources import POWER_FILE, WEATHER_FILE
from forecast.raw.validation import validate
from forecast.show import figures

OF_SAMPLE = {"duplicate hours of power", "change of the mean from year to year of wind_GW"}


@pytest.fixture
def cut(raw, raw_copy):
    """A function that keeps the rows of some times in the raw files, and returns frame, findings and warnings."""

    def cut_files(first, last, change=lambda table: table, names=(POWER_FILE, WEATHER_FILE)):
        for name in names:
            table = pd.read_csv(raw / name)
            change(table[table["utc_timestamp"].between(first, last)]).to_csv(raw_copy / name, index=False)
        frame, findings = prepare(raw_copy)
        warnings = {f"{check.name} of {check.of}": check for check in validate(frame, findings).warnings}
        return frame, findings, warnings

    return cut_files


@pytest.mark.parametrize(
    ("first", "last", "hours"),
    [
        ("2013-01-01", "2016-07-31T23:30", {"2013": 8760, "2016": 5112}),
        ("2013-01-01", "2016-02-10T05:30", {"2015": 8760, "2016": 966}),
        ("2013-01-01", "2016-01-01T02:30", {"2016": 3}),
        ("2014-03-20", "2016-12-31T23:30", {"2014": 6888, "2016": 8784}),
        ("2015-11-20", "2016-02-10T05:30", {"2015": 1008}),
    ],
)
def test_part_of_a_year_gives_no_warning_of_its_own(cut, first, last, hours):
    """Hours before the first and after the last are not missing, and no winter is taken for another unit."""
    frame, findings, warnings = cut(first, last)
    assert warnings.keys() <= OF_SAMPLE
    expected = {year: counts["hours_expected"] for year, counts in findings["by_year"].items()}
    assert expected | hours == expected
    months = missing_by_month(frame, 2013, 2016)
    in_data = frame["utc_timestamp"].dt.strftime("%Y-%m").nunique()
    assert months.notna().sum(axis=None) == in_data  # the others are not drawn
    assert figures.missing(months).data[0].zmax < 30


def test_fault_in_a_running_year_is_found(cut):
    """Hours of the four weeks are missing; wind is half of that in the same seven months of the year before."""

    def damage(table):
        power = table.filter(like="DE_wind_generation").where(table["utc_timestamp"] < "2016", lambda old: old / 2)
        return table.assign(**power)[~table["utc_timestamp"].between("2016-01-10T00", "2016-01-10T19:30")]

    jump = cut("2015-01-01T00", "2016-07-31T23:30", damage)[2]["change of the mean from year to year of wind_GW"]
    assert jump.value == pytest.approx(-43.5, abs=0.1)
    assert jump.limits == (-37.4, 37.4)  # 30 % of a whole year
    assert "-43.5 % to 2016, 5,061 hours" in jump.note
    missing = cut("2013-01-01", "2016-01-28T23:30", damage)[2]["hours missing from a year of hours"]
    assert missing.value == pytest.approx(100 * 21 / 672)


def test_file_that_ends_before_the_other_is_counted(cut):
    """The weather goes on for five months: its hours are counted among those left out, and are no gap."""
    _, findings, _ = cut("2013-01-01", "2016-07-31T23:30", names=[POWER_FILE])
    assert left_out(findings)["before or after all complete hours in weather"] == 3672
    assert findings["by_year"]["2016"]["longest_gap_hours"] < 24
