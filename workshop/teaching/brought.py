"""What `workshop up --chapter` made here: files, and the chapter that it went on to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from workshop.data.files import write_whole
from workshop.settings import Settings


@dataclass(frozen=True)
class Brought:
    """``chapter`` is where an attendee was put; ``files`` are paths from the root, with when they were made, in ns."""

    chapter: int = 0
    files: dict[str, int] = field(default_factory=dict)

    def untouched(self, root: Path) -> set[str]:
        """Return the files that are as they were made; one that was made again is the attendee's own."""
        return {path for path, changed in self.files.items() if _changed(root / path) == changed}


def read(settings: Settings) -> Brought:
    """Return what was brought; nothing, where nobody asked for it."""
    try:
        told = json.loads(_file(settings).read_text())
        return Brought(int(told["chapter"]), {str(path): int(changed) for path, changed in told["files"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Brought()


def add(settings: Settings, chapter: int, paths: list[str]) -> None:
    """Write down that these files were made, for somebody who begins at ``chapter``."""
    before = read(settings)
    made = {path: changed for path in paths if (changed := _changed(settings.root / path)) is not None}
    told = {"chapter": max(before.chapter, chapter), "files": before.files | made}
    write_whole(_file(settings), (json.dumps(told, indent=2) + "\n").encode())


def _changed(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def _file(settings: Settings) -> Path:
    return settings.state / "brought.json"
