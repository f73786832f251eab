"""A user's CSV file: mapping, units, time zones, and the repeated and skipped hours of clock changes."""

from __future__ import annotations

import unicodedata
from itertools import cycle
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from forecast.raw import own_file, sources
from forecast.raw.prepare import prepare, summarize
from forecast.table import schema
from forecast.terms.errors import DataError, ParameterError
from forecast.terms.origin import origin_of
from forecast.terms.parameters import Fetch, OwnFile, TimeColumn
from places import PROJECT

GERMAN = {
    "file": "plants.csv",
    "separator": ";",
    "decimal": ",",
    "time": {"column": "Zeit", "zone": "Europe/Berlin", "format": "%d.%m.%Y %H:%M"},
    "columns": {
        "solar_GW": {"column": "PV", "unit": "kW"},
        "wind_GW": {"column": "Wind", "unit": "MW"},
        "windspeed": {"column": "v10", "unit": "km/h"},
        "temperature": {"column": "T", "unit": "K"},
        "rad_horizontal": {"column": "direkt", "unit": "J/m2"},
        "rad_diffuse": {"column": "diffus", "unit": "kJ/m2"},
    },
    "attribution": "Our plants, our meters.",
}


CELSIUS = {"columns": GERMAN["columns"] | {"temperature": {"column": "T", "unit": "C"}}}
ROW = "2000000;4000;18;283,15;360000;180"
NOTHING = float("nan")


@pytest.fixture
def put(tmp_path):
    """A function that writes a German table with these local times, cycling through these rows of values."""

    def write(times, *rows):
        lines = ["Zeit;PV;Wind;v10;T;direkt;diffus", *map(";".join, zip(times, cycle(rows or [ROW]), strict=False))]
        path = tmp_path / "plants.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def _own(**changed):
    return OwnFile.model_validate(GERMAN | changed)


def _prepare(tmp_path, options, *years):
    sources.fetch("csv", tmp_path / "raw", Fetch(source="csv", csv=options), base=tmp_path)
    return prepare(tmp_path / "raw", *years)


def test_own_table_is_read_in_our_units_and_UTC(put, tmp_path):
    """Decimal commas, kW, km/h, kelvin and joules become GW, m/s, degrees and watts; local time becomes UTC."""
    put(["01.07.2015 02:00", "01.07.2015 03:00"])
    frame, findings = _prepare(tmp_path, _own(), 2015, 2015)
    assert frame["utc_timestamp"].tolist() == list(pd.date_range("2015-07-01T00:00Z", periods=2, freq="h"))
    assert frame.iloc[0, 1:].round(9).tolist() == [2.0, 4.0, 5.0, 10.0, 100.0, 50.0]
    assert findings["source"] == "csv"
    assert findings["rows"] == {"own": 2}
    assert findings["clock_changes"] == {"ambiguous": 0, "skipped": 0}
    origin = origin_of(frame)
    assert (origin.attribution, origin.modelled) == ("Our plants, our meters.", None)


@pytest.mark.parametrize("modelled", [True, False, None])
def test_own_table_says_whether_it_is_modelled(put, tmp_path, caplog, modelled):
    """The table has the value of the key `modelled`, and the example's attribution gives a warning."""
    put(["01.07.2015 02:00"])
    example = "The owner of the data, shown in dashboard and report."
    frame, _ = _prepare(tmp_path, _own(modelled=modelled, attribution=example), 2015, 2015)
    assert origin_of(frame).modelled is modelled
    assert "attribution is still the example from own/README.md" in caplog.text
    assert example in (PROJECT / "own" / "README.md").read_text()


def test_processed_table_is_read_unchanged(prepared, tmp_path):
    """A table of the pipeline is read without a mapping, to the last digit; naive times need a zone."""
    frame, _ = prepared
    utc = OwnFile(file="b.csv", time=TimeColumn(column="utc_timestamp", zone="UTC"))
    for described, stamp in ((OwnFile(file="a.csv"), "%Y-%m-%dT%H:%M:%SZ"), (utc, "%Y-%m-%d %H:%M:%S")):
        frame.to_csv(tmp_path / described.file, index=False, date_format=stamp)
        again, findings = _prepare(tmp_path, described)
        pd.testing.assert_frame_equal(again, frame[schema.COLUMNS])
        assert findings["steps_kept"] == len(frame)
        assert findings["absent"] == {"own": 48}


