"""Git and DVC repositories for tests, and functions that start runs in them."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import programs
import yaml
from programs import BIN

PACKAGE = Path(__file__).resolve().parent.parent
SECONDS = 120
RUN = """
import json, signal, sys, time
from dvc_parallel import ReproError, reproduce

def progress(stage, state):
    sys.stdout.write(json.dumps([time.time(), stage, state]) + "\\n")
    sys.stdout.flush()
def notice(text):
    print(text, file=sys.stderr, flush=True)

if __name__ == "__main__":
    # A shell that is not interactive starts background jobs deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jobs, *words = sys.argv[1:]
    try:
        reproduce([word for word in words if word != "--force"], jobs=int(jobs),
                  progress=progress, notice=notice, force="--force" in words)
    except ReproError as error:
        sys.exit(str(error))
"""


# With named targets DVC iterates over a set: the order of stages is random unless hashes are fixed.
ENVIRONMENT = programs.clean_environment() | {"PYTHONHASHSEED": "0"}


@functools.cache
def empty_repository() -> tempfile.TemporaryDirectory:
    """Return an empty Git and DVC repository to copy."""
    folder = tempfile.TemporaryDirectory()
    for command in (["git", "init", "--quiet"], [BIN / "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=folder.name, env=ENVIRONMENT, check=True)
    atexit.register(folder.cleanup)
    return folder


def new_repository(folder: Path, stages: str | dict) -> Path:
    """Return a Git and DVC repository with a pipeline."""
    shutil.copytree(empty_repository().name, folder)
    (folder / "dvc.yaml").write_text(stages if isinstance(stages, str) else yaml.safe_dump({"stages": stages}))
    return folder


def timed(name: str, seconds: float, **more) -> dict:
    """Return a stage that writes its start and end times."""
    return {"cmd": f"date +%s.%N > {name}.at; sleep {seconds}; date +%s.%N >> {name}.at; echo {name} > {name}.txt",
            "outs": [f"{name}.txt"], **more}  # fmt: skip


def span(repository: Path, name: str) -> tuple[float, float]:
    """Return the start and end times of a timed stage."""
    start, end = map(float, read(repository / f"{name}.at").split())
    return start, end


def concurrency(repository: Path, *names: str) -> int:
    """Return the maximum number of these stages that ran in parallel."""
    spans = [span(repository, name) for name in names]
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)


def start(repository: Path, *arguments: str, jobs: int = 4) -> subprocess.Popen:
    """Start a run that prints each change of state."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(jobs), *arguments], cwd=repository, env=ENVIRONMENT, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


class Result:
    """The result of a run: exit code, stderr, and the states of each stage with their times."""

    def __init__(self, process: subprocess.Popen) -> None:
        out, self.error = process.communicate(timeout=SECONDS)
        self.code = process.returncode
        self.events = [json.loads(line) for line in out.splitlines()]
        self.states = {stage: state for _, stage, state in self.events}


def repro(repository: Path, *arguments: str, jobs: int = 4) -> Result:
    """Run stages and wait for the end."""
    return Result(start(repository, *arguments, jobs=jobs))


def program(repository: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run `dvc` or `dvc-parallel`."""
    return subprocess.run(
        [BIN / name, *arguments], cwd=repository, env=ENVIRONMENT, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=SECONDS, check=False,
    )  # fmt: skip


def dvc(repository: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run DVC."""
    return program(repository, "dvc", *arguments)


def read(file: Path) -> str:
    """Return the content of a file, or "" if it does not exist."""
    return file.read_text() if file.exists() else ""
