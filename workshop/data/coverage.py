"""Old names, for callers that are being moved."""

from workshop.data.prepare import in_words, left_out, missing_by_month  # noqa: F401
from workshop.data.schema import STAMP  # noqa: F401
