"""Runs one command of a stage in a session of its own, and ends all of it when the run that asked for it is gone.

Such a process stands between the run and each command: a program with the standard library alone, or a fork of a
process that has the command's imports done. It holds the stage's lock: what a killed run, or a killed runner, leaves
behind keeps the lock until it has ended, and the next copy of the stage waits for that.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import runpy
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import parent_process
from pathlib import Path
from typing import NoReturn

END_SECONDS = 2.0
WAIT_SECONDS = 0.1


def run(command: Callable[[], object], asker: int, lock: str) -> NoReturn:
    """Run ``command`` in a child and exit as it does; ``asker`` is a pipe that ends when the run is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the command
        signal.signal(number, signal.SIG_IGN)
    held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    os.set_inheritable(held, True)
    _take(held, asker)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os._exit(_exit_code(command))
    gone = threading.Event()
    ender = threading.Thread(target=_end_with, args=(asker, gone), daemon=True)
    ender.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if gone.is_set():
        ender.join()
    fcntl.flock(held, fcntl.LOCK_UN)  # what a command leaves running on purpose does not hold the next one up
    if code < 0:
        if -code in (signal.SIGINT, signal.SIGTERM):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def run_program(words: list[str], cwd: str, environment: dict[str, str], output, lock: str) -> NoReturn:
    """Run a Python program, in a process that was forked for it; ``output`` is a pipe for what it prints."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    run(lambda: _run_program(words), parent_process().sentinel, lock)


def _take(held: int, asker: int) -> None:
    """Wait for the stage's lock; exit when the run is gone meanwhile."""
    told = False
    while not select.select([asker], [], [], WAIT_SECONDS if told else 0)[0]:
        try:
            return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                print("waiting for an earlier copy of this stage to end", flush=True)
            told = True
    os._exit(128 + signal.SIGTERM)


def _end_with(asker: int, gone: threading.Event) -> None:
    """End the whole session once the run is gone, this process included."""
    os.read(asker, 1)
    gone.set()
    os.killpg(0, signal.SIGTERM)
    time.sleep(END_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _run_program(words: list[str]) -> None:
    """Do what `python FILE ...` or `python -m MODULE ...` does."""
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # else all programs that are forked from the same process would draw the same numbers
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], str(Path.cwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).absolute().parent)
        runpy.run_path(words[0], run_name="__main__")


def _exit_code(command: Callable[[], object]) -> int:
    """Call ``command`` and return the exit code that Python would end with, the end's work done."""
    code: object = 0
    try:
        command()
    except SystemExit as error:
        code = error.code
    except BaseException as error:  # noqa: BLE001 - the program's, to be shown as Python shows it
        sys.excepthook(*sys.exc_info())
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # waits for threads, as the end of a program does
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return (code or 0) & 0xFF


def _exec(words: list[str]) -> NoReturn:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what it becomes would, too
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(words[0], words)  # noqa: S606 - the shell, as DVC starts it
    except OSError as error:
        sys.exit(f"{words[0]}: {error.strerror}")


if __name__ == "__main__":  # ASKER LOCK WORDS...
    os.set_inheritable(int(sys.argv[1]), False)
    run(lambda: _exec(sys.argv[3:]), int(sys.argv[1]), sys.argv[2])
