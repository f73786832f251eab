"""The start page, `START.md`: what the workshop is, what is done of it, and where to go on."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from workshop.data.files import write_whole
from workshop.settings import Settings
from workshop.teaching.checkpoints import Progress, examine
from workshop.teaching.checkpoints.step import Checkpoint, State
from workshop.teaching.outline import CHAPTERS, Chapter, chapter

NAME = "START.md"
RELOAD = "File > Reload Markdown File from Disk"  # JupyterLab does not notice by itself
SIGNS = {State.DONE: "✔", State.BROUGHT: "↓", State.MISSING: "○", State.UNKNOWN: "?"}
MEANINGS = {
    State.DONE: "done",
    State.BROUGHT: "brought by `workshop up --chapter`",
    State.MISSING: "to do",
    State.UNKNOWN: "could not be looked at",
}
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
    """Write the start page anew, whole or not at all, and return its path; ``progress`` saves looking again.

    Raises DataError when it cannot be written.
    """
    text = page(progress or examine(settings), datetime.now().astimezone())
    return write_whole(settings.root / NAME, text.encode())


def page(progress: Progress, now: datetime) -> str:
    """Return the start page as Markdown; links are relative to the repository's top."""
    return PAGE.format(
        minutes=sum(each.minutes for each in CHAPTERS),
        following=_next(progress),
        chapters="\n\n".join(_chapter(each, progress.of(each.number)) for each in CHAPTERS),
        legend=legend(progress.checkpoints),
        now=f"{now:%d %B %Y, %H:%M}",
        reload=RELOAD,
    )


def legend(checkpoints: Iterable[Checkpoint]) -> str:
    """Return what the signs of these checkpoints mean, in one line."""
    found = {checkpoint.state for checkpoint in checkpoints}
    return " · ".join(f"{sign} {MEANINGS[state]}" for state, sign in SIGNS.items() if state in found)


def _next(progress: Progress) -> str:
    following = progress.next
    if following is None:
        return "**All of it is done.** What follows is [your own data](4_pipeline/own/README.md)."
    place = chapter(following.chapter)
    where = f"[chapter {place.number}]({place.readme}). Open [{following.place}]({following.link})."
    text = f"**Next: {following.title}**, {where}"
    return f"> {text}\n>\n> {following.reason}"


def _chapter(described: Chapter, checkpoints: list[Checkpoint]) -> str:
    there = sum(checkpoint.there for checkpoint in checkpoints)
    lines = [
        f"## {described.number}. [{described.title}]({described.readme})",
        f"{described.minutes} minutes, {there} of {len(checkpoints)} steps",
        "\\\n".join(_line(checkpoint) for checkpoint in checkpoints),  # a sign is bullet enough
    ]
    return "\n\n".join(lines)


def _line(checkpoint: Checkpoint) -> str:
    return f"{SIGNS[checkpoint.state]} [{checkpoint.title}]({checkpoint.link})"
