"""The version of a state folder's layout: a newer clone opens what an older one made, or says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from workshop.data.files import write_whole
from workshop.errors import ServiceError
from workshop.settings import STATE_VERSION, Settings

# From a version to the next one. A step that was interrupted is done again, so it must be safe to repeat.
MIGRATIONS: dict[int, Callable[[Settings], None]] = {}


def read_version(settings: Settings) -> int:
    """Return the version of the state folder; raise ServiceError when it is damaged, or newer than this clone."""
    try:
        text = settings.version_file.read_bytes()[:100].decode().strip()
    except FileNotFoundError:  # made before versions were written, or yet to be made
        return 1 if settings.database.exists() or settings.artifacts.exists() else STATE_VERSION
    except ValueError:
        text = "no text"
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ServiceError(
            f"The file {settings.version_file} is damaged.",
            value=repr(text),
            expected=f"a number from 1 to {STATE_VERSION}",
            next_step=f"write the number of the version that made the state into it, such as {STATE_VERSION}",
        )
    if int(text) > STATE_VERSION:
        raise ServiceError(
            "The state folder was made by a newer version of the workshop.",
            value=f"{settings.state}: version {text}",
            expected=f"version {STATE_VERSION}, or an older one",
            next_step="git pull, then make run; or set WORKSHOP_STATE to another folder",
        )
    return int(text)


def ensure_version(settings: Settings) -> None:
    """Bring the state folder to this clone's version, step by step, and write the version down."""
    version = read_version(settings)
    while version < STATE_VERSION:
        MIGRATIONS[version](settings)
        version += 1
        write_version(settings.version_file, version)
    write_version(settings.version_file, version)


def write_version(file: Path, version: int) -> None:
    """Write a version, whole or not at all."""
    write_whole(file, f"{version}\n".encode())
