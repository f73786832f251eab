"""The supervisor: the parent process of one kernel; kills all descendants when the kernel or the worker ends.

Over its connection to the worker it receives a request (``argv``, ``env``, ``cwd``, ``folder``), then signal numbers.
It sends the kernel's process id or a start error, then the exit code (negative for a signal, as in `subprocess`).
The connection closes when all descendants of the kernel have ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

Request = dict[str, Any]

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
REAP_SECONDS = 5.0  # interval for reaping exited descendants
POLL_SECONDS = 0.05  # polling interval without `pidfd_open`
ROUND_SECONDS = 0.005
KILL_SECONDS = 10.0  # then give up: the remaining processes are another user's, or hang on a broken disk


class WarmProcessStale(Exception):
    """A warm process has exited, or its imported files have changed."""


class ForkUnsafe(Exception):
    """Forking is unsafe, because an import in the warm process failed or started threads."""


def main() -> NoReturn:
    """Supervise a kernel of any language over the connection given on the command line."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    supervise(Connection(descriptor), _run_command)


def supervise(
    connection: Connection, start: Callable[[Request], int], check: Callable[[], None] = lambda: None
) -> NoReturn:
    """Wait for a request, start its kernel with ``start``, and exit when the kernel and its descendants have ended.

    ``check`` is called after the start, and may raise WarmProcessStale.
    """
    with contextlib.suppress(PermissionError):  # a process group leader cannot create a session
        os.setsid()
    _control_process(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: None)  # the worker gets this signal, too; its end then ends this process
    try:
        request = connection.recv()
    except (EOFError, OSError):
        os._exit(0)
    if connection.poll():  # the kernel was killed or the worker ended during the imports
        os._exit(0)
    request["env"]["JPY_PARENT_PID"] = str(os.getpid())
    try:
        os.chdir(request["cwd"])
        kernel = start(request)
        check()
    except (OSError, WarmProcessStale, ForkUnsafe) as error:
        _kill_descendants()
        _send(connection, error)
        os._exit(1)
    code = _watch(connection, kernel) if _send(connection, kernel) else None
    is_reported = code is not None and _send(connection, code)
    _kill_descendants()
    if not is_reported and request["folder"]:
        shutil.rmtree(request["folder"], ignore_errors=True)
    connection.close()  # the worker need not wait until this process has freed its memory
    os._exit(0)


def die_with_parent(parent: int) -> None:
    """Make Linux kill this process when the parent thread that started it exits."""
    _control_process(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(127)


def outlive_parent() -> None:
    """Undo `die_with_parent`; redirect the output to /dev/null, since readers would wait for this process."""
    _control_process(PR_SET_PDEATHSIG, 0)
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    os.close(null)


def _control_process(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _run_command(request: Request) -> int:
    supervisor = os.getpid()
    process = subprocess.Popen(
        request["argv"],
        env=request["env"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(supervisor),
    )
    process.returncode = 0  # keep Popen from waiting for the process, because `_reap` does
    return process.pid


def _send(connection: Connection, message: Any) -> bool:
    """Send a message to the worker; return whether that succeeded."""
    try:
        connection.send(message)
    except OSError:
        return False
    return True


def _watch(connection: Connection, kernel: int) -> int | None:
    """Forward signals until the kernel ends; return its exit code, or None if the worker ends first."""
    descriptors = [os.pidfd_open(kernel)] if hasattr(os, "pidfd_open") else []
    seconds = REAP_SECONDS if descriptors else POLL_SECONDS
    while True:
        ready = wait([connection, *descriptors], seconds)
        if (code := _reap(kernel)) is not None:
            return code
        if connection in ready:
            try:
                number = connection.recv()
            except (EOFError, OSError):
                return None
            with contextlib.suppress(PermissionError):
                try:
                    os.killpg(kernel, number)
                except ProcessLookupError:  # the kernel is not yet a process group leader
                    os.kill(kernel, number)


def _reap(kernel: int | None = None) -> int | None:
    """Reap children that have exited; return the kernel's exit code if it is among them.

    Raises ChildProcessError if no children are left.
    """
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == kernel:
            return os.waitstatus_to_exitcode(status)
        if pid == 0:
            return None


def _kill_descendants() -> None:
    """Kill all descendants, including orphans, which become children of this process."""
    deadline = time.monotonic() + KILL_SECONDS
    with contextlib.suppress(ChildProcessError):
        _reap()
        import psutil

        while time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(ROUND_SECONDS)
            _reap()
