"""Write the start page `START.md`: the chapters, the completed steps, and the next step."""

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
RELOAD = "File > Reload Markdown File from Disk"  # JupyterLab does not reload an open file by itself
SIGNS = {True: "✔", False: "○", None: "?"}
LEGEND = "✔ done · ○ to do · ? unknown (is a server down?)"
PAGE = """\
# From a messy notebook to a governed pipeline

Four chapters, {minutes}. Hourly German weather goes in, solar and wind power (GW) comes out, and each chapter solves
problems of the one before ([terms](docs/terms.md)). In a hurry? Run the first two notebooks of
chapter 1 and the first of chapter 2, and skip the cells to write: in 15 minutes you have your own tracked model.

{following}

{chapters}

---

{legend}

As of {now:%d %B %Y, %H:%M}. To refresh, choose {reload}; outside JupyterLab, type
`workshop check`. The launcher's tiles (File > New Launcher) open the MLflow UI, the
Dask dashboard, the dashboard and the report.{questions}
"""


def write(settings: Settings, checkpoints: list[Checkpoint] | None = None) -> Path:
    """Write the start page and return its path; raise DataError if it cannot be written."""
    checkpoints = examine(state_of(settings)) if checkpoints is None else checkpoints
    text = render(checkpoints, next_step(checkpoints, first_chapter(settings)))
    return write_atomically(settings.root / START_PAGE, text.encode())


def render(checkpoints: list[Checkpoint], following: Checkpoint | None) -> str:
    """Return the start page as Markdown; links are relative to the repository root."""
    if following is None:
        line = "**All steps are done.** Next: [your own data](4_pipeline/own/README.md)."
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
        questions=_issues_sentence(),
    )


def _issues_sentence() -> str:
    """Return a sentence linking to the issue tracker of the `origin` remote, or "" if it has no https URL."""
    command = ["git", "-C", str(get_settings().root), "remote", "get-url", "origin"]
    address = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if not re.fullmatch(r"https://[^@\s]+", address):  # rules out a folder, or a URL with a password
        return ""
    return f" Questions? Ask at {address.removesuffix('.git')}/issues."


def _minutes(sums: Sequence[int]) -> str:
    reading, writing, total = sums
    with_writing = f"{writing} if you also write the cells left for you"
    return f"{reading} minutes to read and run, {with_writing}, {total} including the exercises"


def _chapter(chapter: Chapter, checkpoints: list[Checkpoint]) -> str:
    lines = [f"{SIGNS[each.done]} [{each.title}]({each.link})" for each in checkpoints]
    return (
        f"## {chapter.number}. [{chapter.title}]({chapter.folder}/README.md)\n\n"
        f"{_minutes(chapter.minutes)}: {summary(checkpoints)}\n\n" + "\\\n".join(lines)
    )
