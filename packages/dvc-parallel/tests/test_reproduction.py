"""`dvc-parallel repro` runs independent stages in parallel and leaves the same files as `dvc repro`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from dvc_parallel import ReproError, State, lines, reproduce
from programs import wait_for
from repositories import ENVIRONMENT, Result, concurrency, dvc, new_repository, program, read, repro, span, start, timed

EVERYTHING = """
vars: [{names: [one, two]}]
stages:
  zebra:
    cmd: mkdir -p folder/deep && echo a > folder/a && echo b > folder/deep/b
    outs: [folder]
  apple:
    cmd:
      - echo ${apple.size} > apple.txt
      - echo again >> apple.txt
    params: [apple]
    outs: [apple.txt]
  each:
    foreach: ${names}
    do:
      cmd: echo ${item} > ${item}.txt
      outs: ["${item}.txt"]
  grid:
    matrix: {x: [1, 2], y: [a]}
    cmd: echo ${item.x} > grid_${item.x}_${item.y}.txt
    outs: ["grid_${item.x}_${item.y}.txt"]
  inside:
    wdir: sub
    cmd: cat ../apple.txt > inside.txt
    deps: [../apple.txt]
    outs: [inside.txt]
  always:
    cmd: echo $DVC_STAGE > always.txt
    always_changed: true
    outs: [{always.txt: {persist: true}}]
  callback:
    cmd: echo called
  judged:
    cmd: |
      echo '{"score": 1}' > score.json
      printf 'x,y\\n1,2\\n' > points.csv
      echo plain > plain.txt
    deps: [folder, one.txt, sub/inside.txt]
    outs: [{plain.txt: {cache: false}}]
    metrics: [{score.json: {cache: false}}]
    plots: [points.csv]
  icy:
    cmd: "false"
    frozen: true
    deps: [one.txt]
    outs: [icy.txt]
"""
# Counts its runs, and ends when the file `go` exists.
COUNTED = {"one": {"cmd": "echo run >> ../count; while [ ! -e ../go ]; do sleep 0.1; done; echo x > x", "outs": ["x"]}}
COUNTING = """
import cProfile, pstats, sys
from dvc.repo import Repo
from dvc_parallel import reproduce

profile = cProfile.Profile()
profile.runcall(reproduce if sys.argv[1] == "ours" else Repo().reproduce)
print(pstats.Stats(profile).total_calls)
"""
ELSEWHERE = """
stages:
  far:
    cmd: cat ../two.txt > far.txt
    deps: [../two.txt]
    outs: [far.txt]
