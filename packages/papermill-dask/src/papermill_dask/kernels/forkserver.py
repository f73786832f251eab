"""The fork server: it imports what notebooks import, once, and forks a kernel from itself whenever one is wanted.

It runs beside a Dask worker, which it tells when it is ready (or why it never will be) over a socket. Each byte that
comes over the same socket brings the socket of one kernel's keeper; this process forks the keeper, which forks the
kernel. What a forked kernel finds is what a cold one would find: this module undoes what the imports, or the time
since, have left in the process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import inspect
import json
import logging
import os
import random
import select
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from papermill_dask.kernels.keeper import Messages, keep
from papermill_dask.kernels.launcher import LAUNCHER, run_kernel

QUIET_SECONDS = 0.2  # after which the next kernel is readied, so that it takes no time from the one that starts
INLINE_BACKEND = "module://matplotlib_inline.backend_inline"
# What ipykernel itself imports only once a kernel starts or ends.
KERNEL_MODULES = (
    *("ipykernel.debugger", "ipykernel.displayhook", "ipykernel.ipkernel", "psutil", "sqlite3"),
    *("IPython.core.debugger", "IPython.extensions.storemagic", "tornado.platform.asyncio"),
)


def main() -> NoReturn:
    """Import the modules named on the command line, tell the worker how it went, and fork kernels until it is gone."""
    control = Messages(socket.socket(fileno=int(sys.argv[1])))
    control.connection.set_inheritable(False)
    modules = json.loads(sys.argv[2])
    began = time.time()
    with _ending_with(control.connection):
        try:
            warmth, skipped = Warmth.gather(modules)
            reason = _unsafe()
        except Exception as error:  # noqa: BLE001 - whatever a module raises: kernels must start nevertheless
            reason = f"{type(error).__name__}: {error}"
    if reason:
        control.send(reason=reason)
        os._exit(1)
    inspect.getmodule(main.__code__)  # finds out, once, which module each file is; tracebacks ask for that
    gc.collect()
    gc.freeze()  # what is there now stays in memory that all kernels share
    control.send(seconds=time.time() - began, skipped=skipped)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers report to the worker; nobody waits for them here
    _serve(control.connection, warmth, _files_since(began))


@contextlib.contextmanager
def _ending_with(control: socket.socket) -> Iterator[None]:
    """Die at once if the worker does, even in the middle of an import: the signal SIGIO ends who does not expect it."""
    import fcntl

    flags = fcntl.fcntl(control, fcntl.F_GETFL)
    fcntl.fcntl(control, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(control, fcntl.F_SETFL, flags | os.O_ASYNC)
    if os.getppid() == 1:
        os._exit(1)
    yield
    fcntl.fcntl(control, fcntl.F_SETFL, flags)


@dataclass(frozen=True)
class Warmth:
    """What the imports changed in the process, and what it was before: a forked kernel needs both."""

    path: list[str]
    warning_filters: list[tuple]
    environment: dict[str, str]
    handlers: list[tuple[logging.StreamHandler, str]]
    callbacks: dict[str, list[Callable]]

    @classmethod
    def gather(cls, modules: Sequence[str]) -> tuple[Warmth, list[str]]:
        """Import ``modules``; return what that changed, and the modules that are not installed."""
        import ipykernel.kernelapp  # noqa: F401 - before all others, as in a kernel

        path, variables = list(sys.path), dict(os.environ)
        os.environ.setdefault("MPLBACKEND", INLINE_BACKEND)  # as the kernel does, whose figures are the notebook's
        with warnings.catch_warnings(), _shell() as shell:
            before = list(warnings.filters), {name: list(known) for name, known in shell.events.callbacks.items()}
            skipped = [name for name in modules if not _import(name)]
            with _silence():
                for name in KERNEL_MODULES:
                    _import(name)
            filters = [entry for entry in warnings.filters if entry not in before[0]]
            callbacks = {
                name: [function for function in known if function not in before[1][name]]
                for name, known in shell.events.callbacks.items()
            }
        changed = {name: value for name, value in os.environ.items() if variables.get(name) != value}
        changed.pop("MPLBACKEND", None)
        return cls(path, filters, changed, _handlers(), callbacks), skipped

    def restore(self) -> None:
        """Put back, before a kernel starts in this process, what each process has for itself."""
        sys.path[:] = self.path
        importlib.invalidate_caches()
        random.seed()
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed()
        if "tempfile" in sys.modules:
            sys.modules["tempfile"].tempdir = None

    def apply(self, shell: Any) -> None:
        """Bring into a started kernel what imports bring into it: filters, loggers' streams, callbacks of the shell."""
        warnings.filters[:0] = [entry for entry in self.warning_filters if entry not in warnings.filters]
        with warnings.catch_warnings():
            pass  # leaving tells the interpreter that the filters have changed
        for handler, stream in self.handlers:
            handler.setStream(getattr(sys, stream))
        for name, functions in self.callbacks.items():
            for function in functions:
                shell.events.register(name, function)


