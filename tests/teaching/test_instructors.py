"""The instructors' page: its times add up and agree with those of the chapters."""

from __future__ import annotations

import re

from workplace import ROOT

from docs.minutes import minutes_of
from workshop.teaching.checkpoints import CHAPTERS as START_PAGE

PAGE = (ROOT / "workshop" / "teaching" / "README.md").read_text()
CHAPTERS = ("1_starting_point", "2_tracking", "3_projects", "4_pipeline")


def minutes(table: str) -> list[int]:
    """Return the first column of a table, as far as it holds minutes."""
    return [int(number) for number in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)]


def test_short_timetable_adds_up():
    """It takes 60 minutes."""
    whole, short = re.search(r"## Timetable(.*?)### In 60 minutes(.*?)\n## ", PAGE, flags=re.DOTALL).groups()
    assert sum(minutes(short)) == 60
    assert len(minutes(whole)) == len(minutes(short)) == 1 + len(CHAPTERS)


def test_times_are_those_of_the_chapters():
    """Each chapter's own page, the timetable, README and the start page say what docs/minutes.py counts."""
    _, *planned = minutes(PAGE.split("### In 60 minutes")[0])
    counted = [minutes_of(chapter) for chapter in CHAPTERS]
    for chapter, plan, count, entry in zip(CHAPTERS, planned, counted, START_PAGE, strict=True):
        text = (ROOT / chapter / "README.md").read_text()
        read, write, everything = entry.minutes
        assert f"## Time\n{read} minutes to read and run" in text.replace("## Time\n\n", "## Time\n"), chapter
        assert f"{write} with the cells to write" in text or write == read, chapter
        assert f"{everything} with the exercises" in text, chapter
        assert (plan, entry.minutes) == (read, tuple(count)), chapter
    sums = [sum(part) for part in zip(*counted, strict=True)]
    for text in (PAGE, (ROOT / "README.md").read_text()):
        assert [each for each in sums if f"{each} minutes" not in text] == []
