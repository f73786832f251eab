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
from typing import Any

logger = logging.getLogger(__name__)

LAUNCHER = "ipykernel_launcher"
MOST_PROCESSES = 2
TELL, SERVE = b"t", b"s"  # what is wanted of a process forked from a warm one: to report its state, to be a supervisor
# `-c` puts the current folder first on the path, where a notebook's own modules would hide the installed ones.
START = "import sys; sys.path[:] = filter(None, sys.path); from papermill_dask.kernels.{0} import {1}; {1}()"

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

    ``seconds`` says how long the imports took, ``reason`` why no kernel can be forked from it; each is None until that
    is known. Kernels are forked from it for ``python`` and an ``environment`` that `suits`.
    """

    def __init__(self, python: tuple[str, ...], modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self.seconds: float | None = None
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
        threading.Thread(target=self._attend, name="warm-process", daemon=True).start()

    @property
    def is_importing(self) -> bool:
        """Whether it is not known yet if kernels can be forked from it."""
        return self.seconds is None and self.reason is None

    @property
    def is_ready(self) -> bool:
        """Whether its imports are done and kernels can be forked."""
        return self.seconds is not None and self.reason is None

    @property
    def has_ended(self) -> bool:
        """Whether kernels were forked from it once, and cannot be any more."""
        return self.seconds is not None and self.reason is not None

    def suits(self, python: tuple[str, ...], environment: Mapping[str, str]) -> bool:
        """Tell whether the imports of kernels with this interpreter and these variables would be the same."""
        return (python, _significant(environment)) == (self._python, self._environment)

    def connect(self) -> Connection:
        """Return the connection to a kernel's supervisor, which is closed soon if the server has ended."""
        return self._fork(SERVE)

    def _fork(self, wish: bytes) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs, contextlib.suppress(OSError):
            socket.send_fds(self._control, [wish], [theirs.fileno()])
        return Connection(ours.detach())

    def close(self) -> None:
        """End the process; kernels that were forked from it live on."""
        self.reason = self.reason or "it was replaced"
        with contextlib.suppress(OSError):  # it has ended
            self._control.shutdown(socket.SHUT_RDWR)

    def _attend(self) -> None:
        """Wait for the imports, then for the end of the process."""
        with self._fork(TELL) as connection:
            try:
                seconds, reason = connection.recv()
            except (EOFError, OSError):
                seconds, reason = None, "the warm process ended while it imported"
        if reason and self.reason is None:
            logger.warning("Kernels start cold: %s.", reason)
        self.reason, self.seconds = self.reason or reason, None if reason else seconds
        if self.reason:
            self.close()
        self.process.wait()
        self.reason = self.reason or "it ended"
        self._control.close()


class WarmProcesses:
    """All warm processes of this worker, the latest used last; its methods may be called from any thread."""

    def __init__(self) -> None:
        self.processes: list[WarmProcess] = []
        self._modules: tuple[str, ...] = ()
        self._lock = threading.Lock()

    def start(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        """Import ``modules`` in the background for kernels with ``environment``; none at all means no warm kernels."""
        if tuple(modules) != self._modules:
            self.close()
            self._modules = tuple(modules)
        self.find((sys.executable,), environment)

    def find(self, python: tuple[str, ...] | None, environment: Mapping[str, str]) -> WarmProcess | None:
        """Return the process for kernels of this interpreter; None, and one started for the next, if there is none."""
        if not self._modules or not python:
            return None
        if sys.platform != "linux":
            logger.info("Kernels start cold: forking a process with libraries is not safe on %s.", sys.platform)
            return None
        with self._lock:
            self.processes = [process for process in self.processes if not process.has_ended]
            match = next((process for process in self.processes if process.suits(python, environment)), None)
            if match:
                self.processes.remove(match)
            self.processes.append(match or WarmProcess(python, self._modules, environment))
            while len(self.processes) > MOST_PROCESSES:
                self.processes.pop(0).close()
        return match

    def close(self) -> None:
        """End all warm processes, and start none until asked again."""
        with self._lock:
            for process in self.processes:
                process.close()
            self.processes, self._modules = [], ()


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


def warm_state() -> dict[str, Any]:
    """Return how far this worker's warm process is: whether it is ``ready``, and its ``pid``.

    ``seconds`` says how long the imports took, ``reason`` why kernels start cold for good.
    """
    if not WARM.processes:
        return {"ready": False, "pid": None, "seconds": None, "reason": "none was asked for"}
    process = WARM.processes[-1]
    return {
        "ready": process.is_ready, "pid": process.process.pid, "seconds": process.seconds, "reason": process.reason
    }  # fmt: skip
