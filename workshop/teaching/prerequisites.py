"""Check before the installation whether this machine meets the requirements.

Called by the Makefile (`python3 workshop/teaching/prerequisites.py`) and by `workshop doctor`. Uses only the standard
library and syntax that old versions of Python 3 can parse, so it can report that Python is too old.
"""

import os
import re
import shutil
import subprocess
import sys

OLDEST, NEWEST = (3, 11), (3, 13)
DISK_GB = 5.0  # 2.5 GB for the environment, the rest for unpacking packages and, later, for state and data


def find_problems(folder: str = ".") -> list:
    """Return a list of (problem, next step), empty if the machine is ready."""
    if sys.platform == "win32":
        linux = "install WSL: type `wsl --install` in PowerShell, then clone the repository inside WSL"
        return [("the servers do not run on Windows", linux)]
    problems = find_place_problems(os.path.realpath(folder), " ".join(os.uname()))
    version = "{}.{}".format(*sys.version_info[:2])
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        try:
            import ensurepip  # noqa: F401 - a separate package on Debian
            import venv  # noqa: F401 - a separate package on Debian
        except ImportError:
            install = "on Debian and Ubuntu: apt install python" + version + "-venv"
            problems.append(("this Python cannot create virtual environments", install))
    else:
        other = "install Python 3.11, 3.12 or 3.13, or give the path of one: make run PYTHON=/path/to/python3.12"
        problems.append(("Python " + version + " is not supported (" + sys.executable + ")", other))
    try:
        subprocess.check_output(["git", "--version"])
    except (OSError, subprocess.CalledProcessError):
        install = "install git; on Debian and Ubuntu: apt install git; on macOS: xcode-select --install"
        problems.append(("git is not installed or does not run", install))
    free_GB = shutil.disk_usage(folder).free / 1e9
    if free_GB < DISK_GB and not os.path.exists(os.path.join(folder, ".venv", "installed")):  # noqa: PTH110, PTH118
        full = "only {:.1f} GB of disk space is free, but {:.0f} GB is needed".format(free_GB, DISK_GB)  # noqa: UP032
        problems.append((full, "free some space, or clone into a folder on a larger disk"))
    return problems


def find_place_problems(folder: str, system: str) -> list:
    """Return the problems with the clone's folder; ``system`` is the output of `uname`."""
    problems = []
    if "microsoft" in system.lower() and re.match("/mnt/[a-z]/", folder):
        slow = folder + " is on a Windows drive mounted in WSL, which is slow and cannot keep files private"
        problems.append((slow, "clone into your home folder in Linux: cd ~ && git clone ... && cd to the new folder"))
    if re.search(r"[\s:]", folder):
        what = "the path of this clone contains a space or a colon: " + folder
        problems.append((what, "move the clone to a path without them, or the environment's programs cannot start"))
    return problems


def main() -> None:
    """Print the problems and exit with 1, or print nothing and exit with 0."""
    problems = find_problems()
    for what, next_step in problems:
        sys.stderr.write("Not ready: " + what + "\n  next: " + next_step + "\n")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
