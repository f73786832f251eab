"""Many countries on a real Dask cluster: the rule of one machine, from files in pieces, to the same bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading

import pandas as pd
import pytest

from workshop.data import origin, sources
from workshop.data import raw as raw_files
from workshop.data.countries import prepare_countries
from workshop.data.prepare import combine, prepare, write
from workshop.errors import DataError, ParameterError
from workshop.parameters import Fetch, OwnFile

SMALL = 200_000  # bytes a piece: several of each file
SPAIN = "ES_solar_generation_actual"


@pytest.fixture(scope="module")
def client():
    """A client of two workers, each a process of its own with one thread."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def connected(client):
    """What `prepare_countries` asks for a client: this one, left open."""
    return lambda: contextlib.nullcontext(client)


@pytest.fixture
def on_cluster(client, tmp_path):
    """A function that prepares a folder on the cluster, from small pieces, into `made`."""

    def call(folder, countries="all", first_year=2013, last_year=2016):
        return prepare_countries(
            folder, tmp_path / "made", first_year, last_year, countries, connected(client), piece_bytes=SMALL
        )

    return call


def contents(folder):
    """Every file in a folder, by its path there."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def same_germany(found, expected, tmp_path):
    """Frame, findings and both files are those that one machine makes."""
    (frame, findings), (plain, plain_findings) = found, expected
    assert {name: findings[name] for name in plain_findings} == plain_findings
    write(frame, tmp_path / "one")
    write(plain, tmp_path / "two")
    return contents(tmp_path / "one") == contents(tmp_path / "two")


def edit(path, line, column, value):
    """Put another value into a cell."""
    lines = path.read_text().splitlines()
    fields = lines[line - 1].split(",")
    fields[lines[0].split(",").index(column)] = value
    lines[line - 1] = ",".join(fields)
    path.write_text("\n".join(lines) + "\n")


def test_cluster_makes_the_same_germany_to_the_byte(on_cluster, raw, prepared, tmp_path):
    """The sample with all its countries, in pieces on two workers: germany.parquet and .csv as from one machine."""
    found = on_cluster(raw)
    assert same_germany(found, prepared, tmp_path)
    assert list(found[1]["countries"]) == ["AT", "DE", "DK"]
    assert found[1]["countries_left_out"] == {}


def test_cluster_applies_the_rule_to_each_country(on_cluster, raw, tmp_path):
    """A neighbour's folder holds what the rule makes of its columns; the findings count for it."""
    _, findings = on_cluster(raw, "AT")
    expected, counted = combine(raw_files.read(raw, "AT"), 2013, 2016, origin.of_folder(raw), "frame")
    found = pd.read_parquet(tmp_path / "made", filters=[("country", "==", "AT")])
    pd.testing.assert_frame_equal(found[list(expected)], expected, check_exact=True)
    assert findings["countries"]["AT"]["hours_kept"] == counted["hours_kept"] == len(expected)
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["country=AT", "country=DE"]


def test_germany_alone_needs_no_cluster(raw, prepared, on_cluster, tmp_path):
    """One country: no client is asked for, the folder is what the cluster makes of it, and holds nothing older."""
    on_cluster(raw)
    made = {name: content for name, content in contents(tmp_path / "made").items() if "country=DE" in name}
    found = prepare_countries(raw, tmp_path / "made", 2013, 2016)
    assert contents(tmp_path / "made") == made
    assert set(made) == {f"country=DE/year={year}/hours.parquet" for year in range(2013, 2017)}
    assert same_germany(found, prepared, tmp_path)


# Dask's own use of pandas.
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.reset_index")
def test_folder_is_read_as_one_table(on_cluster, raw, prepared, tmp_path):
    """pandas with filters, and dask.dataframe, see countries and years as columns, and where the data comes from."""
    import dask.dataframe

    on_cluster(raw)
    chosen = pd.read_parquet(tmp_path / "made", filters=[("country", "==", "DE"), ("year", "==", 2015)])
    expected = prepared[0]
    assert len(chosen) == (expected["utc_timestamp"].dt.year == 2015).sum()
    lazy = dask.dataframe.read_parquet(tmp_path / "made")
    assert lazy.groupby("country", observed=True)["wind_GW"].count().compute(scheduler="sync")["DE"] == len(expected)
    one = pd.read_parquet(tmp_path / "made" / "country=DK" / "year=2013" / "hours.parquet")
    assert origin.of_frame(one).source == "sample"


def test_cluster_reads_many_files(on_cluster, raw, prepared, tmp_path):
    """A file a year, or a country, under names that begin alike: the same as one file, here and on the cluster."""
    folder = shutil.copytree(raw, tmp_path / "many")
    power, weather = folder / sources.POWER_FILE, folder / sources.WEATHER_FILE
    header, *lines = weather.read_text().splitlines(keepends=True)
    for year in range(2013, 2017):
        rows = [line for line in lines if line.startswith(str(year))]
        (folder / f"weather_data_{year}.csv").write_text("".join([header, *rows]))
    weather.unlink()
    table = pd.read_csv(power, dtype=str, keep_default_na=False)
    for country in ("AT", "DE", "DK"):
        names = [name for name in table if name.startswith((country, "utc"))]
        table[names].to_csv(power.with_stem(f"{power.stem}_{country}"), index=False)
    power.unlink()
    found = on_cluster(folder)
    assert same_germany(found, prepared, tmp_path)
    assert same_germany((prepare(folder)[0], found[1]), prepared, tmp_path)
    assert list(found[1]["countries"]) == ["AT", "DE", "DK"]