def test_fetch_copies_only_a_changed_file(put, tmp_path):
    """The folder follows the file; an unchanged file is not written again."""
    options = Fetch(source="csv", csv=_own())
    put(["01.07.2015 02:00"])
    paths = sources.fetch("csv", tmp_path / "raw", options, base=tmp_path)
    assert [path.name for path in paths] == ["own.csv", "SOURCE.md", "source.json", "SHA256SUMS"]
    before = paths[0].stat().st_mtime_ns
    sources.fetch("csv", tmp_path / "raw", options, base=tmp_path)
    assert paths[0].stat().st_mtime_ns == before
    changed = put(["01.07.2015 03:00"])
    sources.fetch("csv", tmp_path / "raw", options, base=tmp_path)
    assert paths[0].read_bytes() == changed.read_bytes()


def test_fetch_without_a_file_is_an_error(tmp_path):
    """No section in params.yaml, and a missing file: both errors name the next step."""
    with pytest.raises(ParameterError, match="needs a file") as caught:
        sources.fetch("csv", tmp_path / "raw")
    assert "own/README.md" in caught.value.next_step
    with pytest.raises(DataError, match=r"plants\.csv cannot be read"):
        sources.fetch("csv", tmp_path / "raw", Fetch(source="csv", csv=_own()), base=tmp_path)


@pytest.mark.parametrize(
    ("row", "key", "words", "wind"),
    [
        ("2.000.000;4.000,5;18;283,15;360.000;180", {"thousands": "."}, "thousands: '.'", 4.0005),
        ("2 000 000;4\u202f000;18;283,15;360\u00a0000;180", {"thousands": " "}, "thousands: ' '", 4),
        ("2'000'000;4\u2019000,5;18;283,15;360000;180", {"thousands": "'"}, 'thousands: "\'"', 4.0005),
        ("2,000,000;4,000.5;18;283.15;360000;180", {"thousands": ",", "decimal": "."}, "decimal: '.'", 4.0005),
        ("2000000;-;18;283,15;360000;180", {"no_value": ["-"]}, "no_value: ['-']", NOTHING),
        ("2000000; k.A. ;18;283,15;360000;180", {"no_value": ["k.A."]}, "no_value: ['k.A.']", NOTHING),
        ("2000000;#DIV/0!;18;283,15;360000;180", {"no_value": ["#DIV/0!"]}, "no_value: ['#DIV/0!']", NOTHING),
    ],
)  # fmt: skip
def test_numbers_are_read_as_their_source_writes_them(put, row, key, words, wind):
    """Thousands separators and marks of missing values need a key in params.yaml; the error names it."""
    path = put(["01.07.2015 02:00"], row)
    frame = own_file.read(path, _own(**key)).frame
    assert frame.iloc[0, 1:].tolist() == pytest.approx([2, wind, 5, 10, 100, 50], nan_ok=True)
    with pytest.raises(DataError, match=r"plants\.csv, line 2") as caught:
        own_file.read(path, _own())
    assert words in caught.value.next_step


def test_names_of_categories_and_blanks_in_headers_are_errors(put):
    """The error asks for numbers in place of category names, and quotes a blank in a header."""
    path = put(["01.07.2015 02:00", "01.07.2015 03:00"], ROW.replace("4000", "winter"), ROW.replace("4000", "summer"))
    with pytest.raises(DataError, match="line 2, column Wind") as caught:
        own_file.read(path, _own())
    assert "encode categories as numbers" in caught.value.next_step
    path.write_text(path.read_text().replace("Zeit", " Zeit"))
    with pytest.raises(DataError, match=r"lacks 1 column: Zeit \(nearest: ' Zeit'\)"):
        own_file.read(path, _own())


def test_number_that_means_no_value_needs_a_key(put, tmp_path):
    """-999 is impossible, and the error names the key."""
    put(["01.07.2015 02:00", "01.07.2015 03:00"], ROW.replace("283,15", "-999"))
    with pytest.raises(DataError, match="column T: temperature") as caught:
        _prepare(tmp_path, _own(), 2015, 2015)
    assert "set no_value" in caught.value.next_step
    with pytest.raises(DataError, match="no complete hour"):
        _prepare(tmp_path, _own(no_value=["-999"]), 2015, 2015)


