"""The instructors' page: its times add up and agree with those of the chapters."""

from __future__ import annotations

import re

from workplace import ROOT

from workshop.teaching.checkpoints import CHAPTERS as START_PAGE

PAGE = (ROOT / "workshop" / "teaching" / "README.md").read_text()
CHAPTERS = ("1_starting_point", "2_tracking", "3_projects", "4_pipeline")


def minutes(table: str) -> list[int]:
    """Return the first column of a table, as far as it holds minutes."""
    return [int(number) for number in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)]


def test_both_timetables_add_up():
    """Two and a half hours with ten minutes to set up; and the short one, 60 minutes."""
    whole, short = re.search(r"## Timetable(.*?)### In 60 minutes(.*?)\n## ", PAGE, flags=re.DOTALL).groups()
    assert (sum(minutes(whole)), sum(minutes(short))) == (150, 60)
    assert len(minutes(whole)) == len(minutes(short)) == 1 + len(CHAPTERS)


def test_times_are_those_of_the_chapters():
    """Each chapter's own page, the timetable and the start page say the same."""
    _, *planned = minutes(PAGE.split("### In 60 minutes")[0])
    for chapter, plan, entry in zip(CHAPTERS, planned, START_PAGE, strict=True):
        text = (ROOT / chapter / "README.md").read_text()
        said = int(re.search(r"## Time\s+\D*(\d+) minutes", text)[1])
        assert said == plan == entry.minutes, chapter
