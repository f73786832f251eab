"""Files of the room: written whole or not at all, in pieces, so that size is no matter of memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from workshop.errors import DataError

PIECE_BYTES = 1 << 20


class ContentError(DataError):
    """A file was had, but it is not the one that was wanted."""


def write_whole(path: Path, content: bytes) -> Path:
    """Write ``content`` as `write_pieces` does and return the path."""
    return write_pieces(path, [content])


def write_pieces(path: Path, pieces: Iterable[bytes]) -> Path:
    """Write ``pieces`` under a temporary name beside ``path``, then rename it; missing folders are made.

    Raises DataError (disk full, folder not writable) and whatever ``pieces`` raises; then ``path`` is as it was and
    nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            for piece in pieces:
                file.write(piece)
                written += len(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"The file {path} could not be written.",
            value=error.strerror or error,
            expected=f"a writable folder with more than {written / 1e6:.1f} MB free",
            next_step=f"free some space or change the rights of {path.parent}, then run the same again",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def pieces_of(file: BinaryIO, sha256: str | None = None, name: str = "the file") -> Iterator[bytes]:
    """Yield the rest of an open file in pieces; raise DataError at its end if its checksum is another.

    Given to `write_pieces`, a file of another content than expected never gets its name.
    """
    digest = hashlib.sha256()
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
        yield piece
    if sha256 is not None and digest.hexdigest() != sha256:
        raise ContentError(
            f"The content of {name} is not the published one.",
            value=f"sha256 {digest.hexdigest()}",
            expected=f"sha256 {sha256}",
            next_step="fetch it from another address; if you know this content to be right, give its sha256 with the"
            " address in params.yaml (fetch.addresses)",
        )


def checksum(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