"""


def contents(repository: Path) -> dict[str, bytes | set]:
    """Return all files that a run may leave: workspace, lock files, cache and run cache.

    Lines of .gitignore are in the order in which stages ended, which is not guaranteed.
    """
    return {
        str(file.relative_to(repository)): file.read_bytes() if file.name != ".gitignore" else set(read(file).split())
        for file in sorted(repository.rglob("*"))
        if file.is_file() and not {".git", "tmp"} & set(file.relative_to(repository).parts)
    }


@pytest.fixture
def twins(tmp_path) -> tuple[Path, Path]:
    """Two equal repositories with all kinds of stages, one for dvc-parallel and one for DVC."""
    ours = new_repository(tmp_path / "ours", EVERYTHING)
    (ours / "sub").mkdir()
    (ours / "far").mkdir()
    (ours / "far" / "dvc.yaml").write_text(ELSEWHERE)
    (ours / "icy.txt").write_text("made by hand\n")
    (ours / "params.yaml").write_text("apple: {size: 3}\n")
    return ours, shutil.copytree(ours, tmp_path / "theirs", symlinks=True)


def copying(stages: int) -> str:
    """Return a pipeline whose stages each copy a file."""
    names = {
        f"copy{i}": {"cmd": f"cp {i}.in {i}.out", "deps": [f"{i}.in"], "outs": [f"{i}.out"]} for i in range(stages)
    }
    return yaml.safe_dump({"stages": names})


# -- equal to `dvc repro` ------------------------------------------------------------------------------------------
def test_repro_leaves_what_dvc_leaves(twins):
    """Outputs, lock files with the order of their entries, cache, run cache and .gitignore are identical.

    After a changed parameter, a deleted output or a reverted change, the same stages run or come from the cache.
    """
    ours, theirs = twins
    for size in (3, 4, 3):
        for repo in twins:
            (repo / "params.yaml").write_text(f"apple: {{size: {size}}}\n")
            (repo / "one.txt").unlink(missing_ok=True)
        done = repro(ours)
        assert done.code == 0, done.error
        assert dvc(theirs, "repro").returncode == 0
        assert contents(ours) == contents(theirs)
    assert done.states["apple"] == State.RESTORED
    assert done.states["zebra"] == State.UNCHANGED
    assert done.states["always"] == State.DONE
    again = dvc(ours, "repro").stdout
    assert again.count("Running stage") == 2, again
    assert not any(json.loads(read(ours / ".dvc/tmp/rwlock")).values())


def test_repro_of_targets_names_them_as_dvc_does(twins):
    """A stage of another folder, or named from a subfolder, is run with its dependencies and nothing else."""
    ours, theirs = twins
    done = repro(ours, "far/dvc.yaml:far", "zebra")
    assert set(done.states) == {"each@two", "far/dvc.yaml:far", "zebra"}
    assert dvc(theirs, "repro", "far/dvc.yaml:far", "zebra").returncode == 0
    assert contents(ours) == contents(theirs)
    below = repro(ours / "far", "--force")
    assert set(below.states.items()) == {("../dvc.yaml:each@two", State.DONE), ("far", State.DONE)}


# -- side by side --------------------------------------------------------------------------------------------------
def test_repro_runs_independent_stages_in_parallel_within_its_jobs(tmp_path):
    """At most two of three stages run in parallel, and none before its dependencies."""
    stages = {name: timed(name, 1.5) for name in "abc"} | {"end": timed("end", 0, deps=["a.txt", "b.txt"])}
    repo = new_repository(tmp_path / "place", stages)
    assert repro(repo, jobs=2).code == 0
    assert concurrency(repo, *"abc") == 2
    assert span(repo, "end")[0] >= max(span(repo, "a")[1], span(repo, "b")[1])


def test_single_items_run_in_the_order_of_their_dependencies(tmp_path):
    """With `single_item` a target waits for a target that it depends on, in any order of arguments."""
    stages = {"end": timed("end", 0, deps=["a.txt"]), "a": timed("a", 0), "b": timed("b", 0)}
    repo = new_repository(tmp_path / "place", stages)
    states = reproduce(["end", "a"], folder=repo, single_item=True)
    assert states == {"end": State.DONE, "a": State.DONE}
    assert span(repo, "end")[0] > span(repo, "a")[1]


ODD_NAMES = ["学" * 80, "学" * 80 + "2", "x" * 240, "x" * 240 + "y", "é" * 120, "a b%c", "it's", "100%25", "Ω" * 40]


def test_odd_names_of_folders_and_stages_have_a_log_each(tmp_path):
    """With non-ASCII, long, deep or punctuated names, lock files are those of DVC, and each stage has a log."""
    deep = "/".join(["需要予測プロジェクト二〇二六年度"] * 20)
    for name in ("ours", "theirs"):
        repo = new_repository(tmp_path / name, "")
        for folder in (*ODD_NAMES, deep, f"{deep}/2", "two\nlines", 'quo"te'):
            (repo / folder).mkdir(parents=True)
            stages = {
                stage: {"cmd": f"echo {stage} > {stage}.txt", "outs": [f"{stage}.txt"]} for stage in ("学習", "x" * 60)
            }
            (repo / folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, allow_unicode=True))
        words = ["dvc-parallel" if name == "ours" else "dvc", "repro", "-P"]
        done = program(repo / ODD_NAMES[-1], *words)  # from one folder, with the stages of all others
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert len(list((tmp_path / "ours" / ".dvc/tmp/dvc-parallel").glob("*.log"))) == 2 * (len(ODD_NAMES) + 4)


@pytest.mark.privileged
@pytest.mark.parametrize("mount", ["--bind /tmp/file dvc.lock", "-t tmpfs tmpfs sub"])
def test_lock_file_on_a_mount_is_written(tmp_path, mount):
    """A lock file that is a mount point, or on another file system, is written as by DVC."""
    locks = []
    for name in ("dvc-parallel", "dvc"):
        repo = new_repository(tmp_path / name, "stages: {a: {cmd: echo a > a.txt, outs: [a.txt]}}")
        (repo / "sub").mkdir()
        for file in (repo / "dvc.lock", tmp_path / "file"):
            file.write_text("schema: '2.0'\n")
        mount = mount.replace("/tmp/file", str(tmp_path / "file"))
        commands = f"mount {mount}; cp dvc.yaml sub; {name} repro -P && cat dvc.lock sub/dvc.lock"
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", commands],
            cwd=repo, env=ENVIRONMENT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        locks.append(done.stdout[done.stdout.index("schema") :])
    assert locks[0] == locks[1]


@pytest.mark.parametrize("kind", ["symbolic", "hard", pytest.param("owner", marks=pytest.mark.privileged)])
def test_lock_file_keeps_its_links_and_its_owner(tmp_path, kind):
    """A lock file that is a symlink, has a hard link or belongs to another user stays so, as with DVC."""
    facts = []
    for name in ("dvc-parallel", "dvc"):
        repo = new_repository(tmp_path / name, "stages: {a: {cmd: echo a > a.txt, outs: [a.txt]}}")
        lock, other = repo / "dvc.lock", tmp_path / f"{name}.lock"
        other.write_text("schema: '2.0'\n")
        other.chmod(0o640)
        if kind == "owner":
            shutil.copy(other, lock)
            os.chown(lock, 4242, 4242)
        elif kind == "hard":
            lock.hardlink_to(other)
        else:
            lock.symlink_to(other)
        assert program(repo, name, "repro").returncode == 0
        status = lock.stat()
        facts.append(
            (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, lock.is_symlink(), lock.read_text())
        )
    assert facts[0] == facts[1]
    assert "a.txt" in facts[0][-1]


# -- faults --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("content", [b"day: 2020-01-01\n", b"day: \xfc\n", b"day: [\n"])
def test_parameters_that_dvc_cannot_read_are_an_error(tmp_path, content):
    """Dates, Latin-1 characters and broken YAML give DVC's message, without a traceback."""
    stages = {"a": {"cmd": "echo x > a", "params": ["day"], "outs": ["a"]}}
    repo = new_repository(tmp_path / "place", stages)
    (repo / "params.yaml").write_bytes(content)
    done = program(repo, "dvc-parallel", "repro")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "params.yaml" in done.stderr


