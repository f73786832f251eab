"""Old names, for callers that are being moved."""

from workshop.data.split import WEEK_HOURS as HOURS  # noqa: F401
from workshop.data.split import WHOLE_ENOUGH, monday, mondays, name_of, select_week  # noqa: F401
from workshop.data.split import week_means as whole_means  # noqa: F401
from workshop.data.split import week_names as names  # noqa: F401


def between(weeks: str) -> list[str]:
    """Return the names of the weeks of `FROM..TO`."""
    from datetime import timedelta

    first, _, last = weeks.partition("..")
    start, end = monday(first), monday(last)
    return [name_of(start + timedelta(weeks=number)) for number in range((end - start).days // 7 + 1)]
