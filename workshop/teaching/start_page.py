"""The start page `START.md`: the chapters, the steps that are done, and the next one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from forecast.terms.files import write_atomically

from workshop.settings import Settings, get_settings
from workshop.teaching.checkpoints import (
    CHAPTERS,
    Chapter,
    Checkpoint,
    examine,
    first_chapter,
    next_step,
    state_of,
    summary,
)

START_PAGE = "START.md"
RELOAD = "File > Reload Markdown File from Disk"  # JupyterLab does not notice by itself
SIGNS = {True: "✔", False: "○", None: "?"}
LEGEND = "✔ done · ○ to do · ? not known (is a server down?)"
PAGE = """\
# From a messy notebook to a governed pipeline

Four chapters, {minutes}. Hourly German weather goes in, solar and wind power (GW) comes out, and each chapter solves
problems of the one before ([glossary](workshop/teaching/glossary.md)). In a hurry, run the first two notebooks of
chapter 1 and the first of chapter 2, without their cells to write: in 15 minutes you have a tracked model of your own.

{following}

{chapters}

---

{legend}

As of {now:%d %B %Y, %H:%M}. To look again, choose {reload}; outside JupyterLab, type
`workshop check`. The tiles of the launcher (File > New Launcher) open the MLflow UI, the
Dask dashboard, the dashboard and the report.{questions}
"""


def write(settings: Settings, checkpoints: list[Checkpoint] | None = None) -> Path:
    """Write the start page and return its path; raise DataError when it cannot be written."""
    checkpoints = examine(state_of(settings)) if checkpoints is None else checkpoints
    text = render(checkpoints, next_step(checkpoints, first_chapter(settings)))
    return write_atomically(settings.root / START_PAGE, text.encode())


def render(checkpoints: list[Checkpoint], following: Checkpoint | None) -> str:
    """Return the start page as Markdown; links are relative to the repository's top."""
    if following is None:
        line = "**All of it is done.** Next: [your own data](4_pipeline/own/README.md)."
    else:
        page = f"[chapter {following.chapter}]({CHAPTERS[following.chapter - 1].folder}/README.md)"
        where = f"{page}. Open [{following.place}]({following.link})."
        line = f"> **Next: {following.title}**, {where}\n>\n> {following.reason}"
    return PAGE.format(
        minutes=_minutes([sum(part) for part in zip(*(each.minutes for each in CHAPTERS), strict=True)]),
        following=line,
        chapters="\n\n".join(
            _chapter(each, [step for step in checkpoints if step.chapter == each.number]) for each in CHAPTERS
        ),
        legend=LEGEND,
        now=datetime.now().astimezone(),
        reload=RELOAD,
        questions=_place_for_questions(),
    )


def _place_for_questions() -> str:
    """Return where to ask: the page of the repository that this clone came from, if it has one."""
    command = ["git", "-C", str(get_settings().root), "remote", "get-url", "origin"]
    address = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if not re.fullmatch(r"https://[^@\s]+", address):  # a folder, or an address with a password
        return ""
    return f" Questions? Ask at {address.removesuffix('.git')}/issues."


def _minutes(sums: Sequence[int]) -> str:
    read, write, everything = sums
    return f"{read} minutes to read and run, {write} with the cells to write, {everything} with the exercises"


def _chapter(chapter: Chapter, checkpoints: list[Checkpoint]) -> str:
    lines = [f"{SIGNS[each.done]} [{each.title}]({each.link})" for each in checkpoints]
    return (
        f"## {chapter.number}. [{chapter.title}]({chapter.folder}/README.md)\n\n"
        f"{_minutes(chapter.minutes)}: {summary(checkpoints)}\n\n" + "\\\n".join(lines)
    )
