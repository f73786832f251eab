"""What is usual: the energy of a week of the year, from the same season of other years in the data."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workshop.data import features, weeks
from workshop.data.schema import TARGETS
from workshop.errors import DataError

if TYPE_CHECKING:
    from pandas import DataFrame, Timestamp

YEAR_DAYS = 365.25
SEASON_DAYS = 10  # as far may a week begin from the same day of another year: three weeks of each
OTHER_YEAR_DAYS = 180  # what is nearer belongs to the week's own season, and would be no second opinion

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shares:
    """Generation as a share of what was installed, so that years of growing capacity compare.

    ``generation`` has the frame's rows and `TARGETS`, ``capacity`` likewise in GW; where the capacity is not known
    for all hours (``scaled`` is false) it is 1 GW throughout, and the shares are the GW themselves.
    """

    generation: DataFrame
    capacity: DataFrame
    scaled: bool

    @classmethod
    def of(cls, frame: DataFrame) -> Shares:
        """Return the shares of a processed frame."""
        import pandas as pd

        try:
            capacity, scaled = features.installed(frame), True
        except DataError as error:
            log.info("Years are compared as they are: %s", error.what)
            capacity, scaled = pd.DataFrame(1.0, frame.index, TARGETS), False
        return cls(features.targets(frame) / capacity, capacity, scaled)


def weekly(frame: DataFrame, shares: Shares) -> DataFrame:
    """Return each week's mean share, columns `TARGETS`, and its `hours`, by the moment at which it begins."""
    by_week = shares.generation.groupby(weeks.mondays(frame["utc_timestamp"]))
    return by_week.mean().assign(hours=by_week.size())


def usual(table: DataFrame, monday: Timestamp, capacity_GW: dict[str, float]) -> DataFrame | None:
    """Return `least`, `middle` and `most` energy in GWh of such a week of the year, and how many `weeks` tell it.

    ``table`` is that of `weekly`; counted are its whole weeks at the same time of other years, at ``capacity_GW``, as
    if nothing of them were missing. A row for each of `TARGETS`; None when the data hold no such week.
    """
    import numpy as np
    import pandas as pd

    days = (table.index - monday).total_seconds() / 86400
    from_season = np.abs((days + YEAR_DAYS / 2) % YEAR_DAYS - YEAR_DAYS / 2)
    alike = (from_season <= SEASON_DAYS) & (np.abs(days) > OTHER_YEAR_DAYS)
    found = table[alike & (table["hours"] >= weeks.WHOLE_ENOUGH * weeks.HOURS)]
    if found.empty:
        return None
    energy = found[TARGETS] * pd.Series(capacity_GW) * weeks.HOURS
    told = {"least": energy.min(), "middle": energy.median(), "most": energy.max()}
    return pd.DataFrame(told).assign(weeks=len(found))
