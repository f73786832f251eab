"""Where raw data comes from: the sources by name, the raw files that each puts into a folder, and what to say of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from workshop.data import cards, opsd
from workshop.data.download import WAIT_SECONDS
from workshop.data.files import checksum, pieces_of, write_pieces, write_whole
from workshop.data.origin import FILE as ORIGIN_FILE
from workshop.data.origin import Origin
from workshop.errors import DataError, ParameterError
from workshop.parameters import Fetch
from workshop.settings import get_settings

SOURCES = ("sample", "opsd", "csv")
POWER_FILE, WEATHER_FILE, OWN_FILE = "time_series_60min_singleindex.csv", "weather_data.csv", "own.csv"
SUMS_FILE, CARD_FILE = "SHA256SUMS", "SOURCE.md"
FETCHED = (POWER_FILE, WEATHER_FILE, OWN_FILE, CARD_FILE, ORIGIN_FILE)  # in the order of their checksums

_SAMPLE_ATTRIBUTION = (
    "Modelled data, not measurements: weather from the test reference years TRY 2010, © Deutscher Wetterdienst"
    " (DWD) / BBSR, as distributed with demandlib (MIT, oemof developer group), stations combined, rescaled and"
    " re-dated; generation simulated, with turbine power curves from windpowerlib (MIT; OEP data)."
    " Not Open Power System Data; the labels 2013-2016 do not denote historic weather."
)


class _Recipe(NamedTuple):
    """What a source puts into a folder: its tables, by ``write``, and what is said of them."""

    tables: tuple[str, ...]
    card: str
    origin: Origin
    write: Callable[[Path], None]
    sums: dict[str, str] = {}  # noqa: RUF012 - of tables that may have changed where they come from


def fetch(
    source: str,
    folder: Path,
    options: Fetch | None = None,
    *,
    base: Path | None = None,
    cache: Path | None = None,
    progress: bool = False,
    wait_seconds: float = WAIT_SECONDS,
) -> list[Path]:
    """Put the raw files of ``source`` into ``folder`` and return their paths: tables, card, origin, checksums.

    ``options`` say where Open Power System Data is to be had, and how a file of one's own is read (`Fetch`); relative
    paths in them start at ``base``, by default the current folder. Downloads stay in ``cache``, by default
    `Settings.downloads`. ``wait_seconds`` is the first pause before a download is tried again.

    Each file appears whole or not at all, the checksums last. A folder that already holds them, checksums right, is
    left as it is; one that holds those of another source is emptied of them first. Files are copied in pieces,
    whatever their size. Raises DataError: unknown source, disk full, folder not writable, source package damaged, no
    such file, and what `opsd.fetch_file` raises; ParameterError: source `csv` without a file in the options.
    """
    _known(source)
    options = options or Fetch(source=source)
    base = Path(base or "")
    if source == "sample":
        recipe = _Recipe((POWER_FILE, WEATHER_FILE), cards.SAMPLE, _origin(source), _write_sample)
    elif source == "opsd":
        recipe = _opsd(options, base, cache or get_settings().downloads, progress, wait_seconds)
    else:
        recipe = _own(options, base)
    return _follow(recipe, Path(folder))


def attribution(source: str, options: Fetch | None = None) -> str:
    """Return what to show wherever data of ``source`` is shown; for `csv` its owner's words, in ``options``."""
    return _origin(source, options).attribution


def _origin(source: str, options: Fetch | None = None) -> Origin:
    if _known(source) == "csv":
        own = options and options.csv
        return Origin(source=source, csv=own, attribution=own.attribution) if own else Origin(source=source)
    text = _SAMPLE_ATTRIBUTION if source == "sample" else opsd.ATTRIBUTION
    return Origin(source=source, attribution=text, modelled=source == "sample")


def _write_sample(folder: Path) -> None:
    from workshop.data.sample import make_sample

    for name, frame in zip((POWER_FILE, WEATHER_FILE), make_sample(), strict=True):
        write_whole(folder / name, frame.to_csv(index=False, lineterminator="\n").encode())


