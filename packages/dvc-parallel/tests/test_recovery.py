"""`dvc repro` and `workshop repro` killed at any time, or out of disk: the next run is right by itself."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from hosts import filled, small_disk
from workplace import BIN, clean_environment, environment_of

from workshop.engine.repro import recovery
from workshop.engine.repro.alone import alone

SECONDS = 120
# Whoever finds another copy of its stage at work says so; the system gives the lock back when a process is killed.
NOTEBOOK = """
import fcntl, pathlib, time
stage = "none"
needs = ""
size = 0
---
mark = open(f"{stage}.at-work", "w")
try:
    fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    pathlib.Path(f"{stage}.twice").touch()
    raise
text = "".join(pathlib.Path(name).read_text() for name in needs.split())
time.sleep(0.5)
---
pathlib.Path(f"{stage}.txt").write_text(text + f"{stage} {size}\\n")
time.sleep(0.2)
"""
NEEDS = {"one": [], "left": ["one"], "right": ["one"], "last": ["left", "right"]}
RUNS = {"dvc": [BIN / "dvc", "repro"], "workshop": [BIN / "workshop", "repro"]}


def expected(stage: str, size: int) -> str:
    """What a stage's output holds."""
    return "".join(expected(other, size) for other in NEEDS[stage]) + f"{stage} {size}\n"


