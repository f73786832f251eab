"""The sources of raw data, and the files that each source writes into a folder."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import zipfile
import zlib
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jinja2
import pooch
import requests
from platformdirs import user_cache_path

from forecast.terms.errors import DataError, ParameterError
from forecast.terms.files import write_atomically
from forecast.terms.origin import ORIGIN_FILE, Origin
from forecast.terms.parameters import Fetch

POWER_FILE, WEATHER_FILE = "time_series_60min_singleindex.csv", "weather_data.csv"
OWN_FILE, CARD_FILE, SUMS_FILE = "own.csv", "SOURCE.md", "SHA256SUMS"
EXAMPLE_ATTRIBUTION = "The owner of the data, shown in dashboard and report."  # the example in own/README.md
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
RETRIES = 5  # per download; pooch waits 1, 2, 3, ... seconds between attempts
TIMEOUT_SECONDS = 60
_BY_HAND = "or copy the file into {} by hand; if you trust another checksum, set fetch.sha256 in params.yaml"

logger = logging.getLogger(__name__)


class Release(NamedTuple):
    """A file of Open Power System Data: its URL, its table's sha256 and, for a zip archive, the table's path in it."""

    url: str
    sha256: str
    member: str | None = None

    @property
    def name(self) -> str:
        """The file name in the URL."""
        return self.url.rsplit("/", 1)[-1]


# Pinned: only this weather release has wind speed, temperature, direct and diffuse radiation; later ones lack wind.
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


def fetch(
    source: str,
    folder: Path,
    options: Fetch | None = None,
    *,
    base: Path | None = None,
    downloads: Path | None = None,
    progress: bool = False,
) -> list[Path]:
    """Write the raw files of a source into ``folder`` and return their paths: tables, card, origin, checksums.

    ``source`` is `sample`, `opsd` or `csv`; ``options`` are the `fetch` section of params.yaml, with paths relative to
    ``base`` (default: current folder). Downloads are cached in ``downloads`` (default: the user's cache).

    Files are written atomically, checksums last. An up-to-date folder is not touched; files of another source are
    removed first. Raises DataError (full disk, folder not writable, damaged package, no connection, checksum mismatch)
    and ParameterError (source `csv` without a file).
    """
    folder = Path(folder)
    options = options or Fetch.model_construct(source=source)  # type: ignore[arg-type] # checked by `_origin`
    origin = _origin(source, options)
    checksums: dict[str, str] = {}  # expected, by table
    if source == "opsd":
        checksums = {name: release.sha256 for name, release in RELEASES.items()} | (options.sha256 or {})
    elif source == "csv":
        own_file = Path(base or "") / origin.csv.file  # type: ignore[union-attr] # `_origin` checks that it is set
        checksums = {OWN_FILE: _hash_own_file(own_file)}
    card = _card(source=source, attribution=origin.attribution, accepted=checksums)
    texts = {CARD_FILE: card, ORIGIN_FILE: f"{origin.model_dump_json(indent=1, exclude_none=True)}\n".encode()}
    names = [*(checksums or (POWER_FILE, WEATHER_FILE)), *texts]
    paths = [folder / name for name in (*names, SUMS_FILE)]
    if _is_up_to_date(folder, names, texts, checksums):
        return paths
    # An interrupted fetch must not leave a mix of files from two sources.
    for name in (POWER_FILE, WEATHER_FILE, OWN_FILE, CARD_FILE, ORIGIN_FILE, SUMS_FILE):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    if source == "csv":
        write_atomically(folder / OWN_FILE, own_file.read_bytes())
    elif source == "sample":
        from forecast.raw.sample import make_sample  # imports pvlib

        for name, frame in zip((POWER_FILE, WEATHER_FILE), make_sample(), strict=True):
            write_atomically(folder / name, frame.to_csv(index=False, lineterminator="\n").encode())
    else:
        for name, sha256 in checksums.items():
            release = RELEASES[name]._replace(sha256=sha256)
            _fetch_release(release, folder / name, downloads or user_cache_path("forecast"), progress)
    for name, text in texts.items():
        write_atomically(folder / name, text)
    write_atomically(folder / SUMS_FILE, _sums(folder, names))
    return paths


def _is_up_to_date(folder: Path, names: list[str], texts: dict[str, bytes], checksums: dict[str, str]) -> bool:
    """Return whether the folder already contains these files, unchanged."""
    try:
        sums = _sums(folder, names)
        contents = {name: (folder / name).read_bytes() for name in (*texts, SUMS_FILE)}
    except OSError:
        return False
    return contents == texts | {SUMS_FILE: sums} and sums.startswith(_lines(checksums))


def _origin(source: str, options: Fetch) -> Origin:
    if source != "csv":
        return Origin(source=source, attribution=ATTRIBUTIONS[source], modelled=source == "sample")
    if options.csv is None:
        raise ParameterError(
            "The source `csv` needs a file and a description of its columns.",
            value="no fetch.csv section",
            expected="fetch.csv.file, and the columns and units of that file unless it is a processed table",
            next_step="see own/README.md, then edit params.yaml",
        )
    file_options = options.csv
    if file_options.attribution == EXAMPLE_ATTRIBUTION:
        logger.warning("fetch.csv.attribution is still the example from own/README.md: name the owner of the data.")
    return Origin(source=source, csv=file_options, attribution=file_options.attribution, modelled=file_options.modelled)


def _hash_own_file(file: Path) -> str:
    try:
        return pooch.file_hash(file)
    except OSError as error:
        raise DataError(
            f"The file {file} cannot be read.",
            value=error.strerror or error,
            expected="a CSV file; its path is relative to the folder of params.yaml",
            next_step="put it at this path (run `dvc pull` if it was pushed), or correct fetch.csv.file in params.yaml",
        ) from None


def _sums(folder: Path, names: list[str]) -> bytes:
    return _lines({name: pooch.file_hash(folder / name) for name in names})


def _lines(sums: dict[str, str]) -> bytes:
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sums.items()).encode()


def _card(**values: object) -> bytes:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # noqa: S701 - Markdown
    template = environment.from_string(files(__package__).joinpath("card.md.jinja").read_text("utf-8"))
    return (template.render(**values).strip() + "\n").encode()


# -- Open Power System Data --------------------------------------------------------------------------------------------
def _fetch_release(release: Release, path: Path, cache: Path, progress: bool) -> None:
    """Write the table of a release to ``path`` after checking its checksum; retry interrupted downloads.

    Downloads stay in the cache, where users may also put files by hand; a file with a wrong checksum is removed.
    """
    pooch.get_logger().setLevel("WARNING")
    # `None` skips pooch's check: the published checksum is for the table, and the download may be an archive.
    store = pooch.create(
        cache, "", registry={release.name: None}, urls={release.name: release.url}, retry_if_failed=RETRIES
    )
    responses = []  # pooch does not close the responses of failed downloads
    hooks = {"response": lambda response, **_: responses.append(response)}
    downloader = pooch.HTTPDownloader(progressbar=progress, timeout=TIMEOUT_SECONDS, hooks=hooks)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            unzip = pooch.Unzip([release.member], folder) if release.member else None
            store.fetch(release.name, unzip, downloader)
            table = Path(folder, release.member) if release.member else cache / release.name
            actual = f"sha256 {pooch.file_hash(table)}" if table.exists() else f"no {release.member} in the archive"
            if actual != f"sha256 {release.sha256}":
                raise ValueError(actual)
            write_atomically(path, table.read_bytes())
    except requests.RequestException as error:
        response = error.response
        raise DataError(
            f"{release.url} could not be downloaded.",
            value=type(error).__name__ if response is None else f"HTTP {response.status_code} {response.reason}",
            expected="200 OK",
            next_step=f"check the network and the proxy (https_proxy), {_BY_HAND.format(cache)}",
        ) from None
    except OSError as error:
        raise DataError(
            f"{release.url} could not be written to the cache {cache}.",
            value=error.strerror or error,
            expected="a writable folder with enough space",
            next_step="free some space, or set the environment variable FETCH_DOWNLOADS to another folder",
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        (cache / release.name).unlink()
        raise DataError(
            f"The content of {release.name} differs from the published content.",
            value=error,
            expected=f"sha256 {release.sha256}" + f" of {release.member} in a zip archive" * bool(release.member),
            next_step=f"fetch the file again (does a browser show a login or error page at {release.url}?), "
            f"{_BY_HAND.format(cache)}",
        ) from None
    finally:
        for response in responses:
            response.close()
