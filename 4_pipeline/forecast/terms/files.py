"""Atomic writing of files."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from forecast.terms.errors import DataError


def write_atomically(path: Path, content: bytes) -> Path:
    """Write ``content`` to ``path`` completely or not at all; raise DataError (full disk, folder not writable)."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"The file {path} could not be written.",
            value=error.strerror or error,
            expected="a writable folder with enough space",
            next_step=f"free some space or change the permissions of {path.parent}, then run the command again",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
