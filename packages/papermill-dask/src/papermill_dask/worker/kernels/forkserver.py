"""The fork server, which preloads modules and forks kernels, and the function that runs a kernel.

A worker starts `serve_forks`, which imports modules and serves all workers of the user whose kernels would be
identical. For each socket that a worker sends, the server forks a supervisor, which forks the kernel. To make a forked
kernel behave like a cold one, the side effects of the imports are undone or repeated.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import inspect
import json
import linecache
import logging
import multiprocessing
import os
import random
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from papermill_dask import compat
from papermill_dask.worker.kernels.supervisor import (
    ForkUnsafe,
    Request,
    WarmProcessStale,
    die_with_parent,
    outlive_parent,
    supervise,
)
from papermill_dask.worker.kernels.warm import FORK, LAUNCHER, STALE

INLINE_BACKEND = "module://matplotlib_inline.backend_inline"
# Preload these, too: ipykernel imports them only when a kernel starts or ends, IPython only to show an error.
KERNEL_MODULES = (
    *("ipykernel.debugger", "ipykernel.displayhook", "ipykernel.ipkernel", "psutil", "sqlite3", "stack_data"),
    *("IPython.core.debugger", "IPython.extensions.storemagic", "tornado.platform.asyncio"),
)
LAST_REPLY_SECONDS = 1.0


# -- a kernel ------------------------------------------------------------------------------------------------------
def run_cold_kernel() -> NoReturn:
    """Run a kernel with the options given on the command line."""
    run_kernel([*sys.orig_argv[: sys.orig_argv.index("-c")], "-m", LAUNCHER, *sys.argv[1:]])


def run_kernel(argv: list[str], prepare: Callable[[Any], None] = lambda _: None) -> NoReturn:
    """Run a kernel like the command ``argv`` (`python -m ipykernel_launcher ...`); pass its shell to ``prepare``."""
    from ipykernel.kernelapp import IPKernelApp

    options = argv[argv.index(LAUNCHER) + 1 :]
    sys.argv, sys.orig_argv = [getattr(importlib.util.find_spec(LAUNCHER), "origin", LAUNCHER), *options], argv
    code: int | None = 0
    try:
        compat.patch_ipykernel(Path(options[1]).parent)
        # Pass the parent's process id: ipykernel computes the default at import time, before the fork.
        app = IPKernelApp.instance(parent_handle=os.getppid())
        app.initialize(options)
        compat.patch_kernel(app)
        prepare(app.shell)
        app.start()
        compat.wait_for_shutdown_reply(app, LAST_REPLY_SECONDS)
    except SystemExit as error:
        code = error.code if error.code is None or isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - report any error, as the interpreter does
        sys.excepthook(*sys.exc_info())
        code = 1
    # Exit like the interpreter, but without deleting all modules, which takes a second with TensorFlow.
    compat.run_exit_handlers()
    gc.collect()  # flush and close files that the notebook left open
    for stream in filter(None, (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)
    os._exit(code or 0)


# -- the fork server -----------------------------------------------------------------------------------------------
class KernelForked(BaseException):
    """Raised in a forked kernel to unwind the supervisor's stack; carries the arguments for `run_kernel`."""


def serve_forks() -> NoReturn:
    """Run the fork server with the arguments in sys.argv until its last worker disconnects."""
    starter, modules, path, descriptor = sys.argv[1:]
    listener = socket.socket(fileno=int(descriptor))
    listener.set_inheritable(False)
    try:
        die_with_parent(int(starter))
        imports = Imports(json.loads(modules))
        outlive_parent()
        _serve(listener, Path(path), imports)
    except KernelForked as forked:
        argv, prepare = forked.args
    run_kernel(argv, prepare)  # the stack is as deep as in a cold kernel, which matters for the recursion limit


def _serve(listener: socket.socket, path: Path, imports: Imports) -> NoReturn:
    """Fork a supervisor for each request from a worker; raise KernelForked in the kernel that the supervisor forks."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reap supervisors automatically
    listeners, workers = [listener], list[socket.socket]()
    while listeners or workers:
        for ready in select.select([*listeners, *workers], [], [])[0]:
            if ready is listener:
                workers.append(listener.accept()[0])
                continue
            message, descriptors = _receive(ready)
            if message == FORK:
                if _fork() == 0:
                    for other in (listener, *workers):
                        other.close()
                    _supervise(imports, *descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                continue
            if message == STALE:
                _stop_accepting(listeners, path)
            workers.remove(ready)
            ready.close()
        if not workers and not select.select(listeners, [], [], 0)[0]:
            _stop_accepting(listeners, path)
    os._exit(0)


def _stop_accepting(listeners: list[socket.socket], path: Path) -> None:
    """Accept no more workers: the next worker finds no server and starts a new one."""
    while listeners:
        with contextlib.suppress(OSError):  # the folder contains other sockets, or was removed
            path.unlink()
            path.parent.rmdir()
        listeners.pop().close()


def _supervise(imports: Imports, connection: int, *streams: int) -> NoReturn:
    """Run a supervisor that writes to the standard streams of the requesting worker."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
        os.close(stream)
    with Connection(connection) as worker:  # closed in the kernel when KernelForked leaves this block
        supervise(worker, imports.fork_kernel, imports.check_files)


def _receive(worker: socket.socket) -> tuple[bytes, list[int]]:
    try:
        return socket.recv_fds(worker, 1, 3)[:2]
    except OSError:  # the worker was killed
        return b"", []


