"""Sources: the raw files, their checksums, card and origin."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workshop.data import sources
from workshop.errors import DataError

NAMES = ["time_series_60min_singleindex.csv", "weather_data.csv", "SOURCE.md", "source.json", "SHA256SUMS"]


def test_fetch_writes_the_files_with_right_checksums(raw):
    """The folder holds power, weather, card, origin and checksums, and nothing else; the checksums agree."""
    assert sorted(path.name for path in raw.iterdir()) == sorted(NAMES)
    assert sources.fetch("sample", raw) == [raw / name for name in NAMES]
    for line in (raw / "SHA256SUMS").read_text().splitlines():
        total, name = line.split("  ")
        assert hashlib.sha256((raw / name).read_bytes()).hexdigest() == total


def test_fetch_leaves_a_complete_folder_as_it_is(raw):
    """Nothing is written again when the checksums are right."""
    before = {path: path.stat().st_mtime_ns for path in raw.iterdir()}
    sources.fetch("sample", raw)
    assert {path: path.stat().st_mtime_ns for path in raw.iterdir()} == before


@pytest.mark.parametrize("name", NAMES)
def test_fetch_mends_a_folder_with_a_damaged_file(raw, raw_copy, name):
    """A file that was cut is written anew."""
    content = (raw_copy / name).read_bytes()
    (raw_copy / name).write_bytes(content[: len(content) // 2])
    sources.fetch("sample", raw_copy)
    assert (raw_copy / name).read_bytes() == (raw / name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_character_that_changed_is_noticed(raw, raw_copy, name, data):
    """Put into or taken out of a table, the card, the origin or the checksums: that file is named, and no other."""
    text = (raw / name).read_text(encoding="utf-8")
    place = data.draw(st.integers(0, len(text) - 1), "place")
    put = data.draw(st.just("") | st.sampled_from("\n\r 0a*") | st.characters(codec="utf-8"), "character")
    (raw_copy / name).write_bytes((text[:place] + put + text[place + (not put) :]).encode())
    changed = sources.changed(raw_copy)
    assert changed if name == "SHA256SUMS" else changed == [name]


def test_changed_needs_checksums_that_are_whole(raw, raw_copy):
    """Nothing is said of files as they were fetched, or of a folder without checksums; lines that lack are noticed."""
    assert sources.changed(raw) == []
    sums = raw_copy / "SHA256SUMS"
    for content in (b"", b"\xff", sums.read_bytes()[:-1], sums.read_bytes() + b"\n", sums.read_bytes() * 2):
        sums.write_bytes(content)
        assert sources.changed(raw_copy), content
    sums.unlink()
    assert sources.changed(raw_copy) == []


def test_fetch_refuses_an_unknown_source(tmp_path):
    """The error names the source asked for and the ones there are; no file is written."""
    for ask in (lambda: sources.fetch("weather.com", tmp_path), lambda: sources.attribution("weather.com")):
        with pytest.raises(DataError) as caught:
            ask()
        assert caught.value.value == "'weather.com'"
        assert caught.value.expected == "sample, opsd, csv"
    assert not list(tmp_path.iterdir())


def test_fetch_tells_a_folder_that_cannot_be_written(tmp_path):
    """A file where the folder should be gives a DataError, not a traceback."""
    (tmp_path / "raw").write_text("in the way")
    with pytest.raises(DataError, match="could not be written"):
        sources.fetch("sample", tmp_path / "raw")


def test_source_card_says_modelled_and_gives_the_attribution(raw):
    """The card is headed by the word modelled, names the sources and says what the data does not match."""
    card = (raw / "SOURCE.md").read_text(encoding="utf-8")
    assert "modelled" in card.splitlines()[0]
    for word in ("Deutscher Wetterdienst", "demandlib", "windpowerlib", "Not Open Power System Data", "does not match"):
        assert word in card


def test_attribution_says_modelled():
    """What is shown beside the data says that it is modelled and where it comes from."""
    text = sources.attribution("sample")
    assert "modelled" in text.lower()
    assert "Deutscher Wetterdienst" in text


def test_sources_imports_no_heavy_package():
    """Importing the module loads neither pandas nor numpy: the command line stays quick."""
    script = (
        "import sys, workshop.data.sources; print(sorted({'pandas', 'numpy', 'pvlib', 'pandera'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
