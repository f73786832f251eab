"""`workshop up --chapter` prepares the results of the earlier chapters, and changes no file of an attendee."""

from __future__ import annotations

import shutil

import pytest
from attendee import git
from workplace import BIN, ROOT

from workshop.teaching.chapter_files import prepare_for
from workshop.teaching.checkpoints import examine, next_step, state_of

PROJECT = ["3_projects/hourly.py", *(f"3_projects/lr/{name}" for name in ("MLproject", "python_env.yaml", "train.py"))]


@pytest.fixture
def chapters(attendee, germany_csv, store, monkeypatch):
    """The attendee's repository with the notebooks of chapter 2, a project of chapter 3, and chapter 1's table."""
    monkeypatch.setenv("WORKSHOP_STATE", str(store))  # so that the server is this clone's own
    (attendee.root / "3_projects" / "lr").mkdir(parents=True)
    for name in PROJECT:
        shutil.copy(ROOT / name, attendee.root / name)
    shutil.copytree(
        ROOT / "2_tracking", attendee.root / "2_tracking", ignore=shutil.ignore_patterns("*.csv", ".ipynb*")
    )
    (attendee.root / "1_starting_point").mkdir()
    shutil.copy(germany_csv, attendee.root / "1_starting_point" / "germany.csv")
    git(attendee.root, "add", "--all")
    git(attendee.root, "commit", "--quiet", "--message", "Chapters")
    return attendee


@pytest.mark.night
@pytest.mark.timeout(500)
def test_attendee_can_begin_at_chapter_4(chapters):
    """Chapter 2's notebooks and chapter 3's project run, and a model is promoted; a second call changes nothing."""
    notebook = chapters.root / "2_tracking" / "model_linreg.ipynb"
    notebook.write_text("the attendee's, half done")
    lines = []
    prepare_for(chapters.settings, 4, lines.append)
    assert notebook.read_text() == "the attendee's, half done"
    names = ("model_linreg", "honest_split", "model_rf", "model_keras", "capacity_factor", "compare_runs")
    assert [line.split(":")[0] for line in lines] == [
        "2_tracking/germany.csv", "3_projects/germany.csv", *(f"2_tracking/{name}.ipynb" for name in names),
        "3_projects/lr",
    ]  # fmt: skip
    steps = chapters.steps()
    left_open = {title for title, step in steps.items() if step.chapter == 2 and not step.done}
    assert {title for title in left_open if not title.startswith("Exercise")} == {"A rollback"}
    assert steps["A project run with one command"].done
    assert next_step(examine(state_of(chapters.settings)), 4).chapter == 4
    lines.clear()
    prepare_for(chapters.settings, 4, lines.append)
    assert lines == []


def test_up_makes_the_table_of_chapter_1_and_writes_the_start_page(servers):
    """After `workshop up --chapter 2` on running servers the table exists, and the next step is in chapter 2."""
    table = servers.root / "1_starting_point" / "germany.csv"
    table.unlink(missing_ok=True)  # other tests may have worked in this clone by hand
    servers.run(BIN / "workshop", "up", "--chapter", "2")
    assert table.stat().st_size > 1_000_000
    page = (servers.root / "START.md").read_text()
    assert "✔ [Weather and power in one table]" in page
    assert "chapter 1" not in page.split("**Next: ")[1].splitlines()[0]