def test_thousands_are_groups_of_three(put):
    """With a point as thousands separator, `1.5` is an error: it would be read as 15."""
    with pytest.raises(DataError, match="line 2, column Wind") as caught:
        own_file.read(put(["01.07.2015 02:00"], "2000000;1.5;18;283,15;360000;180"), _own(thousands="."))
    assert caught.value.value == "'1.5'"


def test_small_negative_values_become_zero_by_a_key_and_are_counted(put, tmp_path):
    """Own consumption at night becomes 0 with `negative_as_zero`; larger values, or no key, are errors."""
    times, night = ["01.07.2015 01:00", "01.07.2015 02:00"], ROW.replace("4000;", "-3,5;")
    with pytest.raises(DataError, match=r"plants\.csv, line 2, column Wind") as caught:
        own_file.read(put(times, night, ROW), _own())
    assert "negative_as_zero: true" in caught.value.next_step
    _, frame, _, counts = own_file.read(put(times, night, ROW), _own(negative_as_zero=True))
    assert frame["wind_GW"].tolist() == [0, 4]
    assert counts["negative_as_zero"] == dict.fromkeys(schema.RANGES, 0) | {"wind_GW": 1}
    assert "set to 0: wind_GW 1" in summarize(_prepare(tmp_path, _own(negative_as_zero=True), 2015, 2015)[1])
    put(times, night.replace("-3,5", "-3000"), ROW)
    with pytest.raises(DataError, match="between 0 and 200"):
        _prepare(tmp_path, _own(negative_as_zero=True), 2015, 2015)


def test_lines_before_the_header_are_skipped_by_a_key(put):
    """Without the key the error names it and its value; line numbers count from the start of the file."""
    path = put(["01.07.2015 02:00", "01.07.2015 03:00"])
    path.write_text('Station 7, 12" mast\n\nZeit in Ortszeit\n' + path.read_text())
    with pytest.raises(DataError, match="header on line 1, but found it on line 4") as caught:
        own_file.read(path, _own())
    assert "lines_before_header: 3" in caught.value.next_step
    _, frame, _, _ = own_file.read(path, _own(lines_before_header=3))
    assert frame.index.tolist() == [5, 6]
    path.write_text(path.read_text().replace("4000", "four", 1))
    with pytest.raises(DataError, match="line 5, column Wind"):
        own_file.read(path, _own(lines_before_header=3))
    path.write_text(path.read_text() + "01.07.2015 04:00;1\n")
    with pytest.raises(DataError, match="line 7: wrong number of fields"):
        own_file.read(path, _own(lines_before_header=3))


@pytest.mark.parametrize("end", ["\n", "\n\n", ";;;;;;\n", "\r\n"])
def test_empty_lines_at_the_end_are_left_out(put, end):
    """Spreadsheets write empty lines at the end; one between two rows is an error."""
    path = put(["01.07.2015 02:00", "01.07.2015 03:00"])
    text = path.read_text()
    path.write_bytes((text + end).encode())
    assert own_file.read(path, _own()).frame.index.tolist() == [2, 3]
    path.write_bytes((text + end + text.splitlines()[-1] + "\n").encode())
    with pytest.raises(DataError, match="line 4, column Zeit"):
        own_file.read(path, _own())


# -- ends of hours -----------------------------------------------------------------------------------------------------
BY_END = GERMAN["time"] | {"stamp": "end"}
DAY_OF_ENDS = [*(f"01.07.2015 {hour:02}:00" for hour in range(1, 24)), "01.07.2015 24:00"]


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("midnight", ["01.07.2015 24:00", "01.07.2015 00:00", "02.07.2015 00:00"])
def test_stamps_at_the_end_of_the_hour_are_read_by_a_key(put, midnight, newest_first):
    """Hours 01 to 24, for any notation of midnight; without the key the error names it."""
    times = [*DAY_OF_ENDS[:-1], midnight, "02.07.2015 01:00"][:: -1 if newest_first else 1]
    _, frame, _, _ = own_file.read(put(times), _own(time=BY_END))
    hours = pd.date_range("2015-06-30T22:00Z", periods=25, freq="h")
    assert frame["utc_timestamp"].tolist() == list(hours[:: -1 if newest_first else 1])
    if midnight.startswith("01"):
        with pytest.raises(DataError, match="column Zeit") as caught:
            own_file.read(put(times), _own())
        assert (caught.value.value, "time.stamp: end" in caught.value.next_step) == (repr(midnight), True)


