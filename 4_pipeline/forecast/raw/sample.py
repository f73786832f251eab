"""The built-in sample: four years of real German weather, and the wind and solar power simulated from it.

The weather is from the test reference years TRY 2010 of the German weather service (DWD), as distributed in the package
`demandlib`: fifteen stations with one year each, assembled from observations of 1988-2007. The four years of the sample
are four *disjoint* groups of three stations, so that no year is a copy of another. The generation is simulated with
power curves of `windpowerlib` and the solar geometry of `pvlib`. Constants marked "calibrated" were tuned by hand to
resemble Open Power System Data. The sample says nothing about real hours or real forecasting skill; the labels
2013-2016 do not denote historical weather.
"""

from __future__ import annotations

import hashlib
import io
from importlib.resources import files
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame, DatetimeIndex
from pvlib import atmosphere, irradiance, solarposition

from forecast.terms.errors import DataError

STATIONS_SHA256 = "be2119ad7432ef6c2778f3570638ed021ea3a7d81467b0e32febeb7796806f68"
FIRST_YEAR, LAST_YEAR = 2013, 2016
SEED = 2013
_INSTALL_AGAIN = "pip install --force-reinstall -r requirements.txt"

# Three stations per year, none used twice. Stations whose reference years were assembled from the same calendar days
# share a year; the first station of each year has measured radiation. Rostock, Bremerhaven, Potsdam; Chemnitz, Hof,
# Essen; Hamburg, Braunlage, Bad Marienberg; Mannheim, Stoetten, Muehldorf.
STATIONS = {2013: (2, 1, 4), 2014: (9, 10, 5), 2015: (3, 8, 6), 2016: (12, 14, 13)}
# The reference years have no 29 February; it is copied from 28 February of three other stations: Kassel, Fichtelberg,
# Garmisch.
LEAP_DAY_STATIONS = (7, 11, 15)

WEATHER_WEIGHTS = (0.5, 0.3, 0.2)
RADIATION_WEIGHTS = (0.8, 0.1, 0.1)
# Differ from WEATHER_WEIGHTS because plants are not at the weather stations; adds realistic unexplained variance.
PLANT_WEIGHTS = (0.45, 0.32, 0.23)

MEAN_WINDSPEED = 4.11  # m/s at 10 m: calibrated
LATITUDE, LONGITUDE = 51.0, 10.4  # degrees north and east: the middle of Germany

# Installed capacity on 1 January of 2013..2017, GW. It differs from `problem.CAPACITY` by up to 0.5 GW: the sample is
# calibrated with these rounded values, and different values would change every score. Published values for the end of
# 2014: wind 39.17 (GWEC: https://renewablesnow.com/news/renewables-produce-325-of-germanys-power-in-h1-2015-482581/)
# and solar 38.23 (Bundesnetzagentur: https://www.photon.info/en/news/germany-added-only-189-gw-pv-capacity-2014).
WIND_CAPACITY_GW = (31.3, 34.2, 39.2, 44.7, 49.6)
SOLAR_CAPACITY_GW = (32.6, 36.3, 38.2, 39.8, 40.7)
# Share of the wind generation that is reported: calibrated to the jump in the real series at the end of 2014.
WIND_REPORTED = {2013: 0.80, 2014: 0.80, 2015: 1.0, 2016: 1.0}

TURBINES = {"E-70/2300": 0.35, "V90/2000": 0.30, "E-82/2300": 0.20, "E-101/3050": 0.15}  # share of capacity
HUB_HEIGHT_M, ROUGHNESS_M = 105.0, 0.10
PANELS = ((0.45, 30, 180), (0.15, 25, 90), (0.15, 25, 270), (0.25, 10, 180))  # share, tilt, azimuth in degrees

# Lengths of the gaps in the raw files (hours), and empty cells per column; together they affect 48 hours.
GAPS_POWER, GAPS_WEATHER = (4, 9, 15), (3, 5)
MISSING_CELLS = {
    "DE_solar_generation_actual": 4,
    "DE_wind_generation_actual": 5,
    "DE_windspeed_10m": 2,
    "DE_radiation_direct_horizontal": 1,
}