def test_doubled_hour_in_two_files_keeps_the_first(on_cluster, raw, prepared, tmp_path):
    """What stands in a file and again in a later one counts once, as it stands in the first."""
    folder = shutil.copytree(raw, tmp_path / "twice")
    lines = (folder / sources.WEATHER_FILE).read_text().splitlines(keepends=True)
    again = folder / "weather_data_again.csv"
    again.write_text("".join(lines[:25]))
    edit(again, 5, "DE_temperature", "49.0")
    frame, findings = prepare(folder)
    pd.testing.assert_frame_equal(frame, prepared[0], check_exact=True)
    assert findings["doubled"]["weather"] == 24
    assert findings["unordered"]["weather"] == 24
    assert same_germany(on_cluster(folder), (frame, findings), tmp_path)


def test_all_leaves_out_what_is_incomplete_and_says_why(on_cluster, raw, tmp_path):
    """A country without a needed column, or without any hour, is left out with its reason; a named one is refused."""
    folder = shutil.copytree(raw, tmp_path / "less")
    power = folder / sources.POWER_FILE
    table = pd.read_csv(power, dtype=str, keep_default_na=False)
    table[SPAIN] = "1.0"
    table["AT_solar_generation_actual"] = ""
    table.rename(columns={"DK_wind_generation_actual": "DK_wind_onshore_generation_actual"}).to_csv(power, index=False)
    _, findings = on_cluster(folder)
    assert list(findings["countries"]) == ["DE"]
    left_out = findings["countries_left_out"]
    assert left_out["DK"] == f"no DK_wind_generation_actual in {power.name}"
    assert left_out["ES"] == f"no ES_wind_generation_actual in {power.name}; nothing of it in weather_data.csv"
    assert "no complete hour" in left_out["AT"]
    with pytest.raises(DataError, match=r"lacks 1 column: DK_wind_generation_actual \(nearest: "):
        on_cluster(folder, "DE,DK")
    with pytest.raises(DataError, match="no complete hour"):
        on_cluster(folder, "AT")


FAULTS = {
    "text": (sources.WEATHER_FILE, "DK_temperature", "cold", "line 30000, column DK_temperature"),
    "no zone": (sources.POWER_FILE, "utc_timestamp", "2016-01-01T00:00:00", "line 30000, column utc_timestamp"),
    "range": (sources.WEATHER_FILE, "AT_temperature", "99.5", "line 30000 .*column AT_temperature"),
    "off the hour": (sources.POWER_FILE, "utc_timestamp", "2016-01-01T00:15:00Z", "line 30000.*not a full hour"),
    "comma": (sources.WEATHER_FILE, "DK_temperature", "1,5", "line 30000: the line is cut short or too long"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_in_a_piece_is_told_with_its_line_in_the_file(on_cluster, raw, tmp_path, fault):
    """Wherever a piece was read: file, line, column and value are those that one machine would name."""
    name, column, value, words = FAULTS[fault]
    folder = shutil.copytree(raw, tmp_path / "bad")
    edit(folder / name, 30_000, column, value)
    with pytest.raises(DataError, match=words) as caught:
        on_cluster(folder)
    assert str(folder / name) in str(caught.value)
    assert caught.value.next_step


def test_file_without_a_row_is_refused(on_cluster, raw, tmp_path):
    """One of many files that is a header alone is told as by one machine."""
    folder = shutil.copytree(raw, tmp_path / "header")
    with (raw / sources.WEATHER_FILE).open() as file:
        (folder / "weather_data_2017.csv").write_text(next(file))
    for read in (on_cluster, prepare):
        with pytest.raises(DataError, match=r"weather_data_2017\.csv, line 1: there is a header, and no row"):
            read(folder)


def test_piece_that_is_odd_but_right_is_read_strictly(on_cluster, raw, tmp_path):
    """Times with an offset in one line: only that piece takes the slow way, and the result is one machine's."""
    folder = shutil.copytree(raw, tmp_path / "odd")
    line = (folder / sources.POWER_FILE).read_text().splitlines()[19_999]
    edit(folder / sources.POWER_FILE, 20_000, "utc_timestamp", line.split(",")[0].replace("Z", "+00:00"))
    assert same_germany(on_cluster(folder), prepare(folder), tmp_path)


def test_worker_that_is_killed_costs_nothing_but_time(client, raw, prepared, tmp_path):
    """A piece travels in its task: what a killed worker had is read again by another, to the same bytes."""
    first = next(iter(client.run(os.getpid).values()))
    killer = threading.Timer(0.3, os.kill, (first, signal.SIGKILL))
    killer.start()
    found = prepare_countries(raw, tmp_path / "made", 2013, 2016, "all", connected(client), piece_bytes=SMALL // 4)
    killer.join()
    assert same_germany(found, prepared, tmp_path)
    client.wait_for_workers(2, timeout=60)


def test_own_file_is_one_country(frame, on_cluster, tmp_path):
    """Other countries are refused of a file of one's own, with what to set."""
    _, csv = write(frame.head(48), tmp_path, "mine")
    sources.fetch("csv", tmp_path / "raw", Fetch(source="csv", csv=OwnFile(file=str(csv))))
    with pytest.raises(ParameterError, match="holds one country") as caught:
        on_cluster(tmp_path / "raw", "DE,AT", 2013, 2013)
    assert "params.yaml" in caught.value.next_step
    _, findings = prepare_countries(tmp_path / "raw", tmp_path / "made", 2013, 2013)
    assert findings["countries"]["DE"]["hours_kept"] == 48


def test_country_that_is_nowhere_is_refused(on_cluster, raw):
    """A code that no column begins with: the columns that it would need are named."""
    with pytest.raises(DataError, match="lacks 2 columns: XX_solar_generation_actual") as caught:
        on_cluster(raw, "XX")
    assert raw.name in str(caught.value)
