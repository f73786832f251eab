"""After `dvc-parallel repro` was killed or the disk was full, the next run needs no repair."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from programs import BIN, small_disk, wait_for
from repositories import ENVIRONMENT, SECONDS, new_repository

# Detects another running copy of its stage by a lock, which the kernel releases when the program is killed.
PROGRAM = """
import fcntl, pathlib, sys, time
stage, size, *needs = sys.argv[1:]
mark = open(f"{stage}.at-work", "w")
try:
    fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    pathlib.Path(f"{stage}.twice").touch()
    raise
text = "".join(pathlib.Path(f"{name}.txt").read_text() for name in needs)
time.sleep(0.5)
pathlib.Path(f"{stage}.txt").write_text(text + f"{stage} {size}\\n")
time.sleep(0.2)
"""
NEEDS = {"one": [], "left": ["one"], "right": ["one"], "last": ["left", "right"]}
OURS = [BIN / "dvc-parallel", "repro"]
MARK = "DVC_PARALLEL_TEST"


def expected(stage: str, size: int) -> str:
    """Return the expected output of a stage."""
    return "".join(expected(other, size) for other in NEEDS[stage]) + f"{stage} {size}\n"


class Repository:
    """A repository with a pipeline of four programs, whose runs are started and checked."""

    def __init__(self, folder: Path) -> None:
        stages = {
            stage: {
                "cmd": f"python program.py {stage} ${{size}} {' '.join(needs)}",
                "deps": ["program.py", *(f"{name}.txt" for name in needs)],
                "params": ["size"],
                "outs": [f"{stage}.txt"],
            }
            for stage, needs in NEEDS.items()
        }
        self.folder = new_repository(folder, stages)
        (folder / "program.py").write_text(PROGRAM)
        self.log = folder.parent / "log"
        self.environment = ENVIRONMENT | {MARK: str(folder)}

    def set_size(self, size: int) -> None:
        """Change the parameter that all stages depend on."""
        (self.folder / "params.yaml").write_text(f"size: {size}\n")

    def start(self) -> subprocess.Popen:
        """Start a run in a new process group."""
        with self.log.open("a") as log:
            return subprocess.Popen(
                OURS, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                process_group=0,
            )  # fmt: skip

    def run(self) -> int:
        """Start a run and wait for its end."""
        with self.start() as process:
            return process.wait(SECONDS)

    def check(self, size: int) -> None:
        """Check that outputs, lock and status are those of an undisturbed run."""
        log = self.log.read_text()
        assert {stage: (self.folder / f"{stage}.txt").read_text() for stage in NEEDS} == {
            stage: expected(stage, size) for stage in NEEDS
        }, log
        assert set(yaml.safe_load((self.folder / "dvc.lock").read_text())["stages"]) == set(NEEDS), log
        status = subprocess.run(
            [BIN / "dvc", "status", "--json"], cwd=self.folder, env=self.environment, capture_output=True, check=True
        )
        assert json.loads(status.stdout) == {}, log
        assert not list(self.folder.glob("*.twice")), log

    def assert_clean(self) -> None:
        """Check that no process is left."""
        wait_for(lambda: not [process for process in psutil.process_iter() if self._is_ours(process)], 20)

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return process.environ().get(MARK) == str(self.folder)
        return False


def kill_some(rng: random.Random, process: subprocess.Popen) -> None:
    """Kill a run's first process, its process group, or one of its descendants."""
    how = rng.choice(["alone", "group", "descendant"])
    descendants = psutil.Process(process.pid).children(recursive=True)
    if how == "group":
        os.killpg(process.pid, signal.SIGKILL)
    elif how == "descendant" and descendants:
        with contextlib.suppress(psutil.Error):
            rng.choice(descendants).kill()
    else:
        process.kill()


@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_run_recovers_from_kills_at_any_time(tmp_path, rounds):
    """After a random kill, an immediate run completes all stages, runs none twice at a time, and leaves no process."""
    repository = Repository(tmp_path / "place")
    rng = random.Random(rounds)
    for size in range(rounds):
        repository.set_size(size)
        with repository.start() as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.5, 8))
            if process.poll() is None:
                kill_some(rng, process)
                process.wait(SECONDS)  # a run whose stage was killed ends by itself
        assert repository.run() == 0, repository.log.read_text()
        repository.check(size)
    repository.assert_clean()


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Keep a small disk full: freed space is filled immediately."""
    done = threading.Event()

    def fill() -> None:
        with (folder / "filler").open("wb", buffering=0) as file:
            while not done.wait(0.01):
                with contextlib.suppress(OSError):
                    while file.write(bytes(4096)):
                        pass

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        (folder / "filler").unlink()


@pytest.mark.privileged
@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_run_recovers_from_a_full_disk_at_any_time(tmp_path, rounds):
    """The disk fills up at a random time during a run; with free space, the next run completes all stages."""
    rng = random.Random(rounds)
    with small_disk(tmp_path / "disk", "20m") as disk:
        repository = Repository(disk / "place")
        for size in range(rounds):
            repository.set_size(size)
            with repository.start() as process:
                time.sleep(rng.uniform(1, 6))
                with full_disk(disk):
                    process.wait(SECONDS)
            assert repository.run() == 0, repository.log.read_text()
            repository.check(size)
        repository.assert_clean()


def test_truncated_rwlock_does_not_stop_the_next_run(tmp_path):
    """DVC's table of files in use may be truncated by a full disk."""
    repository = Repository(tmp_path / "place")
    repository.set_size(1)
    for content in ("", '{"write": {"/x": 1}}'):
        (repository.folder / ".dvc" / "tmp" / "rwlock").write_text(content)
        assert repository.run() == 0, repository.log.read_text()
    repository.check(1)
