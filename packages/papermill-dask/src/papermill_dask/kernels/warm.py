"""The warm processes of a worker: fork servers, one for each environment that imports would see differently."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

logger = logging.getLogger(__name__)

LAUNCHER = "ipykernel_launcher"
MAX_PROCESSES = 2
# `-c` puts the current folder first on the path, where a notebook's own modules would hide the installed ones.
# `exec` makes up for the calls of `runpy` below a kernel that `-m` starts: a recursion ends at the same depth.
START = "import sys; sys.path[:] = filter(None, sys.path); exec('from papermill_dask.kernels.{0} import {1}; {1}()')"

# How the variables begin that are read while modules are imported, or by the C libraries that come with them: a kernel
# for which one of these differs is forked from another process. All others are read when they are needed, and a
# forked kernel has its own.
SIGNIFICANT_VARIABLES = (
    *("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LANG", "LC_", "TZ"),  # interpreter, loader, C library
    *("HOME", "XDG_", "IPYTHON", "JUPYTER_"),  # where configuration is looked for
    *("OMP_", "GOMP_", "OPENBLAS_", "GOTO_", "MKL_", "BLIS_", "NUMEXPR_"),  # sizes of native pools
    *("NPY_", "NUMPY_", "SCIPY_", "PANDAS_", "PANDERA_", "ARROW_", "SKLEARN_", "JOBLIB_", "LOKY_", "PVLIB_"),
    *("TF_", "KERAS_", "XLA_", "CUDA_", "NVIDIA_", "ONEDNN_", "DNNL_"),
    *("MPL", "MATPLOTLIBRC", "PLOTLY_", "PILLOW_"),
    *("DASK_", "OTEL_", "PROTOCOL_BUFFERS_", "PYDANTIC_", "WRAPT_", "SSL_CERT_"),
    *("MLFLOW_CONFIGURE_LOGGING", "MLFLOW_LOGGING_", "MLFLOW_DISABLE_", "DO_NOT_TRACK"),
)


def _significant(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(SIGNIFICANT_VARIABLES)}


class WarmProcess:
    """A fork server as the worker sees it.

    Kernels are forked from it for ``python`` and an ``environment`` that `matches`; ``reason`` says why none can be.
    """

    def __init__(self, python: tuple[str, ...], modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self.reason: str | None = None
        self._python, self._environment = python, _significant(environment)
        self._control, theirs = socket.socketpair()
        with theirs:
            command = START.format("forkserver", "serve_forks")
            self.process = subprocess.Popen(
                [*python, "-c", command, str(theirs.fileno()), json.dumps(list(modules))],
                env=dict(environment),
                cwd="/",  # where nothing can be imported by mistake
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def matches(self, python: tuple[str, ...], environment: Mapping[str, str]) -> bool:
        """Tell whether the imports of kernels with this interpreter and these variables would be the same."""
        return (python, _significant(environment)) == (self._python, self._environment)

    def connect(self) -> Connection:
        """Return the connection to a kernel's supervisor, which answers after the imports; closed if none can be."""
        ours, theirs = socket.socketpair()
        with theirs, contextlib.suppress(OSError):
            socket.send_fds(self._control, [b"."], [theirs.fileno()])
        return Connection(ours.detach())

    def close(self, reason: str | None = None) -> None:
        """End the process; kernels that were forked from it live on."""
        self.reason = reason
        with contextlib.suppress(OSError):  # it has ended
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        self.process.wait()


class WarmProcesses:
    """All warm processes of this worker, the latest used last; its methods may be called from any thread."""

    def __init__(self) -> None:
        self.processes: list[WarmProcess] = []
        self._modules: tuple[str, ...] = ()
        self._idle_seconds: float | None = None
        self._end: threading.Timer | None = None
        self._lock = threading.Lock()

    def start(self, modules: Sequence[str], environment: Mapping[str, str], idle_seconds: float | None = None) -> None:
        """Import ``modules`` in the background for kernels with ``environment``; none at all means no warm kernels.

        The processes end when no kernel was asked for in ``idle_seconds``, and the next kernel has them started again.
        """
        self._modules, self._idle_seconds = tuple(modules), idle_seconds
        self.find((sys.executable,), environment)

    def find(self, python: tuple[str, ...] | None, environment: Mapping[str, str]) -> WarmProcess | None:
        """Return the process for kernels of this interpreter; None, and one started for the next, if there is none."""
        if not self._modules or not python:
            return None
        if sys.platform != "linux":
            logger.info("Kernels start cold: forking a process with libraries is not safe on %s.", sys.platform)
            return None
        with self._lock:
            match = next((process for process in self.processes if process.matches(python, environment)), None)
            if match:
                self.processes.remove(match)
            self.processes.append(match or WarmProcess(python, self._modules, environment))
            self._shrink(MAX_PROCESSES)
            if self._end:
                self._end.cancel()
            if self._idle_seconds:
                self._end = threading.Timer(self._idle_seconds, self.end_all)
                self._end.daemon = True
                self._end.start()
        return match

    def _shrink(self, max_processes: int) -> None:
        while len(self.processes) > max_processes:
            self.processes.pop(0).close()

    def end_all(self) -> None:
        """End all warm processes; the next kernel has one started again."""
        with self._lock:
            self._shrink(0)

    def remove(self, process: WarmProcess) -> None:
        """End a process whose imports are out of date, or that has ended."""
        with self._lock:
            if process in self.processes:
                self.processes.remove(process)
                process.close()


def python_of(argv: Sequence[str]) -> tuple[str, ...] | None:
    """Return the interpreter, with its `-X` options, of a kernel that can be forked; None for all others."""
    place = argv.index(LAUNCHER) if LAUNCHER in argv else 0
    match argv[:place], argv[place + 1 :]:
        case [program, *flags, "-m"], ["-f", _, *_]:
            here, other = Path(sys.executable), Path(program)
            # An environment's `python` links to another's file.
            is_this = other.parent == here.parent and other.exists() and other.samefile(here)
            if is_this and all(flag.startswith("-X") and flag != "-X" for flag in flags):
                return sys.executable, *flags
    return None


def cold_command(argv: Sequence[str]) -> list[str]:
    """Return the command for a kernel that is not forked: an IPython kernel of this Python as `forkserver` runs it."""
    python = python_of(argv)
    if not python:
        return list(argv)
    return [*python, "-c", START.format("forkserver", "run_cold_kernel"), *argv[argv.index(LAUNCHER) + 1 :]]


WARM = WarmProcesses()
