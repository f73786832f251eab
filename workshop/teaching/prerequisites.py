"""Check what a machine must have before anything is installed.

`python3 workshop/teaching/prerequisites.py` checks a machine that has just cloned; the Makefile calls it, and later
`workshop doctor` does. It uses the standard library only and syntax that an old Python 3 parses, so that it can report
a Python that is too old.
"""

import os
import re
import shutil
import subprocess
import sys

OLDEST, NEWEST = (3, 11), (3, 13)
DISK_GB = 5.0  # 2.5 GB for the environment, as much for packages while they are unpacked, then for state and data


def find_problems(folder: str = ".") -> list:
    """Return a list of (what is wrong, what to do), empty when the machine is ready."""
    if sys.platform == "win32":
        linux = "install Linux beside it: `wsl --install` in PowerShell; then clone and work in the Linux that opens"
        return [("this is Windows itself, and the servers do not run on it", linux)]
    problems = find_place_problems(os.path.realpath(folder), " ".join(os.uname()))
    version = "{}.{}".format(*sys.version_info[:2])
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        try:
            import ensurepip  # noqa: F401 - Debian splits it off
            import venv  # noqa: F401 - Debian splits it off
        except ImportError:
            install = "on Debian and Ubuntu: apt install python" + version + "-venv"
            problems.append(("this Python cannot create environments", install))
    else:
        other = "install Python 3.11, 3.12 or 3.13, or name one: make run PYTHON=/path/to/python3.12"
        problems.append(("Python " + version + " is out of range (at " + sys.executable + ")", other))
    try:
        subprocess.check_output(["git", "--version"])
    except (OSError, subprocess.CalledProcessError):
        install = "install git; on Debian and Ubuntu: apt install git; on macOS: xcode-select --install"
        problems.append(("git is not installed, or does not run", install))
    free_GB = shutil.disk_usage(folder).free / 1e9
    if free_GB < DISK_GB and not os.path.exists(os.path.join(folder, ".venv", "installed")):  # noqa: PTH110, PTH118
        few = "only {:.1f} GB of disk are free here, {:.0f} GB are needed".format(free_GB, DISK_GB)  # noqa: UP032
        problems.append((few, "free some, or clone into a folder on a larger disk"))
    return problems


def find_place_problems(folder: str, system: str) -> list:
    """Return what is wrong with the clone's folder, given the kernel's name and version."""
    problems = []
    if "microsoft" in system.lower() and re.match("/mnt/[a-z]/", folder):
        slow = folder + " is on a drive of Windows, seen from WSL: slow, and files there cannot be kept private"
        problems.append((slow, "clone into your Linux home: cd ~ && git clone ... && cd to the new folder"))
    if re.search(r"[\s:]", folder):
        what = "the path of this clone contains a blank or a colon: " + folder
        problems.append((what, "move it to a path without: programs of an environment cannot start from there"))
    return problems


def main() -> None:
    """Print what is missing and exit 1, or print nothing and exit 0."""
    problems = find_problems()
    for what, next_step in problems:
        sys.stderr.write("Not ready: " + what + "\n  next: " + next_step + "\n")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