def _opsd(options: Fetch, base: Path, cache: Path, progress: bool, wait_seconds: float) -> _Recipe:
    wanted = options.addresses or opsd.ADDRESSES
    files = {POWER_FILE: wanted.power, WEATHER_FILE: wanted.weather}
    mirror = options.mirror
    if mirror is not None and not mirror.startswith(opsd.WEB):
        mirror = str(base / mirror)

    def write(folder: Path) -> None:
        for name, addresses in files.items():
            opsd.fetch_file(
                addresses, folder / name, cache, mirror=mirror, progress=progress, wait_seconds=wait_seconds
            )

    accepted = "\n".join(f"- `{name}`: {', '.join(one.sha256 for one in some)}" for name, some in files.items())
    card = cards.OPSD.format(attribution=opsd.ATTRIBUTION, files=accepted)
    return _Recipe(tuple(files), card, _origin("opsd"), write)


def _own(options: Fetch, base: Path) -> _Recipe:
    if options.csv is None:
        raise ParameterError(
            "The source `csv` has to be told which file, and what its columns are.",
            value="no section fetch.csv",
            expected="fetch.csv.file, and its columns and units unless it is a processed table",
            next_step="see 4_pipeline/own/README.md, then edit params.yaml",
        )
    file = base / options.csv.file
    try:
        now = checksum(file)
    except OSError as error:
        raise DataError(
            f"The file {file} cannot be read.",
            value=error.strerror or error,
            expected="a CSV file, its path relative to the folder of params.yaml",
            next_step="put it there, or correct fetch.csv.file in params.yaml",
        ) from None

    def write(folder: Path) -> None:
        with file.open("rb") as opened:
            write_pieces(folder / OWN_FILE, pieces_of(opened))

    card = cards.OWN.format(name=file.name, copy=OWN_FILE, attribution=options.csv.attribution)
    return _Recipe((OWN_FILE,), card, _origin("csv", options), write, {OWN_FILE: now})


def _follow(recipe: _Recipe, folder: Path) -> list[Path]:
    names = [*recipe.tables, CARD_FILE, ORIGIN_FILE]
    paths = [folder / name for name in (*names, SUMS_FILE)]
    if not _is_complete(recipe, names, folder):
        if _text(folder / ORIGIN_FILE) != recipe.origin.to_json():
            # Of another source: a fetch that is cut short must not leave a folder with tables of both.
            for name in (*FETCHED, SUMS_FILE):
                with contextlib.suppress(OSError):
                    (folder / name).unlink()
        recipe.write(folder)
        write_whole(folder / CARD_FILE, recipe.card.encode())
        write_whole(folder / ORIGIN_FILE, recipe.origin.to_json().encode())
        write_whole(folder / SUMS_FILE, _sums(folder, names).encode())
    return paths


def changed(folder: Path) -> list[str]:
    """Return the files of a folder that its `SHA256SUMS`, if there is one, does not describe; or that file itself."""
    folder = Path(folder)
    if not (folder / SUMS_FILE).exists():
        return []
    text = _text(folder / SUMS_FILE) or ""
    sums = {name: _sums(folder, [name]) for name in FETCHED if (folder / name).exists()}
    wrong = [name for name, line in sums.items() if line not in text]
    return wrong or [SUMS_FILE] * (text != "".join(sums.values()))


def _sums(folder: Path, names: Sequence[str]) -> str:
    return "".join(f"{checksum(folder / name)}  {name}\n" for name in names)


def _is_complete(recipe: _Recipe, names: list[str], folder: Path) -> bool:
    """Return whether the folder holds this recipe's card and every file that its checksums name, unchanged."""
    try:
        sums = _sums(folder, names)
        return (
            _text(folder / SUMS_FILE) == sums
            and _text(folder / CARD_FILE) == recipe.card
            and _text(folder / ORIGIN_FILE) == recipe.origin.to_json()
            and all(f"{total}  {name}\n" in sums for name, total in recipe.sums.items())
        )
    except OSError:
        return False


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _known(source: str) -> str:
    if source not in SOURCES:
        raise DataError(
            "There is no such data source.",
            value=repr(source),
            expected=", ".join(SOURCES),
            next_step="set the source to one of these (in chapter 4: `source` in params.yaml)",
        )
    return source
