"""Where raw data comes from: the sources by name, the raw files that each puts into a folder, and what to say of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from workshop.data.files import write_whole
from workshop.errors import DataError

SOURCES = ("sample",)
POWER_FILE, WEATHER_FILE = "time_series_60min_singleindex.csv", "weather_data.csv"
SUMS_FILE, CARD_FILE = "SHA256SUMS", "SOURCE.md"

_ATTRIBUTIONS = {
    "sample": (
        "Modelled data, not measurements: weather from the test reference years TRY 2010, © Deutscher Wetterdienst"
        " (DWD) / BBSR, as distributed with demandlib (MIT, oemof developer group), stations combined, rescaled and"
        " re-dated; generation simulated, with turbine power curves from windpowerlib (MIT; OEP data)."
        " Not Open Power System Data; the labels 2013-2016 do not denote historic weather."
    )
}

# The recipe's number is part of the card: a folder made by an older recipe is made again.
_SAMPLE_CARD = """\
# Source: `sample` (modelled)

**This data is modelled.** The weather was observed, but not in these places on these dates; the generation is
simulated. Recipe 1. The files have the layout of Open Power System Data (hourly, UTC, MW), so that the real data can
take their place.

| file | holds |
|---|---|
| `time_series_60min_singleindex.csv` | **modelled** generation, and installed capacity in round figures, MW |
| `weather_data.csv` | re-dated wind speed at 10 m (m/s), temperature (°C), direct and diffuse radiation (W/m²) |
| `SHA256SUMS` | checksums of the three other files: `sha256sum -c SHA256SUMS` |

## Attribution
Weather: test reference years TRY 2010, © Deutscher Wetterdienst (DWD) / BBSR, as distributed with demandlib (MIT, oemof
developer group); stations combined, rescaled and re-dated, i.e. data modified. Generation simulated, with turbine power
curves from windpowerlib (MIT; OEP data). Not Open Power System Data; labels 2013-2016 do not denote historic weather.

The weather files carry no licence of their own. Have it checked before you pass these files on.

## How it is made
- Each year joins three of fifteen stations, none used twice, so that no year is a copy of another. 29 February 2016
  comes from three stations that are used nowhere else.
- Wind generation: four turbine curves at 105 m. Solar generation: four orientations of panels. Both by the installed
  capacity of the time, with a slowly wandering factor that the weather does not explain. Some constants were tuned by
  hand so that means and model scores resemble the real data's.
- The columns of Austria (AT) and Denmark (DK) are modelled too: Germany's by a plain factor, wind some hours later or
  earlier. They are placeholders, no more, there because the real files hold other countries.
- Faults of the real files are put in on purpose, always the same ones: 36 absent hours, 12 empty cells, and four
  doubled hours where the clocks change in autumn, the second time with readings 1 % lower.

## What it does not match
Against the real data of 2013-2016:
- the highest diffuse radiation is 29 % too high, and diffuse follows direct radiation (correlation 0.73, real 0.55) and
  solar generation (0.87, real 0.72) too closely;
- temperature peaks are 4.6 K too low (mean years, blended);
- wind generation changes too fast from hour to hour (lag-1 autocorrelation 0.987, real 0.995);
- a random split flatters a model by less than there (R2 0.07 to 0.08, real 0.10 to 0.12);
- the mean wind speed is the same each year, by construction;
- the stations of a year are mostly from different historic dates: no hour is a real weather situation of the country.

Never use it to rank features, to judge a model's real skill, or to say anything about a real hour.
"""


def attribution(source: str) -> str:
    """Return one or two sentences to show wherever data of ``source`` is shown."""
    return _ATTRIBUTIONS[_known(source)]


def fetch(source: str, folder: Path) -> list[Path]:
    """Put the raw files of ``source`` into ``folder`` and return their four paths: power, weather, card, checksums.

    Each file appears whole or not at all, the checksums last. A folder that already holds them, checksums right, is
    left as it is. Raises DataError: unknown source, disk full, folder not writable, source package damaged.
    """
    _known(source)
    folder = Path(folder)
    names = (POWER_FILE, WEATHER_FILE, CARD_FILE)
    paths = [folder / name for name in (*names, SUMS_FILE)]
    if _is_complete(folder):
        return paths

    from workshop.data.sample import make_sample

    power, weather = make_sample()
    contents = [frame.to_csv(index=False, lineterminator="\n").encode() for frame in (power, weather)]
    contents.append(_SAMPLE_CARD.encode())
    sums = "".join(f"{_sha256(content)}  {name}\n" for name, content in zip(names, contents, strict=True))
    for path, content in zip(paths, [*contents, sums.encode()], strict=True):
        write_whole(path, content)
    return paths


def _known(source: str) -> str:
    if source not in SOURCES:
        raise DataError(
            "There is no such data source.",
            value=repr(source),
            expected=", ".join(SOURCES),
            next_step="set the source to one of these (in chapter 4: `source` in params.yaml)",
        )
    return source


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_complete(folder: Path) -> bool:
    """Return whether the folder holds this recipe's card and every file that its checksums name, unchanged."""
    try:
        lines = [line.split("  ", 1) for line in (folder / SUMS_FILE).read_text(encoding="utf-8").splitlines()]
        return (
            [name for _, name in lines] == [POWER_FILE, WEATHER_FILE, CARD_FILE]
            and (folder / CARD_FILE).read_text(encoding="utf-8") == _SAMPLE_CARD
            and all(_sha256((folder / name).read_bytes()) == total for total, name in lines)
        )
    except (OSError, ValueError):
        return False
