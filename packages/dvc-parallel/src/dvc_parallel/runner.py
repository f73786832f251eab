"""Run each command of a stage in its own session, and terminate the session if the run dies.

A process between the fork server and the command supervises the command. It locks the stage's log, so that a new run
of the same stage waits until the old command has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
from importlib.metadata import EntryPoint

END_SECONDS = 2.0
WAIT_SECONDS = 0.1
PID_BYTES = 4


def serve() -> None:
    """Import the modules and call functions (`module:function`) in sys.argv; `run` each received socket in a fork."""
    requests, names = socket.socket(fileno=int(sys.argv[1])), sys.argv[2:]
    for name in names:
        with contextlib.suppress(Exception):  # the program itself will raise and log this error
            loaded = EntryPoint("", name, "").load()
            if callable(loaded):
                loaded()
    sys.stdout.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    while numbers := socket.recv_fds(requests, 1, 1)[1]:
        if os.fork() == 0:
            requests.close()
            run(socket.socket(fileno=numbers[0]))
        os.close(numbers[0])
    os._exit(0)


def run(report: socket.socket) -> None:
    """Run the command received over ``report``; send this process's id and the command's exit code. Does not return."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM):  # only the command handles these signals
        signal.signal(number, signal.SIG_IGN)
    with report.makefile("rb") as file:
        program, words, cwd, environment, log, ignored = pickle.load(file)  # noqa: S301 - sent by dvc-parallel
    report.sendall(os.getpid().to_bytes(PID_BYTES))
    lock = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(lock, stream)
    _acquire(lock, report)
    os.chdir(cwd)
    child = os.fork()
    if child == 0:
        for number, handler in (signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler):
            signal.signal(number, signal.SIG_IGN if number in ignored else handler)
        report.close()
        os.close(lock)
        if program:
            _run_program(program, words, environment)
        os._exit(_run_shell(words, environment))
    ender = threading.Thread(target=_end_with, args=(report,), daemon=True)
    ender.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if select.select([report], [], [], 0)[0]:
        ender.join()
    fcntl.flock(lock, fcntl.LOCK_UN)  # otherwise this command's background processes would block the next command
    report.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def _acquire(lock: int, report: socket.socket) -> None:
    """Acquire the lock on the stage's log; exit if the run ends first."""
    seconds = 0.0
    while not select.select([report], [], [], seconds)[0]:
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not seconds:
            print("waiting for an earlier run of this stage to end", flush=True)
        seconds = WAIT_SECONDS
    os._exit(128 + signal.SIGTERM)


def _end_with(report: socket.socket) -> None:
    """Terminate the whole session, including this process, when the run has ended."""
    select.select([report], [], [])
    os.killpg(0, signal.SIGTERM)
    time.sleep(END_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _run_shell(words: list[str], environment: dict[str, str]) -> int:
    """Replace this process with the shell that DVC would start; return an exit code if that fails."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these signals, and the shell would inherit that
        signal.signal(number, signal.SIG_DFL)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # otherwise background processes would inherit the open files
    try:
        os.execvpe(words[0], words, environment)  # noqa: S606
    except OSError as error:
        print(f"{words[0]}: {error.strerror}", flush=True)
        return 127


def _run_program(program: EntryPoint, words: list[str], environment: dict[str, str]) -> None:
    """Run a console script in this process, and exit normally, so that Python joins threads and flushes files."""
    os.environ.update(environment)  # keeps other variables, which the imports may have set
    sys.argv = words
    sys.path[:0] = [] if sys.flags.safe_path else [os.path.dirname(words[0])]  # noqa: PTH120
    importlib.invalidate_caches()
    if process := sys.modules.get("multiprocessing.process"):
        vars(process)["ORIGINAL_DIR"] = os.getcwd()  # noqa: PTH109 - multiprocessing stores a string
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # otherwise all forks would draw the same random numbers
    sys.exit(program.load()())
