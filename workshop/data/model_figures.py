"""Old names, for callers that are being moved."""

from workshop.data.figures import answers_around, scores_over_time  # noqa: F401
