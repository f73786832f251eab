"""All that the verdicts look at, gathered once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from workshop.errors import ServiceError
from workshop.settings import Settings
from workshop.teaching import brought
from workshop.teaching.checkpoints import files, store
from workshop.teaching.exercises import solved
from workshop.teaching.outline import CHAPTERS

WATCHED = (
    "1_starting_point/germany.csv",
    "1_starting_point/report/report.html",
    "3_projects/germany.csv",
)
STRAYS = ("mlflow.db", "mlruns")  # what MLflow writes into the current folder when nobody says where the server is


@dataclass(frozen=True)
class Evidence:
    """What was found: files and notebooks by their paths from the repository's top, exercises by number.

    ``store`` is None while the tracking server does not answer; ``trouble`` says so in words. ``brought`` are the files
    that `workshop up --chapter` made, ``strays`` the tracking stores that MLflow made for itself.
    """

    present: frozenset[str] = frozenset()
    notebooks: dict[str, files.Saved] = field(default_factory=dict)
    brought: frozenset[str] = frozenset()
    strays: tuple[str, ...] = ()
    solved: frozenset[str] = frozenset()
    root: str = ""
    pipeline: files.Pipeline = field(default_factory=files.Pipeline)
    store: store.Store | None = None
    trouble: str = ""


def gather(settings: Settings) -> Evidence:
    """Look at the disk and ask the tracking server, once each; a server that is down takes seconds, and is said."""
    root = settings.root
    found, trouble = None, ""
    try:
        found = store.look(settings)
    except ServiceError as error:
        trouble = f"{error.what} Type `{error.next_step}`."
    paths = [f"{chapter.folder}/{name}.ipynb" for chapter in CHAPTERS for name in chapter.notebooks]
    notebooks = {path: files.read_notebook(root / path) for path in paths}
    return Evidence(
        present=frozenset(path for path in WATCHED if _has_content(root / path)),
        notebooks={path: saved for path, saved in notebooks.items() if saved},
        brought=frozenset(brought.read(settings).untouched(root)),
        strays=tuple(_strays(root)),
        solved=frozenset(solved(settings)),
        root=str(root),
        pipeline=files.read_pipeline(root, settings.pipeline),
        store=found,
        trouble=trouble,
    )


def _has_content(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def _strays(root: Path) -> list[str]:
    folders = [root, *(root / chapter.folder for chapter in CHAPTERS[1:]), *(root / "3_projects").glob("*/")]
    paths = [folder / name for folder in folders for name in STRAYS]
    return [path.relative_to(root).as_posix() for path in paths if path.exists()]
