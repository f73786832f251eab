"""Warnings for unusual values, each caused by a change of the raw files."""

from __future__ import annotations

import dataclasses
import re
from functools import partial, reduce

import numpy as np
import pandas as pd
import pytest
from forecast.problem import CAPACITY
from forecast.raw.prepare import prepare
from forecast.raw.sources import POWER_FILE, WEATHER_FILE, fetch
from forecast.raw.validation import validate
from forecast.table.schema import FEATURES, QUANTITIES, TARGETS, USUAL_MEANS
from forecast.terms.errors import DataError
from forecast.terms.parameters import Fetch, OwnFile

SOLAR, WIND = "DE_solar_generation_actual", "DE_wind_generation_actual"
WINDSPEED, TEMPERATURE = "DE_windspeed_10m", "DE_temperature"
# The warnings of the unchanged sample: duplicate hours, and the jump that the real wind series has, too.
OF_SAMPLE = {("power", "duplicate hours"), ("wind_GW", "change of the mean from year to year")}


def _warnings(validated) -> dict[tuple[str, str], object]:
    return {(check.of, check.name): check for check in validated.warnings}


@pytest.fixture
def damaged(raw_copy):
    """A function that changes a raw file, as a frame indexed by hour, and returns its validation."""

    def change(name, how, *years):
        path = raw_copy / name
        table = pd.read_csv(path)
        table.index = pd.to_datetime(table["utc_timestamp"])
        how(table).to_csv(path, index=False)
        frame, findings = prepare(raw_copy, *years)
        return validate(frame, findings)

    return change


def _put(column, hours, value):
    """Set a range of hours to a value, or to a function of the old values."""

    def change(table):
        where = slice(*hours)
        old = table.loc[where, column]
        table[column] = table[column].astype(float)
        table.loc[where, column] = np.asarray(value(old)) if callable(value) else value
        return table

    return change


def test_sample_has_two_warnings(prepared):
    """Four duplicate hours, and the jump of wind power from 2014 to 2015; every value is finite."""
    validated = validate(*prepared)
    assert set(_warnings(validated)) == OF_SAMPLE
    duplicates = _warnings(validated)["power", "duplicate hours"]
    assert (duplicates.value, validated.metrics()["doubled_power"]) == (4, 4)
    assert "1 in 2014" in duplicates.note
    jump = _warnings(validated)["wind_GW", "change of the mean from year to year"]
    assert jump.value == pytest.approx(42.2, abs=0.1)
    assert jump.note.startswith("2015 over")
    assert all(np.isfinite(check.value) for check in validated.checks)
    assert validated.values["outliers"].sum() == 0


def test_gap_is_reported_with_length_and_start(damaged):
    """Without 400 hours of the power file: the gap, and the share of the year."""
    cut = pd.date_range("2015-07-28 08:00", periods=400, freq="h", tz="UTC")
    validated = damaged(POWER_FILE, lambda table: table.drop(index=cut))
    gap = _warnings(validated)["hours", "longest gap"]
    assert gap.value == 400
    assert gap.note == "2015-07-28 08:00 (400 h)"
    missing = _warnings(validated)["hours", "hours missing from a year"]
    assert missing.value == pytest.approx(100 * 401 / 8760)
    assert missing.note == "2015 lacks 401 hours (4.58 %)"
    year = validated.findings["by_year"]["2015"]
    assert year["absent"] == {"power": 400, "weather": 0}
    assert (year["steps_kept"], year["longest_gap_steps"]) == (8359, 400)
    assert validated.metrics()["longest_gap_steps"] == 400


@pytest.mark.parametrize(
    ("name", "column", "ours", "value", "reading"),
    [
        (WEATHER_FILE, WINDSPEED, "windspeed", 40.0, "40 m/s"),
        (POWER_FILE, SOLAR, "solar_GW", 60_000.0, "60 GW"),
    ],
)
def test_single_wrong_reading_is_an_outlier(damaged, name, column, ours, value, reading):
    """A possible value far from its neighbours is reported with time and value, and counted in its year."""
    hour = "2015-04-14 11:00"
    validated = damaged(name, _put(column, (hour, hour), value))
    outliers = [
        check for (of, check_name), check in _warnings(validated).items() if of == ours and "distance" in check_name
    ]
    assert outliers
    assert all(f"{hour} ({reading}, " in check.note for check in outliers)
    rows = validated.values[validated.values["outliers"] > 0]
    assert rows[["column", "year", "outliers"]].to_numpy().tolist() == [[ours, 2015, 1]]
    assert validated.metrics()["outliers"] == 1


YEAR = ("2014-01-01", "2014-12-31 23:00")


