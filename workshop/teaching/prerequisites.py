"""What a machine must have before anything is installed; run by the Makefile with whatever Python there is.

`python3 workshop/teaching/prerequisites.py` is the doctor of a machine that has just cloned; later `workshop doctor`
says the same, and more. Standard library only, and syntax that an old Python 3 parses, so that it can say in words that
it is too old.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys

OLDEST, NEWEST = (3, 11), (3, 13)
DISK_GB = 6.0  # the environment takes 3.2 GB, its packages on the way in as much again, state and data the rest


def find_problems(folder=".", offline=None):
    """Return a list of (what is wrong, what to do), empty when the machine is ready.

    ``offline`` is the folder that packages are to come from, where they do not come from the network.
    """
    if sys.platform == "win32":
        return [
            (
                "this is Windows itself, which the servers do not run on",
                "install Linux beside it: `wsl --install` in PowerShell; then clone and work in the Linux that opens",
            )
        ]
    problems = find_place_problems(os.path.realpath(folder), read_version(), read_mounts())
    if offline:
        problems.extend(_find_offline_problems(offline))
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        problems.append(
            (
                "Python {}.{} is out of range (at {})".format(version[0], version[1], sys.executable),  # noqa: UP032
                "install Python 3.11, 3.12 or 3.13, or name one: make run PYTHON=/path/to/python3.12",
            )
        )
    else:
        problems.extend(_find_venv_problems())
    problems.extend(_find_git_problems())
    free_GB = shutil.disk_usage(folder).free / 1e9
    if free_GB < DISK_GB and not os.path.exists(os.path.join(folder, ".venv", "installed")):  # noqa: PTH110, PTH118
        problems.append(
            (
                "only {:.1f} GB of disk are free here, {:.0f} GB are needed".format(free_GB, DISK_GB),  # noqa: UP032
                "free some, or clone into a folder on a larger disk",
            )
        )
    return problems


def _find_venv_problems():
    try:
        import ensurepip  # noqa: F401 - Debian splits it off
        import venv  # noqa: F401 - Debian splits it off
    except ImportError:
        package = "python{}.{}-venv".format(*sys.version_info[:2])
        return [("this Python cannot create environments", "on Debian and Ubuntu: apt install " + package)]
    return []


def _find_git_problems():
    if shutil.which("git") is None:
        return [("git is not installed", "on Debian and Ubuntu: apt install git; on macOS: xcode-select --install")]
    try:
        subprocess.check_output(["git", "--version"])
    except (OSError, subprocess.CalledProcessError) as error:
        return [("git does not run: {}".format(error), "install git anew")]  # noqa: UP032
    return []


def read_version():
    """Return what the kernel says it is; empty where it does not."""
    return _read("/proc/version")


def read_mounts():
    """Return which disks lie where, as Linux tells it; empty elsewhere."""
    return _read("/proc/mounts")


def _read(path):
    try:
        with open(path, errors="replace") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""


def find_filesystem(folder, mounts):
    """Return the kind of file system that ``folder`` lies on, by the text of /proc/mounts, or None."""
    best, kind = "", None
    for line in mounts.splitlines():
        words = line.split(" ")
        if len(words) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code.group(1), 8)), words[1])  # blanks stand as \040
        if (folder + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
            best, kind = point, words[2]
    return kind


def find_place_problems(folder, version, mounts):
    """Return what is wrong with where the clone lies, by the texts of /proc/version and /proc/mounts."""
    problems = []
    windows_drive = find_filesystem(folder, mounts) in ("9p", "drvfs", "v9fs")
    if "microsoft" in version.lower() and windows_drive:
        problems.append(
            (
                folder + " lies on a drive of Windows, seen from WSL: slow, and files there cannot be kept private",
                "clone into your Linux home: cd ~ && git clone ... && cd to what it made",
            )
        )
    if re.search(r"[\s:]", folder):
        problems.append(
            (
                "the path of this clone holds a blank or a colon: " + folder,
                "move it to a path without: programs of an environment cannot be started from there",
            )
        )
    return problems


def _find_offline_problems(offline):
    """Return what is wrong with a folder that `workshop offline` made."""
    try:
        made_for = json.loads(_read(os.path.join(offline, "made-for.json")))  # noqa: PTH118
        made_for = (made_for["system"], made_for["python"])
    except (ValueError, KeyError, TypeError):
        return [
            (
                offline + " is no folder that `workshop offline` made",
                "name the one that holds `wheels` and `made-for.json`: make run OFFLINE=/path/to/it",
            )
        ]
    here = (platform.system() + " " + platform.machine(), "{}.{}".format(*sys.version_info[:2]))
    if made_for == here:
        return []
    return [
        (
            "the packages in " + offline + " are for {}, Python {}; here are {}, Python {}".format(*made_for, *here),
            "take the folder that was made for this kind of machine, or name another Python: make run PYTHON=...",
        )
    ]


def main():
    """Print what is missing and exit 1, or print nothing and exit 0; the argument is the offline folder, if any."""
    problems = find_problems(offline=sys.argv[1] if len(sys.argv) > 1 else None)
    for what, next_step in problems:
        sys.stderr.write("Not ready: " + what + "\n  next: " + next_step + "\n")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
