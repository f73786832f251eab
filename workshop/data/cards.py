"""The cards that lie beside raw data: what it is, whose it is, what it is fit for."""

from __future__ import annotations

# The recipe's number is part of the card: a folder made by an older recipe is made again.
SAMPLE = """\
# Source: `sample` (modelled)

**This data is modelled.** The weather was observed, but not in these places on these dates; the generation is
simulated. Recipe 1. The files have the layout of Open Power System Data (hourly, UTC, MW), so that the real data can
take their place.

| file | holds |
|---|---|
| `time_series_60min_singleindex.csv` | **modelled** generation, and installed capacity in round figures, MW |
| `weather_data.csv` | re-dated wind speed at 10 m (m/s), temperature (°C), direct and diffuse radiation (W/m²) |
| `source.json` | what the pipeline reads of this card |
| `SHA256SUMS` | checksums of the other files: `sha256sum -c SHA256SUMS` |

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

OPSD = """\
# Source: `opsd` (measured)

Hourly generation and weather of 2013-2016, the years that both releases hold, as published by Open Power System Data.
The files are the publisher's, unchanged; hours are UTC, power is in MW.

| file | holds |
|---|---|
| `time_series_60min_singleindex.csv` | generation and installed capacity, MW; Germany and others |
| `weather_data.csv` | wind speed at 10 m (m/s), temperature (°C), direct and diffuse radiation (W/m²) |
| `source.json` | what the pipeline reads of this card |
| `SHA256SUMS` | checksums of the other files: `sha256sum -c SHA256SUMS` |

## Attribution
{attribution}

No licence is stated for these releases: name the source wherever you show the data, and do not pass the files on.

## Which files
Accepted by their sha256, whatever address they came from:
{files}

The publisher's checksum of `weather_data.csv` was published shortly before the release got its version. A file with
another checksum is refused; if that happens with the publisher's own file, compare it, then state its checksum in
`params.yaml` (`fetch.addresses`).
"""

OWN = """\
# Source: `csv` (a file of our own)

`{name}` as it was when it was fetched. How its columns and units are read stands in `source.json`, as it stood in
`params.yaml`.

| file | holds |
|---|---|
| `{copy}` | the file, unchanged |
| `source.json` | what the pipeline reads of this card |
| `SHA256SUMS` | checksums of the other files: `sha256sum -c SHA256SUMS` |

## Attribution
{attribution}
"""
