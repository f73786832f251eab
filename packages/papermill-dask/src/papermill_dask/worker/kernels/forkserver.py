"""A warm process: a fork server, which has imported the modules of notebooks; and the start of a kernel.

A worker runs `serve_forks`, which imports modules and serves all workers of the user. For each connection that a worker
sends, the server forks a supervisor, and the supervisor forks the kernel. The process of a forked kernel equals that of
a cold one: this module undoes the side effects of the imports.
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
    end_alone,
    end_with,
    supervise,
)
from papermill_dask.worker.kernels.warm import FORK, LAUNCHER, STALE

INLINE_BACKEND = "module://matplotlib_inline.backend_inline"
# ipykernel imports these only when a kernel starts or ends, and IPython when it shows an error.
KERNEL_MODULES = (
    *("ipykernel.debugger", "ipykernel.displayhook", "ipykernel.ipkernel", "psutil", "sqlite3", "stack_data"),
    *("IPython.core.debugger", "IPython.extensions.storemagic", "tornado.platform.asyncio"),
)
LAST_REPLY_SECONDS = 1.0


# -- a kernel ------------------------------------------------------------------------------------------------------
def run_cold_kernel() -> NoReturn:
    """Run the kernel of the command line's options."""
    run_kernel([*sys.orig_argv[: sys.orig_argv.index("-c")], "-m", LAUNCHER, *sys.argv[1:]])


