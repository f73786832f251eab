"""The server that commands are forked from: it imports what they need, forks, reaps, and ends them with its client."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import importlib.metadata
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from papermill_dask.kernels.supervisor import end_with

READ_BYTES = 1 << 16
ORPHAN_SECONDS = 2.0
HEADER = struct.Struct("!I")


def serve(control: int, modules: list[str]) -> None:
    """Serve until the client is gone; in each forked program, run it and exit as its script does."""
    run = _Server(socket.socket(fileno=control), modules).serve()
    sys.exit(run())


class _Server:
    """Forks commands, reaps them, and imports the next module whenever there is nothing else to do."""

    def __init__(self, control: socket.socket, modules: list[str]) -> None:
        self._control = control
        self._modules = list(modules)
        self._running: dict[int, socket.socket] = {}
        self._wake, wakes = os.pipe()
        self._wakes = wakes
        os.set_blocking(self._wake, False)
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Commands shall hear Ctrl-C even when we were started with it ignored, as shells do with background jobs.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)

    def serve(self) -> Callable[[], object]:
        """Return what to run, in a forked program; in the server itself, never return."""
        while True:
            ready = {key.fileobj for key, _ in self._selector.select(0 if self._modules else None)}
            if self._wake in ready:
                os.read(self._wake, READ_BYTES)
            if self._control in ready:
                run = self._answer()
                if run is not None:
                    return run
            elif self._modules:
                self._import_next()
            self._reap()

    def _import_next(self) -> None:
        # A module that does not import is the command's to complain about.
        with contextlib.suppress(Exception):
            importlib.import_module(self._modules.pop(0))
        if not self._modules:
            # Keeps the collector from touching, and so copying, the pages that commands share.
            gc.collect()
            gc.freeze()

    def _answer(self) -> Callable[[], object] | None:
        header, descriptors, *_ = socket.recv_fds(self._control, HEADER.size, 2)
        if not header:
            self._end_all()
        data, size = b"", HEADER.unpack(header)[0]
        while len(data) < size:  # no byte more: the next request may be there already
            data += self._control.recv(size - len(data)) or self._end_all()
        request = json.loads(data)
        if "modules" in request:
            self._modules += request["modules"]
            return None
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        output, status = descriptors
        server, pid = os.getpid(), os.fork()
        if pid == 0:
            return self._become(server, request, output, socket.socket(fileno=status))
        os.close(output)
        self._running[pid] = socket.socket(fileno=status)
        return None

    def _become(self, server: int, request: dict, output: int, status: socket.socket) -> Callable[[], object]:
        """Make this forked process the command: replace it, or return what runs the program."""
        os.setsid()
        end_with(server)  # when the server is killed and can no longer do it
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # Told only now: whoever knows the pid may signal the group.
        status.sendall(f"{os.getpid()}\n".encode())
        for resource in (self._selector, self._control, status, *self._running.values()):
            resource.close()
        for descriptor in (output, self._wake, self._wakes):
            os.close(descriptor)
        try:
            os.chdir(request["cwd"])
            if not request["program"]:
                os.execvpe(request["words"][0], request["words"], request["environment"])  # noqa: S606
        except OSError as error:
            os.write(2, f"{request['words'][0]}: {error}\n".encode())
            os._exit(127)
        os.environ.clear()
        os.environ.update(request["environment"])
        return functools.partial(_run_program, request["words"])

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with self._running.pop(pid) as client, contextlib.suppress(OSError):
                client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())

    def _end_all(self) -> None:
        """Exit at once, after the commands: their client is gone."""
        groups = list(self._running)  # where children may outlive the command itself
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in groups:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, number)
            patience = time.monotonic() + ORPHAN_SECONDS
            while self._running and time.monotonic() < patience:
                time.sleep(0.05)
                self._reap()
        os._exit(0)


def _run_program(words: list[str]) -> object:
    """Call the function behind a console script, as the script itself would."""
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # else all forked programs would draw the same numbers
    name = Path(words[0]).name
    (entry,) = importlib.metadata.distribution(name).entry_points.select(group="console_scripts", name=name)
    return entry.load()()
