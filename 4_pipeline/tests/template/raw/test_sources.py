"""Sources: the raw files, their checksums, card and origin."""

from __future__ import annotations

import hashlib

import pytest
from forecast.raw import sources
from forecast.raw.prepare import prepare
from forecast.table import processed
from forecast.table.processed import write
from forecast.terms.errors import DataError
from forecast.terms.origin import origin_in, origin_of

NAMES = ["time_series_60min_singleindex.csv", "weather_data.csv", "SOURCE.md", "source.json", "SHA256SUMS"]


def test_fetch_writes_the_files_with_checksums(raw):
    """The folder holds power, weather, card, origin and matching checksums; a second call writes nothing."""
    before = {path.name: path.stat().st_mtime_ns for path in raw.iterdir()}
    assert sources.fetch("sample", raw) == [raw / name for name in NAMES]
    assert {path.name: path.stat().st_mtime_ns for path in raw.iterdir()} == before
    assert set(before) == set(NAMES)
    for line in (raw / "SHA256SUMS").read_text().splitlines():
        total, name = line.split("  ")
        assert hashlib.sha256((raw / name).read_bytes()).hexdigest() == total


@pytest.mark.parametrize("name", [NAMES[0], "SOURCE.md", "SHA256SUMS"])
def test_fetch_repairs_a_damaged_file(raw, raw_copy, name):
    """A truncated file is written again."""
    content = (raw_copy / name).read_bytes()
    (raw_copy / name).write_bytes(content[: len(content) // 2])
    sources.fetch("sample", raw_copy)
    assert (raw_copy / name).read_bytes() == (raw / name).read_bytes()


def test_source_card_says_modelled_and_gives_the_attribution(raw):
    """The card says modelled in its title, names the sources, and lists the differences from the real data."""
    card = (raw / "SOURCE.md").read_text(encoding="utf-8")
    assert "modelled" in card.splitlines()[0]
    for word in ("Deutscher Wetterdienst", "demandlib", "windpowerlib", "Not Open Power System Data", "does not match"):
        assert word in card


def test_origin_is_kept_from_raw_files_to_parquet(raw, prepared, tmp_path):
    """The origin of the source is that of the table that was fetched, prepared, written and read again."""
    frame, _ = prepared
    parquet, _ = write(frame, tmp_path)
    for origin in (origin_in(raw), origin_of(frame), origin_of(processed.read(parquet))):
        assert (origin.source, origin.modelled) == ("sample", True)
        assert "Deutscher Wetterdienst" in origin.attribution
    assert origin.measured_name == "measured (modelled sample)"


def test_origin_that_is_not_recorded_is_unknown(raw_copy, frame):
    """Raw files without an origin, such as from an older clone, are prepared with an unknown origin."""
    (raw_copy / "source.json").unlink()
    table, findings = prepare(raw_copy)
    assert findings["source"] == "unknown"
    assert "not recorded" in origin_of(table).attribution
    frame.attrs.clear()
    assert origin_of(frame).measured_name == "measured"
    assert origin_of(None).source == "unknown"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"source": 3}', b"\xff\xfe"])
def test_damaged_origin_is_an_error_with_a_command(raw_copy, content):
    """The error names the file, and the command that writes it again."""
    (raw_copy / "source.json").write_bytes(content)
    with pytest.raises(DataError, match=r"source\.json is damaged") as caught:
        origin_in(raw_copy)
    assert "python -m forecast fetch --to" in caught.value.next_step