class Places(NamedTuple):
    """The weather at three places over all years, each an array of shape (hours, 3).

    `windspeed` is relative to the station's yearly mean, `temperature` in degrees Celsius; their row i is UTC hour i.
    `direct` and `diffuse` are radiation on a horizontal plane in W/m2; their row i is hour i of true solar time: the
    files' headers say Central European Time, but the sun is highest at 12:00 at every longitude and in every month.
    """

    windspeed: np.ndarray
    temperature: np.ndarray
    direct: np.ndarray
    diffuse: np.ndarray


def make_sample() -> tuple[DataFrame, DataFrame]:
    """Return the raw power and the raw weather frame of the sample, in the layout of Open Power System Data.

    Power: about 35,040 rows of `utc_timestamp`, `cet_cest_timestamp` (text) and MW; weather: about 35,056 rows of
    `utc_timestamp`, m/s, degrees Celsius and W/m2. Both have the typical faults of real files: gaps, empty cells, and
    in the power frame the duplicate hour of each autumn. The result is deterministic on one machine.

    Raises DataError if the packages' files are missing or have other checksums.
    """
    hours = pd.date_range(f"{FIRST_YEAR}-01-01", f"{LAST_YEAR + 1}-01-01", freq="h", tz="UTC", inclusive="left")
    places = join_places(read_stations())
    weather = model_weather(places, hours)
    random = np.random.RandomState(SEED)  # its numbers are the same in every NumPy version, unlike default_rng's
    wind_MW, solar_MW = model_wind(places, hours, random), model_solar(places, hours, random)
    power = pd.DataFrame(
        {
            "utc_timestamp": weather["utc_timestamp"],
            "cet_cest_timestamp": in_germany(hours),
            "DE_solar_capacity": np.round(interpolate_capacity(SOLAR_CAPACITY_GW, hours) * 1000),
            "DE_solar_generation_actual": solar_MW,
            "DE_wind_capacity": np.round(interpolate_capacity(WIND_CAPACITY_GW, hours) * 1000),
            "DE_wind_generation_actual": wind_MW,
        }
    )
    return add_defects(power, weather, hours)


def read_packaged(package: str, path: str) -> bytes:
    """Return the content of a file of an installed package; raise DataError if it is missing."""
    try:
        return files(package).joinpath(path).read_bytes()
    except (ModuleNotFoundError, OSError) as error:
        raise DataError(
            f"The `{package}` package, a source of the sample, is missing or incomplete.",
            value=error,
            expected=f"the {package} package, including the file {path}",
            next_step=_INSTALL_AGAIN,
        ) from None


def read_stations() -> dict[int, DataFrame]:
    """Return the 8,760 hours of each of the fifteen stations, as the reference years' columns WG, t, B, D.

    WG: wind speed at 10 m, m/s; t: temperature, degrees Celsius; B and D: direct and diffuse radiation, W/m2. The
    files' own headers describe the format (latin-1; the line before `***` names the columns). Raises DataError if a
    file is missing, or if the sha256 of all files together is not `STATIONS_SHA256`.
    """
    contents = {
        number: read_packaged("demandlib", f"vdi/resources_weather/TRY2010_{number:02d}_Jahr.dat")
        for number in range(1, 16)
    }
    actual = hashlib.sha256(b"".join(contents.values())).hexdigest()
    if actual != STATIONS_SHA256:
        raise DataError(
            "The weather files of the `demandlib` package differ from the ones that the sample was built from.",
            value=f"sha256 {actual}",
            expected=f"sha256 {STATIONS_SHA256} (demandlib 0.2.2)",
            next_step=_INSTALL_AGAIN,
        )
    stations = {}
    for number, content in contents.items():
        header, rows = content.decode("latin-1").split("***\n")
        names = header.splitlines()[-1].split()
        stations[number] = pd.read_csv(io.StringIO(rows), sep=r"\s+", names=names, usecols=["WG", "t", "B", "D"])
    return stations


