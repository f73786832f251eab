"""From the two raw files to the processed frame, by a stated rule that leaves out and never invents."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pandas as pd
from pandas import DataFrame

from workshop.data import schema, sources
from workshop.data.files import read_columns, write_whole
from workshop.errors import DataError, ParameterError

STAMP = "%Y-%m-%dT%H:%M:%SZ"
MW_PER_GW = 1000
POWER_COLUMNS = {"DE_solar_generation_actual": "solar_GW", "DE_wind_generation_actual": "wind_GW"}
WEATHER_COLUMNS = {
    "DE_windspeed_10m": "windspeed",
    "DE_temperature": "temperature",
    "DE_radiation_direct_horizontal": "rad_horizontal",
    "DE_radiation_diffuse_horizontal": "rad_diffuse",
}


def prepare(raw_folder: Path, first_year: int = 2013, last_year: int = 2016) -> tuple[DataFrame, dict]:
    """Return the processed frame of the raw files in ``raw_folder``, and the findings on the way.

    The rule, for each hour (UTC) from 1 January of ``first_year`` to the end of ``last_year``:

    1. an hour that stands in a file more than once: its first row is kept, the others are left out;
    2. an hour that is absent from either file is left out;
    3. an hour in which a needed cell is empty is left out;
    4. nothing is filled, interpolated or otherwise invented. Power is turned from MW into GW, no other value changes.

    The frame has the columns `schema.COLUMNS`, sorted by time, and satisfies `schema.check`. The findings can be
    written as JSON: the hours expected, kept and left out; the doubled and absent ones by file (`power`,
    `weather`); the empty cells by column, among the hours that a file has; the first and last hour; the means.

    Raises DataError naming file, line, column and value (no file, no such column, text in a number, a line cut
    short, a timestamp off the hour, no hour in the years asked for, values out of range) and ParameterError when
    ``last_year`` is before ``first_year``.
    """
    if last_year < first_year:
        raise ParameterError(
            "The last year is before the first.",
            value=f"first_year {first_year}, last_year {last_year}",
            expected="first_year <= last_year",
            next_step="exchange them (in chapter 4: params.yaml)",
        )
    hours = pd.date_range(
        f"{first_year}-01-01", f"{last_year + 1}-01-01", freq="h", tz="UTC", inclusive="left", unit="us"
    )
    power, power_doubled = _read(Path(raw_folder) / sources.POWER_FILE, POWER_COLUMNS, hours)
    weather, weather_doubled = _read(Path(raw_folder) / sources.WEATHER_FILE, WEATHER_COLUMNS, hours)
    power = power / MW_PER_GW

    complete = power.join(weather, how="inner").dropna().sort_index()
    frame = complete.rename_axis("utc_timestamp").reset_index()[schema.COLUMNS]
    if frame.empty:
        raise DataError(
            f"The raw files have no complete hour in common from {first_year} to {last_year}.",
            value=f"{len(power)} hours of power, {len(weather)} hours of weather",
            next_step="ask for years that both files hold",
        )
    schema.check(frame, f"The frame prepared from {raw_folder}")
    findings = {
        "first_year": first_year,
        "last_year": last_year,
        "hours_expected": len(hours),
        "hours_kept": len(frame),
        "hours_left_out": len(hours) - len(frame),
        "doubled": {"power": power_doubled, "weather": weather_doubled},
        "absent": {"power": len(hours) - len(power), "weather": len(hours) - len(weather)},
        "incomplete": {column: int(count) for part in (power, weather) for column, count in part.isna().sum().items()},
        "first_hour": frame["utc_timestamp"].iloc[0].strftime(STAMP),
        "last_hour": frame["utc_timestamp"].iloc[-1].strftime(STAMP),
        "means": {column: round(float(frame[column].mean()), 4) for column in schema.RANGES},
    }
    return frame, findings


def write(frame: DataFrame, folder: Path, name: str = "germany") -> list[Path]:
    """Write the processed frame as ``name``.parquet and ``name``.csv into ``folder`` and return both paths.

    The same frame gives the same bytes. Each file is written whole or not at all. Raises DataError (frame breaks the
    schema, disk full, folder not writable).
    """
    parquet = write_parquet(frame, Path(folder) / f"{name}.parquet")
    return [parquet, _write_csv(frame, Path(folder) / f"{name}.csv")]


def write_parquet(frame: DataFrame, path: Path) -> Path:
    """Write a processed frame, or a part of one, as parquet and return its path; bytes and errors as `write`."""
    schema.check(frame, path.name)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return write_whole(path, buffer.getvalue())


def load_or_make(csv: Path) -> DataFrame:
    """Return the processed frame in the file ``csv``, made from the embedded sample first if there is no such file.

    Raises DataError (file damaged, disk full, folder not writable).
    """
    csv = Path(csv)
    if not csv.exists():
        with tempfile.TemporaryDirectory() as folder:
            sources.fetch("sample", Path(folder))
            frame, _ = prepare(Path(folder))
        _write_csv(frame, csv)
    return schema.read(csv)


def _write_csv(frame: DataFrame, path: Path) -> Path:
    return write_whole(path, frame.to_csv(index=False, date_format=STAMP, lineterminator="\n").encode())


def _read(path: Path, names: dict[str, str], hours: pd.DatetimeIndex) -> tuple[DataFrame, int]:
    """Return the file's ``hours``, each once, columns renamed, time as the index; and how many rows were doubles."""
    next_step = f"workshop data, or run the notebook that makes {path.name}, to put the raw files there"
    raw = read_columns(path, ["utc_timestamp", *names], next_step=next_step)
    stamps = raw["utc_timestamp"]
    within = raw[(stamps >= hours[0]) & (stamps < hours[-1] + pd.Timedelta(hours=1))]
    off = ~within["utc_timestamp"].isin(hours)
    if off.any():
        line = off.idxmax()
        raise DataError(
            f"{path}, line {line}, column utc_timestamp: not a full hour.",
            value=within["utc_timestamp"][line].strftime(STAMP),
            expected="hourly data",
            next_step="use the file of hourly values (60min)",
        )
    once = within.drop_duplicates("utc_timestamp", keep="first")
    return once.set_index("utc_timestamp").rename(columns=names), len(within) - len(once)
