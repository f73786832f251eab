"""The start page shows every step with its sign, links to what is there, and is written whole."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from workplace import ROOT

from workshop.errors import WorkshopError
from workshop.settings import Settings
from workshop.teaching import outline, startpage
from workshop.teaching.checkpoints import Progress, verdicts
from workshop.teaching.checkpoints.evidence import Evidence
from workshop.teaching.checkpoints.step import State
from workshop.teaching.checkpoints.store import Store
from workshop.teaching.outline import CHAPTERS

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
NOTHING = Evidence(root=str(ROOT), store=Store("http://127.0.0.1:5000"))


def all_in(state: State) -> Progress:
    """Return the progress of somebody whose steps are all in one state."""
    return Progress(tuple(replace(each, state=state) for each in verdicts(NOTHING)))


def test_links_lead_to_what_is_there():
    """Each link of the page resolves from the repository's top, and each chapter and step has one."""
    text = startpage.page(all_in(State.MISSING), NOW)
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert [target for target in targets if not (ROOT / target.partition("#")[0]).exists()] == []
    assert {chapter.readme for chapter in CHAPTERS} <= set(targets)
    assert len(targets) == len(CHAPTERS) + len(verdicts(NOTHING)) + 2  # the next step and its chapter once more


def test_headings_that_steps_lead_to_are_there():
    """Each step that is done in a README of chapter 2 to 4 names a heading of it; the link is JupyterLab's anchor."""
    steps = [each for each in verdicts(NOTHING) if each.where.endswith(".md") and each.chapter > 1]
    assert len(steps) == 11
    for step in steps:
        headings = re.findall(r"^#+ (.+)$", (ROOT / step.where).read_text(), flags=re.MULTILINE)
        assert step.heading in headings, step.title
        assert step.link == f"{step.where}#{step.heading.replace(' ', '-')}"


def test_minutes_are_those_of_the_chapters_readmes():
    """The first number under a README's heading Time is what the start page adds up."""
    for chapter in CHAPTERS:
        time = (ROOT / chapter.readme).read_text().split("\n## Time\n")[1]
        assert int(re.search(r"\d+", time)[0]) == chapter.minutes, chapter.title


def test_notebooks_of_the_chapters_are_all_named():
    """Each notebook of a chapter's folder is in the outline, its exercises apart, and the other way round."""
    for chapter in CHAPTERS:
        names = {file.stem for file in (ROOT / chapter.folder).glob("*.ipynb")} - {"exercises"}
        assert names == set(chapter.notebooks), chapter.title


@pytest.mark.parametrize("state", State)
def test_sign_of_each_state_stands_at_its_steps_and_is_explained(state):
    """One sign a state; only those that stand on the page are explained."""
    text = startpage.page(all_in(state), NOW)
    steps = re.findall(r"^(.) \[.+\]\(\S+\)\\?$", text, flags=re.MULTILINE)
    assert steps == [startpage.SIGNS[state]] * len(verdicts(NOTHING))
    explained = [sign for sign in startpage.SIGNS.values() if f"\n{sign} " in text or f"· {sign} " in text]
    assert explained == [startpage.SIGNS[state]]


def test_next_step_comes_first_with_its_reason():
    """Above the outline: what to do next, where, and why it is not ticked."""
    progress = all_in(State.MISSING)
    head = startpage.page(progress, NOW).split("\n## ")[0]
    assert f"**Next: {progress.next.title}**" in head
    assert f"({progress.next.link})" in head
    assert f"[chapter {progress.next.chapter}]({outline.chapter(progress.next.chapter).readme})" in head
    assert progress.next.reason in head


def test_all_done_points_beyond_the_workshop():
    """With nothing left to do the page says so, and goes on to one's own data."""
    text = startpage.page(all_in(State.DONE), NOW)
    assert "All of it is done" in text
    assert "**Next" not in text


def test_page_that_cannot_be_written_is_told_in_words(tmp_path):
    """A folder in its place: the path is said, and nothing is left beside it."""
    (tmp_path / "START.md").mkdir()
    with pytest.raises(WorkshopError, match="could not be written"):
        startpage.write(Settings(root=tmp_path, state=tmp_path / "state"), all_in(State.MISSING))
    assert [path.name for path in tmp_path.iterdir()] == ["START.md"]


def test_page_is_written_whole_and_again(tmp_path):
    """It replaces the page before it, and no part of a file is left beside it; what a chapter made stays."""
    settings = Settings(root=tmp_path, state=tmp_path / "state")
    file = startpage.write(settings, all_in(State.MISSING))
    assert file == tmp_path / "START.md"
    startpage.write(settings, all_in(State.DONE))
    assert "All of it is done" in file.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["START.md"]