class Repository:
    """A pipeline of four notebooks, and how its runs are started and checked."""

    def __init__(self, folder: Path, cluster) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder.parent / "log"
        self.temporary = folder.parent / "tmp"
        self.temporary.mkdir()
        self.environment = clean_environment() | cluster.environment
        self.environment |= {"WORKSHOP_STATE": str(folder.parent / "state"), "TMPDIR": str(self.temporary)}
        self.environment |= {"WORKSHOP_ROOT": str(folder), "DVC_NO_ANALYTICS": "1"}
        for command in (["git", "init", "--quiet"], [BIN / "dvc", "init", "--quiet"]):
            subprocess.run(command, cwd=folder, env=self.environment, check=True)
        first, *cells = NOTEBOOK.split("---\n")
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (first, *cells)])
        notebook.cells[0].metadata["tags"] = ["parameters"]
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / "stage.ipynb")
        stages = {}
        for stage, needs in NEEDS.items():
            inputs = [f"{name}.txt" for name in needs]
            command = f"papermill stage.ipynb {stage}.ipynb --engine dask -p stage {stage} -p size ${{size}}"
            stages[stage] = {
                "cmd": f"{command} -p needs '{' '.join(inputs)}'",
                "deps": ["stage.ipynb", *inputs],
                "params": ["size"],
                "outs": [f"{stage}.txt"],
            }
        (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))

    def ask_for(self, size: int) -> None:
        """Change the parameter that all stages depend on."""
        (self.folder / "params.yaml").write_text(f"size: {size}\n")

    def start(self, how: str) -> subprocess.Popen:
        """Start a run, in a process group of its own."""
        with self.log.open("a") as log:
            return subprocess.Popen(
                RUNS[how], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                process_group=0,
            )  # fmt: skip

    def run(self, how: str) -> int:
        """Run to the end."""
        with self.start(how) as process:
            return process.wait(SECONDS)

    def check(self, size: int) -> None:
        """All is as a run without any fault leaves it."""
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
        assert not list(self.folder.glob("dvc.lock.*"))

    def assert_clean(self) -> None:
        """Nothing is left in temporary folders, and no process."""
        deadline = time.monotonic() + 20
        while left := [process for process in psutil.process_iter() if self._is_ours(process)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
        assert not list(self.temporary.iterdir())

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return process.environ().get("WORKSHOP_ROOT") == str(self.folder)
        return False


def kill_some(dice: random.Random, process: subprocess.Popen) -> str:
    """Kill a run: its first process, its group, or any one process of it; tell which."""
    how = dice.choice(["alone", "group", "descendant"])
    descendants = psutil.Process(process.pid).children(recursive=True)
    if how == "group":
        os.killpg(process.pid, signal.SIGKILL)
    elif how == "descendant" and descendants:
        with contextlib.suppress(psutil.Error):
            dice.choice(descendants).kill()
    else:
        process.kill()
    return how


@pytest.fixture
def repository(cluster, tmp_path) -> Repository:
    """A pipeline that has not run."""
    return Repository(tmp_path / "place", cluster)


@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_fault_dvc_killed_at_any_time_is_right_the_next_time(repository, rounds):
    """Killed by chance, then run again at once: all is made, once at a time, the lock parses, nothing is left."""
    dice = random.Random(rounds)
    for size in range(rounds):
        repository.ask_for(size)
        how = ["dvc", "workshop"][size % 2]
        with repository.start(how) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(dice.uniform(0.5, 8))
            if process.poll() is None:
                kill_some(dice, process)
                # A run whose stage was killed goes on to say so, and may be killed no further.
                process.wait(SECONDS)
        code = repository.run(how)
        if code and how == "dvc":  # which writes its table of files in use in place, and does not read half of one
            assert "RWLock-file" in repository.log.read_text().splitlines()[-1]
            code = repository.run("workshop")
        assert code == 0, repository.log.read_text()
        repository.check(size)
    repository.assert_clean()


def test_fault_stage_ends_with_its_dvc(repository):
    """Only `dvc repro` is killed: the stage that it ran ends by itself, and its notebook on the cluster too."""
    repository.ask_for(1)
    with repository.start("dvc") as process:
        deadline = time.monotonic() + SECONDS
        while not (repository.folder / "one.at-work").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
    repository.assert_clean()
    assert not (repository.folder / "one.txt").exists()


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_fault_disk_full_at_any_time_is_right_the_next_time(cluster, tmp_path, rounds):
    """The disk fills up by chance while it runs: with room again, `workshop repro` makes all, whoever ran before."""
    dice = random.Random(rounds)
    with small_disk(tmp_path / "disk", "200m") as disk:
        repository = Repository(disk / "place", cluster)
        for size in range(rounds):
            repository.ask_for(size)
            with repository.start(["dvc", "workshop"][size % 2]) as process:
                time.sleep(dice.uniform(1, 6))
                with filled(disk):
                    process.wait(SECONDS)
            assert repository.run("workshop") == 0, repository.log.read_text()
            repository.check(size)
        repository.assert_clean()


def test_run_without_room_on_the_disk_says_so_first(cluster, tmp_path):
    """A disk with too little room: told before anything runs, with what there is and what is needed."""
    with small_disk(tmp_path / "disk", "50m") as disk:
        repository = Repository(disk / "place", cluster)
        repository.ask_for(1)
        assert repository.run("workshop") == 1
        said = repository.log.read_text()
        assert "too little room on the disk" in said
        assert "100 MB" in said
        assert "Traceback" not in said
        assert not (repository.folder / "one.ipynb").exists()


# -- DVC's own files -----------------------------------------------------------------------------------------------
LOCK = """schema: '2.0'
stages:
  one:
    cmd: echo
    outs:
    - path: x
      md5: d41d8cd98f00b204e9800998ecf8427e
"""


@pytest.mark.parametrize("damaged", ["", LOCK[:20], LOCK[:29], "stages: [", "\0" * 40], ids=range(5))
def test_damaged_lock_file_comes_back(tmp_path, damaged):
    """However it was cut: as it was when it was last read; what there was is kept beside it."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "dvc.lock").write_text(LOCK)
    recovery.keep(tmp_path / "dvc.lock", tmp_path)
    (tmp_path / "dvc.lock").write_text(damaged)
    recovery.keep(tmp_path / "dvc.lock", tmp_path)  # a damaged one is not kept
    said = []
    assert recovery.restore_lock_files(tmp_path, said.append)
    assert (tmp_path / "dvc.lock").read_text() == LOCK
    assert "brought back" in said[0]
    assert (tmp_path / "dvc.lock.damaged").read_text() == damaged
    assert not recovery.restore_lock_files(tmp_path, said.append)


def test_merge_conflict_is_left_to_people(tmp_path):
    """A lock file with the marks of a merge is not overwritten."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "dvc.lock").write_text(LOCK)
    recovery.keep(tmp_path / "dvc.lock", tmp_path)
    conflict = f"<<<<<<< HEAD\n{LOCK}=======\n>>>>>>> other\n"
    (tmp_path / "dvc.lock").write_text(conflict)
    assert not recovery.restore_lock_files(tmp_path, print)
    assert (tmp_path / "dvc.lock").read_text() == conflict


def test_leftovers_of_dead_writers_go(tmp_path):
    """A copy that a killed run was writing goes, that of one that lives stays."""
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    lock_file = tmp_path / "dvc.lock"
    others = [tmp_path / "dvc.lock.20260901120000", tmp_path / "dvc.lock.mine"]
    for file in (tmp_path / f"dvc.lock.{dead.pid}.workshop", recovery.copy_in_work(lock_file), *others):
        file.touch()
    recovery.remove_leftovers([lock_file])
    assert sorted(tmp_path.iterdir()) == sorted([recovery.copy_in_work(lock_file), *others])


def test_table_of_files_in_use_survives_a_restart(tmp_path):
    """A number of before the restart belongs to another process now: it uses nothing. A table that was cut goes."""
    file = tmp_path / "rwlock"
    entry = {"pid": os.getpid(), "cmd": "dvc repro"}
    table = {"write": {"/x": entry}, "read": {"/y": [entry]}}
    file.write_text(json.dumps(table))
    recovery.mend_table(tmp_path)
    assert json.loads(file.read_text()) == table  # we do live since before
    os.utime(file, (0, psutil.Process().create_time() - 60))
    recovery.mend_table(tmp_path)
    assert json.loads(file.read_text()) == {"write": {}, "read": {"/y": []}}
    file.write_text(json.dumps(table)[:20])
    recovery.mend_table(tmp_path)
    assert not file.exists()
    recovery.mend_table(tmp_path)


# -- one copy of a stage -------------------------------------------------------------------------------------------
def test_stage_whose_dvc_is_gone_does_not_begin(tmp_path, monkeypatch, capsys):
    """The table of files in use names another process than any ancestor of ours: exit code 143, and why."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    table = {"write": {"/x": {"pid": 2**22 + 1, "cmd": "dvc repro"}}, "read": {}}
    (tmp_path / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(table))
    with environment_of(os.environ | {"DVC_STAGE": "../dvc.yaml:one"}), pytest.raises(SystemExit) as ended, alone():
        pytest.fail("it began")
    assert ended.value.code == 143
    assert ":one of" in capsys.readouterr().err


def test_second_copy_waits_for_the_first(tmp_path):
    """Two processes of one stage: the second begins when the first has ended, and says for whom it waits."""
    code = (
        "import sys; from workshop.engine.repro.alone import alone\n"
        "with alone(), alone(): print('begun', flush=True); sys.stdin.readline()"  # one in the other: the same copy
    )
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    named = [os.environ | {"DVC_STAGE": name} for name in ("sub/dvc.yaml:one@1", "one@1")]  # as typed here, and there
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {"text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=named[0], **pipes) as first:
        assert first.stdout.readline() == "begun\n"
        with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=named[1], **pipes) as second:
            assert f"process {first.pid}" in second.stderr.readline()
            first.communicate("\n")
            assert second.stdout.readline() == "begun\n"
            second.communicate("\n")
