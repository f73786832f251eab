"""Open Power System Data: where its two releases can be had, and how they come into a folder, verified."""

from __future__ import annotations

import difflib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from workshop.data.download import WAIT_SECONDS, download, file_name
from workshop.data.files import ContentError, pieces_of, write_pieces
from workshop.errors import DataError
from workshop.parameters import Address, Addresses

ATTRIBUTION = (
    "Open Power System Data. 2019. Data Package Time series. Version 2019-06-05."
    " https://doi.org/10.25832/time_series/2019-06-05. (Primary data from various sources, for a complete list see"
    " URL). Open Power System Data. 2019. Data Package Weather Data. Version 2019-04-09."
    " https://doi.org/10.25832/weather_data/2019-04-09. (Primary data from various sources, for a complete list see"
    " URL)."
)
# Only these two releases together hold wind speed, temperature and both radiations: later ones drop the wind.
ADDRESSES = Addresses(
    power=[
        Address(
            url="https://data.open-power-system-data.org/time_series/2019-06-05/time_series_60min_singleindex.csv",
            sha256="659fe789af2672aabe989aebc8c5c21052a1a96e4da70b0fc941910a1cd4de9d",
        )
    ],
    weather=[
        Address(
            url="https://data.open-power-system-data.org/weather_data/opsd-weather_data-2019-04-09.zip",
            sha256="b06e72cb32f06f6f57da7ab891c6be70fb201777617433c12c08fbd2ac64062b",
            member="opsd-weather_data-2019-04-09/weather_data.csv",
        )
    ],
)
WEB = ("http://", "https://")
MOST_BYTES = 8_000_000_000  # of an unpacked file
MOST_RATIO = 200  # of unpacked to packed; tables of numbers pack about tenfold


def fetch_file(
    addresses: Sequence[Address],
    path: Path,
    cache: Path,
    *,
    mirror: str | None = None,
    progress: bool = False,
    wait_seconds: float = WAIT_SECONDS,
) -> Path:
    """Put the file that ``addresses`` name at ``path``, from the first of them that has it, and return the path.

    ``mirror`` is a folder, or an address, that holds the same files under the last part of their addresses; then the
    addresses themselves are not asked. A folder may also hold the unpacked file. What is downloaded stays in
    ``cache``: the next time no network is needed. The content is verified while it is written, so ``path`` is there
    whole and right, or as it was.

    Raises DataError: everything that `download` raises, an archive that is none, that lacks the file, or that is not
    to be trusted (paths out of its folder, far too large, encrypted), disk full.
    """
    faults = []
    for address in addresses:
        try:
            if mirror is not None and not mirror.startswith(WEB):
                return _take(_in_folder(Path(mirror), address), address, path)
            return _take_downloaded(address, path, cache, mirror, progress, wait_seconds)
        except DataError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    raise DataError(
        f"None of {len(faults)} addresses gave {path.name}.",
        value="; ".join(f"{fault.what} {fault.value}" for fault in faults),
        expected=faults[-1].expected,
        next_step=faults[-1].next_step,
    )


def _take_downloaded(
    address: Address, path: Path, cache: Path, mirror: str | None, progress: bool, wait_seconds: float
) -> Path:
    url = f"{mirror.rstrip('/')}/{file_name(address.url)}" if mirror else address.url
    # The published checksum is the table's: an archive is known to be right once its table is.
    known = None if address.member else address.sha256
    for fresh in (not (cache / file_name(url)).exists(), True):
        downloaded = download(url, cache, known, progress=progress, wait_seconds=wait_seconds)
        try:
            return _take(downloaded, address, path)
        except ContentError:
            downloaded.unlink(missing_ok=True)
            if fresh:
                raise
    raise AssertionError("unreachable")


def _in_folder(folder: Path, address: Address) -> Path:
    """Return the file for an address in a local folder, unpacked or in its archive."""
    if not folder.is_dir():
        raise DataError(
            "There is no such folder of copies.",
            value=str(folder),
            expected="a folder, or an address that begins with http:// or https://",
            next_step="correct --mirror, or `mirror` in params.yaml",
        )
    names = [file_name(address.url)] + ([PurePosixPath(address.member).name] if address.member else [])
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"The folder {folder} does not hold the file.",
        value=", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "an empty folder",
        expected=" or ".join(names),
        next_step=f"download {address.url} into it, on a machine that can",
    )


def _take(origin: Path, address: Address, path: Path) -> Path:
    """Write the table in ``origin``, a file or an archive, to ``path``; raise ContentError if it is another."""
    packed = address.member is not None and origin.name == file_name(address.url)
    try:
        if packed:
            return _unpack(origin, address, path)
        with origin.open("rb") as file:
            return write_pieces(path, pieces_of(file, address.sha256, origin.name))
    except OSError as error:
        raise DataError(f"The file {origin} cannot be read.", value=error.strerror or error) from None


def _unpack(archive: Path, address: Address, path: Path) -> Path:
    again = f"fetch it again: rm {archive}; or give a copy: --mirror URL-OR-FOLDER"
    try:
        with zipfile.ZipFile(archive) as opened:
            member = _trusted(opened, address, archive)
            with opened.open(member) as file:
                return write_pieces(path, pieces_of(file, address.sha256, f"{member.filename} in {archive.name}"))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ContentError(
            f"The archive {archive} cannot be unpacked.",
            value=f"{str(error) or type(error).__name__}; it begins with {_beginning(archive)}",
            expected="a zip archive, whole and not encrypted",
            next_step=again,
        ) from None


def _trusted(opened: zipfile.ZipFile, address: Address, archive: Path) -> zipfile.ZipInfo:
    """Return the archive's entry for the file that is wanted; raise DataError if anything about it is odd."""
    names = opened.namelist()
    # Only the one file is taken, and under our own name: such a path could do no harm, but nobody honest writes it.
    hostile = [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if hostile or any("\\" in name or ":" in name for name in names):
        raise ContentError(
            f"The archive {archive} is not to be trusted: it names files outside its folder.",
            value=", ".join(hostile[:5] or [name for name in names if "\\" in name or ":" in name][:5]),
            expected="relative paths",
            next_step="do not unpack it by hand; tell whoever runs the mirror",
        )
    if address.member not in names:
        near = difflib.get_close_matches(address.member, names, n=1)
        raise ContentError(
            f"The archive {archive} lacks {address.member}" + (f" (nearest: {near[0]})." if near else "."),
            value=", ".join(names[:12]) or "an empty archive",
            expected=address.member,
            next_step="give the file's path in the archive as `member` in params.yaml (fetch.addresses)",
        )
    member = opened.getinfo(address.member)
    if member.file_size > MOST_BYTES or member.file_size > MOST_RATIO * max(member.compress_size, 1):
        raise ContentError(
            f"The archive {archive} is not to be trusted: {member.filename} would grow out of proportion.",
            value=f"{member.compress_size:,} bytes that unpack to {member.file_size:,}",
            expected=f"at most {MOST_RATIO} times as many, and {MOST_BYTES:,}",
            next_step="do not unpack it by hand; tell whoever runs the mirror",
        )
    return member


def _beginning(archive: Path) -> str:
    with archive.open("rb") as file:
        return repr(file.read(24))