def join_places(stations: dict[int, DataFrame]) -> Places:
    """Return the stations' years in sequence, with three places as columns and 29 February inserted."""
    values = {number: station.assign(WG=clean_windspeed(station)) for number, station in stations.items()}
    values = {number: station[["WG", "t", "B", "D"]].to_numpy(float) for number, station in values.items()}
    years = [np.stack([values[number] for number in group], axis=1) for group in STATIONS.values()]
    leap_day = np.stack([values[number][58 * 24 : 59 * 24] for number in LEAP_DAY_STATIONS], axis=1)
    years[-1] = np.insert(years[-1], [59 * 24], leap_day, axis=0)
    windspeed, temperature, direct, diffuse = np.moveaxis(np.concatenate(years), 2, 0)
    # The centred mean over seven hours approximates an average over an area.
    windspeed = pd.DataFrame(windspeed).rolling(7, center=True, min_periods=1).mean().to_numpy()
    return Places(windspeed, temperature, direct, diffuse)


def clean_windspeed(station: DataFrame) -> np.ndarray:
    """Return a station's wind speed divided by its yearly mean; medians replace typos such as 63 m/s among 6 m/s."""
    raw = station["WG"]
    median = raw.rolling(5, center=True, min_periods=1).median()
    clean = raw.where((raw - median).abs() < 10, median).to_numpy()
    return clean / clean.mean()


def blend(places: np.ndarray, weights: tuple[float, float, float]) -> np.ndarray:
    """Return the weighted sum over the three places."""
    return np.asarray(sum(weight * places[:, place] for place, weight in enumerate(weights)))


