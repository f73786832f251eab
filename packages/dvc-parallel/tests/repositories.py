"""Repositories of Git and DVC for tests, and how runs in them are started."""

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


# DVC's order of stages is that of a set when targets are named: chance decides, unless hashes are fixed.
ENVIRONMENT = programs.clean_environment() | {"PYTHONHASHSEED": "0"}


@functools.cache
def empty_repository() -> tempfile.TemporaryDirectory:
    """Return a repository of Git and DVC to copy."""
    folder = tempfile.TemporaryDirectory()
    for command in (["git", "init", "--quiet"], [BIN / "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=folder.name, env=ENVIRONMENT, check=True)
    atexit.register(folder.cleanup)
    return folder


def new_repository(folder: Path, stages: str | dict) -> Path:
    """Return a repository of Git and DVC with a pipeline."""
    shutil.copytree(empty_repository().name, folder)
    (folder / "dvc.yaml").write_text(stages if isinstance(stages, str) else yaml.safe_dump({"stages": stages}))
    return folder


def stamped(name: str, seconds: float, **more) -> dict:
    """Return a stage that writes when it began and ended."""
    return {"cmd": f"date +%s.%N > {name}.at; sleep {seconds}; date +%s.%N >> {name}.at; echo {name} > {name}.txt",
            "outs": [f"{name}.txt"], **more}  # fmt: skip


def span(repository: Path, name: str) -> tuple[float, float]:
    """Return when a stamped stage began and ended."""
    began, ended = map(float, read(repository / f"{name}.at").split())
    return began, ended


def together(repository: Path, *names: str) -> int:
    """Return how many of these stages ran at the same time, at most."""
    spans = [span(repository, name) for name in names]
    return max(sum(began <= moment < ended for began, ended in spans) for moment, _ in spans)


def start(repository: Path, *words: str, jobs: int = 4) -> subprocess.Popen:
    """Start a run that tells each change."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(jobs), *words], cwd=repository, env=ENVIRONMENT, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


class Ended:
    """How a run ended: code, error text, and for each stage when it came to which state."""

    def __init__(self, process: subprocess.Popen) -> None:
        out, self.error = process.communicate(timeout=SECONDS)
        self.code = process.returncode
        self.events = [json.loads(line) for line in out.splitlines()]
        self.states = {stage: state for _, stage, state in self.events}


def repro(repository: Path, *words: str, jobs: int = 4) -> Ended:
    """Run stages to the end."""
    return Ended(start(repository, *words, jobs=jobs))


def program(repository: Path, name: str, *words: str) -> subprocess.CompletedProcess:
    """Run `dvc` or `dvc-parallel` itself."""
    return subprocess.run(
        [BIN / name, *words], cwd=repository, env=ENVIRONMENT, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=SECONDS, check=False,
    )  # fmt: skip


def dvc(repository: Path, *words: str) -> subprocess.CompletedProcess:
    """Run DVC itself."""
    return program(repository, "dvc", *words)


def read(file: Path) -> str:
    """What a file holds; nothing when it is not there."""
    return file.read_text() if file.exists() else ""