@contextlib.contextmanager
def _shell() -> Iterator[Any]:
    """Have a notebook's shell while modules are imported: pandas, plotly, tqdm and TensorFlow ask whether there is one.

    The kernel makes its own, later.
    """
    from ipykernel.zmqshell import ZMQInteractiveShell
    from traitlets.config import Config

    main_module = sys.modules["__main__"]
    shell = ZMQInteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    try:
        with shell.builtin_trap:
            yield shell
    finally:
        atexit.unregister(shell.atexit_operations)
        ZMQInteractiveShell.clear_instance()
        sys.modules["__main__"] = main_module


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what the debugger says about its own import out of the worker's log; a cold kernel says it to nobody."""
    sys.stderr.flush()
    stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)


def _import(name: str) -> bool:
    """Import a module, and call ``function`` if the name is ``module:function``, which is for what is slow only once.

    Return False when the module is not installed, raise what else goes wrong.
    """
    module, _, function = name.partition(":")
    try:
        imported = importlib.import_module(module)
        if function:
            getattr(imported, function)()
    except ModuleNotFoundError as error:
        if not error.name or not f"{module}.".startswith(f"{error.name}."):
            raise
        return False
    return True


def _handlers() -> list[tuple[logging.StreamHandler, str]]:
    """Return the log handlers that write to this process's streams; in a kernel they write to the notebook."""
    streams = {id(sys.stdout): "stdout", id(sys.stderr): "stderr"}
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), logging.StreamHandler)]
    return [
        (handler, streams[id(handler.__dict__["stream"])])
        for handler in found
        if id(handler.__dict__.get("stream")) in streams
    ]


def _unsafe() -> str | None:
    """Say why this process must not be forked, if so: a thread is not there any more in the fork, its locks are."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return f"a module started threads: {', '.join(others)}" if others else None


def _files_since(began: float) -> dict[str, tuple[int, int] | None]:
    """Return time of change and size of each imported file; None for one that changed while it was imported."""
    files: dict[str, tuple[int, int] | None] = {}
    for module in list(sys.modules.values()):
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str) and (state := _state(file)):
            files[file] = None if began * 1e9 <= state[0] <= time.time_ns() else state
    return files


def _state(file: str) -> tuple[int, int] | None:
    try:
        found = os.stat(file)  # noqa: PTH116 - thousands of them before each kernel
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _serve(control: socket.socket, warmth: Warmth, files: dict[str, tuple[int, int] | None]) -> NoReturn:
    """Give each socket that comes a keeper, unless a module's file has changed by then.

    One keeper, with the process that becomes its kernel, is there before it is wanted.
    """
    spare: socket.socket | None = None
    while True:
        if spare is None and not select.select([control], [], [], QUIET_SECONDS)[0]:
            spare = _fork_keeper(control, warmth)
        received, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not received:
            os._exit(0)
        with socket.socket(fileno=descriptors[0]) as connection:
            if spare is None or not _hand_over(spare, connection):  # not there, or killed while it waited
                _hand_over(_fork_keeper(control, warmth), connection)
            spare = None
            # Thousands of files: meanwhile the kernel starts. The worker uses it once it knows.
            changed = next((file for file, state in files.items() if _state(file) != state), None)
            Messages(connection).send(changed=changed)


def _hand_over(keeper: socket.socket, connection: socket.socket) -> bool:
    """Tell a keeper whom it serves; return False when it is gone."""
    with keeper:
        try:
            socket.send_fds(keeper, [b"."], [connection.fileno()])
        except OSError:
            return False
    return True


def _fork_keeper(control: socket.socket, warmth: Warmth) -> socket.socket:
    """Return the way to a new keeper, which waits for the socket of whom it serves."""
    ours, theirs = socket.socketpair()
    if _fork() == 0:
        control.close()
        ours.close()
        keep(lambda: _wait_for_socket(theirs), functools.partial(_become_kernel, warmth, theirs), _rehearse)
    theirs.close()
    return ours


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of native threads, too; those of OpenBLAS and Arrow look after themselves in a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _wait_for_socket(connection: socket.socket) -> socket.socket:
    """Return the socket that comes over another; exit when none will."""
    with connection:
        received, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    if not received:
        os._exit(0)
    return socket.socket(fileno=descriptors[0])


def _rehearse() -> None:
    """Do, for nothing, what a kernel does when it starts: the pages of memory that this changes are its own by then."""
    [getattr(module, "__file__", None) for module in sys.modules.copy().values()]
    with warnings.catch_warnings(), _shell():
        pass


def _become_kernel(warmth: Warmth, connection: socket.socket, request: dict[str, Any], started: int) -> NoReturn:
    """Be what `python -m ipykernel_launcher` would be in the request's folder and environment; never returns."""
    os.chdir(request["cwd"])
    os.close(started)
    connection.close()
    os.environ.clear()
    os.environ.update(warmth.environment | request["env"])
    warmth.restore()
    argv = request["argv"]
    run_kernel(argv[argv.index(LAUNCHER) + 1 :], warmth.apply)
