"""Receipts: small JSON files, for DVC and git, of large files that stay in a folder on the server.

python receipts.py check    asks the cluster whether the file of each receipt is still there, and whole
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
    """A receipt is none, its file is gone or damaged, or there is no store; the text ends with the next step."""


@contextlib.contextmanager
def keep(receipt: str | Path, store: str | Path, stage: str) -> Iterator[Path]:
    """Yield a new file in the folder ``store``; once it is written, put it under its md5 and write its receipt.

    Members of the folder's group can add files, and nobody writes to a kept one. When the block raises, no file and no
    receipt is left. The file of a process that was killed is removed by the next call.
    """
    store = Path(store)
    if not store.is_dir():
        raise ReceiptError(f"There is no folder {store} on this machine.\n  next: see the README, or change `store`")
    descriptor, file = _new_file(store)
    try:
        yield file
        content = _read(file)
        kept = store / content["md5"][:2] / content["md5"][2:]
        if not kept.parent.exists():
            kept.parent.mkdir(exist_ok=True)
            kept.parent.chmod(0o2775)
        file.chmod(0o444)
        file.replace(kept)  # also where a damaged file is, and in one step for those who read
        write(receipt, kept, stage)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise ReceiptError(f"The disk of {store} is full.\n  next: make room there, then dvc repro") from error
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def write(receipt: str | Path, file: str | Path, stage: str) -> None:
    """Write the receipt of a file that stays where it is."""
    content = {"path": str(file), **_read(Path(file).resolve()), "stage": stage}
    Path(receipt).parent.mkdir(exist_ok=True)
    Path(receipt).write_text(json.dumps(content, indent=1) + "\n")


def locate(receipt: str | Path, store: str | Path) -> Path:
    """Return the file of a receipt; raise ReceiptError if it is not one of the store, or is gone or damaged."""
    store = Path(store)
    try:
        content = json.loads(Path(receipt).read_text())
        stage, file = content["stage"], store / content["md5"][:2] / content["md5"][2:]
        is_receipt = re.fullmatch("[0-9a-f]{32} [a-z_]+", f"{content['md5']} {stage}") and content["path"] == str(file)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        is_receipt = False
    if not is_receipt:
        raise ReceiptError(f"{receipt} is no receipt of a file in {store}.\n  next: rm {receipt}; dvc repro")
    is_inside = file.resolve() == store.resolve() / file.relative_to(store)
    if problem := _problem(content) if is_inside else "is a link":
        raise ReceiptError(f"{file}, which the stage {stage} made, {problem}.\n  next: dvc repro --force -s {stage}")
    return file


def check(folder: str | Path = "receipts") -> None:
    """Print which files of receipts are gone or damaged, as a worker of the cluster sees them; exit with 1 for any."""
    from distributed import Client

    contents = [json.loads(receipt.read_text()) for receipt in sorted(Path(folder).glob("*.json"))]
    with Client() as client:  # of the scheduler that DASK_SCHEDULER_ADDRESS names
        problems = client.gather(client.map(_problem, contents, pure=False))
    bad = [(content, problem) for content, problem in zip(contents, problems, strict=True) if problem]
    for content, problem in bad:
        print(f"{content['path']} {problem}.\n  next: dvc repro --force -s {content['stage']}")
    print(f"{len(contents) - len(bad)} of {len(contents)} files are there and whole.")
    sys.exit(bool(bad))


def _problem(content: dict) -> str | None:
    """Return what is wrong with the file of a receipt's content; None if it is whole."""
    file = Path(content["path"])
    try:
        # A dump may lie behind a link; a kept file, which has its md5 as its name, may not.
        file = file if file.name == content["md5"][2:] else file.resolve()
        return None if _read(file).items() <= content.items() else "is damaged"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _read(file: Path) -> dict[str, str | int]:
    """Return md5 and size of a plain file; raise OSError for a link, a pipe and a device, which may never end."""
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as content:
        if not stat.S_ISREG(os.fstat(content.fileno()).st_mode):
            raise OSError(errno.EINVAL, "no plain file", file)
        return {"md5": hashlib.file_digest(content, "md5").hexdigest(), "size": os.fstat(content.fileno()).st_size}


def _new_file(store: Path) -> tuple[int, Path]:
    """Remove the files of processes that were killed; return a new one, locked as long as this process lives."""
    folder = os.open(store, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # no other process makes or removes a file meanwhile
        for leftover in store.glob(f"{UNFINISHED}*"):
            with contextlib.suppress(OSError), leftover.open("rb") as content:
                fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
        descriptor, name = mkstemp(prefix=UNFINISHED, dir=store)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.fchmod(descriptor, 0o660)  # so that another member of the group can remove it
    finally:
        os.close(folder)
    return descriptor, Path(name)


if __name__ == "__main__":
    if sys.argv[1:] != ["check"]:
        sys.exit("Type: python receipts.py check")
    check()
