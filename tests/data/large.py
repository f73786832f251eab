"""Raw files of any size, in the layout and textured like the real ones: short numbers, dark nights, empty cells."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from workshop.data.sources import POWER_FILE, WEATHER_FILE

CODES = ["DE", *(first + second for first, second in product(ascii_uppercase, repeat=2) if first + second != "DE")]
POWER = ("{}_solar_generation_actual", "{}_wind_generation_actual")
# Each kind of column: the most it can be, and its digits after the point.
WEATHER = {
    "{}_windspeed_10m": (15, 2),
    "{}_temperature": (34, 3),
    "{}_radiation_direct_horizontal": (800, 4),
    "{}_radiation_diffuse_horizontal": (390, 4),
}
FULL_SIZE_POWER, FULL_SIZE_WEATHER = ("2011-04-19", "2017-01-01"), ("1980-01-01", "2017-01-01")


def write_full_size(folder: Path) -> list[Path]:
    """Write files of the true size: power of 50,000 hours and 303 columns, weather of 324,000 hours and 87 columns."""
    more = [f"{code}_load_actual_entsoe_power_statistics" for code in CODES[1:300]]
    states = [column for state in CODES[1:21] for column in columns_of([f"DE_{state}"], WEATHER)]
    return [
        write(folder / POWER_FILE, *FULL_SIZE_POWER, [*columns_of(["DE"], POWER), *more], local_times=True),
        write(folder / WEATHER_FILE, *FULL_SIZE_WEATHER, [*columns_of(["DE"], WEATHER), *states, "XX_snowmass"]),
    ]


def columns_of(codes: Iterable[str], kinds: Iterable[str]) -> list[str]:
    """Return each country's columns."""
    return [kind.format(code) for code in codes for kind in kinds]


def write(path: Path, start: str, end: str, columns: list[str], *, local_times: bool = False) -> Path:
    """Write one file, a year at a time: numbers from a fixed seed, one cell in a thousand empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    writer = None
    hours = pd.date_range(start, end, freq="h", tz="UTC", inclusive="left")
    try:
        for year in hours.groupby(hours.year).values():
            table = {"utc_timestamp": year.strftime("%Y-%m-%dT%H:%M:%SZ").to_numpy(dtype=str)}
            if local_times:
                local = year.tz_convert("Europe/Berlin").strftime("%Y-%m-%dT%H:%M:%S%z")
                table["cet_cest_timestamp"] = local.to_numpy(dtype=str)
            night = (year.hour < 6) | (year.hour >= 18)
            for column in columns:
                most, digits = next(
                    (size for kind, size in WEATHER.items() if column.endswith(kind.removeprefix("{}"))), (30_000, 1)
                )
                values = random.uniform(0, most, len(year)).round(digits)
                if "radiation" in column or "solar" in column:
                    values[night] = 0
                table[column] = pa.array(values, mask=random.integers(0, 1000, len(year)) == 0)
            batch = pa.table(table)
            writer = writer or csv.CSVWriter(path, batch.schema, write_options=csv.WriteOptions(quoting_style="none"))
            writer.write_table(batch)
    finally:
        if writer:
            writer.close()
    return path
