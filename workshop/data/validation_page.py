"""Old names, for callers that are being moved."""

from workshop.data.figures import TITLES  # noqa: F401
