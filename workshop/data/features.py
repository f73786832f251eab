"""What a model is given, what it must predict, and what can be derived from what it is given.

The one place for each of these: notebooks, pipeline and dashboard call it, and it travels in the logged models.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from workshop.data import capacity
from workshop.data.raw import require_columns
from workshop.data.schema import FEATURES, TARGETS
from workshop.errors import DataError

if TYPE_CHECKING:
    from pandas import DataFrame, DatetimeIndex, Series

INPUTS = ["utc_timestamp", *FEATURES]
# `derive` says what they are.
DERIVED = ["hub_windspeed", "temperature", "rad_horizontal", "rad_diffuse", "sun_elevation", "sun_azimuth"]
DERIVED_UNITS = dict(zip(DERIVED, ["m/s", "°C", "W/m²", "W/m²", "°", "°"], strict=True))
# The middle of Germany, degrees north and east.
MIDDLE = (51.0, 10.4)
# Where the wind is measured, about where the turbines' hubs were in those years, and the roughness length of farmland.
MEASURED_METRES, HUB_METRES, ROUGHNESS_METRES = 10, 105, 0.1


def features(frame: DataFrame) -> DataFrame:
    """Return the four weather features (units: `schema.UNITS`) as float64 columns; DataError if one is missing."""
    return _select(frame, FEATURES)


def targets(frame: DataFrame) -> DataFrame:
    """Return solar and wind generation in GW as float64 columns; DataError if one is missing."""
    return _select(frame, TARGETS)


def capacity_factors(frame: DataFrame) -> DataFrame:
    """Return generation by what was installed at the time (`installed`), without a unit, columns `TARGETS`.

    Raises DataError: a column missing, hours outside the years whose capacity is known.
    """
    return targets(frame) / installed(frame)


def installed(frame: DataFrame, year_ends: capacity.YearEnds | None = None) -> DataFrame:
    """Return the installed capacity in GW at each hour, columns `TARGETS`; errors as `capacity.installed`.

    Without ``year_ends`` it goes by the figures that the frame carries (`capacity.of_frame`).
    """
    import pandas as pd

    year_ends = year_ends or capacity.of_frame(frame)
    stamps = pd.Series(to_utc(frame["utc_timestamp"]), frame.index)
    return pd.DataFrame({target: capacity.installed(stamps, target, year_ends) for target in TARGETS})


def inputs(frame: DataFrame) -> DataFrame:
    """Return the hour (its start, UTC, datetime64[us] without a zone) and the four weather features.

    It is how a model that knows the time is given raw weather. The zone is left out because a model's signature has
    no type for it; the frame's attributes stay, for a model that learns. Raises DataError: a column missing, no time.
    """
    import pandas as pd

    weather = features(frame)
    require_columns(frame.columns, INPUTS, "The frame")
    stamps = pd.DatetimeIndex(to_utc(frame["utc_timestamp"])).tz_localize(None)
    given = pd.concat([pd.Series(stamps, frame.index, name="utc_timestamp"), weather], axis="columns")
    given.attrs = dict(frame.attrs)
    return given


def derive(frame: DataFrame) -> DataFrame:
    """Return what a model learns from, an hour a row, from that hour's start (UTC) and weather: columns `DERIVED`.

    - `hub_windspeed` (m/s): the wind at 105 m, from that at 10 m by the logarithmic profile ln(z/z0) with z0 = 0.1 m
      (Hau, Wind Turbines, 3rd edition, chapter 13);
    - `temperature` (°C, at 2 m), `rad_horizontal` and `rad_diffuse` (W/m²): as they are;
    - `sun_elevation` and `sun_azimuth` (degrees above the horizon; clockwise from north): where the sun stands over
      the middle of Germany half an hour after the stamp, by NREL's solar position algorithm (pvlib's `spa_python`).
      They say hour and season at once, in the terms that matter.

    Each row is derived from itself alone, so that one hour is answered as well as a year. Raises DataError: a column
    missing, no time.
    """
    import pandas as pd

    weather = features(frame)
    require_columns(frame.columns, INPUTS, "The frame")
    sun = sun_position(to_utc(frame["utc_timestamp"]), minutes=30)
    profile = math.log(HUB_METRES / ROUGHNESS_METRES) / math.log(MEASURED_METRES / ROUGHNESS_METRES)
    derived = {
        "hub_windspeed": weather["windspeed"] * profile,
        **{name: weather[name] for name in ("temperature", "rad_horizontal", "rad_diffuse")},
        "sun_elevation": sun["elevation"].to_numpy(),
        "sun_azimuth": sun["azimuth"].to_numpy(),
    }
    return pd.DataFrame(derived, index=frame.index)[DERIVED]


def sun_position(stamps: DatetimeIndex, *, minutes: float = 0) -> DataFrame:
    """Return `elevation` and `azimuth` (degrees) of the sun over the middle of Germany, so long after each stamp."""
    import pandas as pd
    from pvlib.solarposition import spa_python

    return spa_python(stamps + pd.Timedelta(minutes=minutes), *MIDDLE)[["elevation", "azimuth"]]


def to_utc(stamps: Series) -> DatetimeIndex:
    """Return times as UTC: those without a zone are taken for it, text is read as ISO 8601; DataError if it is none."""
    import pandas as pd

    is_time = isinstance(stamps.dtype, pd.DatetimeTZDtype) or stamps.dtype.kind == "M"
    try:
        text = stamps if is_time else stamps.astype("str")
        times = pd.DatetimeIndex(pd.to_datetime(text, utc=True, format=None if is_time else "ISO8601"))
    except ValueError as error:
        raise _no_time(str(error).splitlines()[0]) from None
    if times.hasnans:
        raise _no_time(f"{times.isna().sum()} of {len(times)} are missing")
    return times


def _no_time(text: str) -> DataError:
    return DataError(
        "The column utc_timestamp holds what is no time.",
        value=text,
        expected="the start of an hour in UTC, such as 2016-06-01T12:00:00Z",
    )


def _select(frame: DataFrame, columns: list[str]) -> DataFrame:
    require_columns(frame.columns, columns, "The frame")
    return frame[columns].astype("float64")