def sun(day: np.ndarray, solar_hour: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the cosine of the solar zenith angle (0 below the horizon), that angle and the azimuth in degrees.

    ``day`` is the day of the year, ``solar_hour`` the hour of true solar time.
    """
    place = np.radians(LATITUDE), np.radians(15 * (solar_hour - 12)), solarposition.declination_spencer71(day)
    zenith = solarposition.solar_zenith_analytical(*place)
    azimuth = solarposition.solar_azimuth_analytical(*place, zenith)
    return np.clip(np.cos(zenith), 0, None), np.degrees(zenith), np.degrees(azimuth)


def hours_ahead(hours: DatetimeIndex) -> np.ndarray:
    """Return how many hours true solar time in the middle of Germany is ahead of UTC."""
    return LONGITUDE / 15 + solarposition.equation_of_time_spencer71(hours.day_of_year.to_numpy()) / 60


def in_germany(hours: DatetimeIndex) -> np.ndarray:
    """Return each hour in German time, as ISO 8601 text; avoids `strftime`, which would double the run time."""
    local = hours.tz_convert("Europe/Berlin").tz_localize(None)
    offset = np.where(local - hours.tz_localize(None) > pd.Timedelta(hours=1), "+0200", "+0100")
    return np.char.add(np.datetime_as_string(local.to_numpy("datetime64[s]")), offset)


def to_utc_hours(values: np.ndarray, hours: DatetimeIndex) -> np.ndarray:
    """Return hourly means in UTC, interpolated from hourly means in true solar time."""
    row = np.arange(len(hours))
    return np.interp(row + hours_ahead(hours), row, values)


def model_weather(places: Places, hours: DatetimeIndex) -> DataFrame:
    """Return the national weather: `utc_timestamp` and DE_ columns in m/s, degrees Celsius and W/m2.

    Direct radiation is, in true solar time, a share of Meinel's clear-sky radiation, E0 * 0.7 ^ (AM ^ 0.678) *
    cos(zenith). Raising this share to the power of 0.55 (calibrated) scales station values to the national level.
    """
    day, hour = hours.day_of_year.to_numpy(), hours.hour.to_numpy()
    cosine = sum(sun(day, hour + (step + 0.5) / 5)[0] for step in range(5)) / 5
    zenith = np.minimum(np.degrees(np.arccos(cosine)), 89.5)
    airmass = atmosphere.get_relative_airmass(zenith)
    clear = irradiance.get_extra_radiation(day) * 0.7 ** (airmass**0.678) * cosine
    share = np.clip(blend(places.direct, RADIATION_WEIGHTS) / np.maximum(clear, 5), 0, 1.05)
    direct = to_utc_hours(np.where(cosine > 0, clear * share**0.55, 0), hours)
    diffuse = to_utc_hours(np.where(cosine > 0, blend(places.diffuse, RADIATION_WEIGHTS), 0), hours)
    return pd.DataFrame(
        {
            "utc_timestamp": np.datetime_as_string(hours.tz_convert(None).to_numpy(), unit="s", timezone="UTC"),
            "DE_windspeed_10m": np.round(MEAN_WINDSPEED * blend(places.windspeed, WEATHER_WEIGHTS), 4),
            "DE_temperature": np.round(blend(places.temperature, WEATHER_WEIGHTS), 3) + 0.0,  # + 0.0: no "-0.0"
            "DE_radiation_direct_horizontal": np.round(direct, 4),
            "DE_radiation_diffuse_horizontal": np.round(diffuse, 4),
        }
    )


def interpolate_capacity(anchors_GW: tuple[float, ...], hours: DatetimeIndex) -> np.ndarray:
    """Return each hour's installed capacity in GW: constant in a month, interpolated from the 1 January values."""
    month = (hours.year - FIRST_YEAR) + (hours.month - 1) / 12
    return np.interp(month, np.arange(len(anchors_GW)), anchors_GW)


def autoregressive_noise(random: np.random.RandomState, hours: int, memory: float, spread: float) -> np.ndarray:
    """Return exp(x) for an AR(1) process x with standard deviation ``spread``: noise unrelated to the weather."""
    shocks = random.standard_normal(hours) * spread
    shocks[1:] *= np.sqrt(1 - memory**2)
    return np.exp(np.fromiter(accumulate(shocks, lambda last, shock: memory * last + shock), float, hours))


def flatten(factor: np.ndarray, knee: float) -> np.ndarray:
    """Scale the part of the capacity factor above ``knee`` by 0.6, to model curtailment and country-wide averaging."""
    return np.where(factor > knee, knee + 0.6 * (factor - knee), factor)


def model_wind(places: Places, hours: DatetimeIndex, random: np.random.RandomState) -> np.ndarray:
    """Return the wind generation in whole MW.

    Wind speed at the hub follows the logarithmic profile v * ln(h / z0) / ln(10 / z0); power curves are windpowerlib's
    (Open Energy Platform), divided by nominal power. windpowerlib's reader is not used, because it warns with pandas 3.
    """
    curves = pd.read_csv(io.BytesIO(read_packaged("windpowerlib", "oedb/power_curves.csv")), index_col="turbine_type")
    speed = places.windspeed * MEAN_WINDSPEED * np.log(HUB_HEIGHT_M / ROUGHNESS_M) / np.log(10 / ROUGHNESS_M)
    factor = np.zeros_like(speed)
    for turbine, share in TURBINES.items():
        curve = curves.loc[turbine].dropna()
        nominal_W = 1000 * float(turbine.split("/")[1])
        factor += share * np.interp(speed, curve.index.astype(float), curve.to_numpy() / nominal_W, right=0)
    national = 0.82 * blend(factor, PLANT_WEIGHTS) * autoregressive_noise(random, len(hours), memory=0.995, spread=0.08)
    national = np.clip(flatten(national, 0.35), 0.0008, 0.95)
    reported = hours.year.map(WIND_REPORTED).to_numpy()
    return np.round(1000 * national * reported * interpolate_capacity(WIND_CAPACITY_GW, hours))


def model_solar(places: Places, hours: DatetimeIndex, random: np.random.RandomState) -> np.ndarray:
    """Return the solar generation in whole MW.

    Radiation is interpolated in true solar time to the middle of each UTC hour. Panels in four orientations get
    diffuse light from an isotropic sky (Liu and Jordan) and from ground of albedo 0.2. Cells are 28 K warmer than the
    air at 800 W/m2 and lose 0.4 % per kelvin. The performance ratio is 0.84, or 60 % of that on days below -1 degree
    Celsius (snow).
    """
    day, hour = hours.day_of_year.to_numpy(), hours.hour.to_numpy()
    cosine, zenith, azimuth = sun(day, hour + 0.5 + hours_ahead(hours))
    direct = to_utc_hours(blend(places.direct, PLANT_WEIGHTS), hours)
    diffuse = to_utc_hours(blend(places.diffuse, PLANT_WEIGHTS), hours)
    temperature = pd.Series(blend(places.temperature, PLANT_WEIGHTS))
    # Direct radiation / cos(zenith) diverges when the sun is low, so the cosine and the result are both limited.
    beam = np.minimum(direct / np.maximum(cosine, 0.09), 0.85 * irradiance.get_extra_radiation(day))
    factor = np.zeros(len(hours))
    for share, tilt, facing in PANELS:
        onto = np.clip(irradiance.aoi_projection(tilt, facing, zenith, azimuth), 0, None)
        ground = irradiance.get_ground_diffuse(tilt, direct + diffuse, albedo=0.2)
        plane = beam * onto + irradiance.isotropic(tilt, diffuse) + ground
        cell = temperature.to_numpy() + 28 * plane / 800
        factor += share * plane / 1000 * (1 - 0.004 * (cell - 25)) * 0.84
    snow = temperature.groupby(np.arange(len(hours)) // 24).transform("mean") < -1
    factor = factor * np.where(snow, 0.6, 1) * autoregressive_noise(random, len(hours), memory=0.97, spread=0.10)
    solar_MW = 1000 * flatten(factor, 0.40) * interpolate_capacity(SOLAR_CAPACITY_GW, hours)
    return np.round(np.where((cosine > 0) & (solar_MW >= 0.5), solar_MW, 0))


def add_defects(power: DataFrame, weather: DataFrame, hours: DatetimeIndex) -> tuple[DataFrame, DataFrame]:
    """Return both frames with typical faults of real files at random times (fixed seed), at most one fault per day.

    Hours are missing (`GAPS_POWER`, `GAPS_WEATHER`), cells are empty (`MISSING_CELLS`), and the hour repeated by the
    clock change in autumn has two rows in the power frame, the second with values 1 % lower.
    """
    local = pd.Series(hours.tz_convert("Europe/Berlin").tz_localize(None))
    repeated = np.flatnonzero(local.duplicated())
    quiet = np.setdiff1d(np.arange(len(hours) // 24), repeated // 24)
    faults = len(GAPS_POWER) + len(GAPS_WEATHER) + sum(MISSING_CELLS.values())
    random = np.random.RandomState(48)
    days = iter(random.choice(quiet, faults, replace=False))
    starts = (24 * day + random.randint(24 - max(GAPS_POWER)) for day in days)  # no gap crosses midnight

    def cut(frame: DataFrame, gaps: tuple[int, ...]) -> DataFrame:
        absent = [start + hour for length, start in zip(gaps, starts, strict=False) for hour in range(length)]
        return frame.drop(index=absent)

    power, weather = power.copy(), weather.copy()
    for column, count in MISSING_CELLS.items():
        frame = power if column in power else weather
        frame.loc[[next(starts) for _ in range(count)], column] = np.nan
    duplicates = power.loc[repeated]
    duplicates = duplicates.assign(**(duplicates.filter(like="generation_actual") * 0.99).round())
    power = pd.concat([cut(power, GAPS_POWER), duplicates]).sort_index(kind="stable")
    return power.reset_index(drop=True), cut(weather, GAPS_WEATHER).reset_index(drop=True)
