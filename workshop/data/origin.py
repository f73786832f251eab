"""Old names, for callers that are being moved."""

from workshop.data.sources import Origin  # noqa: F401
from workshop.data.sources import origin_in as of_folder  # noqa: F401
from workshop.data.sources import origin_of as of_frame  # noqa: F401
