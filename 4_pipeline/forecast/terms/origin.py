"""The origin of data: the source's name and attribution, which raw files and processed tables carry."""

from __future__ import annotations

from pathlib import Path

from pandas import DataFrame
from pydantic import BaseModel, ConfigDict, ValidationError

from forecast.terms.errors import DataError
from forecast.terms.parameters import OwnFile

ORIGIN_FILE = "source.json"  # in a folder of raw files
_KEY = "origin"  # in a table's attributes


class Origin(BaseModel):
    """The origin of data: the source's name, the attribution to show with the data, and whether it is modelled.

    ``modelled`` is None where that is not said, as of an own file.

    ``csv`` says how an own file is read.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    source: str = "unknown"
    attribution: str = "Where this data comes from was not recorded."
    modelled: bool | None = None
    csv: OwnFile | None = None

    @property
    def label(self) -> str:
        """The source in a word or two."""
        return f"modelled {self.source}" if self.modelled else self.source

    @property
    def measured_name(self) -> str:
        """A legend's name of the generation that predictions are compared with."""
        return f"measured ({self.label})" if self.modelled else "measured"

    def mark(self, frame: DataFrame) -> DataFrame:
        """Return ``frame`` with this origin in its attributes, which Parquet files keep (pandas' `DataFrame.attrs`)."""
        marked = frame.copy()
        marked.attrs = {**frame.attrs, _KEY: self.model_dump(exclude={"csv"})}
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
