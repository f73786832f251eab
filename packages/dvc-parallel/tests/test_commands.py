"""Commands of stages: which ones are forked, and that they behave as in a shell."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import venv
from pathlib import Path

import psutil
import pytest
from dvc_parallel.commands import Commands, console_script, imported_modules
from programs import wait_for
from repositories import ENVIRONMENT, read

# A console script that runs a file; it imports more than the forking process does.
SCRIPT = """
import colorsys, multiprocessing, os, runpy, sys
made_by = None
def make():
    global made_by
    made_by = os.getpid()
def main():
    sys.argv = sys.argv[1:]
    return runpy.run_path(sys.argv[0], run_name="program").get("code")
"""
REPORT = """
import atexit, multiprocessing, os, pathlib, signal, sys, threading
class Last:
    def __del__(self):
        print("deleted at the end")
def square(number):
    return number ** 2
last = Last()
atexit.register(print, "at the end")
print(sys.argv, os.getcwd(), os.environ["GIVEN"], os.environ["PATH"], repr(sys.stdin.read()), flush=True)
print(sorted(os.listdir("/proc/self/fd")), sys.path, sys.flags, sys.executable, os.umask(0o22))
print([str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)])
print(multiprocessing.parent_process(), multiprocessing.active_children(), multiprocessing.get_start_method())
for method in ("fork", "spawn", "forkserver"):
    with multiprocessing.get_context(method).Pool(2) as pool:
        print(pool.map(abs, [-1, 2]), pool.apply(os.getcwd))
threading.Timer(0.2, print, ("in a thread",)).start()
code = 7
"""
PROGRAMS = {
    "report": REPORT,
    "no code": "code = None",
    "text": "import sys\nprint('out'); sys.exit('in words')",
    "now": "import os\nos._exit(3)",
    "Ctrl-C": "raise KeyboardInterrupt",
    "killed": "import os\nos.kill(os.getpid(), 9)",
    "interrupted": "import os, time\nos.kill(os.getpid(), 2); time.sleep(5)",
    "at exit": "import atexit\natexit.register(divmod, 1, 0)",
    "error": "1 / 0",
    "no module": "import nothing_of_this_name",
}
ENTRIES = "[console_scripts]\nrun-file = run_file:main\n[dvc_parallel.preload]\nrun-file = run_file:make\n"
LINE = """run-file program.py a 'b "*' "c: 'd" e"f g"''"""
RUN = """
import sys
from pathlib import Path
import os
from dvc_parallel.commands import Commands
commands = Commands(lines=["run-file x"])
assert commands.modules == ["run_file", "run_file:make"]
code = commands.start(sys.argv[1], ".", dict(os.environ), Path("log")).wait()
commands.close()
sys.exit(code)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of a new environment with all packages of this one and the console script `run-file`."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "all.pth").write_text("\n".join(path for path in sys.path if path.endswith(("site-packages", "src"))))
    (site / "run_file.py").write_text(SCRIPT)
    (site / "run_file-1.dist-info").mkdir()
    (site / "run_file-1.dist-info" / "METADATA").write_text("Name: run-file\nVersion: 1\n")
    (site / "run_file-1.dist-info" / "entry_points.txt").write_text(ENTRIES)
    script = folder / "bin" / "run-file"
    lines = [f"#!{script.with_name('python')}", "import sys", "from run_file import main"]
    script.write_text("\n".join([*lines, "if __name__ == '__main__':", "    sys.exit(main())"]))
    script.chmod(0o755)
    return script.with_name("python")


@pytest.fixture(scope="module")
def commands():
    """The `Commands` that start the commands of stages."""
    with contextlib.closing(Commands()) as commands:
        yield commands


def run(commands: Commands, line: str, folder: Path, **environment: str) -> tuple[str, int]:
    """Return the output of a command and its exit code."""
    log = folder / "log"
    log.unlink(missing_ok=True)
    code = commands.start(line, str(folder), ENVIRONMENT | environment, log).wait(60)
    return log.read_text(), code


@pytest.mark.parametrize(
    "line",
    ["dvc a b | cat", "dvc $IN b", "X=1 dvc a", "dvc *.ipynb -", "dvc a > b", "'dvc", "dvc a && dvc b", "dvc `ls`",
     "dvc a\nls", "dvc ~/a", "dvc -p x [1,2]", 'dvc "$IN"', "", " ", "python x.py", "ls"],
)  # fmt: skip
def test_command_that_needs_a_shell_is_run_by_one(line):
    """Commands with shell syntax, and programs that are no console scripts, are run by the shell."""
    assert console_script(line, ENVIRONMENT) is None