def test_failed_stage_stops_only_its_dependents(tmp_path):
    """The error has the stage, the end of its output and the stages that were not run; the others are committed."""
    stages = {
        "bad": {"cmd": "echo the reason; exit 7", "outs": ["bad.txt"]},
        "lost": {"cmd": "true", "outs": ["lost.txt"]},
        "needy": timed("needy", 0, deps=["bad.txt"]),
        "good": timed("good", 1),
        "better": timed("better", 0, deps=["good.txt"]),
    }
    repo = new_repository(tmp_path / "place", stages)
    done = repro(repo)
    assert done.code == 1
    for words in ("2 of 5 stages failed", "bad", "the reason", "exited with code 7", "lost.txt", "needy"):
        assert words in done.error
    assert (done.states["needy"], done.states["better"]) == (State.SKIPPED, State.DONE)
    assert set(yaml.safe_load(read(repo / "dvc.lock"))["stages"]) == {"good", "better"}
    assert dvc(repo, "repro", "better").stdout.count("Running stage") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_repro_ends_all_processes_and_keeps_results(tmp_path, number):
    """Grandchildren have ended too, the lock is free, and completed stages are in the lock file."""
    stages = {
        "quick": timed("quick", 0),
        "slow": {"cmd": "echo $$ > slow.pid; sleep 300 & echo $! > grandchild.pid; wait", "outs": ["slow.txt"]},
        "deaf": {"cmd": "trap '' INT; echo $$ > deaf.pid; sleep 300; sleep 300", "outs": ["deaf.txt"]},
        "later": timed("later", 0, deps=["slow.txt"]),
    }
    repo = new_repository(tmp_path / "place", stages)
    process = start(repo)
    files = [repo / f"{name}.pid" for name in ("slow", "grandchild", "deaf")]
    wait_for(lambda: all(map(read, files)) and "quick" in read(repo / "dvc.lock"))
    process.send_signal(number)
    began = time.monotonic()
    done = Result(process)
    assert done.code == 128 + number
    assert time.monotonic() - began < 100  # of 300
    wait_for(lambda: not any(psutil.pid_exists(int(read(file))) for file in files))
    assert done.states["slow"] == State.INTERRUPTED
    assert dvc(repo, "repro", "quick").stdout.count("Running stage") == 0


def test_parallel_repros_run_each_stage_once(tmp_path):
    """The second run waits, names the process it waits for, and finds all stages up to date."""
    repo = new_repository(tmp_path / "place", COUNTED)
    first = start(repo)
    wait_for(lambda: read(tmp_path / "count"))
    second = start(repo)
    assert f"waiting for process {first.pid}" in second.stderr.readline()
    (tmp_path / "go").touch()
    first, second = Result(first), Result(second)
    assert (first.code, second.code) == (0, 0)
    assert second.states["one"] == State.UNCHANGED
    assert read(tmp_path / "count").count("run") == 1


