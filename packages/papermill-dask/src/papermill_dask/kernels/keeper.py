"""The keeper: the parent of one kernel, which ends all that the kernel started once it, or the worker, is gone.

Run as a script it starts a kernel's command; the fork server forks it to fork a kernel in turn. It needs
the standard library alone, so that it is up in hundredths of a second. Over its socket it is told the request, then
``{"signal": number}`` or ``{"kill": true}``, and tells ``{"pid": ...}`` or ``{"failed": [errno, text, file]}``, then
``{"exit": code}`` (a signal is a negative code, as in `subprocess`); the socket closes when no descendant is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
ROUND_SECONDS = 0.005
PATIENCE_SECONDS = 10.0  # with a descendant that cannot be killed: one of another user, or deep in a broken disk

# What the child does: it becomes the kernel, and closes the socket once it cannot fail any more; `exec` does so itself.
Run = Callable[[dict[str, Any], int], None]


class Messages:
    """JSON messages, one a line, over a stream socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._rest = b""

    def send(self, **message: Any) -> bool:
        """Send one message; return whether anybody is there to read it."""
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> list[dict[str, Any]] | None:
        """Wait for bytes and return the messages that they complete; None when the other side is gone."""
        try:
            received = self.connection.recv(1 << 16)
        except ConnectionError:
            return None
        if not received:
            return None
        *lines, self._rest = (self._rest + received).split(b"\n")
        return [json.loads(line) for line in lines]


def keep(connect: Callable[[], socket.socket], run: Run, rehearse: Callable[[], None] = lambda: None) -> NoReturn:
    """Fork a child, start the kernel of the request in it by ``run``, and stay until nothing of it is left.

    ``connect`` may take its time, and brings the socket on which the request comes; meanwhile the child is there, and
    does ``rehearse``.
    """
    with contextlib.suppress(PermissionError):  # who already leads a group cannot open a session
        os.setsid()
    control_process(PR_SET_CHILD_SUBREAPER, 1)
    signals = _signals_as_bytes()
    kernel, child = _fork(run, rehearse)
    messages = Messages(connect())
    request, orders = _read_request(messages)
    problem = _start(child, request)
    there = messages.send(failed=problem) if problem else messages.send(pid=kernel)
    if there and not problem:
        there = _watch(messages, kernel, signals, orders)
    _end_descendants()
    if not there:
        _remove(request.get("folder"))
    # At once: the memory of a fork of the fork server takes a while to give back.
    with contextlib.suppress(OSError):
        messages.connection.shutdown(socket.SHUT_RDWR)
    # Not the normal way out: a fork of the fork server would run what that process has to do at its end.
    os._exit(0)


def _read_request(messages: Messages) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    received: list[dict[str, Any]] = []
    while not received:
        if (more := messages.receive()) is None:
            os._exit(0)
        received += more
    return received[0], received[1:]


def control_process(option: int, value: int) -> None:
    """Call Linux' prctl; elsewhere there is no such thing."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _signals_as_bytes() -> socket.socket:
    """Return a socket on which each SIGCHLD and SIGTERM arrives as a byte, so that one `select` waits for all."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writing.detach(), warn_on_full_buffer=False)
    return reading


def _fork(run: Run, rehearse: Callable[[], None]) -> tuple[int, socket.socket]:
    """Fork the process that becomes the kernel once `_start` says so; return its process id and the way to it."""
    ours, theirs = socket.socketpair()
    keeper = os.getpid()
    kernel = os.fork()
    if kernel:
        theirs.close()
        return kernel, ours
    started = theirs.fileno()
    try:
        ours.close()
        _become_leader(keeper)
        rehearse()
        request, _ = _read_request(Messages(theirs))
        request["env"]["JPY_PARENT_PID"] = str(keeper)
        if request["umask"] is not None:
            os.umask(request["umask"])
        run(request, theirs.detach())
    except OSError as error:
        os.write(started, json.dumps([error.errno, error.strerror, error.filename]).encode())
    finally:
        os._exit(127)


def _start(child: socket.socket, request: dict[str, Any]) -> list | None:
    """Tell the child its request; return errno, text and file when the kernel could not be started."""
    with child, child.makefile("rb") as answer:
        if not Messages(child).send(**request):  # killed while it waited; the worker notices that we end
            os._exit(1)
        problem = answer.read()
    return json.loads(problem) if problem else None


def _become_leader(keeper: int) -> None:
    """Give the child what a fresh process has: a session, no input, no handlers; it dies with its keeper."""
    os.setsid()
    control_process(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(127)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _watch(messages: Messages, kernel: int, signals: socket.socket, orders: list[dict[str, Any]]) -> bool:
    """Obey until the kernel has ended, and tell how; return False when the worker is gone, or wants an end, first."""
    with selectors.DefaultSelector() as selector:
        selector.register(messages.connection, selectors.EVENT_READ)
        selector.register(signals, selectors.EVENT_READ)
        while True:
            for order in orders:
                _obey(order, kernel)
            orders = []
            ready = {key.fileobj for key, _ in selector.select()}
            if signals in ready:
                if signal.SIGTERM in signals.recv(4096):
                    return False
                code = _reap(kernel)
                if code is not None:
                    return messages.send(exit=code)
            if messages.connection in ready:
                received = messages.receive()
                if received is None:
                    return False
                orders = received


def _obey(order: dict[str, Any], kernel: int) -> None:
    number = signal.SIGKILL if order.get("kill") else order["signal"]
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(kernel, number)


def _reap(kernel: int | None = None) -> int | None:
    """Take note of every child that has ended; return the kernel's exit code if it is one of them.

    Raises ChildProcessError when there is no child at all.
    """
    code = None
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return code
        if pid == kernel:
            return os.waitstatus_to_exitcode(status)


def _end_descendants() -> None:
    """Kill what is left, generation by generation: whoever loses its parent becomes a child of this process."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            for pid in _children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            _reap()
            time.sleep(ROUND_SECONDS)


def _children() -> list[int]:
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children") as file:  # noqa: PTH123 - pathlib takes as long as the rest
            return [int(pid) for pid in file.read().split()]
    except OSError:  # not Linux, or a kernel without this file
        import psutil

        return [child.pid for child in psutil.Process().children(recursive=True)]


def _remove(folder: str | None) -> None:
    """Remove the folder of the kernel's sockets, which holds no folders, where no worker is left to do it."""
    if folder:
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):  # noqa: PTH208 - pathlib takes as long as the rest
                os.unlink(os.path.join(folder, name))  # noqa: PTH108, PTH118
            os.rmdir(folder)  # noqa: PTH106


def execute(request: dict[str, Any], _: int) -> None:
    """Become the command of the request; raises OSError when that, or its folder, is not there."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores; `subprocess` restores them, too
        signal.signal(number, signal.SIG_DFL)
    os.chdir(request["cwd"])
    program = request["argv"][0]
    try:
        os.execvpe(program, request["argv"], request["env"])  # noqa: S606 - no shell is wanted
    except OSError as error:  # which names the last place that was searched
        raise OSError(error.errno, error.strerror, program) from None


if __name__ == "__main__":
    inherited = socket.socket(fileno=int(sys.argv[1]))
    inherited.set_inheritable(False)
    keep(lambda: inherited, execute)