def test_midnight_is_the_end_of_a_day_also_next_to_gaps(put):
    """If most 00:00 follow 23:00 of the same date, all are the end of a day, even if the next day is missing."""
    times = [f"{day:02}.07.2015 {hour:02}:00" for day in range(1, 9) for hour in (22, 23, 0)]
    _, frame, _, _ = own_file.read(put(times), _own(time=BY_END))
    starts = [
        pd.Timestamp(f"2015-07-{day:02} {hour}:00", tz="Europe/Berlin") for day in range(1, 9) for hour in (21, 22, 23)
    ]
    assert frame["utc_timestamp"].tolist() == starts


@pytest.mark.parametrize("by_clock", [False, True])
def test_ends_of_hours_around_a_clock_change(put, by_clock):
    """An hour's end is one hour after its start, or the local time then: each hour is read once."""
    hours = pd.Series(pd.date_range("2015-01-01", "2016-01-01", freq="h", tz="UTC", inclusive="left", unit="us"))
    local = hours.dt.tz_convert("Europe/Berlin")
    hour = pd.Timedelta(hours=1)
    ends = local + hour if by_clock else local.dt.tz_localize(None) + hour
    _, frame, _, counts = own_file.read(put(ends.dt.strftime("%d.%m.%Y %H:%M")), _own(time=BY_END))
    assert frame["utc_timestamp"].tolist() == hours.tolist()
    assert counts["clock_changes"] == {"ambiguous": 0, "skipped": 0}


# -- other frequencies -------------------------------------------------------------------------------------------------
HOURS = pd.date_range("2015-07-01", periods=40, freq="h")
EXACT = GERMAN["time"] | {"format": "%d.%m.%Y %H:%M:%S.%f"}


@pytest.mark.parametrize(
    ("times", "where", "fix"),
    [
        (pd.date_range(HOURS[0], periods=60, freq="15min"), r"plants\.csv: the rows are 0\.25 hours", '"15min" in'),
        (pd.date_range(HOURS[0], periods=60, freq="15min"), r"plants\.csv: the rows are 0\.25 hours", '("h").mean()'),
        (pd.date_range(HOURS[0], periods=20, freq="7h"), "are 7 hours apart", "file of hourly values"),
        (pd.date_range(HOURS[0], periods=60, freq="D"), "are 24 hours apart", "in separate columns"),
        (HOURS.repeat(3), "3 different rows per hour", "sum these rows"),
        (pd.date_range(HOURS[0], periods=9).repeat(24), "24 different rows per hour", "join them"),
        (HOURS.append(pd.date_range("2015-07-02 16:00", periods=40, freq="15min")), "line 43", "split the file in two"),
        (HOURS + pd.to_timedelta(range(40), unit="s"), r"are 1\.000278 hours", "move each time to the start"),
        (pd.date_range(HOURS[0], periods=60, freq="3599999ms"), r"are 0\.9999997 hours", "move each time to the start"),
    ],
)  # fmt: skip
def test_rows_that_are_not_hourly_are_an_error_with_a_fix(put, tmp_path, times, where, fix):
    """Another frequency, several rows per time, a change of frequency, and times truncated by a spreadsheet."""
    rows = [ROW.replace("4000", str(4000 + number)) for number in range(len(times))]
    put(times.strftime(EXACT["format"]), *rows)
    with pytest.raises(DataError, match=where) as caught:
        _prepare(tmp_path, _own(time=EXACT), 2015, 2015)
    assert fix in caught.value.next_step


def test_gaps_are_no_change_of_frequency(put, tmp_path):
    """The rows around gaps are read."""
    hours = pd.date_range("2015-07-01", periods=60, freq="h").strftime("%d.%m.%Y %H:%M")
    put([*hours[:10], *hours[20:30], *hours[45:]])
    assert len(_prepare(tmp_path, _own(), 2015, 2015)[0]) == 35


