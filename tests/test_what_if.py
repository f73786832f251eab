"""The dashboard's what-if panel: the hour that is asked about is the one that is shown."""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd
import pytest
from workplace import ROOT


@pytest.fixture
def what_if(monkeypatch):
    """The panel's module; the dashboard is an application, and no package."""
    monkeypatch.syspath_prepend(ROOT / "4_pipeline" / "dashboard")
    from pages import what_if

    return what_if


def _served(what_if, last):
    frame = None if last is None else pd.DataFrame({"utc_timestamp": [pd.Timestamp(last)]})
    return what_if.Served(frame=frame)


@pytest.mark.parametrize("last", ["2016-12-31T23:00Z", "2015-12-31T23:00Z", None])
@pytest.mark.parametrize("day", [1, 59, 60, 172, 365])
def test_day_that_is_asked_is_the_one_shown(what_if, last, day):
    """In a leap year, too: the last day of the slider is 31 December, and 172 is 21 June."""
    moment = what_if.moment_of_year(_served(what_if, last), day, 12)
    assert f"{moment:%d %B}" == what_if.reading("day", day)
    assert what_if.reading("day", 172) == "21 June"
    assert what_if.reading("day", 365) == "31 December"


@pytest.mark.parametrize("last", ["2017-01-01T00:00Z", "2018-06-01T00:00Z"])
def test_hour_has_a_known_capacity(what_if, last):
    """Data that goes on beyond the figures of installed capacity asks about the last year that has one."""
    moment = what_if.moment_of_year(_served(what_if, last), 172, 12)
    assert moment == datetime(2016, 6, 21, 12, tzinfo=UTC)
