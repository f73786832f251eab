"""Data that start or end within a year: no false warnings, and real faults are still found."""

from __future__ import annotations

import pandas as pd
import pytest
from forecast.raw.prepare import left_out, missing_by_month, prepare
from forecast.raw.sources import POWER_FILE, WEATHER_FILE
from forecast.raw.validation import validate
from forecast.show import figures

OF_SAMPLE = {"duplicate hours", "change of the mean from year to year"}


@pytest.fixture
def cut(raw, raw_copy):
    """A function that cuts the raw files to a period, and returns frame, findings and warnings by name."""

    def cut_files(first, last, change=lambda table: table, names=(POWER_FILE, WEATHER_FILE)):
        for name in names:
            table = pd.read_csv(raw / name)
            change(table[table["utc_timestamp"].between(first, last)]).to_csv(raw_copy / name, index=False)
        frame, findings = prepare(raw_copy)
        return frame, findings, {check.name: check for check in validate(frame, findings).warnings}

    return cut_files


@pytest.mark.parametrize(
    ("first", "last", "hours"),
    [
        ("2013-01-01", "2016-07-31T23:30", {"2013": 8760, "2016": 5112}),
        ("2015-11-20", "2016-02-10T05:30", {"2015": 1008, "2016": 966}),
    ],
)
def test_part_of_a_year_gives_no_warning_of_its_own(cut, first, last, hours):
    """Hours before the first and after the last are not missing, and the low means of winter are no unit error."""
    frame, findings, warnings = cut(first, last)
    assert warnings.keys() <= OF_SAMPLE
    assert hours.items() <= {year: counts["steps_expected"] for year, counts in findings["by_year"].items()}.items()
    months = missing_by_month(frame)  # those without data are not drawn
    assert months.notna().sum(axis=None) == frame["utc_timestamp"].dt.strftime("%Y-%m").nunique()
    assert figures.missing(months).data[0].zmax < 30


def test_fault_in_a_running_year_is_found(cut):
    """Missing hours, wind power halved from one year to the next, and a file that ends before the other."""

    def damage(table):
        power = table.filter(like="DE_wind_generation").where(table["utc_timestamp"] < "2016", lambda old: old / 2)
        return table.assign(**power)[~table["utc_timestamp"].between("2016-01-10T00", "2016-01-10T19:30")]

    jump = cut("2015-01-01T00", "2016-07-31T23:30", damage)[2]["change of the mean from year to year"]
    assert (jump.limits, jump.note.split(";")[0]) == ((-37.4, 37.4), "2016 over 5,061 h of both years (-43.5 %)")
    missing = cut("2013-01-01", "2016-01-28T23:30", damage)[2]["hours missing from a year"]
    assert missing.value == pytest.approx(100 * 21 / 672)
    findings = cut("2013-01-01", "2016-01-01T05:30", names=[POWER_FILE])[1]
    assert left_out(findings)["before or after all complete hours in weather"] == 28 * 24 - 20 - 6
