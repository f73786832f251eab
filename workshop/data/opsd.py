"""Open Power System Data: its two releases, downloaded with pooch, unpacked and verified."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from workshop.data.files import checksum, copy_whole
from workshop.data.raw import POWER_FILE, WEATHER_FILE
from workshop.errors import DataError

if TYPE_CHECKING:
    import requests

ATTRIBUTION = (
    "Open Power System Data. 2019. Data Package Time series. Version 2019-06-05."
    " https://doi.org/10.25832/time_series/2019-06-05. (Primary data from various sources, for a complete list see"
    " URL). Open Power System Data. 2019. Data Package Weather Data. Version 2019-04-09."
    " https://doi.org/10.25832/weather_data/2019-04-09. (Primary data from various sources, for a complete list see"
    " URL)."
)
RETRIES = 5  # of a download that fails; pooch waits 1, 2, 3, ... seconds between them
SILENCE_SECONDS = 60


class Release(NamedTuple):
    """A file of a release: its address, the sha256 of the CSV file, and that file's path in the archive, if any."""

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


def accepted(sha256: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the checksum that each raw file must have; ``sha256`` replaces published ones."""
    return {name: release.sha256 for name, release in RELEASES.items()} | dict(sha256 or {})


def fetch_file(
    name: str, path: Path, cache: Path, *, sha256: str, mirror: str | None = None, progress: bool = False
) -> Path:
    """Put the raw file ``name`` of a release at ``path``, if its content has the checksum ``sha256``; return ``path``.

    ``mirror`` is a folder, or an address, with copies of the releases' files, asked instead of the publisher; a folder
    may also hold the unpacked file. Downloads stay in ``cache``. A download that is cut starts again, a few times.

    Raises DataError: no connection, an HTTP error, no such copy, a damaged archive, other content, disk full. The
    errors never show a password that an address holds.
    """
    release = RELEASES[name]
    if mirror is not None and not _is_address(mirror):
        origin = _in_folder(Path(mirror), name, release)
    else:
        url = f"{mirror.rstrip('/')}/{release.name}" if mirror else release.url
        origin = _download(url, release, cache, sha256, progress)
    table = _unpack(origin, release, cache) if origin.suffix == ".zip" else origin
    if (actual := checksum(table)) != sha256:
        if cache in origin.parents:
            origin.unlink()
        raise DataError(
            f"The content of {origin.name} is not the published one.",
            value=f"sha256 {actual}",
            expected=f"sha256 {sha256}",
            next_step="fetch it again, or from elsewhere (--mirror URL-OR-FOLDER); if you know this content to be"
            " right, give its checksum as fetch.sha256 in params.yaml",
        )
    copy_whole(table, path)
    if table != origin:
        table.unlink()  # the archive stays in the cache, and is enough
    return path


def _is_address(mirror: str) -> bool:
    return mirror.startswith(("http://", "https://"))


def _in_folder(folder: Path, name: str, release: Release) -> Path:
    """Return the copy of a release's file in a local folder, in its archive or unpacked."""
    for candidate in (release.name, name):
        if (folder / candidate).is_file():
            return folder / candidate
    raise DataError(
        f"The folder {folder} does not hold the file." if folder.is_dir() else "There is no such folder of copies.",
        value=", ".join(sorted(entry.name for entry in folder.glob("*"))[:12]) or str(folder),
        expected=f"{release.name} or {name}; or an address that starts with http:// or https://",
        next_step=f"download {release.url} into the folder, or correct --mirror (`fetch.mirror` in params.yaml)",
    )


def _download(url: str, release: Release, cache: Path, sha256: str, progress: bool) -> Path:
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    # The published checksum is the table's: an archive is verified once its table is unpacked.
    known = None if release.member else sha256
    store = pooch.create(cache, "", registry={release.name: known}, urls={release.name: url}, retry_if_failed=RETRIES)
    responses: list[requests.Response] = []  # pooch leaves those of failed downloads open
    hooks = {"response": lambda response, **_: responses.append(response)}
    downloader = pooch.HTTPDownloader(progressbar=progress, timeout=SILENCE_SECONDS, hooks=hooks)
    try:
        return Path(store.fetch(release.name, downloader=downloader))
    except requests.RequestException as error:
        raise _unreachable(url, error) from None
    except ValueError as error:  # pooch: the checksum is another
        raise DataError(
            f"What {without_password(url)} sends is not the published file; it was thrown away.",
            value=str(error).replace(url, without_password(url)),
            expected=f"sha256 {sha256}",
            next_step="open the address in a browser: is it a login or error page? Or fetch from elsewhere: --mirror"
            " URL-OR-FOLDER; if you know that file to be right, give its checksum as fetch.sha256 in params.yaml",
        ) from None
    except OSError as error:
        raise DataError(
            f"{without_password(url)} could not be stored in the cache {cache}.",
            value=error.strerror or error,
            expected="a writable folder with enough space",
            next_step="free some space, or set another folder: WORKSHOP_DOWNLOADS",
        ) from None
    finally:
        for response in responses:
            response.close()


def _unreachable(url: str, error: requests.RequestException) -> DataError:
    response = error.response
    return DataError(
        f"{without_password(url)} could not be fetched.",
        value=type(error).__name__ if response is None else f"HTTP {response.status_code} {response.reason}",
        expected="200 OK",
        next_step="check the network and the proxy (https_proxy), and open the address in a browser; or give a copy:"
        " --mirror URL-OR-FOLDER",
    )


def without_password(url: str) -> str:
    """Return an address without its user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[-1]))


def _unpack(archive: Path, release: Release, cache: Path) -> Path:
    """Return the table of an archive, unpacked into the cache."""
    import pooch

    try:
        cache.mkdir(parents=True, exist_ok=True)
        unzip = pooch.Unzip(members=[release.member], extract_dir=str(cache.resolve() / f"{release.name}.unzip"))
        (table,) = unzip(str(archive), "update", None)
    except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError, NotImplementedError, OSError) as error:
        if cache in archive.parents:
            archive.unlink()
        raise DataError(
            f"The archive {archive} cannot be unpacked.",
            value=error,
            expected=f"a zip archive that holds {release.member}",
            next_step="fetch it again, or from elsewhere: --mirror URL-OR-FOLDER",
        ) from None
    return Path(table)