def test_dvc_repro_during_a_run_does_not_run_a_stage_twice(tmp_path):
    """DVC reports the files in use and by which process, as during another `dvc repro`."""
    repo = new_repository(tmp_path / "place", COUNTED)
    first = start(repo)
    wait_for(lambda: read(tmp_path / "count"))
    meanwhile = dvc(repo, "repro")
    (tmp_path / "go").touch()
    assert Result(first).code == 0
    assert meanwhile.returncode != 0
    assert f"PID {first.pid}" in meanwhile.stderr
    assert read(tmp_path / "count").count("run") == 1


def test_repro_waits_for_the_lock_and_loses_nothing(tmp_path):
    """Unlike DVC, which gives up after three seconds, it waits; the stage runs once and its outputs are committed."""
    repo = new_repository(tmp_path / "place", COUNTED)
    process = start(repo)
    wait_for(lambda: read(tmp_path / "count"))
    code = """
import contextlib, time, zc.lockfile
lock = None
while not lock:
    with contextlib.suppress(zc.lockfile.LockError):  # the run holds the lock for a moment
        lock = zc.lockfile.LockFile(".dvc/tmp/lock")
    time.sleep(0.01)
print(flush=True)
input()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=repo, **pipes) as holder:
        holder.stdout.readline()
        (tmp_path / "go").touch()
        assert f"waiting for process {holder.pid}" in process.stderr.readline()
    done = Result(process)
    assert done.code == 0, done.error
    assert dvc(repo, "repro").stdout.count("Running stage") == 0
    assert read(tmp_path / "count").count("run") == 1


# Cyclic.
LOOP = "stages: {a: {cmd: x, deps: [b], outs: [a]}, b: {cmd: x, deps: [a], outs: [b]}}"


@pytest.mark.parametrize(
    ("stages", "lock", "target", "words"),
    [
        (None, None, None, "dvc.yaml"),
        ("stages: {a: {cmd: x}}", None, "nothing", "nothing"),
        (LOOP, None, None, "both a dependency and an output"),
        ("stages: [", None, None, "dvc.yaml"),
        ("stages: {a: {cmd: x, dep: [b]}}", None, None, "dvc.yaml"),
        ("stages: {a: {cmd: x}}", "<<<<<<< HEAD\n=======\n>>>>>>> other\n", None, "dvc.lock"),
        ("stages: {a: {cmd: cat none, deps: [none], outs: [x]}}", None, None, "none"),
    ],
)
def test_broken_pipeline_is_an_error(tmp_path, stages, lock, target, words):
    """Mistakes of a user give DVC's message and a next step."""
    repo = new_repository(tmp_path / "place", stages or "")
    if stages is None:
        (repo / "dvc.yaml").unlink()
    if lock:
        (repo / "dvc.lock").write_text(lock)
    with pytest.raises(ReproError) as caught:
        reproduce([target] if target else [], folder=repo)
    assert words in str(caught.value)
    assert "next:" in str(caught.value)


def test_unchanged_stage_takes_no_more_work_than_in_dvc(tmp_path):
    """Twenty more stages add no more function calls than in `dvc repro`, however long PATH is."""
    repository = new_repository(tmp_path / "repository", copying(30))
    environment = ENVIRONMENT | {"PATH": f"{'/none:' * 30}{ENVIRONMENT['PATH']}"}
    for i in range(30):
        for end in ("in", "out"):
            (repository / f"{i}.{end}").write_text(str(i))
    assert dvc(repository, "commit", "--force").returncode == 0
    added = dict.fromkeys(("ours", "theirs"), 0)
    for stages, sign in ((30, 1), (10, -1)):
        (repository / "dvc.yaml").write_text(copying(stages))
        for who in added:
            words = [sys.executable, "-c", COUNTING, who]
            done = subprocess.run(words, cwd=repository, env=environment, capture_output=True, text=True, check=True)
            added[who] += sign * int(done.stdout.split()[-1])
    assert added["ours"] <= added["theirs"]


def test_repro_outside_a_repository_is_an_error(tmp_path):
    """Without a DVC repository the command exits with 1 and a message, without a traceback."""
    done = program(tmp_path, "dvc-parallel", "repro")
    assert (done.returncode, "not inside of a DVC repository" in done.stderr) == (1, True)


def test_progress_lines_name_each_stage():
    """A stage has a line at its start, and one with its seconds or its state at its end."""
    written: list[str] = []
    progress = lines(written.append)
    for stage, state in (("train", State.RUNNING), ("train", State.DONE), ("report", State.SKIPPED)):
        progress(stage, state)
    assert written == ["  train: running\n", "  train: 0.0 s\n", "  report: not run\n"]
