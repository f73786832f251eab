"""What a machine must have before anything is installed; run by the Makefile with whatever Python there is.

Standard library only, and syntax that an old Python 3 parses, so that it can say in words that it is too old.
"""

import os
import shutil
import subprocess
import sys

OLDEST, NEWEST = (3, 11), (3, 13)
DISK_GB = 6.0  # the environment takes 3.2 GB, its packages on the way in as much again, state and data the rest


def find_problems(folder="."):
    """Return a list of (what is wrong, what to do), empty when the machine is ready."""
    problems = []
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


def main():
    """Print what is missing and exit 1, or print nothing and exit 0."""
    problems = find_problems()
    for what, next_step in problems:
        sys.stderr.write("Not ready: " + what + "\n  next: " + next_step + "\n")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
