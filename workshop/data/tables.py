"""Old names, for callers that are being moved."""

from workshop.data.raw import require_columns  # noqa: F401
