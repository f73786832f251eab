"""The start page shows every step with its sign, links to what exists, and agrees with the chapters' pages."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from workplace import ROOT

from workshop.errors import WorkshopError
from workshop.settings import Settings
from workshop.teaching import startpage
from workshop.teaching.checkpoints import CHAPTERS, Evidence, Progress, Tracked, look

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
STEPS = tuple(look(Evidence(ROOT / "nowhere", frozenset(), Tracked())))


def all_in(done: bool | None) -> Progress:
    """Return the progress of an attendee whose steps are all in one state."""
    return Progress(tuple(replace(each, done=done) for each in STEPS))


def test_links_lead_to_pages_and_headings_that_exist():
    """Each link of the page resolves from the repository's top; a step's heading is one of its page."""
    targets = re.findall(r"\]\(([^)]+)\)", startpage.page(all_in(False), NOW))
    assert [target for target in targets if not (ROOT / target.partition("#")[0]).exists()] == []
    assert len(targets) == len(CHAPTERS) + len(STEPS) + 2  # the next step and its chapter once more
    for step in STEPS:
        page, mark, heading = step.where.partition("#")
        assert not mark or f"# {heading}\n" in (ROOT / page).read_text(), step.title
        assert step.link == f"{page}{mark}{heading.replace(' ', '-')}"


def test_minutes_are_those_of_the_chapters_readmes():
    """The first number under a README's heading Time is what the start page adds up."""
    for chapter in CHAPTERS:
        time = (ROOT / chapter.folder / "README.md").read_text().split("\n## Time\n")[1]
        assert int(re.search(r"\d+", time)[0]) == chapter.minutes, chapter.title


@pytest.mark.parametrize("done", [True, False, None])
def test_sign_of_each_state_is_shown_and_explained(done):
    """Each step has the sign of its state; only the signs on the page are explained."""
    text = startpage.page(all_in(done), NOW)
    assert re.findall(r"^(.) \[.+\]\(\S+\)\\?$", text, flags=re.MULTILINE) == [startpage.SIGNS[done]] * len(STEPS)
    assert f"\n---\n\n{startpage.SIGNS[done]} {startpage.LEGEND[done]}\n" in text


def test_next_step_comes_first_with_what_to_do():
    """Above the outline: the next step, its place, and what to do."""
    head = startpage.page(all_in(False), NOW).split("\n## ")[0]
    assert f"**Next: {STEPS[0].title}**, [chapter 1](1_starting_point/README.md)" in head
    assert f"({STEPS[0].link})" in head
    assert STEPS[0].reason in head


def test_page_is_written_whole_and_again(tmp_path):
    """It replaces the page before it; what cannot be written is reported, and nothing is left beside it."""
    settings = Settings(root=tmp_path, state=tmp_path / "state")
    startpage.write(settings, all_in(False))
    startpage.write(settings, all_in(True))
    text = (tmp_path / "START.md").read_text()
    assert "All of it is done" in text
    assert "**Next:" not in text
    (tmp_path / "START.md").unlink()
    (tmp_path / "START.md").mkdir()
    with pytest.raises(WorkshopError, match="could not be written"):
        startpage.write(settings, all_in(False))
    assert [path.name for path in tmp_path.iterdir()] == ["START.md"]