def _fork() -> int:
    with warnings.catch_warnings():
        # Since Python 3.12, `fork` also warns about native threads, but OpenBLAS and Arrow handle forks.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class Imports:
    """The modules imported by this process, and their side effects, which a forked kernel undoes or repeats.

    ``environment``: variables set by the modules; ``reason``: why kernels must not be forked, if forking is unsafe.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        start_time = time.time()
        self.reason: str | None = None
        self.environment: dict[str, str] = {}
        self._path = list(sys.path)
        try:
            self._import_all(modules)
            others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
            if others:  # a forked kernel would have their locks, but not the threads
                self.reason = f"a module started threads: {', '.join(others)}"
        except Exception as error:  # noqa: BLE001 - whatever the error, kernels must still start (cold)
            self.reason = f"{type(error).__name__}: {error}"
        self._files = json.dumps(_file_states(start_time))  # one string: a fork copies the memory of objects it reads
        importlib.invalidate_caches()  # kernels must see files created later
        inspect.getmodule(run_kernel.__code__)  # fill the cache that tracebacks use
        gc.collect()
        gc.freeze()  # a collection in a kernel would write to these objects and thus copy their memory pages

    def _import_all(self, modules: Sequence[str]) -> None:
        import ipykernel.kernelapp  # noqa: F401 - imported first, as in a kernel

        variables = dict(os.environ)
        os.environ.setdefault("MPLBACKEND", INLINE_BACKEND)  # as in a kernel: show figures inline
        with warnings.catch_warnings(), _temporary_shell() as shell:
            callbacks = shell.events.callbacks
            filters, old_callbacks = list(warnings.filters), {name: list(calls) for name, calls in callbacks.items()}
            for name in modules:
                _import(name)
            with contextlib.redirect_stderr(None):  # hides the debugger's warning about frozen modules
                for name in KERNEL_MODULES:
                    _import(name)
            self._warning_filters = [entry for entry in warnings.filters if entry not in filters]
            self._callbacks = {
                name: [c for c in calls if c not in old_callbacks[name]] for name, calls in callbacks.items()
            }
        self.environment = {name: value for name, value in os.environ.items() if variables.get(name) != value}
        self.environment.pop("MPLBACKEND", None)
        # Find the log handlers that write to the standard streams; in a kernel, they must write to the notebook.
        streams = {id(sys.stdout): "stdout", id(sys.stderr): "stderr"}
        handlers = [item for item in gc.get_objects() if issubclass(type(item), logging.StreamHandler)]
        streams_of = [(handler, streams.get(id(handler.__dict__.get("stream")))) for handler in handlers]
        self._handlers = [(handler, stream) for handler, stream in streams_of if stream]

    def check_files(self) -> None:
        """Raise WarmProcessStale, naming the file, if a file has changed since its import."""
        if file := next((file for file, state in json.loads(self._files).items() if _file_state(file) != state), None):
            raise WarmProcessStale(f"{file} has changed")

    def fork_kernel(self, request: Request) -> int:
        """Fork a kernel: return its process id in the supervisor, raise KernelForked in the kernel."""
        if self.reason:
            raise ForkUnsafe(self.reason)
        supervisor = os.getpid()
        if kernel := _fork():
            return kernel
        try:
            os.setsid()
            die_with_parent(supervisor)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(self.environment | request["env"])
            self._reset_process_state()
        except BaseException:  # noqa: BLE001 - no exception may reach the supervisor's code
            os._exit(127)
        raise KernelForked(request["argv"], self._apply_to_shell)

    def _reset_process_state(self) -> None:
        """Reset state that processes must not share."""
        multiprocessing.current_process().authkey = os.urandom(32)
        sys.path[:] = self._path
        linecache.cache.pop("<string>", None)  # Python 3.13 caches the code of `-c` here
        random.seed()
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed()
        tempfile.tempdir = None

    def _apply_to_shell(self, shell: Any) -> None:
        """Apply the imports' side effects to a running kernel: warning filters, log handlers, shell callbacks."""
        warnings.filters[:0] = [entry for entry in self._warning_filters if entry not in warnings.filters]  # type: ignore[index]
        with warnings.catch_warnings():
            pass  # leaving the block invalidates the interpreter's cache of filters
        for handler, stream in self._handlers:
            handler.setStream(getattr(sys, stream))
        for name, functions in self._callbacks.items():
            for function in functions:
                shell.events.register(name, function)


@contextlib.contextmanager
def _temporary_shell() -> Iterator[Any]:
    """Provide an IPython shell during the imports, because pandas, plotly, tqdm and TensorFlow check for one.

    The kernel creates its own shell later.
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


def _import(name: str) -> None:
    """Import a module; log a warning if it is not installed; raise other errors."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{name}.".startswith(f"{error.name}."):
            raise
        logging.getLogger(__name__).warning("Skipping a module in `kernel-imports` that is not installed: %s.", name)


def _file_states(start_time: float) -> dict[str, list[int] | None]:
    """Return each imported file's modification time and size; None if the file changed during the imports."""
    names = [getattr(module, "__dict__", {}).get("__file__") for module in list(sys.modules.values())]
    states = {name: state for name in names if isinstance(name, str) and (state := _file_state(name))}
    return {name: None if start_time * 1e9 <= state[0] <= time.time_ns() else state for name, state in states.items()}


def _file_state(file: str) -> list[int] | None:
    try:
        status = os.stat(file)  # noqa: PTH116 - faster than `Path.stat`; each kernel checks thousands of files
    except OSError:
        return None
    return [status.st_mtime_ns, status.st_size]