@pytest.mark.parametrize(
    ("name", "column", "hours", "how", "target", "years"),
    [
        (POWER_FILE, WIND, YEAR, np.random.default_rng(0).permutation, "wind_GW", [2014]),
        (POWER_FILE, SOLAR, YEAR, np.random.default_rng(0).permutation, "solar_GW", [2014]),
        (WEATHER_FILE, WINDSPEED, ("2013", "2016"), partial(np.roll, shift=24 * 30), "wind_GW", [*range(2013, 2017)]),
    ],
)
def test_generation_that_does_not_match_the_weather_is_a_warning(damaged, name, column, hours, how, target, years):
    """Power shuffled within a year, or wind speed shifted by a month: the note lists exactly these years."""
    validated = damaged(name, _put(column, hours, how))
    [poor] = [check for check in validated.warnings if "rank correlation" in check.name]
    assert poor.of == target
    assert sorted(re.findall(r"(\d{4}) \(", poor.note)) == [str(year) for year in years]


# A frozen sensor, a gap filled with zeros, sun at night: column, hours and value, then the check, its value and note.
IMPOSSIBLE = [
    (WIND, ("2013-01-05 04:00", "2013-01-07 16:00"), 5000, "the same value hour after hour", 61, " (5 GW, 61 h)"),
    (SOLAR, ("2013-06-05 00:00", "2013-06-06 23:00"), 0, "zero hour after hour", 53, " (0 GW, "),
    (
        SOLAR,
        ("2015-06-10 00:00",) * 2,
        2000,
        "share of the highest while the sun is down",
        8.2,
        "2015-06-10 00:00 (2 GW",
    ),
]


def test_values_that_do_not_fit_their_hours_are_warnings(damaged):
    """Exactly these warnings, with duration or amount, and start; nights and cloudy weeks give none."""
    validated = damaged(POWER_FILE, lambda raw: reduce(lambda table, put: _put(*put[:3])(table), IMPOSSIBLE, raw))
    warnings = {name: check for (_, name), check in _warnings(validated).items()}
    assert set(warnings) == {name for _, name in OF_SAMPLE} | {name for *_, name, _, _ in IMPOSSIBLE}
    for column, *_, name, expected, note in IMPOSSIBLE:
        assert warnings[name].of == ("wind_GW" if column == WIND else "solar_GW")
        assert warnings[name].value == pytest.approx(expected, rel=0.1)
        assert note in warnings[name].note


def test_other_unit_of_one_year_is_suspected(damaged):
    """Wind speed of 2014 in km/h, within the possible range: its mean is unusual, and the note names the unit."""
    validated = damaged(WEATHER_FILE, _put(WINDSPEED, ("2014-01-01", "2014-12-31 23:00"), lambda old: old * 3.6))
    check = _warnings(validated)["windspeed", "mean of a year"]
    assert check.value == pytest.approx(3.6 * 4.1107, abs=0.01)
    assert check.note.startswith("2014 (14.8 m/s); another unit?")
    assert "km/h" in check.note
    assert ("windspeed", "change of the mean from year to year") in _warnings(validated)


# -- plausible errors in a user's file ---------------------------------------------------------------------------------
FIGURES = {year: {target: CAPACITY[target][str(year)] for target in CAPACITY} for year in (2013, 2014, 2015)}
JUMP = ("wind_GW", "change of the mean from year to year")
SUN, BEHIND_LIGHT = ("solar_GW", "hours behind the sun"), ("solar_GW", "hours behind the light")
BEHIND_WIND, CURVE = ("wind_GW", "hours behind the wind speed"), ("windspeed", "wind speed of half the highest power")
FACTORS = {(target, "mean capacity factor") for target in TARGETS}
HIGHEST = {(target, "highest capacity factor") for target in TARGETS}
BERLIN = {"column": "utc_timestamp", "zone": "Europe/Berlin"}


@pytest.fixture
def own(frame, tmp_path):
    """A function that prepares two changed years of the sample as a user's file, and returns their validation."""
    two_years = frame[frame["utc_timestamp"].dt.year.isin([2014, 2015])]

    def change(how, capacity=FIGURES, **options):
        stamps = "%Y-%m-%dT%H:%M:%S" + "Z" * ("time" not in options)
        how(two_years).to_csv(tmp_path / "own.csv", index=False, date_format=stamps)
        csv = OwnFile.model_validate({"file": "own.csv", "capacity": capacity, **options})
        fetch("csv", tmp_path / "raw", Fetch(source="csv", csv=csv), base=tmp_path)
        return validate(*prepare(tmp_path / "raw", 2014, 2015))

    return change


def _later(hours, *columns, summer_only=False):
    """Shift columns by hours, all year or only in summer time."""

    def change(table):
        hourly = table.set_index("utc_timestamp").asfreq("h")
        local = hourly.index.tz_convert("Europe/Berlin")
        where = np.array([not summer_only or bool(hour.dst()) for hour in local])
        hourly.loc[where, [*columns]] = hourly[[*columns]].shift(hours)[where]
        return hourly.dropna().reset_index()

    return change


def _restamped(hours, zone=None):
    """Shift the time stamps by hours, or convert them to a zone."""

    def change(table):
        stamps = table["utc_timestamp"] + pd.Timedelta(hours=hours)
        return table.assign(utc_timestamp=stamps.dt.tz_convert(zone or "UTC").dt.tz_localize(None))

    return change