def test_hours_of_a_half_hour_zone_are_an_error_with_a_fix(put):
    """India's hours start at :30 UTC: a zone of whole hours shifts all rows. Times such as 12:30 need a format."""
    times = ["01.07.2015 02:00", "01.07.2015 03:00"]
    with pytest.raises(DataError, match="line 2, column Zeit") as caught:
        own_file.read(put(times), _own(time=GERMAN["time"] | {"zone": "Asia/Kolkata"}))
    assert "'+05:00'" in caught.value.next_step
    _, frame, _, _ = own_file.read(put(times), _own(time=GERMAN["time"] | {"zone": "+05:00"}))
    assert frame["utc_timestamp"].dt.minute.tolist() == [0, 0]
    middle = [time.replace(":00", ":30") for time in times]
    with pytest.raises(DataError, match="line 2, column Zeit") as caught:
        own_file.read(put(middle), _own())
    literal = GERMAN["time"] | {"format": "%d.%m.%Y %H:30"}
    assert f'"{literal["format"]}"' in caught.value.next_step
    assert own_file.read(put(middle), _own(time=literal)).frame["utc_timestamp"].dt.minute.tolist() == [0, 0]
    summer = [f"0{day}.{month}.2015 00:00" for day in (1, 2) for month in ("01", "07")]
    with pytest.raises(DataError, match="column Zeit") as caught:
        own_file.read(put(summer), _own(time=GERMAN["time"] | {"zone": "Australia/Adelaide"}))
    assert "with a script" in caught.value.next_step  # a fixed offset cannot express summer time


def test_second_header_is_an_error_and_a_minus_sign_is_valid(put):
    """Concatenated files have a second header; a typographic minus is a minus."""
    with pytest.raises(DataError, match="line 2, column PV") as caught:
        own_file.read(put(["01.07.2015 02:00"], "PV;Wind;v10;T;direkt;diffus"), _own())
    assert caught.value.next_step == "remove the second header"
    cold = own_file.read(put(["01.07.2015 02:00"], ROW.replace("283,15", "\u22121,5")), _own(**CELSIUS)).frame
    assert cold["temperature"].tolist() == [-1.5]


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("freq", ["15min", "30min", "h"])
def test_repeated_hour_is_read_correctly_or_left_out(freq, newest_first):
    """Exports once, twice, with each row twice, or overlapping in any order."""
    truth = pd.Series(pd.date_range("2015-10-23", "2015-10-28", freq=freq, tz="Europe/Berlin", inclusive="left"))
    early, late = truth[truth < "2015-10-25T23:00Z"], truth[truth > "2015-10-24T12:00Z"]
    exports = {
        "once": [truth], "twice": [truth, truth], "each row twice": [truth.repeat(2)], "overlap": [early, late],
        "newer first": [late, early], "begins with winter": [truth[truth >= "2015-10-25T01:00Z"], early],
        "begins in the hour": [truth[truth < "2015-10-25T00:40Z"], truth[truth > "2015-10-25T00:10Z"]],
    }  # fmt: skip
    for kind, parts in exports.items():
        known = pd.concat([part[:: -1 if newest_first else 1] for part in parts])
        values = pd.DataFrame({"wind_GW": known.map(dict(zip(truth, range(len(truth)), strict=True)))})
        known, values = known.reset_index(drop=True), values.reset_index(drop=True)
        read, _ = own_file._localize(known.dt.tz_localize(None), ZoneInfo("Europe/Berlin"), values)
        assert (read.isna() | (read == known)).all(), kind
        assert kind.startswith("begins") or read.notna().all(), kind


@pytest.mark.parametrize("copies", [1, 2])
def test_ambiguous_hour_is_left_out_and_counted(put, copies):
    """A single 02:00 in autumn is ambiguous, also if each row has a copy."""
    hours = pd.Series(pd.date_range("2015-10-24", "2015-10-27", freq="h", tz="Europe/Berlin")).repeat(copies)
    once = hours[hours != pd.Timestamp("2015-10-25T01:00Z")]
    _, frame, _, counts = own_file.read(put(once.dt.strftime("%d.%m.%Y %H:%M")), _own())
    assert counts["clock_changes"] == {"ambiguous": copies, "skipped": 0}
    assert (
        frame["utc_timestamp"].tolist() == once[once != pd.Timestamp("2015-10-25T00:00Z")].dt.tz_convert("UTC").tolist()
    )


