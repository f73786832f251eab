"""The supervisor of one kernel: its parent, which ends all the kernel's processes once it, or the worker, is gone.

It receives, over a connection to the worker, a request (``argv``, ``env``, ``cwd``, ``folder``), then the
numbers of signals. It sends the kernel's process id, or the error that kept the kernel from starting; then the exit
code, which is negative for a signal, as in `subprocess`. The connection closes when the kernel has no descendants.
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
REAP_SECONDS = 5.0  # at most until an ended descendant leaves the process table
POLL_SECONDS = 0.05  # without `pidfd_open`
ROUND_SECONDS = 0.005
PATIENCE_SECONDS = 10.0  # with a descendant that cannot be killed: another user's, or one that waits for a broken disk


class WarmProcessStale(Exception):
    """A warm process has ended, or has imported files that have changed since."""


class ForkUnsafe(Exception):
    """The imports of a warm process forbid forking: they failed, or started threads."""


def main() -> NoReturn:
    """Run the command of a request, which may be any language's kernel; the command line names the connection."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    supervise(Connection(descriptor), _run_command)


def supervise(
    connection: Connection, start: Callable[[Request], int], check: Callable[[], None] = lambda: None
) -> NoReturn:
    """Wait for a request, start its kernel by ``start``, and stay until its descendants have ended.

    ``check`` may raise WarmProcessStale while the kernel starts.
    """
    with contextlib.suppress(PermissionError):  # the leader of a group cannot open a session
        os.setsid()
    _control_process(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: None)  # the worker gets the signal, too, and this process ends with it
    try:
        request = connection.recv()
    except (EOFError, OSError):
        os._exit(0)
    if connection.poll():  # the kernel was killed, or the worker is gone, during the imports
        os._exit(0)
    request["env"]["JPY_PARENT_PID"] = str(os.getpid())
    try:
        os.chdir(request["cwd"])
        kernel = start(request)
        check()
    except (OSError, WarmProcessStale, ForkUnsafe) as error:
        _end_descendants()
        _send(connection, error)
        os._exit(1)
    code = _watch(connection, kernel) if _send(connection, kernel) else None
    is_reported = code is not None and _send(connection, code)
    _end_descendants()
    if not is_reported and request["folder"]:
        shutil.rmtree(request["folder"], ignore_errors=True)
    connection.close()  # now: freeing the memory of a forked process takes a while
    os._exit(0)


def end_with(parent: int) -> None:
    """Let Linux kill this process when the thread of its parent that started it ends."""
    _control_process(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(127)


def end_alone() -> None:
    """Undo `end_with`, and close the standard streams, for whose end a reader would wait."""
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
        preexec_fn=lambda: end_with(supervisor),
    )
    process.returncode = 0  # `_reap` waits for it
    return process.pid


def _send(connection: Connection, message: Any) -> bool:
    """Send a message; return whether the worker can receive it."""
    try:
        connection.send(message)
    except OSError:
        return False
    return True


def _watch(connection: Connection, kernel: int) -> int | None:
    """Pass signals on until the kernel has ended; return its exit code, or None if the worker is gone first."""
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
                except ProcessLookupError:  # it leads no group yet
                    os.kill(kernel, number)


def _reap(kernel: int | None = None) -> int | None:
    """Remove ended children from the process table; return the kernel's exit code if the kernel is one of them.

    Raises ChildProcessError when there is no child at all.
    """
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == kernel:
            return os.waitstatus_to_exitcode(status)
        if pid == 0:
            return None


def _end_descendants() -> None:
    """Kill all descendants: a process that loses its parent becomes a child of this one."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with contextlib.suppress(ChildProcessError):
        _reap()
        import psutil

        while time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(ROUND_SECONDS)
            _reap()
