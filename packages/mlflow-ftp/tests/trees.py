"""Helpers for tests of stores and servers."""

from __future__ import annotations

from pathlib import Path

ODD_NAMES = [
    "two words", " leading", "trailing ", "ünïcödé-雪", "100%", "a%20b", 'quo"te', "it's", "#1", "-x", "*?", "a;b=c",
]  # fmt: skip


def describe(folder: Path) -> dict[str, bytes | None]:
    """Return each path below a folder with its content, None for a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def find_temporaries(folder: Path) -> list[Path]:
    """Return the temporary files of uploads below a folder."""
    return list(folder.rglob("*~*.part"))


def find_marks(folder: Path) -> list[Path]:
    """Return the checksum files of complete uploads below a folder."""
    return list(folder.rglob(".~*.sha256"))