def test_skipped_hour_is_left_out_if_empty_and_an_error_otherwise(put):
    """02:00 in spring: an empty row is dropped; values mean a wrong zone, and the error suggests one."""
    spring = ["29.03.2015 01:00", "29.03.2015 02:00", "29.03.2015 03:00"]
    path = put(spring)
    for zone, winter in (("Europe/Berlin", "+01:00"), ("Africa/Casablanca", "+00:00")):
        with pytest.raises(DataError, match="line 3, column Zeit") as caught:
            own_file.read(path, _own(time=GERMAN["time"] | {"zone": zone}))
        assert caught.value.value == "'29.03.2015 02:00'"
        assert f"zone: '{winter}'" in caught.value.next_step
    with pytest.raises(DataError) as caught:
        own_file.read(put(spring, ROW, ";".join("000000"), ROW), _own())
    assert "filled that hour with 0" in caught.value.next_step
    put(spring)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "29.03.2015 02:00;;;;;;", lines[3]]) + "\n")
    _, frame, _, counts = own_file.read(path, _own())
    assert frame.index.tolist() == [2, 4]
    assert counts["clock_changes"] == {"ambiguous": 0, "skipped": 1}


def test_zone_may_be_an_offset_and_offsets_need_no_zone(put):
    """With +01:00 each hour of the year exists once; offsets in the file make equal times unambiguous."""
    time = TimeColumn(column="Zeit", zone="+01:00", format="%d.%m.%Y %H:%M")
    _, frame, _, counts = own_file.read(put(["29.03.2015 02:00", "25.10.2015 02:00"]), _own(time=time.model_dump()))
    assert frame["utc_timestamp"].dt.hour.tolist() == [1, 1]
    assert counts["clock_changes"] == {"ambiguous": 0, "skipped": 0}
    times = ["2015-10-25T02:00:00+02:00", "2015-10-25T02:00:00+01:00"]
    _, frame, _, _ = own_file.read(put(times), _own(time={"column": "Zeit"}))
    assert frame["utc_timestamp"].dt.hour.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("times", "time", "line", "words"),
    [
        (["2015-01-01 00:00"], {}, 2, "time: {column: Zeit, zone: UTC}"),
        (["2015-01-01T00:00:00Z", "2015-01-01 01:00"], {}, 3, "an offset"),
        (["2015-01-01 00:00", "soon"], {"zone": "UTC"}, 3, "'soon'"),
        (["2015-01-01 00:00", ""], {"zone": "UTC"}, 3, "an empty cell"),
        (["01.13.2015 00:00"], {"zone": "UTC", "format": "%d.%m.%Y %H:%M"}, 2, "'01.13.2015 00:00'"),
        (["1. März 2015"], {"zone": "UTC", "format": "%d. %B %Y"}, 2, "English names of months"),
    ],
)
def test_invalid_time_is_an_error(put, times, time, line, words):
    """The error has line, column, value, expected value and next step."""
    with pytest.raises(DataError, match=f"plants.csv, line {line}, column Zeit") as caught:
        own_file.read(put(times), _own(time={"column": "Zeit", **time}))
    assert words in str(caught.value)


@pytest.mark.parametrize("zone", ["Europe/Berlim", "../../etc/passwd", "+25:00"])
def test_unknown_zone_is_an_error(put, zone):
    """The error names valid examples."""
    with pytest.raises(ParameterError, match=r"time\.zone is not a time zone") as caught:
        own_file.read(put(["01.07.2015 02:00"]), _own(time=GERMAN["time"] | {"zone": zone}))
    assert "Europe/Berlin" in caught.value.expected


@pytest.mark.parametrize(("written", "named"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_header_is_the_same_in_both_forms_of_unicode(put, written, named):
    """Composed and decomposed characters look the same, and match."""
    path = put(["01.07.2015 02:00"])
    path.write_text(path.read_text().replace("Wind", unicodedata.normalize(written, "Wind für Höhe")))
    wind = {"column": unicodedata.normalize(named, "Wind für Höhe"), "unit": "MW"}
    assert own_file.read(path, _own(columns=GERMAN["columns"] | {"wind_GW": wind})).frame["wind_GW"].tolist() == [4]
