"""The start page, `START.md`: what the workshop is, which steps are done, and which one is next."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from workshop.data.files import write_whole
from workshop.settings import Settings
from workshop.teaching.checkpoints import CHAPTERS, Chapter, Checkpoint, Progress, examine

NAME = "START.md"
RELOAD = "File > Reload Markdown File from Disk"  # JupyterLab does not notice by itself
SIGNS = {True: "✔", False: "○", None: "?"}
LEGEND = {True: "done", False: "to do", None: "could not be looked at"}
PAGE = """\
# From a messy notebook to a governed pipeline

Four chapters, about {minutes} minutes. Hourly German weather goes in, solar and wind power (GW) comes out,
and each chapter cures what hurt in the one before.

{following}

{chapters}

---

{legend}

As of {now}. To look again, type `workshop check` in a terminal (File > New > Terminal), then choose
{reload} here. The tiles of the launcher (File > New Launcher) open the MLflow UI, the
Dask dashboard, the dashboard and the report.
"""


def write(settings: Settings, progress: Progress | None = None) -> Path:
    """Write the start page and return its path; raise DataError when it cannot be written."""
    text = page(progress or examine(settings), datetime.now().astimezone())
    return write_whole(settings.root / NAME, text.encode())


def page(progress: Progress, now: datetime) -> str:
    """Return the start page as Markdown; links are relative to the repository's top."""
    return PAGE.format(
        minutes=sum(each.minutes for each in CHAPTERS),
        following=_next(progress.next_of()),
        chapters="\n\n".join(_chapter(each, progress.of(each.number)) for each in CHAPTERS),
        legend=legend(progress.checkpoints),
        now=f"{now:%d %B %Y, %H:%M}",
        reload=RELOAD,
    )


def legend(checkpoints: Iterable[Checkpoint]) -> str:
    """Return what the signs of these checkpoints mean, in one line."""
    shown = {checkpoint.done for checkpoint in checkpoints}
    return " · ".join(f"{sign} {LEGEND[done]}" for done, sign in SIGNS.items() if done in shown)


def _next(following: Checkpoint | None) -> str:
    if following is None:
        return "**All of it is done.** Next: [your own data](4_pipeline/own/README.md)."
    chapter = CHAPTERS[following.chapter - 1]
    where = f"[chapter {chapter.number}]({chapter.folder}/README.md). Open [{following.place}]({following.link})."
    return f"> **Next: {following.title}**, {where}\n>\n> {following.reason}"


def _chapter(chapter: Chapter, checkpoints: list[Checkpoint]) -> str:
    done = sum(bool(checkpoint.done) for checkpoint in checkpoints)
    lines = [f"{SIGNS[each.done]} [{each.title}]({each.link})" for each in checkpoints]
    return (
        f"## {chapter.number}. [{chapter.title}]({chapter.folder}/README.md)\n\n"
        f"{chapter.minutes} minutes, {done} of {len(checkpoints)} steps\n\n" + "\\\n".join(lines)
    )
