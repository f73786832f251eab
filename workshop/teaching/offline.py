"""A folder from which machines without a network are set up: the pinned packages as wheels, and the repository."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from workshop.data.files import checksum
from workshop.errors import DataError, WorkshopError

WHEELS, SUMS, BUNDLE, MADE_FOR, README = "wheels", "SHA256SUMS", "workshop.bundle", "made-for.json", "README.md"
BATCH = 12  # packages a call of pip: what a call has brought is kept when the next one is interrupted
TEXT = """\
# The workshop, without a network

For {system} and Python {python}. Copy this folder to a disk of the machine, where it stays and everybody can read it
(here `/opt/workshop`), then, as each user:

```sh
git clone /opt/workshop/{bundle} workshop
cd workshop
make run OFFLINE=/opt/workshop
```

`cd /opt/workshop && sha256sum --check --quiet {sums}` says whether the copy is whole (macOS: `shasum -a 256`).
"""


@dataclass(frozen=True)
class Folder:
    """What an offline folder holds: packages, how many of them were fetched just now, size in bytes, commit."""

    packages: int
    fetched: int
    size: int
    commit: str


def make(
    folder: Path, root: Path, progress: Callable[[int, int], None] = lambda *_: None, tell=lambda _: None
) -> Folder:
    """Bring into ``folder`` what ``make run OFFLINE=folder`` needs on a machine like this one.

    ``root`` is the repository. What is there and whole is kept, so that an interrupted call goes on where it was.
    ``progress`` gets the number of packages that are done, and of all. Raises DataError when the folder cannot be
    used or is for another Python, WorkshopError when a package cannot be had.
    """
    wheels = folder / WHEELS
    try:
        wheels.mkdir(parents=True, exist_ok=True)
        _claim(folder)
        kept = _keep_whole(folder)
        wanted = _wanted(root)
        missing = [pin for pin in wanted if pin not in kept]
        for first in range(0, len(missing), BATCH):
            progress(len(wanted) - len(missing) + first, len(wanted))
            _build(missing[first : first + BATCH], wheels)
            _write_sums(folder)
        progress(len(wanted), len(wanted))
        for pin, file in kept.items():
            if pin not in wanted:
                file.unlink()  # of an older lock
        commit = _bundle(root, folder / BUNDLE, tell)
        text = TEXT.format(system=_system(), python=_python(), bundle=BUNDLE, sums=SUMS)
        (folder / README).write_text(text, encoding="utf-8")
        _write_sums(folder)
    except OSError as error:
        raise DataError(
            "The offline folder cannot be written.",
            value=f"{folder} ({error.strerror})",
            expected="a folder that you may write to, with 2 GB free",
            next_step="name another one; what is there already is kept",
        ) from None
    size = sum(file.stat().st_size for file in _files(folder))
    return Folder(len(wanted), len(missing), size, commit)


def _system() -> str:
    return f"{platform.system()} {platform.machine()}"


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _claim(folder: Path) -> None:
    """Write what the folder is for; raise DataError when it is for another machine, or holds what is not ours."""
    file, mine = folder / MADE_FOR, {"system": _system(), "python": _python()}
    if not file.exists() and any((folder / WHEELS).iterdir()):  # files there that have no sum would be removed
        raise DataError(
            "The folder is in use for something else.",
            value=f"{folder / WHEELS} holds files, and there is no {MADE_FOR}",
            expected="a new folder, or one that `workshop offline` made",
            next_step="name another folder",
        )
    try:
        theirs = json.loads(file.read_text()) if file.exists() else mine
    except ValueError:
        theirs = {}
    if theirs != mine:
        raise DataError(
            "The offline folder is for other machines.",
            value=f"{folder} is for {theirs.get('system')}, Python {theirs.get('python')}",
            expected=f"{mine['system']}, Python {mine['python']}",
            next_step="name another folder: one for each kind of machine",
        )
    file.write_text(json.dumps(mine) + "\n")


def _wanted(root: Path) -> dict[str, str]:
    """Return what pip is to be asked for: the pins that hold here, and what building this package takes."""
    text = (root / "requirements.txt").read_text()
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    pins = [Requirement(line) for line in lines if line and not line.startswith("-e")]  # those lie in the repository
    held = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    asked = {_key(pin.name, str(pin.specifier).removeprefix("==")): f"{pin.name}{pin.specifier}" for pin in held}
    named = {canonicalize_name(pin.name) for pin in held}
    building = tomllib.loads((root / "pyproject.toml").read_text())["build-system"]["requires"]
    if extra := [text for text in building if canonicalize_name(Requirement(text).name) not in named]:
        raise DataError(
            "The lock does not hold what this package is built with.",
            value=", ".join(extra),
            next_step="add it to pyproject.toml, then `make lock`",
        )
    return asked


def _key(name: str, version: str) -> str:
    return f"{canonicalize_name(name)}=={version}"


def _keep_whole(folder: Path) -> dict[str, Path]:
    """Return the wheels whose sum is the one that was written; remove the others, which were cut short or damaged."""
    kept = {}
    sums = _read_sums(folder)
    for file in sorted((folder / WHEELS).iterdir()):
        if sums.get(file.relative_to(folder).as_posix()) == checksum(file):
            name, version, *_ = parse_wheel_filename(file.name)
            kept[_key(name, str(version))] = file
        else:
            file.unlink()
    return kept


def _build(pins: Iterable[str], wheels: Path) -> None:
    """Let pip bring wheels of these, and make them where there is but a source."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), *pins],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise WorkshopError(
            "pip could not bring all packages.",
            value="\n".join(errors[-3:]) or done.stderr.strip()[-300:],
            expected="the network, and the package index that pip is set up for",
            next_step="type the same again: it goes on where it was",
        )


def _bundle(root: Path, file: Path, tell: Callable[[str], None]) -> str:
    """Write the repository, as committed, into one file that `git clone` takes; return the commit."""
    if _git(root, "status", "--porcelain"):
        tell("changes that are not committed are left out of the folder")
    temporary = file.with_suffix(".new")
    branch = _git(root, "branch", "--show-current")  # empty where a commit is checked out and no branch
    _git(root, "bundle", "create", "--quiet", str(temporary.resolve()), "HEAD", *filter(None, [branch]))
    temporary.replace(file)
    return _git(root, "rev-parse", "--short", "HEAD")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkshopError(
            f"`git {words[0]}` failed.",
            value=done.stderr.strip()[-300:],
            next_step=f"see whether `git -C {root} log` works",
        )
    return done.stdout.strip()


# -- sums --------------------------------------------------------------------------------------------------------------
def _files(folder: Path) -> Iterator[Path]:
    halves = {SUMS, f".{SUMS}", f"{Path(BUNDLE).stem}.new"}
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in halves)


def _read_sums(folder: Path) -> dict[str, str]:
    """Return path: sum, as `sha256sum` writes them; empty when there are none yet."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {path: digest for digest, path in (line.split("  ", 1) for line in lines)}


def _write_sums(folder: Path) -> None:
    """Write the sums of all files; of wheels that have one already it is taken over."""
    known = {path: digest for path, digest in _read_sums(folder).items() if path.startswith(WHEELS)}
    paths = [file.relative_to(folder).as_posix() for file in _files(folder)]
    lines = [f"{known.get(path) or checksum(folder / path)}  {path}\n" for path in paths]
    temporary = folder / f".{SUMS}"
    temporary.write_text("".join(lines))
    shutil.move(temporary, folder / SUMS)
