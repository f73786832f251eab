"""The raw files of Open Power System Data's layout: which they are, whose columns they hold, a country's part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from workshop.data import schema, sources
from workshop.data.tables import read_columns, read_header, require_header

if TYPE_CHECKING:
    from pandas import DataFrame

GERMANY = "DE"
MW_PER_GW = 1000
FILES = {"power": sources.POWER_FILE, "weather": sources.WEATHER_FILE}
# What a country's columns are called after its code, and what we call them.
COLUMNS = {
    "power": {"solar_generation_actual": "solar_GW", "wind_generation_actual": "wind_GW"},
    "weather": {
        "windspeed_10m": "windspeed",
        "temperature": "temperature",
        "radiation_direct_horizontal": "rad_horizontal",
        "radiation_diffuse_horizontal": "rad_diffuse",
    },
}


class Table(NamedTuple):
    """Rows of a raw file in our units; the index is the line in the file; ``names`` is what it calls its columns."""

    path: Path
    frame: DataFrame
    names: dict[str, str]


class File(NamedTuple):
    """A raw file with its columns' names, each a country's, and the countries that it has any column of."""

    path: Path
    header: list[str]
    countries: set[str]


def columns(part: str, country: str = GERMANY) -> dict[str, str]:
    """Return what a country's columns are called in the files of a part, `power` or `weather`, and what by us."""
    return {f"{country}_{name}": ours for name, ours in COLUMNS[part].items()}


def next_step(path: Path) -> str:
    """Say what to do when a raw file is absent or damaged."""
    return f"workshop data, or run the notebook that makes {path.name}, to put the raw files there"


def files(folder: Path, part: str) -> list[File]:
    """Return the files of a part, by name: the one of the publisher's name, or many whose names begin like it.

    `weather_data.csv`, or `weather_data_1980.csv` and so on; each may hold some years, some countries, or both. Raises
    DataError: there is none, or its header cannot be read.
    """
    name = Path(FILES[part])
    paths = sorted(Path(folder).glob(f"{name.stem}*{name.suffix}")) or [Path(folder) / name]
    pattern = re.compile(rf"([A-Z]{{2}})_(?:{'|'.join(COLUMNS[part])})")
    found = []
    for path in paths:
        header = read_header(path, next_step=next_step(path))
        matches = map(pattern.fullmatch, header)
        found.append(File(path, header, {match[1] for match in matches if match}))
    return found


def read(folder: Path, country: str = GERMANY) -> dict[str, list[Table]]:
    """Read a country's columns of all files, by part; raises DataError as `tables.read_columns` does."""
    tables = {}
    for part in COLUMNS:
        there = files(folder, part)
        # Where nothing of the country's is found, the first file is read all the same: its error says what it has.
        mine = [file.path for file in there if country in file.countries] or [there[0].path]
        names = columns(part, country)
        read = {path: read_columns(path, ["utc_timestamp", *names], next_step=next_step(path)) for path in mine}
        tables[part] = [in_our_units(path, frame, names) for path, frame in read.items()]
    return tables


def in_our_units(path: Path, frame: DataFrame, names: dict[str, str]) -> Table:
    """Return a country's rows of the file ``path`` with our names and units; ``names`` are the file's, and ours."""
    frame = frame.rename(columns=names)
    frame = frame.assign(**{target: frame[target] / MW_PER_GW for target in schema.TARGETS if target in frame})
    return Table(path, frame, {ours: theirs for theirs, ours in names.items()})


def complete(found: dict[str, Sequence[File]]) -> tuple[list[str], dict[str, str]]:
    """Return the countries that have all their columns in the files of each part, and why any other one has not.

    Raises DataError for a column that is there twice.
    """
    lacks: dict[str, list[str]] = {}
    countries = sorted({country for there in found.values() for file in there for country in file.countries})
    for part, there in found.items():
        for file in there:
            wanted = [name for country in sorted(file.countries) for name in columns(part, country)]
            present = [name for name in ["utc_timestamp", *wanted] if name in file.header]
            require_header(file.header, present, file.path, ",", next_step(file.path))
        for country in countries:
            mine = [file for file in there if country in file.countries]
            if not mine:
                lacks.setdefault(country, []).append(f"nothing of it in {', '.join(file.path.name for file in there)}")
            for file in mine:
                absent = [name for name in columns(part, country) if name not in file.header]
                lacks.setdefault(country, []).extend([f"no {name} in {file.path.name}" for name in absent])
    return (
        [country for country in countries if not lacks.get(country)],
        {country: "; ".join(reasons) for country, reasons in lacks.items() if reasons},
    )
