"""The sources of raw data: the files that each puts into a folder, and the origin that the data carries."""

from __future__ import annotations

import contextlib
import os
import zipfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jinja2
import pooch
import requests
from pandas import DataFrame
from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict, ValidationError

from forecast.errors import DataError, ParameterError
from forecast.parameters import Fetch, OwnFile
from forecast.raw.sample import make_sample
from forecast.table.features import mark_capacity
from forecast.table.files import copy_atomically, write_atomically

POWER_FILE, WEATHER_FILE = "time_series_60min_singleindex.csv", "weather_data.csv"
OWN_FILE, CARD_FILE, ORIGIN_FILE, SUMS_FILE = "own.csv", "SOURCE.md", "source.json", "SHA256SUMS"
ATTRIBUTIONS = {
    "sample": "Modelled data, not measurements: weather from the test reference years TRY 2010, © Deutscher"
    " Wetterdienst (DWD) / BBSR, as distributed with demandlib (MIT, oemof developer group), stations combined,"
    " rescaled and re-dated; generation simulated, with turbine power curves from windpowerlib (MIT; OEP data)."
    " Not Open Power System Data; the labels 2013-2016 do not denote historic weather.",
    "opsd": "Open Power System Data. 2019. Data Package Time series. Version 2019-06-05."
    " https://doi.org/10.25832/time_series/2019-06-05. (Primary data from various sources, for a complete list see"
    " URL). Open Power System Data. 2019. Data Package Weather Data. Version 2019-04-09."
    " https://doi.org/10.25832/weather_data/2019-04-09. (Primary data from various sources, for a complete list see"
    " URL).",
}
RETRIES = 5  # of a download that fails; pooch waits 1, 2, 3, ... seconds between them
SILENCE_SECONDS = 60
_KEY = "origin"
_BY_HAND = "or put a copy from another place into {}; if you know the file to be right, set fetch.sha256 in params.yaml"


class Release(NamedTuple):
    """A file of Open Power System Data: its address, its table's sha256, and the table's path in it if it is a zip."""

    url: str
    sha256: str
    member: str | None = None

    @property
    def name(self) -> str:
        """The file's name at its address."""
        return self.url.rsplit("/", 1)[-1]


# Only these two releases together hold wind speed, temperature and both radiations: later ones drop the wind.
RELEASES = {
    POWER_FILE: Release(
        "https://data.open-power-system-data.org/time_series/2019-06-05/time_series_60min_singleindex.csv",
        "659fe789af2672aabe989aebc8c5c21052a1a96e4da70b0fc941910a1cd4de9d",
    ),
    WEATHER_FILE: Release(
        "https://data.open-power-system-data.org/weather_data/opsd-weather_data-2019-04-09.zip",
        "b06e72cb32f06f6f57da7ab891c6be70fb201777617433c12c08fbd2ac64062b",
        "opsd-weather_data-2019-04-09/weather_data.csv",
    ),
}


class Origin(BaseModel):
    """The origin of data: the source's name, the attribution to show with the data, and whether it is modelled.

    ``csv`` says how an own file is read.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    source: str = "unknown"
    attribution: str = "Where this data comes from was not recorded."
    modelled: bool = False
    csv: OwnFile | None = None

    @property
    def label(self) -> str:
        """The source in a word or two."""
        return f"modelled {self.source}" if self.modelled else self.source

    @property
    def measured_name(self) -> str:
        """A legend's name of the generation that predictions are compared with."""
        return f"measured ({self.label})" if self.modelled else "measured"

    def to_json(self) -> str:
        """Return the content of the file beside raw data."""
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"

    def mark(self, frame: DataFrame) -> DataFrame:
        """Return ``frame`` with this origin in its attributes, which Parquet files keep (pandas' `DataFrame.attrs`).

        The installed capacity is added, see `features.year_ends_of`: an own file's if it was given, else Germany's.
        """
        year_ends = self.csv and self.csv.capacity
        marked = frame.copy(deep=False) if self.csv and not year_ends else mark_capacity(frame, year_ends)
        marked.attrs = {**marked.attrs, _KEY: self.model_dump(exclude={"csv"})}
        return marked