def _tutorial(table):
    """The tutorial's file: weather an hour late in summer, and duplicate hours."""
    table = _later(1, *FEATURES, summer_only=True)(table)
    autumn = table["utc_timestamp"].isin(pd.to_datetime([f"{year}-10-20T01:00Z" for year in (2014, 2015)]))
    return pd.concat([table, table[autumn]])


def _without_spring(table):
    """Winter time all year, without the hours skipped in spring, which are an error."""
    table = _restamped(1)(table)
    stamps = table["utc_timestamp"].dt
    return table[~((stamps.month == 3) & (stamps.day > 24) & (stamps.day_of_week == 6) & (stamps.hour == 2))]


def _scaled(factor, *columns):
    return lambda table: table.assign(**{column: table[column] * factor for column in columns})


def _global(table):
    """Global radiation (the sum of both) in place of direct radiation."""
    return table.assign(rad_horizontal=table["rad_horizontal"] + table["rad_diffuse"])


def _figures(factor):
    return {year: {target: factor * value for target, value in ends.items()} for year, ends in FIGURES.items()}


TWICE = ("own", "duplicate hours")
EXCHANGED = {"rad_horizontal": "rad_diffuse", "rad_diffuse": "rad_horizontal"}
DIFFUSE = {("rad_diffuse", "share of the brightest hours"), ("rad_diffuse", "zero hour after hour")}


@pytest.mark.parametrize(
    ("how", "options", "expected", "words"),
    [
        (lambda table: table, {}, set(), []),
        (_tutorial, {}, {BEHIND_LIGHT, TWICE}, ["2014 summer (-1 h)", "an hour late in summer"]),
        (_without_spring, {"time": BERLIN}, {SUN}, ["2014 summer (-1 h)", "winter time declared"]),
        (_restamped(1), {"time": BERLIN | {"zone": "UTC"}}, {SUN}, ["2014 winter (1 h)", "times at the end"]),
        (_later(6, "wind_GW"), {}, {BEHIND_WIND}, ["2014 summer (6 h)"]),
        (lambda table: table.rename(columns=EXCHANGED), {}, DIFFUSE, ["2014 (0.726)", "swapped?"]),
        (_global, {}, {("rad_diffuse", "hours above rad_horizontal")}, ["2014 (0 %)", "global radiation"]),
        (_scaled(3600 / 1852, "windspeed"), {}, {CURVE}, ["2014 (9.21 m/s)", "usual in kn"]),
        (_scaled(0.2, *TARGETS), {}, FACTORS, ["2014 (0.0195)", "of another country"]),
        (lambda table: table, {"capacity": _figures(0.5)}, HIGHEST, ["2014 (1.21)", "too small"]),
        (
            lambda table: table,
            {"capacity": {year: ends for year, ends in FIGURES.items() if year != 2014}},
            {("capacity", "years without a figure")},
            ["2014 (1); "],
        ),
    ],
    ids=[
        "nothing", "tutorial", "winter time declared Berlin", "times at the end", "wind power", "exchanged", "global",
        "knots for m/s", "small country", "small capacity", "gap in the figures",
    ],
)  # fmt: skip
def test_plausible_errors_in_a_users_file_are_warnings(own, how, options, expected, words):
    """Wrong clocks, units, columns and capacity: exactly the expected warnings, with their values."""
    checks = _warnings(own(how, **options))
    assert set(checks) == expected | {JUMP}
    notes = " ".join(check.note for key, check in checks.items() if key != JUMP)
    assert [word for word in words if word not in notes] == [], notes


def test_users_file_without_capacity_for_its_hours_is_an_error(own):
    """The stage `prepare` fails with the number of hours, and the years without a capacity."""
    with pytest.raises(DataError, match="8758 of 17504 hours") as caught:
        own(lambda table: table, {year: ends for year, ends in FIGURES.items() if year < 2015})
    assert "2014 and 2015 in fetch.csv.capacity" in caught.value.next_step


def test_points_for_thousands_are_an_error(own):
    """MW as 987 and 1.234 is an error with line and column; the same numbers without points are valid."""
    wind = {"columns": {"wind_GW": {"column": "wind_GW", "unit": "MW"}}}

    def write(form):
        return lambda table: table.assign(wind_GW=[form(round(1000 * value)) for value in table["wind_GW"]])

    with pytest.raises(DataError, match=r"own\.csv, line 2, column wind_GW") as caught:
        own(write(lambda MW: f"{MW:,}".replace(",", ".")), **wind)
    assert caught.value.value == "'1.678'"
    assert "point as thousands separator" in caught.value.expected
    assert set(_warnings(own(write(str), **wind))) == {JUMP}


def test_category_has_no_usual_mean_and_may_be_constant(prepared, monkeypatch):
    """Neither mean nor change of a constant flag is checked."""
    frame, findings = prepared
    flag = dataclasses.replace(QUANTITIES["temperature"], usual_mean=None, zero_hours=None)
    monkeypatch.setitem(QUANTITIES, "temperature", flag)
    monkeypatch.delitem(USUAL_MEANS, "temperature")
    flags = frame.assign(temperature=1.0)
    validated = validate(flags, findings)
    assert [check for check in validated.checks if check.of == "temperature"] == []
