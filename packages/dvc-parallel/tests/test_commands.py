"""The commands of stages: which start warm, and that they do what they do in a shell."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from dvc_parallel.commands import Commands
from dvc_parallel.programs import imported_modules, program_words, start_early
from repositories import BIN, ENVIRONMENT, new_repository, read, repro, wait_until

PROGRAM = """
import atexit, json, os, random, sys, threading
atexit.register(print, "at the end")
print(__name__, sys.argv, sys.path[0], os.getcwd(), os.environ["GIVEN"], "colorsys" in sys.modules, flush=True)
threading.Timer(0.3, print, ("in a thread",)).start()
sys.exit(sys.argv[1] if len(sys.argv) > 1 else None)
"""


@pytest.fixture(scope="module")
def commands():
    """Commands with a module imported beforehand."""
    with contextlib.closing(Commands(["colorsys"])) as commands:
        yield commands


def run(commands: Commands, line: str, folder: Path, **environment: str) -> tuple[str, int]:
    """Return what a command prints, and its exit code."""
    log = folder / "log"
    log.unlink(missing_ok=True)
    code = commands.start(line, str(folder), ENVIRONMENT | environment, log, warm=True).wait(60)
    return log.read_text(), code


@pytest.mark.parametrize(
    "line",
    [
        "dvc a b | cat", "dvc $IN b", "X=1 dvc a", "dvc *.ipynb -", "dvc a > b", "'dvc", "dvc a && dvc b", "dvc `ls`",
        "dvc a\nls", "dvc ~/a", "dvc -p x [1,2]", 'dvc "a b"', "", " ",
        "python", "python -c 1", "python -m", "python -u x.py", "python folder", "python -m -v x.py", "ls",
    ],
)  # fmt: skip
def test_command_that_needs_a_shell_goes_to_one(line):
    """Anything a shell might expand or act on is left to it, and so is what is no program of this environment."""
    assert program_words(line, ENVIRONMENT) is None


def test_program_of_this_environment_is_recognised(tmp_path):
    """A console script, a file and a module; PATH decides which program is meant."""
    here = ENVIRONMENT
    python = str(BIN / "python")
    assert program_words("dvc repro  -j 2 a/b.c:d@e", here) == [
        python,
        str(BIN / "dvc"),
        "repro",
        "-j",
        "2",
        "a/b.c:d@e",
    ]
    assert program_words("python train.py --depth 3", here) == ["python", "train.py", "--depth", "3"]
    assert program_words("python3 -m this that", here) == ["python3", "-m", "this", "that"]
    (tmp_path / "dvc").write_text("#!/bin/sh\n")
    (tmp_path / "dvc").chmod(0o755)
    assert program_words("dvc repro", here | {"PATH": f"{tmp_path}:{here['PATH']}"}) is None
    assert imported_modules(["dvc repro", "python x.py", "dvc status", "ls"], here) == ["dvc.cli"]


def test_packages_add_modules_to_a_program(tmp_path, monkeypatch):
    """An entry point says so: a plug-in that its program imports late is imported before the program is forked."""
    (tmp_path / "plugin-1.dist-info").mkdir()
    (tmp_path / "plugin-1.dist-info" / "entry_points.txt").write_text("[dvc_parallel.preload]\ndvc = plugin.late\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert imported_modules(["dvc repro"], ENVIRONMENT) == ["dvc.cli", "plugin.late"]


def test_imports_begin_before_dvc_does_where_a_file_differs_from_the_lock(tmp_path, monkeypatch):
    """Without a lock file, and after a change; a run with nothing to do imports nothing, and no process stays."""
    monkeypatch.setenv("PATH", ENVIRONMENT["PATH"])  # with the programs of the Python that runs this
    stage = {"cmd": ["dvc --version", "cp in.txt out"], "deps": ["in.txt"], "outs": ["out"]}
    repository = new_repository(tmp_path / "repository", {"one": stage})

    def early() -> list[list[str]]:
        forks = start_early(repository, None)
        with contextlib.closing(Commands(forks=forks)):
            return [modules for _, *modules in forks]

    (repository / "in.txt").write_text("in")
    assert early() == [["dvc.cli"]]
    repro(repository)
    assert early() == []
    os.utime(repository / "in.txt", (time.time() + 2,) * 2)
    assert early() == []
    (repository / "in.txt").write_text("other")
    os.utime(repository / "in.txt", (time.time() + 2,) * 2)
    assert early() == [["dvc.cli"]]
    (repository / "in.txt").unlink()
    assert early() == [["dvc.cli"]]
    (repository / "dvc.yaml").unlink()
    assert early() == []
    assert psutil.Process().children() == []


@pytest.mark.parametrize(
    "line", ["python program.py", "python program.py 7", "python -m program words", "python none.py", "python -m none"]
)
def test_forked_program_does_what_it_does_in_a_shell(commands, tmp_path, line):
    """The same output and exit code, threads and atexit handlers included; the imports are done."""
    (tmp_path / "program.py").write_text(PROGRAM)
    output, code = run(commands, line, tmp_path, GIVEN="to it")
    plain = subprocess.run(
        line, shell=True, cwd=tmp_path, env=ENVIRONMENT | {"GIVEN": "to it"}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert code == plain.returncode or "none.py" in line
    if "none" in line:
        assert "none" in output
        assert code
    else:
        assert sorted(output.replace("True", "False").splitlines()) == sorted(plain.stdout.splitlines())
        assert "True" in output


def test_shell_command_is_not_changed_by_being_watched(commands, tmp_path):
    """Exit codes, signals and a closed pipe end a command as in DVC's shell; a job left behind is not waited for."""
    assert run(commands, "echo $GIVEN; exit 7", tmp_path, GIVEN="this") == ("this\n", 7)
    assert run(commands, "kill -9 $$", tmp_path) == ("", 128 + 9)
    assert run(commands, "yes | head -1", tmp_path) == ("y\n", 0)
    assert run(commands, "sleep 30 & echo $! > pid; echo begun", tmp_path) == ("begun\n", 0)
    assert psutil.pid_exists(int(read(tmp_path / "pid")))
    assert run(commands, "echo 'the next copy'", tmp_path) == ("the next copy\n", 0)
    psutil.Process(int(read(tmp_path / "pid"))).kill()