def origin_in(folder: Path) -> Origin:
    """Return the origin of a folder of raw files, `unknown` without its file; raise DataError: damaged."""
    path = Path(folder) / ORIGIN_FILE
    try:
        return Origin.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Origin()
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise DataError(
            f"The file {path} is damaged.",
            value=reason,
            expected="what `python -m forecast fetch` writes",
            next_step=f"python -m forecast fetch --to {folder}",
        ) from None


def origin_of(frame: DataFrame | None) -> Origin:
    """Return the origin that a processed table carries; `unknown` if it carries none."""
    return Origin() if frame is None else Origin.model_validate(frame.attrs.get(_KEY, {}))


def fetch(
    source: str, folder: Path, options: Fetch | None = None, *, base: Path | None = None, progress: bool = False
) -> list[Path]:
    """Put the raw files of a source into ``folder`` and return their paths: tables, card, origin, checksums.

    ``source`` is `sample`, `opsd` or `csv`; ``options`` are the section `fetch` of params.yaml. Relative paths in it
    start at ``base``, by default the current folder. Downloads stay in `Settings.downloads`.

    Each file appears whole or not at all, the checksums last. A folder that holds them already, unchanged, is left as
    it is; files of another source are removed first. Raises DataError: disk full, folder not writable, source package
    damaged, no connection, other content than the published; ParameterError: source `csv` without a file.
    """
    folder, base = Path(folder), Path(base or "")
    options = options or Fetch.model_construct(source=source)  # type: ignore[arg-type] # checked by `_origin`
    origin = _origin(source, options)
    known: dict[str, str] = {}  # checksums that the tables must have
    if source == "opsd":
        known = {name: release.sha256 for name, release in RELEASES.items()} | (options.sha256 or {})
    elif source == "csv":
        own_file = base / origin.csv.file  # type: ignore[union-attr] # `_origin` has refused a source without it
        known = {OWN_FILE: _checksum_of_own(own_file)}
    card = _template().render(source=source, attribution=origin.attribution, accepted=known).strip() + "\n"
    names = [*(known or (POWER_FILE, WEATHER_FILE)), CARD_FILE, ORIGIN_FILE]
    paths = [folder / name for name in (*names, SUMS_FILE)]
    with contextlib.suppress(OSError):
        complete = (
            (folder / CARD_FILE).read_text(encoding="utf-8") == card
            and (folder / ORIGIN_FILE).read_text(encoding="utf-8") == origin.to_json()
            and (folder / SUMS_FILE).read_text(encoding="utf-8") == _sums(folder, names)
            and all(pooch.file_hash(folder / name) == sha256 for name, sha256 in known.items())
        )
        if complete:
            return paths
    # A fetch that is cut short must not leave a folder with files of two sources.
    for name in (POWER_FILE, WEATHER_FILE, OWN_FILE, CARD_FILE, ORIGIN_FILE, SUMS_FILE):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    if source == "sample":
        _write_sample(folder)
    elif source == "csv":
        copy_atomically(own_file, folder / OWN_FILE)
    else:
        for name, sha256 in known.items():
            _fetch_release(RELEASES[name]._replace(sha256=sha256), folder / name, progress)
    write_atomically(folder / CARD_FILE, card.encode())
    write_atomically(folder / ORIGIN_FILE, origin.to_json().encode())
    write_atomically(folder / SUMS_FILE, _sums(folder, names).encode())
    return paths


def _origin(source: str, options: Fetch) -> Origin:
    if source != "csv":
        return Origin(source=source, attribution=ATTRIBUTIONS[source], modelled=source == "sample")
    if options.csv is None:
        raise ParameterError(
            "The source `csv` needs a file, and what its columns are.",
            value="no section fetch.csv",
            expected="fetch.csv.file, and its columns and units unless it is a processed table",
            next_step="see 4_pipeline/own/README.md, then edit params.yaml",
        )
    return Origin(source=source, csv=options.csv, attribution=options.csv.attribution)


