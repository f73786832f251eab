"""Where data comes from, told by the data itself: beside raw files, and inside the processed table made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from workshop.data import capacity
from workshop.errors import DataError
from workshop.parameters import OwnFile

if TYPE_CHECKING:
    from pandas import DataFrame

FILE = "source.json"
_KEY = "origin"


class Origin(BaseModel):
    """A source's name, what to say wherever its data is shown, and whether the generation is modelled.

    ``csv`` says how a file of one's own is read.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    source: str = "unknown"
    attribution: str = "Where this data comes from was not recorded."
    modelled: bool = False
    csv: OwnFile | None = None

    @property
    def label(self) -> str:
        """What the source is called, wherever there is room for a word or two."""
        return f"modelled {self.source}" if self.modelled else self.source

    @property
    def measured_name(self) -> str:
        """What a legend calls the generation that predictions are compared with."""
        return f"measured ({self.label})" if self.modelled else "measured"

    def to_json(self) -> str:
        """Return the content of the file beside raw data."""
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"

    def mark(self, frame: DataFrame) -> DataFrame:
        """Return ``frame`` with this origin in its attributes, which Parquet files keep (pandas' `DataFrame.attrs`).

        Figures of installed capacity that were given with a file of one's own come along, see `capacity.of_frame`.
        """
        own = self.csv and self.csv.capacity
        marked = capacity.mark(frame, own) if own else frame.copy(deep=False)
        marked.attrs = {**marked.attrs, _KEY: self.model_dump(exclude={"csv"})}
        return marked


def of_folder(folder: Path) -> Origin:
    """Return the origin of a folder of raw files; one that says nothing is `unknown`. Raises DataError: damaged."""
    path = Path(folder) / FILE
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


def of_frame(frame: DataFrame | None) -> Origin:
    """Return the origin that a processed table carries; `unknown` if it carries none."""
    return Origin() if frame is None else Origin.model_validate(frame.attrs.get(_KEY, {}))
