"""From raw files to the processed frame: the rule, the counts, and raw files that cannot be used."""

from __future__ import annotations

import json
from functools import partial

import pandas as pd
import pytest

from workshop.data import schema, sources
from workshop.data.prepare import (
    LAYOUT,
    choose_countries,
    load_or_make,
    prepare,
    prepare_country,
    write,
    write_countries,
)
from workshop.errors import DataError, ParameterError
from workshop.parameters import Fetch, OwnFile

POWER, WEATHER = "time_series_60min_singleindex.csv", "weather_data.csv"


def test_prepare_counts_the_faults_of_the_sample(prepared):
    """The findings tell hours expected, kept, doubled, absent and incomplete, and can be written as JSON."""
    frame, findings = prepared
    assert schema.check(frame) is frame
    assert len(frame) == 35_016
    assert json.loads(json.dumps(findings)) == findings
    by_year = findings["by_year"]
    assert {name: findings[name] for name in findings if name != "by_year"} == {
        "source": "sample",
        "first_year": 2013,
        "last_year": 2016,
        "hours_expected": 35_064,
        "hours_kept": 35_016,
        "hours_left_out": 48,
        "rows": {"power": 35_040, "weather": 35_056},
        "outside_years": {"power": 0, "weather": 0},
        "unordered": {"power": 0, "weather": 0},
        "doubled": {"power": 4, "weather": 0},
        "absent": {"power": 28, "weather": 8},
        "incomplete": {
            "solar_GW": 4,
            "wind_GW": 5,
            "windspeed": 2,
            "temperature": 0,
            "rad_horizontal": 1,
            "rad_diffuse": 0,
        },
        "first_hour": "2013-01-01T00:00:00Z",
        "last_hour": "2016-12-31T23:00:00Z",
    }
    assert {year: counts["hours_kept"] for year, counts in by_year.items()} == {
        "2013": 8755, "2014": 8745, "2015": 8759, "2016": 8757,
    }  # fmt: skip


