"""The machine: what must be there before anything, memory, disks, limits, watchers, the clock."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil

from workshop.settings import Settings
from workshop.teaching import prerequisites
from workshop.teaching.doctor.findings import Finding, look, well, wrong

MEMORY_GB = 4.0  # the servers take half of it, the pipeline's notebooks the rest
MEMORY_UP_GB = 1.5  # where the servers run already
DISK_GB = 1.0
OPEN_FILES = 1024
CLOCK_SECONDS = 120
NETWORK_DISKS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "afs", "9p")


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at the machine."""
    yield from _prerequisites(settings)
    yield _memory(settings)
    yield from _folders(settings)
    yield network_disk(settings.state, prerequisites.read_mounts())
    yield _open_files()
    if sys.platform == "linux":
        yield _watchers(settings)
    yield _clock(settings)


def _prerequisites(settings: Settings) -> Iterator[Finding]:
    problems = prerequisites.find_problems(str(settings.root))
    for what, next_step in problems:
        yield wrong("machine", what, next_step)
    if not problems:
        yield well("machine", "Python, git and the place of this clone are as needed")


def _memory(settings: Settings) -> Finding:
    from distributed.system import memory_limit  # also knows of containers' limits, and of `ulimit`

    available_GB = min(psutil.virtual_memory().available, memory_limit()) / 1e9
    needed_GB = MEMORY_UP_GB if settings.is_up else MEMORY_GB
    found = f"{available_GB:.1f} GB available, {needed_GB:g} GB are needed"
    if available_GB >= needed_GB:
        return well("memory", found)
    say = look if available_GB >= needed_GB / 2 else wrong
    return say("memory", found, "close programs; or write WORKSHOP_DASK_WORKERS=1 into .env, then workshop down and up")


def _folders(settings: Settings) -> Iterator[Finding]:
    """Folders that programs of the workshop write to must be writable, and have room."""
    folders = (
        ("home folder", Path.home(), "HOME"),
        ("temporary folder", Path(tempfile.gettempdir()), "TMPDIR"),
        ("cache folder", settings.downloads, "WORKSHOP_DOWNLOADS"),
        ("state folder", settings.state, "WORKSHOP_STATE"),
    )
    for name, folder, variable in folders:
        elsewhere = f"set {variable} to a folder of yours on a disk with room"
        try:
            there = next(path for path in (folder, *folder.parents) if path.exists())
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            yield wrong(name, f"{folder} cannot be written to: {error.strerror}", elsewhere)
            continue
        free_GB = shutil.disk_usage(there).free / 1e9
        found = f"{folder} has {free_GB:.1f} GB free"
        yield well(name, found) if free_GB >= DISK_GB else wrong(name, f"{found}, {DISK_GB:g} GB are needed", elsewhere)


def network_disk(folder: Path, mounts: str) -> Finding:
    """Look whether ``folder`` lies on a disk of another machine, by the text of /proc/mounts: SQLite locks files."""
    kind = prerequisites.find_filesystem(str(folder), mounts)
    if kind in NETWORK_DISKS:
        return look(
            "disk",
            f"{folder} lies on another machine's disk ({kind}): slow, and the tracking database may be found locked",
            "write WORKSHOP_STATE=/a/folder/of/yours on a disk of this machine into .env, then workshop down and up",
        )
    return well("disk", f"{folder} lies on a disk of this machine")


def _open_files() -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"a program may open {'any number of' if limit == resource.RLIM_INFINITY else limit} files"
    if limit == resource.RLIM_INFINITY or limit >= OPEN_FILES:
        return well("open files", found)
    return look("open files", f"{found}; servers and notebooks want {OPEN_FILES}", f"ulimit -n {4 * OPEN_FILES}")


def _watchers(settings: Settings) -> Finding:
    """Try to watch a file, as editors and `git` do to notice changes: the kernel allows each user so many."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.inotify_init1(os.O_CLOEXEC)
    watched = descriptor >= 0 and library.inotify_add_watch(descriptor, os.fsencode(settings.root), 0x2) >= 0
    number = ctypes.get_errno()
    if descriptor >= 0:
        os.close(descriptor)
    if watched:
        return well("file watchers", "files can be watched")
    name = "max_user_watches" if number == errno.ENOSPC else "max_user_instances"
    return look(
        "file watchers",
        f"no more files can be watched ({os.strerror(number)}): editors do not notice what others change",
        f"close editors; or have the administrator type: sysctl fs.inotify.{name}=524288",
    )


def _clock(settings: Settings) -> Finding:
    """Look for stamps in the future: then the clock is behind. One that is ahead cannot be told from here."""
    stamps = dict(_stamps(settings))
    what = max(stamps, key=stamps.get, default=None)
    ahead = stamps[what] - time.time() if what else 0
    if ahead < CLOCK_SECONDS:
        return well("clock", f"it is {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, and nothing here is later")
    return wrong(
        "clock",
        f"it is {datetime.now(UTC):%Y-%m-%d %H:%M} UTC here, but {what} is {_words(ahead)} later: the clock was "
        "behind, or is; runs would be sorted wrongly and certificates refused",
        "set the clock (timedatectl set-ntp true; under WSL: wsl --shutdown, then open it again)",
    )


def _stamps(settings: Settings) -> Iterator[tuple[str, float]]:
    """Yield what has a time that was right when it was written, with that time (seconds since 1970)."""
    done = subprocess.run(
        ["git", "-C", str(settings.root), "log", "-1", "--format=%ct"], capture_output=True, text=True, check=False
    )
    if done.returncode == 0 and done.stdout.strip():
        yield "the latest commit", float(done.stdout)
    for file in (settings.database, settings.root / "requirements.txt", Path(sys.prefix) / "pyvenv.cfg"):
        if file.exists():
            yield str(file), file.stat().st_mtime


def _words(seconds: float) -> str:
    return f"{seconds / 86400:.0f} days" if seconds > 2 * 86400 else f"{seconds / 60:.0f} minutes"
