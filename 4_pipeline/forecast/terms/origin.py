"""The origin of data: its source and attribution, stored with raw files and processed tables."""

from __future__ import annotations

from pathlib import Path

from pandas import DataFrame
from pydantic import BaseModel, ConfigDict, ValidationError

from forecast.terms.errors import DataError
from forecast.terms.parameters import OwnFile

ORIGIN_FILE = "source.json"  # in the folder of raw files
_KEY = "origin"  # key in DataFrame.attrs


class Origin(BaseModel):
    """The origin of data: source, attribution to show, and whether the generation is modelled (None if unknown).

    ``csv`` holds the settings for reading a user's own file.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    source: str = "unknown"
    attribution: str = "The origin of this data was not recorded."
    modelled: bool | None = None
    csv: OwnFile | None = None

    @property
    def label(self) -> str:
        """A short name for the source."""
        return f"modelled {self.source}" if self.modelled else self.source

    @property
    def measured_name(self) -> str:
        """The label of the measured values in legends."""
        return f"measured ({self.label})" if self.modelled else "measured"

    def mark(self, frame: DataFrame) -> DataFrame:
        """Return a copy of ``frame`` with this origin in `DataFrame.attrs`, which `to_parquet` saves."""
        marked = frame.copy()
        marked.attrs = {**frame.attrs, _KEY: self.model_dump(exclude={"csv"})}
        return marked


def origin_in(folder: Path) -> Origin:
    """Return the origin recorded in a folder of raw files, else `unknown`; raise DataError for a damaged file."""
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
            expected="a file written by `python -m forecast fetch`",
            next_step=f"python -m forecast fetch --to {folder}",
        ) from None


def origin_of(frame: DataFrame | None) -> Origin:
    """Return the origin recorded in a processed table, else `unknown`."""
    return Origin() if frame is None else Origin.model_validate(frame.attrs.get(_KEY, {}))
