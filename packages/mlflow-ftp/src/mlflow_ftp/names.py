"""Names that the store reserves: temporary names of uploads, and marks that record an artifact's sha256."""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path

MAX_NAME_CHARACTERS = 50  # of the artifact's name: at up to 4 bytes each, they fit in the 255 bytes of a file name
TEMPORARY = re.compile(r"\.?~.*\.[0-9a-f]{16}\.part")
MARK = re.compile(r"\.~[0-9a-f]{16}\.[0-9a-f]{64}\.sha256")


def printable(name: str) -> str:
    r"""Return a name from the server as a printable string: bytes that are not UTF-8 become escapes such as `\xfc`.

    >>> printable("Gr\udcfcn")
    'Gr\\xfcn'
    """
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def as_stored(path: str) -> str:
    r"""Convert a printable path back to the server's path; the inverse of `printable`.

    >>> as_stored("Gr\\xfcn") == "Gr\udcfcn"
    True
    """
    return re.sub(r"\\x([89a-f][0-9a-f])", lambda byte: chr(0xDC00 + int(byte[1], 16)), path)


def new_temporary(name: str) -> str:
    """Return a new temporary name for the upload of an artifact."""
    return f".~{name[:MAX_NAME_CHARACTERS]}.{secrets.token_hex(8)}.part"


def mark_of(name: str, sha256: str) -> str:
    """Return the name of the mark that records an artifact's sha256.

    >>> mark_of("model.pkl", 64 * "0").startswith(mark_prefix("model.pkl"))
    True
    """
    return f"{mark_prefix(name)}{sha256}.sha256"


def mark_prefix(name: str) -> str:
    """Return the prefix that all marks of an artifact share; it contains a short hash of the artifact's name."""
    content = name.encode(errors="surrogateescape")  # a name may contain bytes that are not UTF-8
    return f".~{hashlib.sha256(content).hexdigest()[:16]}."


def is_temporary(name: str) -> bool:
    """Return whether a name is the temporary name of an upload.

    >>> is_temporary(new_temporary("model.pkl")), is_temporary("model.pkl.part")
    (True, False)
    """
    return bool(TEMPORARY.fullmatch(name))


def is_own(name: str) -> bool:
    """Return whether the store reserves a name.

    >>> is_own(mark_of("model.pkl", 64 * "0")), is_own("model.pkl")
    (True, False)
    """
    return is_temporary(name) or bool(MARK.fullmatch(name))


def remove_temporaries(folder: Path) -> int:
    """Remove temporary files from a local folder and return their number; call this only while no upload is running."""
    parts = [file for file in folder.rglob("*~*.part") if is_temporary(file.name) and not file.is_symlink()]
    for file in parts:
        file.unlink(missing_ok=True)
    return len(parts)
