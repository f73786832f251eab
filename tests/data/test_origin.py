"""Where data comes from goes with the data: beside raw files, into the table, through Parquet, onto the page."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from workplace import ROOT

from workshop.data import origin, schema, sources
from workshop.data.prepare import prepare, write
from workshop.errors import DataError


def test_origin_goes_from_raw_files_into_the_table_and_through_parquet(raw, prepared, tmp_path):
    """Fetched, prepared, written and read again, the table says what the source says."""
    frame, _ = prepared
    parquet, _ = write(frame, tmp_path)
    for told in (origin.of_folder(raw), origin.of_frame(frame), origin.of_frame(schema.read(parquet))):
        assert told.source == "sample"
        assert told.modelled
        assert told.attribution == sources.attribution("sample")
    assert told.measured_name == "measured (modelled sample)"


def test_origin_that_nobody_told_is_unknown(raw_copy, frame):
    """Raw files without it, as of an older clone, are prepared all the same; nothing is claimed of them."""
    (raw_copy / "source.json").unlink()
    table, findings = prepare(raw_copy)
    assert findings["source"] == "unknown"
    assert "not recorded" in origin.of_frame(table).attribution
    frame.attrs.clear()
    assert origin.of_frame(frame).measured_name == "measured"
    assert origin.of_frame(None).source == "unknown"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"source": 3}', b"\xff\xfe"])
def test_origin_that_is_damaged_says_how_to_make_it_again(raw_copy, content):
    """The file is named, with the command."""
    (raw_copy / "source.json").write_bytes(content)
    with pytest.raises(DataError, match=r"source\.json is damaged") as caught:
        origin.of_folder(raw_copy)
    assert "workshop data fetch --to" in caught.value.next_step


@pytest.mark.parametrize(
    ("told", "legend", "hint"),
    [
        (origin.Origin(source="sample", attribution="Modelled by us.", modelled=True), "modelled sample", "simulates"),
        (origin.Origin(source="opsd", attribution="Open Power System Data. 2019."), "measured", ""),
    ],
)
def test_dashboard_shows_what_the_table_says(frame, tmp_path, told, legend, hint):
    """Footer, hint and legend follow the data that is served; before there is data they claim nothing."""
    parquet, _ = write(told.mark(frame.tail(48)), tmp_path)
    # The dashboard is an application with modules of its own: asked in a process of its own.
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT / "4_pipeline" / "dashboard")!r})
        import layout, periods
        from pages import comparison
        from serving import Served
        from workshop.data import schema
        assert (layout.attribution(Served()), comparison.modelled(Served())) == ("", "")
        frame = schema.read(Path({str(parquet)!r}))
        served = Served(looked=True, frame=frame, predicted=frame)
        figure, *_ = comparison.answer(served, periods.chosen(served, None, None))
        print(layout.attribution(served), comparison.modelled(served), figure.data[0].name, sep="|")
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shown, beside, name = done.stdout.strip().split("|")
    assert shown == told.attribution
    assert hint in beside if hint else beside == ""
    assert legend in name