def test_console_script_of_this_environment_is_recognised(tmp_path, monkeypatch):
    """The program is found on PATH; packages add the modules of plug-ins to those of a script."""
    assert imported_modules(["dvc repro  -j 2 a/b.c:d@e", "python x.py", "dvc status", "ls"], ENVIRONMENT) == [
        "dvc.cli"
    ]
    (tmp_path / "dvc").write_text("#!/bin/sh\n")
    (tmp_path / "dvc").chmod(0o755)
    assert console_script("dvc repro", ENVIRONMENT | {"PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}"}) is None
    (tmp_path / "plugin-1.dist-info").mkdir()
    (tmp_path / "plugin-1.dist-info" / "entry_points.txt").write_text("[dvc_parallel.preload]\ndvc = plugin.late\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert imported_modules(["dvc repro"], ENVIRONMENT) == ["dvc.cli", "plugin.late"]


@pytest.mark.skipif(sys.platform != "linux", reason="programs are forked on Linux alone")
@pytest.mark.parametrize("program", PROGRAMS)
def test_forked_program_behaves_as_in_a_shell(python, tmp_path, program):
    """Output (except traceback lines) and exit code are the same, also with pools, threads and exit handlers."""
    (tmp_path / "program.py").write_text(PROGRAMS[program])
    environment = ENVIRONMENT | {"PATH": f"{python.parent}:{ENVIRONMENT['PATH']}", "GIVEN": "to it"}
    outputs = []
    for words in ([python, "-c", RUN, LINE], ["sh", "-c", f"{LINE} >log 2>&1"]):
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # pytest itself may ignore Ctrl-C
        )  # fmt: skip
        lines = read(tmp_path / "log").splitlines()
        outputs.append(
            (done.returncode, [line for line in lines if not line.startswith((" ", "Exception ignored", "Killed"))])
        )
        (tmp_path / "log").replace(tmp_path / f"log{len(outputs)}")
    assert outputs[0] == outputs[1]


@pytest.mark.skipif(sys.platform != "linux", reason="programs are forked on Linux alone")
def test_function_of_a_package_is_called_before_the_fork(python, tmp_path):
    """The effects of `module:function` in the forking process are visible in the program."""
    program = "import os, run_file\ncode = int(run_file.made_by in (None, os.getpid()))"
    (tmp_path / "program.py").write_text(program)
    environment = ENVIRONMENT | {"PATH": f"{python.parent}:{ENVIRONMENT['PATH']}"}
    done = subprocess.run([python, "-c", RUN, LINE], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, read(tmp_path / "log")


def test_supervised_shell_command_behaves_as_in_dvc(commands, tmp_path):
    """Exit codes, signals and a closed pipe are those of DVC's shell; background jobs are not waited for."""
    assert run(commands, "echo $GIVEN; exit 7", tmp_path, GIVEN="this") == ("this\n", 7)
    assert run(commands, "kill -9 $$", tmp_path) == ("", 128 + 9)
    assert run(commands, "yes | head -1", tmp_path) == ("y\n", 0)
    assert run(commands, "sleep 30 & echo $! > pid; echo begun", tmp_path) == ("begun\n", 0)
    assert psutil.pid_exists(int(read(tmp_path / "pid")))
    assert run(commands, "echo 'the next copy'", tmp_path) == ("the next copy\n", 0)
    psutil.Process(int(read(tmp_path / "pid"))).kill()


@pytest.mark.parametrize("line", ["run-file sleep.py", "echo $$ > pid; sleep 300"])
def test_command_ends_with_the_run(python, tmp_path, line):
    """A run that is killed with SIGKILL ends its commands, forked or not, and their child processes."""
    (tmp_path / "sleep.py").write_text("import os, time; open('pid', 'w').write(f'{os.getpid()}\\n'); time.sleep(300)")
    environment = ENVIRONMENT | {"PATH": f"{python.parent}:{ENVIRONMENT['PATH']}"}
    with subprocess.Popen([python, "-c", RUN, line], cwd=tmp_path, env=environment) as process:
        wait_for(lambda: read(tmp_path / "pid").endswith("\n"))
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert int(read(tmp_path / "pid")) in [process.pid for process in family]
    assert not psutil.wait_procs(family, timeout=10)[1]


def test_command_ends_with_a_run_that_was_killed_early(commands, tmp_path):
    """The command also ends if the run is killed before it knows the supervising process."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(commands.warm_up(()), [b"-"], [theirs.fileno()])
        line = "echo $$ > pid; sleep 300"
        request = None, ["/bin/sh", "-c", line], str(tmp_path), ENVIRONMENT, str(tmp_path / "log"), ()
        ours.sendall(pickle.dumps(request))
        wait_for(lambda: read(tmp_path / "pid").endswith("\n"))
        shell = psutil.Process(int(read(tmp_path / "pid")))
    shell.wait(20)


def test_ctrl_c_is_ignored_by_a_starting_process(commands, tmp_path):
    """The supervising process ignores Ctrl-C; the run stops the command."""
    command = commands.start("sleep 0.3; echo done", str(tmp_path), ENVIRONMENT, tmp_path / "log")
    os.kill(command.pid, signal.SIGINT)
    assert (command.wait(60), read(tmp_path / "log")) == (0, "done\n")


def test_second_copy_of_a_stage_waits_for_the_first(commands, tmp_path):
    """A command whose run was killed still holds the lock of its stage; the next run waits for it."""
    log = tmp_path / "log"
    first = commands.start("echo $$ > pid; sleep 300", str(tmp_path), ENVIRONMENT, log)
    wait_for(lambda: read(tmp_path / "pid").endswith("\n"))
    shell = psutil.Process(int(read(tmp_path / "pid")))
    shell.parent().kill()
    assert first.wait(60) == 128 + signal.SIGKILL
    second = commands.start("echo begun", str(tmp_path), ENVIRONMENT, log)
    wait_for(lambda: "waiting for an earlier run" in read(log))
    assert "begun" not in read(log)
    for process in (*shell.children(), shell):
        process.kill()
    assert second.wait(60) == 0
    assert "begun" in read(log)


def test_forking_process_is_restarted(commands, tmp_path):
    """If the process that starts commands was killed, a new one is started."""
    for _ in range(2):
        assert run(commands, "echo done", tmp_path) == ("done\n", 0)
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.ZombieProcess):
                if "serve" in " ".join(process.cmdline()):
                    process.kill()
                    process.wait()
