"""Runs one command of a stage in a session of its own, and ends the session when the run is gone.

Such a process stands between the run and each command. It holds the lock of the stage, which is its log: the next copy
of the stage waits until the command of a killed run, or of a killed runner, has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib
import os
import runpy
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

END_SECONDS = 2.0
WAIT_SECONDS = 0.1


def run(program: list[str] | None, shell: list[str], cwd: str, environment: dict[str, str], log: Path) -> NoReturn:
    """Run a Python program in a fork of this process, or else a shell; write its output to ``log``, exit as it does."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the command
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    parent = parent_process()
    assert parent, "multiprocessing runs this in a child"
    run_ended = parent.sentinel
    lock = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(lock, stream)
    _take(lock, run_ended)
    os.chdir(cwd)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os._exit(_run_program(program, environment) if program else _run_shell(shell, environment))
    ender = threading.Thread(target=_end_with, args=(run_ended,), daemon=True)
    ender.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if select.select([run_ended], [], [], 0)[0]:
        ender.join()
    fcntl.flock(lock, fcntl.LOCK_UN)  # a background process that the command leaves does not hold up the next one
    os._exit(code if code >= 0 else 128 - code)


def run_next(modules: Sequence[str], receiver: Connection) -> None:
    """Import modules; then `run` what comes, if anything does."""
    for module in modules:
        with contextlib.suppress(Exception):  # met again by a program that needs it, and shown in its log
            importlib.import_module(module)
    with contextlib.suppress(EOFError):
        run(*receiver.recv())


def _take(lock: int, run_ended: int) -> None:
    """Wait for the lock of the stage; exit when the run ends meanwhile."""
    seconds = 0.0
    while not select.select([run_ended], [], [], seconds)[0]:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not seconds:
                print("waiting for an earlier copy of this stage to end", flush=True)
            seconds = WAIT_SECONDS
    os._exit(128 + signal.SIGTERM)


def _end_with(run_ended: int) -> None:
    """End the whole session once the run is gone, this process included."""
    os.read(run_ended, 1)
    os.killpg(0, signal.SIGTERM)
    time.sleep(END_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _run_shell(words: list[str], environment: dict[str, str]) -> int:
    """Become the shell, as DVC starts it; return an exit code if that fails."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the shell would inherit that
        signal.signal(number, signal.SIG_DFL)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # multiprocessing's: a background process would keep them open
    try:
        os.execvpe(words[0], words, environment)  # noqa: S606
    except OSError as error:
        print(f"{words[0]}: {error.strerror}", flush=True)
        return 127


def _run_program(words: list[str], environment: dict[str, str]) -> int:
    """Run `python FILE ...` or `python -m MODULE ...`; return the exit code after the work that Python does at exit."""
    os.environ.clear()
    os.environ.update(environment)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # otherwise all programs that are forked from one process draw the same numbers
    is_module = words[0] == "-m"
    sys.argv = words[is_module:]
    sys.path[0] = str(Path.cwd() if is_module else Path(words[0]).absolute().parent)
    code: object = 0
    try:
        if is_module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as error:
        code = error.code
    except BaseException as error:  # noqa: BLE001 - shown as Python shows it
        sys.excepthook(*sys.exc_info())
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined] # private
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return (code or 0) & 0xFF
