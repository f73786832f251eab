"""The sources of raw data: the files that each puts into a folder, and the origin that the data carries."""

from __future__ import annotations

import contextlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from workshop.data import capacity, opsd
from workshop.data.files import checksum, copy_whole, write_whole
from workshop.data.raw import POWER_FILE, WEATHER_FILE
from workshop.errors import DataError, ParameterError
from workshop.parameters import Fetch, OwnFile
from workshop.settings import get_settings

if TYPE_CHECKING:
    import jinja2
    from pandas import DataFrame

SOURCES = ("sample", "opsd", "csv")
OWN_FILE, CARD_FILE, ORIGIN_FILE, SUMS_FILE = "own.csv", "SOURCE.md", "source.json", "SHA256SUMS"
_SAMPLE_ATTRIBUTION = (
    "Modelled data, not measurements: weather from the test reference years TRY 2010, © Deutscher Wetterdienst"
    " (DWD) / BBSR, as distributed with demandlib (MIT, oemof developer group), stations combined, rescaled and"
    " re-dated; generation simulated, with turbine power curves from windpowerlib (MIT; OEP data)."
    " Not Open Power System Data; the labels 2013-2016 do not denote historic weather."
)
TABLES = (POWER_FILE, WEATHER_FILE, OWN_FILE)
_KEY = "origin"


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

        The installed capacity that an own file was given is added, see `capacity.of_frame`.
        """
        year_ends = self.csv and self.csv.capacity
        marked = capacity.mark(frame, year_ends) if year_ends else frame.copy(deep=False)
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
            expected="what `workshop data fetch` writes",
            next_step=f"workshop data fetch --to {folder}",
        ) from None


def origin_of(frame: DataFrame | None) -> Origin:
    """Return the origin that a processed table carries; `unknown` if it carries none."""
    return Origin() if frame is None else Origin.model_validate(frame.attrs.get(_KEY, {}))


def fetch(
    source: str, folder: Path, options: Fetch | None = None, *, base: Path | None = None, progress: bool = False
) -> list[Path]:
    """Put the raw files of ``source`` into ``folder`` and return their paths: tables, card, origin, checksums.

    ``options`` are the section `fetch` of params.yaml; relative paths in it start at ``base``, by default the current
    folder. Downloads stay in `Settings.downloads`.

    Each file appears whole or not at all, the checksums last. A folder that holds them already, unchanged, is left as
    it is; files of another source are removed first. Raises DataError: unknown source, disk full, folder not writable,
    source package damaged, and what `opsd.fetch_file` raises; ParameterError: source `csv` without a file.
    """
    origin = _origin(source, options)
    folder, base, options = Path(folder), Path(base or ""), options or Fetch(source=source)
    accepted: dict[str, str] = {}
    if source == "opsd":
        accepted = opsd.accepted(options.sha256)
    elif source == "csv":
        file = base / _own_file(options).file
        accepted = {OWN_FILE: _checksum_of_own(file)}
    tables = list(accepted) or [POWER_FILE, WEATHER_FILE]
    card = _template().render(source=source, attribution=origin.attribution, accepted=accepted).strip() + "\n"
    names = [*tables, CARD_FILE, ORIGIN_FILE]
    paths = [folder / name for name in (*names, SUMS_FILE)]
    with contextlib.suppress(OSError):
        complete = (
            (folder / CARD_FILE).read_text(encoding="utf-8") == card
            and (folder / ORIGIN_FILE).read_text(encoding="utf-8") == origin.to_json()
            and (folder / SUMS_FILE).read_text(encoding="utf-8") == _sums(folder, names)
            and all(checksum(folder / name) == sha256 for name, sha256 in accepted.items())
        )
        if complete:
            return paths
    # A fetch that is cut short must not leave a folder with files of two sources.
    for name in (*TABLES, CARD_FILE, ORIGIN_FILE, SUMS_FILE):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    if source == "sample":
        _write_sample(folder)
    elif source == "csv":
        copy_whole(file, folder / OWN_FILE)
    else:
        mirror = options.mirror
        if mirror is not None and "://" not in mirror:
            mirror = str(base / mirror)
        for name, sha256 in accepted.items():
            opsd.fetch_file(
                name, folder / name, get_settings().downloads, sha256=sha256, mirror=mirror, progress=progress
            )
    write_whole(folder / CARD_FILE, card.encode())
    write_whole(folder / ORIGIN_FILE, origin.to_json().encode())
    write_whole(folder / SUMS_FILE, _sums(folder, names).encode())
    return paths


def _origin(source: str, options: Fetch | None) -> Origin:
    if source == "sample":
        return Origin(source=source, attribution=_SAMPLE_ATTRIBUTION, modelled=True)
    if source == "opsd":
        return Origin(source=source, attribution=opsd.ATTRIBUTION)
    if source == "csv":
        own = _own_file(options)
        return Origin(source=source, csv=own, attribution=own.attribution)
    raise DataError(
        "There is no such data source.",
        value=repr(source),
        expected=", ".join(SOURCES),
        next_step="set the source to one of these (in chapter 4: `source` in params.yaml)",
    )


def _own_file(options: Fetch | None) -> OwnFile:
    if options is None or options.csv is None:
        raise ParameterError(
            "The source `csv` needs a file, and what its columns are.",
            value="no section fetch.csv",
            expected="fetch.csv.file, and its columns and units unless it is a processed table",
            next_step="see 4_pipeline/own/README.md, then edit params.yaml",
        )
    return options.csv


def _checksum_of_own(file: Path) -> str:
    try:
        return checksum(file)
    except OSError as error:
        raise DataError(
            f"The file {file} cannot be read.",
            value=error.strerror or error,
            expected="a CSV file, its path relative to the folder of params.yaml",
            next_step="put it there, or correct fetch.csv.file in params.yaml",
        ) from None


def _write_sample(folder: Path) -> None:
    from workshop.data.sample import make_sample

    for name, frame in zip((POWER_FILE, WEATHER_FILE), make_sample(), strict=True):
        write_whole(folder / name, frame.to_csv(index=False, lineterminator="\n").encode())


def _sums(folder: Path, names: list[str]) -> str:
    return "".join(f"{checksum(folder / name)}  {name}\n" for name in names)


@cache
def _template() -> jinja2.Template:
    import jinja2

    text = files("workshop.data").joinpath("card.md.jinja").read_text(encoding="utf-8")
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(text)  # noqa: S701 - Markdown
