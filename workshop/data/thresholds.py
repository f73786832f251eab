"""Old names, for callers that are being moved."""

from workshop.data.schema import MONTH_HOURS, RANGES, USUAL_MEANS  # noqa: F401