def _checksum_of_own(file: Path) -> str:
    try:
        return pooch.file_hash(file)
    except OSError as error:
        raise DataError(
            f"The file {file} cannot be read.",
            value=error.strerror or error,
            expected="a CSV file, its path relative to the folder of params.yaml",
            next_step="put it there, or correct fetch.csv.file in params.yaml",
        ) from None


def _write_sample(folder: Path) -> None:
    for name, frame in zip((POWER_FILE, WEATHER_FILE), make_sample(), strict=True):
        write_atomically(folder / name, frame.to_csv(index=False, lineterminator="\n").encode())


def _sums(folder: Path, names: list[str]) -> str:
    return "".join(f"{pooch.file_hash(folder / name)}  {name}\n" for name in names)


@cache
def _template() -> jinja2.Template:
    text = files(__package__).joinpath("card.md.jinja").read_text(encoding="utf-8")
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(text)  # noqa: S701 - Markdown


# -- Open Power System Data --------------------------------------------------------------------------------------------
def _fetch_release(release: Release, path: Path, progress: bool) -> None:
    """Put the table of a release at ``path``, if it is the published one.

    Downloads stay in the cache, which takes copies from elsewhere, too. A download that is cut starts again, a few
    times.
    """
    cache = Path(os.environ.get("WORKSHOP_DOWNLOADS") or user_cache_path("workshop"))
    download = _download(release, cache, progress)
    table = _unpack(download, release, cache) if release.member else download
    if (actual := pooch.file_hash(table)) != release.sha256:
        download.unlink()
        raise DataError(
            f"The content of {download.name} is not the published one.",
            value=f"sha256 {actual}",
            expected=f"sha256 {release.sha256}",
            next_step=f"fetch it again, {_BY_HAND.format(cache)}",
        )
    copy_atomically(table, path)
    if table != download:
        table.unlink()  # the archive stays in the cache, and is enough


def _download(release: Release, cache: Path, progress: bool) -> Path:
    pooch.get_logger().setLevel("WARNING")
    # The published checksum is the table's: an archive is verified once its table is unpacked.
    known = None if release.member else release.sha256
    store = pooch.create(
        cache, "", registry={release.name: known}, urls={release.name: release.url}, retry_if_failed=RETRIES
    )
    responses = []  # pooch leaves those of failed downloads open
    hooks = {"response": lambda response, **_: responses.append(response)}
    downloader = pooch.HTTPDownloader(progressbar=progress, timeout=SILENCE_SECONDS, hooks=hooks)
    try:
        return Path(store.fetch(release.name, downloader=downloader))
    except requests.RequestException as error:
        response = error.response
        raise DataError(
            f"{release.url} could not be fetched.",
            value=type(error).__name__ if response is None else f"HTTP {response.status_code} {response.reason}",
            expected="200 OK",
            next_step=f"check the network and the proxy (https_proxy), {_BY_HAND.format(cache)}",
        ) from None
    except ValueError as error:  # pooch: the checksum is another
        raise DataError(
            f"The file at {release.url} is not the published one; it was thrown away.",
            value=str(error),
            expected=f"sha256 {release.sha256}",
            next_step=f"open the address in a browser: is it a login or error page? Fetch it again, "
            f"{_BY_HAND.format(cache)}",
        ) from None
    except OSError as error:
        raise DataError(
            f"{release.url} could not be stored in the cache {cache}.",
            value=error.strerror or error,
            expected="a writable folder with enough space",
            next_step="free some space, or set another folder: WORKSHOP_DOWNLOADS",
        ) from None
    finally:
        for response in responses:
            response.close()


def _unpack(archive: Path, release: Release, cache: Path) -> Path:
    """Return the table of an archive, unpacked into the cache."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        unzip = pooch.Unzip(members=[release.member], extract_dir=str(cache.resolve() / f"{release.name}.unzip"))
        (table,) = unzip(str(archive), "update", None)
    except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError, NotImplementedError, OSError) as error:
        archive.unlink()
        raise DataError(
            f"The archive {archive} cannot be unpacked.",
            value=error,
            expected=f"a zip archive that holds {release.member}",
            next_step=f"fetch it again, {_BY_HAND.format(cache)}",
        ) from None
    return Path(table)