@pytest.mark.parametrize("line", ["python sleep.py", "echo $$ > pid; sleep 300"])
def test_command_ends_with_the_run(tmp_path, line):
    """Killed with -9, the run takes its commands along, forked or not, with what they started."""
    (tmp_path / "sleep.py").write_text("import os, time; open('pid', 'w').write(f'{os.getpid()}\\n'); time.sleep(300)")
    code = f"""
from pathlib import Path
import os
from dvc_parallel.commands import Commands
commands = Commands(["colorsys"])
commands.start({line!r}, ".", dict(os.environ), Path("log"), warm=True).wait()
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT) as process:
        wait_until(lambda: read(tmp_path / "pid").endswith("\n"))
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert int(read(tmp_path / "pid")) in [process.pid for process in family]
    assert not psutil.wait_procs(family, timeout=10)[1]


def test_command_ends_with_a_run_that_was_killed_early(commands, tmp_path):
    """The run is killed before it has read which process watches the command: the command ends all the same."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(commands.warm_up(()), [b"-"], [theirs.fileno()])
        line = "echo $$ > pid; sleep 300"
        request = None, ["/bin/sh", "-c", line], str(tmp_path), ENVIRONMENT, str(tmp_path / "log"), ()
        ours.sendall(pickle.dumps(request))
        wait_until(lambda: read(tmp_path / "pid").endswith("\n"))
        shell = psutil.Process(int(read(tmp_path / "pid")))
    shell.wait(20)


def test_ctrl_c_does_not_reach_a_process_that_begins(commands, tmp_path):
    """The process that watches a command ignores it; the command is stopped by the run."""
    command = commands.start("sleep 0.3; echo done", str(tmp_path), ENVIRONMENT, tmp_path / "log", warm=False)
    os.kill(command.pid, signal.SIGINT)
    assert (command.wait(60), read(tmp_path / "log")) == (0, "done\n")


def test_second_copy_of_a_stage_waits_for_the_first(commands, tmp_path):
    """A command whose runner was killed still holds the lock of its stage; the next copy waits for its end."""
    log = tmp_path / "log"
    first = commands.start("echo $$ > pid; sleep 300", str(tmp_path), ENVIRONMENT, log, warm=True)
    wait_until(lambda: read(tmp_path / "pid").endswith("\n"))
    shell = psutil.Process(int(read(tmp_path / "pid")))
    shell.parent().kill()
    assert first.wait(60) == 128 + signal.SIGKILL
    second = commands.start("echo begun", str(tmp_path), ENVIRONMENT, log, warm=True)
    wait_until(lambda: "waiting for an earlier copy" in read(log))
    assert "begun" not in read(log)
    for process in (*shell.children(), shell):
        process.kill()
    assert second.wait(60) == 0
    assert "begun" in read(log)


def test_commands_start_without_the_process_to_fork_from(commands, tmp_path):
    """When the process with the imports was killed, another takes its place, or the program starts from scratch."""
    (tmp_path / "program.py").write_text("print('done')")
    for _ in range(2):
        assert run(commands, "python program.py", tmp_path) == ("done\n", 0)
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.ZombieProcess):
                if "serve" in " ".join(process.cmdline()):
                    process.kill()
                    process.wait()