def test_prepare_invents_no_row_and_no_value(raw, prepared):
    """The processed rows are exactly the first, complete rows of both raw files, power divided by 1000."""
    power = pd.read_csv(raw / POWER).drop_duplicates("utc_timestamp", keep="first")
    both = power.merge(pd.read_csv(raw / WEATHER), on="utc_timestamp")
    ours = {f"DE_{theirs}": name for columns in LAYOUT.values() for theirs, name in columns.items()}
    expected = both[["utc_timestamp", *ours]].dropna().rename(columns=ours)
    expected[schema.TARGETS] = expected[schema.TARGETS] / 1000
    table = prepared[0].copy()
    table["utc_timestamp"] = table["utc_timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert table.set_index("utc_timestamp").equals(expected.set_index("utc_timestamp"))


def test_prepare_refuses_years_without_data(raw):
    """Years that the files do not hold give a DataError; years in the wrong order a ParameterError."""
    with pytest.raises(DataError, match="no complete hour in common from 1999 to 2000"):
        prepare(raw, 1999, 2000)
    with pytest.raises(ParameterError, match="last year is before the first"):
        prepare(raw, 2016, 2013)


def test_write_gives_the_same_bytes_twice(frame, tmp_path):
    """Both files come out the same each time, under the name asked for, and the frame is not changed."""
    before = frame.copy()
    one, two = write(frame, tmp_path / "one"), write(frame, tmp_path / "two", name="europe")
    assert [path.name for path in one + two] == ["germany.parquet", "germany.csv", "europe.parquet", "europe.csv"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    pd.testing.assert_frame_equal(frame, before)


def test_load_or_make_makes_the_file_once_and_reads_it_after(prepared, tmp_path):
    """Without a file the sample is made into it; with one, that one is read."""
    csv = tmp_path / "germany.csv"
    pd.testing.assert_frame_equal(load_or_make(csv), prepared[0])
    assert list(tmp_path.iterdir()) == [csv]
    csv.write_text("".join(csv.read_text().splitlines(keepends=True)[:11]))
    assert len(load_or_make(csv)) == 10


# -- many countries ----------------------------------------------------------------------------------------------------
def _prepare_all(folder, out, countries="all"):
    """Do what the notebook does, without a cluster."""
    codes = choose_countries(folder, countries)
    return write_countries({code: prepare_country(code, folder, 2013, 2016) for code in codes}, out, countries)


@pytest.fixture(scope="module")
def three(raw, tmp_path_factory):
    """The folder of all countries of the sample, and the findings."""
    out = tmp_path_factory.mktemp("countries")
    return out, _prepare_all(raw, out)


# Dask's own use of pandas.
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.reset_index")
def test_countries_are_one_folder_that_is_read_as_one_table(three, prepared):
    """pandas with filters, and dask.dataframe, see countries and years as columns; Germany is as when alone."""
    import dask.dataframe

    out, findings = three
    assert list(findings["countries"]) == ["AT", "DE", "DK"]
    assert findings["countries_left_out"] == {}
    assert {name: findings[name] for name in prepared[1]} == prepared[1]
    germany = pd.read_parquet(out, filters=[("country", "==", "DE")])[schema.COLUMNS]
    pd.testing.assert_frame_equal(germany, prepared[0], check_exact=True)
    lazy = dask.dataframe.read_parquet(out)
    counts = lazy.groupby("country", observed=True)["wind_GW"].count().compute(scheduler="sync")
    assert counts.to_dict() == findings["countries"]
    one = pd.read_parquet(out / "country=DK" / "year=2013" / "hours.parquet")
    assert sources.origin_of(one).source == "sample"


def test_country_is_prepared_by_a_dask_worker(raw, three):
    """The task of the notebook, sent to a worker in another process, returns the same table; an error comes back."""
    from distributed import Client, LocalCluster

    task = partial(prepare_country, raw_folder=raw, first_year=2013, last_year=2013)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        (frame, _), error = client.gather(client.map(task, ["AT", "XX"], pure=False))
    expected = pd.read_parquet(three[0], filters=[("country", "==", "AT"), ("year", "==", 2013)])
    pd.testing.assert_frame_equal(frame, expected[schema.COLUMNS], check_exact=True)
    assert "lacks 2 columns: XX_solar_generation_actual" in error.what


def test_germany_alone_leaves_nothing_of_other_countries(raw, prepared, tmp_path):
    """The folder holds Germany's years, and nothing of an earlier call."""
    assert choose_countries(raw, "DE") == ["DE"]
    assert choose_countries(raw, "AT") == ["AT", "DE"]
    (tmp_path / "out" / "country=AT").mkdir(parents=True)
    write_countries({"DE": prepared}, tmp_path / "out", "DE")
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.parquet"))
    assert files == [f"country=DE/year={year}/hours.parquet" for year in range(2013, 2017)]
    assert not (tmp_path / "out" / "country=AT").exists()


def test_all_leaves_out_incomplete_countries_and_says_why(raw_copy, tmp_path):
    """A country without a needed column, or without any hour, is left out with its reason; a named one is an error."""
    table = pd.read_csv(raw_copy / POWER, dtype=str, keep_default_na=False)
    table["ES_solar_generation_actual"], table["AT_solar_generation_actual"] = "1.0", ""
    table = table.rename(columns={"DK_wind_generation_actual": "DK_wind_onshore_generation_actual"})
    table.to_csv(raw_copy / POWER, index=False)
    findings = _prepare_all(raw_copy, tmp_path / "out")
    assert list(findings["countries"]) == ["DE"]
    left_out = findings["countries_left_out"]
    assert "DK_wind_generation_actual (nearest: " in left_out["DK"]
    assert "lacks 1 column: ES_wind_generation_actual" in left_out["ES"]
    assert "no complete hour" in left_out["AT"]
    with pytest.raises(DataError, match="no complete hour"):
        _prepare_all(raw_copy, tmp_path / "out", "AT")


def test_own_file_is_one_country(frame, tmp_path):
    """Other countries are refused of an own file, with what to set."""
    _, csv = write(frame.head(48), tmp_path, "mine")
    sources.fetch("csv", tmp_path / "raw", Fetch(source="csv", csv=OwnFile(file=str(csv))))
    with pytest.raises(ParameterError, match="holds one country") as caught:
        choose_countries(tmp_path / "raw", "DE,AT")
    assert "params.yaml" in caught.value.next_step
