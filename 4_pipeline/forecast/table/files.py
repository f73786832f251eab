"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from forecast.errors import DataError


def write_atomically(path: Path, content: bytes) -> Path:
    """Write ``content`` to ``path`` and return the path; raise DataError (disk full, folder not writable)."""
    with _atomic(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def copy_atomically(source: Path, path: Path) -> Path:
    """Copy a file of any size to ``path`` and return the path; raise DataError as `write_atomically`."""
    with _atomic(path) as temporary:
        shutil.copyfile(source, temporary)
    return Path(path)


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; give the file there its name when the block ends without an error."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"The file {path} could not be written.",
            value=error.strerror or error,
            expected="a writable folder with enough space",
            next_step=f"free some space or change the rights of {path.parent}, then run the same again",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