def run_kernel(argv: list[str], prepare: Callable[[Any], None] = lambda _: None) -> NoReturn:
    """Run a kernel as ``argv``, `python -m ipykernel_launcher OPTIONS`, does; call ``prepare`` with its shell."""
    from ipykernel.kernelapp import IPKernelApp

    options = argv[argv.index(LAUNCHER) + 1 :]
    sys.argv, sys.orig_argv = [getattr(importlib.util.find_spec(LAUNCHER), "origin", LAUNCHER), *options], argv
    code: int | None = 0
    try:
        compat.prepare_ipykernel(Path(options[1]).parent)
        # In a fork ipykernel's own default is that of its import.
        app = IPKernelApp.instance(parent_handle=os.getppid())
        app.initialize(options)
        compat.prepare_kernel(app)
        prepare(app.shell)
        app.start()
        compat.finish_reply(app, LAST_REPLY_SECONDS)
    except SystemExit as end:
        code = end.code if end.code is None or isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - as Python's own top level does
        sys.excepthook(*sys.exc_info())
        code = 1
    # As at Python's own end, but without deleting each module, which takes a second with TensorFlow.
    compat.run_last_handlers()
    gc.collect()  # closes, and so flushes, open files
    for stream in filter(None, (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)
    os._exit(code or 0)


# -- the fork server -----------------------------------------------------------------------------------------------
class KernelForked(BaseException):
    """Leaves the calls of the supervisor in a forked kernel; its arguments are those of `run_kernel`."""


def serve_forks() -> NoReturn:
    """Run the fork server that the command line describes; it ends with its last worker."""
    starter, modules, path, descriptor = sys.argv[1:]
    listener = socket.socket(fileno=int(descriptor))
    listener.set_inheritable(False)
    try:
        end_with(int(starter))
        imports = Imports(json.loads(modules))
        end_alone()
        _serve(listener, Path(path), imports)
    except KernelForked as forked:
        argv, prepare = forked.args
    run_kernel(argv, prepare)  # at the same depth of calls as in a cold kernel, for recursions


def _serve(listener: socket.socket, path: Path, imports: Imports) -> NoReturn:
    """Fork a supervisor whenever a worker asks for one; raise KernelForked in its kernel."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # removes ended supervisors from the process table
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
                _hide(listeners, path)
            workers.remove(ready)
            ready.close()
        if not workers and not select.select(listeners, [], [], 0)[0]:
            _hide(listeners, path)
    os._exit(0)


def _hide(listeners: list[socket.socket], path: Path) -> None:
    """Accept no other worker: the next one finds no server, and starts its own."""
    while listeners:
        with contextlib.suppress(OSError):  # others have their sockets in the folder, or it is gone
            path.unlink()
            path.parent.rmdir()
        listeners.pop().close()


def _supervise(imports: Imports, connection: int, *streams: int) -> NoReturn:
    """Run a supervisor with the standard streams of the worker that requested it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
        os.close(stream)
    with Connection(connection) as worker:  # closed in the kernel
        supervise(worker, imports.fork_kernel, imports.check_files)


def _receive(worker: socket.socket) -> tuple[bytes, list[int]]:
    try:
        return socket.recv_fds(worker, 1, 3)[:2]
    except OSError:  # the worker was killed
        return b"", []


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 also warns of native threads; OpenBLAS and Arrow handle forks themselves.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class Imports:
    """The imports of this process, and their side effects, which a forked kernel undoes or repeats.

    ``environment`` has the variables that they set; ``reason`` says why kernels must not be forked from here, if so.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        began = time.time()
        self.reason: str | None = None
        self.environment: dict[str, str] = {}
        self._path = list(sys.path)
        try:
            self._import_all(modules)
            others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
            if others:  # a fork copies the locks, not the threads
                self.reason = f"a module started threads: {', '.join(others)}"
        except Exception as error:  # noqa: BLE001 - kernels must start after any error of a module
            self.reason = f"{type(error).__name__}: {error}"
        self._files = json.dumps(_files_since(began))  # one object: a fork that reads objects copies their memory
        importlib.invalidate_caches()  # a kernel reads the folders again
        inspect.getmodule(run_kernel.__code__)  # caches the module of each file, for tracebacks
        gc.collect()
        gc.freeze()  # keeps these objects in memory that all kernels share

    def _import_all(self, modules: Sequence[str]) -> None:
        import ipykernel.kernelapp  # noqa: F401 - before all others, as in a kernel

        variables = dict(os.environ)
        os.environ.setdefault("MPLBACKEND", INLINE_BACKEND)  # as the kernel does, to show figures in the notebook
        with warnings.catch_warnings(), _shell() as shell:
            callbacks = shell.events.callbacks
            filters, old_callbacks = list(warnings.filters), {name: list(calls) for name, calls in callbacks.items()}
            for name in modules:
                _import(name)
            with contextlib.redirect_stderr(None):  # the debugger warns of frozen modules
                for name in KERNEL_MODULES:
                    _import(name)
            self._warning_filters = [entry for entry in warnings.filters if entry not in filters]
            self._callbacks = {
                name: [c for c in calls if c not in old_callbacks[name]] for name, calls in callbacks.items()
            }
        self.environment = {name: value for name, value in os.environ.items() if variables.get(name) != value}
        self.environment.pop("MPLBACKEND", None)
        # In a kernel these write to the notebook.
        streams = {id(sys.stdout): "stdout", id(sys.stderr): "stderr"}
        handlers = [item for item in gc.get_objects() if issubclass(type(item), logging.StreamHandler)]
        streams_of = [(handler, streams.get(id(handler.__dict__.get("stream")))) for handler in handlers]
        self._handlers = [(handler, stream) for handler, stream in streams_of if stream]

    def check_files(self) -> None:
        """Raise WarmProcessStale, naming the file, if an imported file has changed since it was imported."""
        if file := next((file for file, state in json.loads(self._files).items() if _state(file) != state), None):
            raise WarmProcessStale(f"{file} has changed")

    def fork_kernel(self, request: Request) -> int:
        """Fork the kernel of a request; return its process id, and raise KernelForked in the kernel itself."""
        if self.reason:
            raise ForkUnsafe(self.reason)
        supervisor = os.getpid()
        if kernel := _fork():
            return kernel
        try:
            os.setsid()
            end_with(supervisor)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(self.environment | request["env"])
            self._restore()
        except BaseException:  # noqa: BLE001 - no exception may reach the supervisor's calls
            os._exit(127)
        raise KernelForked(request["argv"], self._apply)

    def _restore(self) -> None:
        """Restore or renew the state that each process has for itself."""
        multiprocessing.current_process().authkey = os.urandom(32)
        sys.path[:] = self._path
        linecache.cache.pop("<string>", None)  # Python 3.13 keeps the text of `-c` there
        random.seed()
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed()
        tempfile.tempdir = None

    def _apply(self, shell: Any) -> None:
        """Repeat side effects of imports in a started kernel: filters, loggers' streams, callbacks of the shell."""
        warnings.filters[:0] = [entry for entry in self._warning_filters if entry not in warnings.filters]  # type: ignore[index]
        with warnings.catch_warnings():
            pass  # the end of the block makes the interpreter read the changed filters
        for handler, stream in self._handlers:
            handler.setStream(getattr(sys, stream))
        for name, functions in self._callbacks.items():
            for function in functions:
                shell.events.register(name, function)


@contextlib.contextmanager
def _shell() -> Iterator[Any]:
    """Provide a notebook's shell during the imports: pandas, plotly, tqdm and TensorFlow look for one.

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


def _import(name: str) -> None:
    """Import a module; log a warning if it is not installed, and raise other errors."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{name}.".startswith(f"{error.name}."):
            raise
        logging.getLogger(__name__).warning("Not imported into warm kernels, because not installed: %s.", name)


def _files_since(began: float) -> dict[str, list[int] | None]:
    """Return time of change and size of each imported file; None for one that changed while it was imported."""
    names = [getattr(module, "__dict__", {}).get("__file__") for module in list(sys.modules.values())]
    states = {name: state for name in names if isinstance(name, str) and (state := _state(name))}
    return {name: None if began * 1e9 <= state[0] <= time.time_ns() else state for name, state in states.items()}


def _state(file: str) -> list[int] | None:
    try:
        status = os.stat(file)  # noqa: PTH116 - thousands of them before each kernel
    except OSError:
        return None
    return [status.st_mtime_ns, status.st_size]
