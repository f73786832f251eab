"""A stand-in for `pyenv`, so that `mlflow run` finds the Python of this environment where there is no pyenv.

MLflow builds a project's environment by asking `pyenv` two things: `pyenv install --skip-existing VERSION`, then
`pyenv root`, below which it expects `versions/VERSION/bin/python` (mlflow/utils/virtualenv.py). When a project
names no version, that is the version MLflow itself runs on, which is at hand already. So the environment's `bin`
holds this command. It

- answers these two questions, for its own version, when there is no pyenv on PATH;
- answers them as well when there is one that lacks this version and MLflow asks (or any other program in Python):
  pyenv would compile Python from source for minutes; a person who types the same gets pyenv's own answer;
- refuses them when MLflow asks and the terminal names no tracking server: the projects would refuse to train there,
  but only after minutes of installing;
- hands everything else over to the real pyenv, unchanged.

Only the standard library is used to answer, since everything typed as `pyenv` passes through here.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

HANDED_OVER = "WORKSHOP_PYENV_HANDED_OVER"  # guards against a pyenv that leads back here
ASKING = "asking"
OWN_NAME = b"workshop.teaching.pyenv"  # the installed command's script imports it


def main() -> int:
    """Answer the command line or hand it over; return the exit code."""
    arguments = sys.argv[1:]
    real = find_real(os.environ.get("PATH", ""))
    if real and os.environ.get(HANDED_OVER) in (str(os.getpid()), ASKING):
        sys.exit(f"{real} leads back to the workshop's stand-in for pyenv: take one of them off PATH.")
    asked_by_mlflow = is_question(arguments) and is_asked_by_python()
    if asked_by_mlflow and not os.environ.get("MLFLOW_TRACKING_URI"):
        from workshop.settings import EXPORT

        sys.exit(f"No tracking server is set in this terminal. Type at the top of the repository: {EXPORT}")
    if real is None or (asked_by_mlflow and not has_version(real)):
        return answer(arguments, real)
    # The number of this process, which the real pyenv takes over: met again, it shows a circle.
    os.environ[HANDED_OVER] = str(os.getpid())
    return os.execv(real, [real, *arguments])  # noqa: S606 -- becoming the real one is the purpose


def find_real(path: str) -> Path | None:
    """Return the first `pyenv` in the folders of ``path`` that is not such a stand-in, of this or another clone."""
    for folder in path.split(os.pathsep):
        program = Path(folder or ".") / "pyenv"
        if program.is_file() and os.access(program, os.X_OK) and OWN_NAME not in program.read_bytes():
            return program.absolute()
    return None


def is_question(arguments: list[str]) -> bool:
    """Tell whether these are arguments that the stand-in can answer itself."""
    if arguments == ["root"]:
        return True
    if arguments[:1] != ["install"]:
        return False
    return [word for word in arguments[1:] if word not in ("--skip-existing", "-s")] == [platform.python_version()]


def is_asked_by_python() -> bool:
    """Tell whether the program that asks is a Python, as MLflow is, rather than a shell."""
    try:
        program = Path(f"/proc/{os.getppid()}/exe").readlink()
    except OSError:  # not Linux
        question = ["ps", "-o", "comm=", "-p", str(os.getppid())]
        try:
            program = Path(subprocess.run(question, capture_output=True, text=True, check=False).stdout.strip())
        except OSError:
            return False
    return program.name.lower().startswith("python")


def has_version(real: Path) -> bool:
    """Tell whether the pyenv ``real`` has the version of this environment."""
    return (ask_root(real) / "versions" / platform.python_version() / "bin" / "python").exists()


def ask_root(real: Path) -> Path:
    """Return the folder in which the pyenv ``real`` keeps its versions."""
    environment = {**os.environ, HANDED_OVER: ASKING}
    result = subprocess.run([real, "root"], env=environment, capture_output=True, text=True, check=False)
    return Path(result.stdout.strip() or os.devnull)  # a pyenv that does not answer has no versions


def answer(arguments: list[str], real: Path | None = None) -> int:
    """Answer for this environment's own version; return the exit code."""
    version = platform.python_version()
    if not is_question(arguments):
        print(
            f"There is no pyenv on this machine. This is a stand-in, which gives MLflow the Python of {sys.prefix}:\n"
            f"it knows `pyenv install {version}` and `pyenv root`, not `{shlex.join(['pyenv', *arguments])}`.\n"
            "For other versions of Python get pyenv: https://github.com/pyenv/pyenv#installation",
            file=sys.stderr,
        )
        return 1
    try:
        root = make_root(Path(sys.prefix) / "share" / "workshop-pyenv", version, real)
    except OSError as error:
        print(f"The stand-in for pyenv cannot write its folder: {error}", file=sys.stderr)
        return 1
    if arguments == ["root"]:
        print(root)
    return 0


def make_root(root: Path, version: str, real: Path | None = None) -> Path:
    """Make ``root`` look like pyenv's, with ``version`` and with those of ``real``; return it.

    The program in it is a script and not a link: started through a link elsewhere, some builds of Python do not find
    their library, nor do the environments made with them.
    """
    folder = root / "versions" / version
    if folder.is_symlink():  # to the real one's, made when this environment had another version
        folder.unlink()
    program = folder / "bin" / "python"
    program.parent.mkdir(parents=True, exist_ok=True)
    write_whole(program, f'#!/bin/sh\nexec {shlex.quote(find_base_python())} "$@"\n')
    if real is not None:
        # `pyenv root` does not say for which version it is asked: the answer has to serve for all.
        for other in (ask_root(real) / "versions").glob("*"):
            with contextlib.suppress(FileExistsError):
                (root / "versions" / other.name).symlink_to(other)
    return root


def write_whole(file: Path, text: str) -> None:
    """Write an executable file in one step, as another `mlflow run` may be reading it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.chmod(0o755)
    temporary.replace(file)


def find_base_python() -> str:
    """Return the path of the Python that this environment was made with."""
    base = Path(sys._base_executable)
    if base.is_file() and base.parent != Path(sys.prefix) / "bin":
        return str(base)
    return os.path.realpath(sys.executable)
