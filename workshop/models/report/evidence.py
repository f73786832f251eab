"""What a report rests on: the data, what the model in production says of all of it, and the model's record."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from workshop.data import origin, weeks
from workshop.data.schema import TARGETS
from workshop.models import history, lineage
from workshop.models.history import Move
from workshop.models.lineage import Link
from workshop.models.registry import Production

if TYPE_CHECKING:
    from pandas import DataFrame, Series, Timestamp

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evidence:
    """The whole processed frame and what is known of it; enough for a report on any of its weeks, on any machine.

    ``predicted`` and both ends of ``band`` hold `solar_GW` and `wind_GW` of the same rows; None without a model, and
    ``band`` also for a model that has none. ``learned_until`` is the start of the last hour that the model learned
    from; None when that is not known.
    """

    frame: DataFrame
    predicted: DataFrame | None = None
    band: tuple[DataFrame, DataFrame] | None = None
    coverage: float | None = None
    production: Production | None = None
    learned_until: Timestamp | None = None
    lineage: tuple[Link, ...] = ()
    history: tuple[Move, ...] = ()

    @property
    def origin(self) -> origin.Origin:
        """Where the data come from."""
        return origin.of_frame(self.frame)

    def of_week(self, week: str) -> Week:
        """Return what is known of one week, by its ISO name or `latest`; raises as `weeks.select_week`."""
        name, hours = weeks.select_week(self.frame, week)
        rows = self.frame["utc_timestamp"].isin(hours["utc_timestamp"]).to_numpy()

        def part(whole: DataFrame) -> DataFrame:
            return whole[rows].reset_index(drop=True)

        predicted = None if self.predicted is None else part(self.predicted)
        band = None if self.band is None else tuple(part(end) for end in self.band)
        return Week(name, hours, predicted, band)

    def misses_by_week(self) -> Series:
        """Return the mean absolute miss of an hour and a source in GW, by the beginnings of the weeks.

        Those that lack more than a tenth of their hours are left out.
        """
        missed = (self.predicted[TARGETS] - self.frame[TARGETS]).abs().mean(axis="columns")
        return weeks.whole_means(missed, self.frame["utc_timestamp"])


@dataclass(frozen=True)
class Week:
    """One week of `Evidence`: its name, its rows of the frame, and what the model says of them."""

    name: str
    hours: DataFrame
    predicted: DataFrame | None = None
    band: tuple[DataFrame, DataFrame] | None = None

    @cached_property
    def monday(self) -> Timestamp:
        """The moment at which it begins."""
        import pandas as pd

        return pd.Timestamp(weeks.monday(self.name))


def gather(frame: DataFrame, production: Production | None) -> Evidence:
    """Return the evidence for a processed frame and what is in production.

    Raises ModelError when the model cannot be loaded or used.
    """
    import pandas as pd

    from workshop.models.loading import load

    if production is None:
        return Evidence(frame, history=_history())
    model = load(production.model_uri)
    predicted, band = model.predict_with_band(frame)
    return Evidence(
        frame,
        predicted=predicted,
        band=band,
        coverage=model.coverage,
        production=production,
        learned_until=pd.Timestamp(production.learned_until) if production.learned_until else None,
        lineage=_lineage(production.version),
        history=_history(),
    )


def _lineage(version: str) -> tuple[Link, ...]:
    try:
        return tuple(lineage.of_version(version))
    except Exception as error:  # noqa: BLE001 - a report without the model's origin is still a report
        log.warning("The lineage of version %s could not be read: %r", version, error)
        return ()


def _history() -> tuple[Move, ...]:
    try:
        return tuple(history.read())
    except Exception as error:  # noqa: BLE001 - likewise
        log.warning("The moves of the alias could not be read: %r", error)
        return ()
