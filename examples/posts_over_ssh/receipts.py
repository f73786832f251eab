"""Receipts: small JSON files, tracked by DVC and git, that represent large files in a folder on the server.

python receipts.py check    verifies on the cluster that each receipt's file exists and is intact
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkstemp

UNFINISHED = ".unfinished-"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class ReceiptError(Exception):
    """The receipt is invalid, its file is missing or damaged, or there is no store; the message gives the next step."""


@contextlib.contextmanager
def keep(receipt: str | Path, store: str | Path, stage: str) -> Iterator[Path]:
    """Yield a new file in the folder ``store``; after the block, rename it to its md5 and write its receipt.

    Members of the folder's group can add files; kept files are read-only. If the block raises an error, neither file
    nor receipt remains. The next call removes any file that a killed process left behind.
    """
    store = Path(store)
    if not store.is_dir():
        raise ReceiptError(f"There is no folder {store} on this machine.\n  next: create the folder, or change `store`")
    descriptor, file = _new_file(store)
    try:
        yield file
        content = _md5_and_size(file)
        kept = store / content["md5"][:2] / content["md5"][2:]
        if not kept.parent.exists():
            kept.parent.mkdir(exist_ok=True)
            kept.parent.chmod(0o2775)
        file.chmod(0o444)
        file.replace(kept)  # atomic for readers; also replaces a damaged file
        write(receipt, kept, stage)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise ReceiptError(f"The disk of {store} is full.\n  next: free some space, then run dvc repro") from error
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def write(receipt: str | Path, file: str | Path, stage: str) -> None:
    """Write the receipt for an existing file."""
    content = {"path": str(file), **_md5_and_size(Path(file).resolve()), "stage": stage}
    Path(receipt).parent.mkdir(exist_ok=True)
    Path(receipt).write_text(json.dumps(content, indent=1) + "\n")


def locate(receipt: str | Path, store: str | Path) -> Path:
    """Return a receipt's file; raise ReceiptError if the file is outside the store, missing or damaged."""
    store = Path(store)
    try:
        content = json.loads(Path(receipt).read_text())
        stage, file = content["stage"], store / content["md5"][:2] / content["md5"][2:]
        is_receipt = re.fullmatch("[0-9a-f]{32} [a-z_]+", f"{content['md5']} {stage}") and content["path"] == str(file)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        is_receipt = False
    if not is_receipt:
        raise ReceiptError(f"{receipt} is not a receipt for a file in {store}.\n  next: rm {receipt}; dvc repro")
    is_inside = file.resolve() == store.resolve() / file.relative_to(store)
    if problem := _problem(content) if is_inside else "is a link":
        raise ReceiptError(f"{file}, an output of the stage {stage}, {problem}.\n  next: dvc repro --force -s {stage}")
    return file


def check(folder: str | Path = "receipts") -> None:
    """Check the receipts' files on a worker; print the missing or damaged ones; exit with code 1 if there are any."""
    from distributed import Client

    contents = [json.loads(receipt.read_text()) for receipt in sorted(Path(folder).glob("*.json"))]
    with Client() as client:  # connects to DASK_SCHEDULER_ADDRESS
        problems = client.gather(client.map(_problem, contents, pure=False))
    bad = [(content, problem) for content, problem in zip(contents, problems, strict=True) if problem]
    for content, problem in bad:
        print(f"{content['path']} {problem}.\n  next: dvc repro --force -s {content['stage']}")
    print(f"{len(contents) - len(bad)} of {len(contents)} files are intact.")
    sys.exit(bool(bad))


def _problem(content: dict) -> str | None:
    """Return the problem with a receipt's file, or None if the file is intact."""
    file = Path(content["path"])
    try:
        # Resolve a dump, which may be a symlink; a kept file (named by its md5) must be a regular file.
        file = file if file.name == content["md5"][2:] else file.resolve()
        return None if _md5_and_size(file).items() <= content.items() else "is damaged"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _md5_and_size(file: Path) -> dict[str, str | int]:
    """Return a regular file's md5 and size; raise OSError for a link, and for a pipe or device, which could block."""
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as content:
        if not stat.S_ISREG(os.fstat(content.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", file)
        return {"md5": hashlib.file_digest(content, "md5").hexdigest(), "size": os.fstat(content.fileno()).st_size}


def _new_file(store: Path) -> tuple[int, Path]:
    """Remove the unfinished files of killed processes; return the descriptor and the path of a new, locked file."""
    folder = os.open(store, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # keep other processes from creating or removing files
        for leftover in store.glob(f"{UNFINISHED}*"):
            with contextlib.suppress(OSError), leftover.open("rb") as content:
                fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
        descriptor, name = mkstemp(prefix=UNFINISHED, dir=store)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.fchmod(descriptor, 0o660)  # so that other members of the group can lock and remove a leftover
    finally:
        os.close(folder)
    return descriptor, Path(name)


if __name__ == "__main__":
    if sys.argv[1:] != ["check"]:
        sys.exit("Usage: python receipts.py check")
    check()
