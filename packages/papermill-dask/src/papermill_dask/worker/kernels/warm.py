"""Warm processes: fork servers, which the workers of a machine share if their kernels would be the same."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from multiprocessing.connection import Connection
from pathlib import Path

logger = logging.getLogger(__name__)

LAUNCHER = "ipykernel_launcher"
MAX_PROCESSES = 2
CONNECT_TRIES = 5
STALE_SECONDS = 1.0
FORK, STALE = b".", b"!"  # a worker's requests to a fork server
# `-c` puts the current folder first on the path, where a notebook's own modules would hide the installed ones.
# `exec` replaces the calls of `runpy` below a kernel that `-m` starts: a recursion ends at the same depth.
START = (
    "import sys; sys.path[:] = filter(None, sys.path); exec('from papermill_dask.worker.kernels.{0} import {1}; {1}()')"
)

# Prefixes of the variables that modules, or their C libraries, read during the import. A kernel with another value of
# one of these is forked from another process. Other variables are read when they are needed: each kernel has its own.
SIGNIFICANT_VARIABLES = (
    *("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LANG", "LC_", "TZ"),  # interpreter, loader, C library
    *("HOME", "XDG_", "IPYTHON", "JUPYTER_", "TMP", "TEMP"),  # folders of configuration and temporary files
    *("OMP_", "GOMP_", "OPENBLAS_", "GOTO_", "MKL_", "BLIS_", "NUMEXPR_"),  # sizes of native pools
    *("NPY_", "NUMPY_", "SCIPY_", "PANDAS_", "PANDERA_", "ARROW_", "SKLEARN_", "JOBLIB_", "LOKY_", "PVLIB_"),
    *("TF_", "KERAS_", "XLA_", "CUDA_", "NVIDIA_", "ONEDNN_", "DNNL_"),
    *("MPL", "MATPLOTLIBRC", "PLOTLY_", "PILLOW_"),
    *("DASK_", "OTEL_", "PROTOCOL_BUFFERS_", "PYDANTIC_", "WRAPT_", "SSL_CERT_"),
    *("MLFLOW_CONFIGURE_LOGGING", "MLFLOW_LOGGING_", "MLFLOW_DISABLE_", "DO_NOT_TRACK"),
)

# Words of code that changes what an import finds, or what a module reads while it is imported.
CHANGES = re.compile(
    r"\b(?:environb?(?!\.(?:get|items|keys|values|copy)\()|putenv|unsetenv|setenv|\w*dotenv|set_start_method|addsitedir"
    r"|sys\.(?:path|modules|meta_path|path_hooks)|install_import_hook|monkey\w*|patch_\w+|pip|conda|mamba)\b"
    r"|^\s*%%?(?:env|set_env|run|load_ext)\b",
    re.MULTILINE,
)
MAGIC = re.compile(r"^([ \t]*)([%!].*)", re.MULTILINE)
IMPORT = re.compile(r"^\s*(?:import|from) (.*)", re.MULTILINE)

# Properties that a process inherits when it is forked: its user, permissions and limits.
STATUS = re.compile(rb"^(?:Umask|Uid|Gid|Groups|Cap\w+|NoNewPrivs|Seccomp|Cpus_allowed|Mems_allowed):.*$", re.MULTILINE)
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


def _key(python: tuple[str, ...], modules: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return a hash of all that a kernel inherits from its fork server; workers with equal hashes share it."""
    variables = sorted(item for item in environment.items() if item[0].startswith(SIGNIFICANT_VARIABLES))
    here = Path("/proc/self")
    traits = [
        *STATUS.findall((here / "status").read_bytes()),
        *((here / name).read_bytes() for name in ("limits", "cgroup", "oom_score_adj")),
        *((here / "ns" / name).readlink() for name in NAMESPACES),
        os.nice(0),
    ]
    return hashlib.sha256(repr((python, tuple(modules), variables, traits)).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _private_folder() -> Iterator[tuple[Path, Path]]:
    """Yield this user's folder for the sockets of fork servers, locked; raise OSError if others may write in it.

    The second path is another name of the folder, for this process, that is short enough for a socket.
    """
    import dask.config  # not at the top: this module is in the process from which kernels are forked

    folder = (
        Path(dask.config.get("temporary-directory", None) or tempfile.gettempdir()) / f"papermill-dask-{os.getuid()}"
    )
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise PermissionError(f"{folder} is not yours alone; remove it, or set TMPDIR to a folder of your own")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder, Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


class WarmProcess:
    """A worker's connection to a fork server, which ends with its last worker.

    Kernels with the same ``key`` are forked from it; ``reason`` says why none can be. Raises OSError if the process
    cannot be started.
    """

    def __init__(
        self, key: str, python: tuple[str, ...], modules: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.key = key
        self.reason: str | None = None
        self._command = [*python, "-c", START.format("forkserver", "serve_forks"), str(os.getpid())]
        self._command.append(json.dumps(list(modules)))
        self._environment = dict(environment)
        for _ in range(CONNECT_TRIES):
            # A server that ends may remove the folder at any time.
            with contextlib.suppress(FileNotFoundError), _private_folder() as (folder, short):
                self._control = self._join(str(short / key), str(folder / key))
                return
        raise OSError(f"no connection to a fork server after {CONNECT_TRIES} tries")

    def _join(self, path: str, lasting_path: str) -> socket.socket:
        """Return a connection to the server at a path; start the server if there is none."""
        control = socket.socket(socket.AF_UNIX)
        try:
            control.connect(path)
        except ConnectionRefusedError:  # it was killed
            Path(path).unlink()
        except FileNotFoundError:
            pass
        else:
            return control
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(socket.SOMAXCONN)
        control.connect(path)
        threading.Thread(
            target=self._run_server, args=(listener, lasting_path), name="fork server", daemon=True
        ).start()
        return control

    def _run_server(self, listener: socket.socket, path: str) -> None:
        """Run the server to its end, in a thread of its own: while it imports, it ends with this thread."""
        with listener:
            server = subprocess.Popen(
                [*self._command, path, str(listener.fileno())],
                env=self._environment,
                cwd="/",  # which has no modules
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        server.wait()

    def connect(self) -> Connection:
        """Return a connection to a supervisor, which answers after the imports; a closed one if the server is gone."""
        near, far = socket.socketpair()
        with far, contextlib.suppress(OSError):
            socket.send_fds(self._control, [FORK], [far.fileno(), 1, 2])
        return Connection(near.detach())

    def close(self, reason: str | None = None) -> None:
        """Disconnect from the process, which ends with its last worker; its kernels continue."""
        self.reason = reason
        self._control.close()

    def retire(self) -> None:
        """Hide the process from other workers, because its imports are out of date; and disconnect."""
        with contextlib.suppress(OSError):  # it has ended
            self._control.settimeout(STALE_SECONDS)
            self._control.send(STALE)
            self._control.recv(1)
        self.close()


class WarmProcesses:
    """All warm processes of this worker, the last used one last; any thread may call its methods."""

    def __init__(self) -> None:
        self.processes: list[WarmProcess] = []
        self._modules: tuple[str, ...] = ()
        self._idle_seconds: float | None = None
        self._end: threading.Timer | None = None
        self._lock = threading.Lock()

    def start(self, modules: Sequence[str], environment: Mapping[str, str], idle_seconds: float | None = None) -> None:
        """Import ``modules`` in the background for kernels with ``environment``; without modules all kernels are cold.

        The processes end when no kernel has started for ``idle_seconds``; the next kernel starts them again.
        """
        self._modules, self._idle_seconds = tuple(modules), idle_seconds
        self.find((sys.executable,), environment)

    def find(self, python: tuple[str, ...] | None, environment: Mapping[str, str]) -> WarmProcess | None:
        """Return the process for kernels of this interpreter; if there is none, start or join one, and return None."""
        if not self._modules or not python:
            return None
        if sys.platform != "linux":
            logger.info("Kernels start cold: forking a process with libraries is not safe on %s.", sys.platform)
            return None
        with self._lock:
            key = _key(python, self._modules, environment)
            match = next((process for process in self.processes if process.key == key), None)
            if match:
                self.processes.remove(match)
            try:
                self.processes.append(match or WarmProcess(key, python, self._modules, environment))
            except OSError as error:
                logger.warning("Kernels start cold: %s.", error)
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
        """End all warm processes; the next kernel starts one again."""
        with self._lock:
            self._shrink(0)

    def remove(self, process: WarmProcess) -> None:
        """Remove a process that has ended, or whose imports are out of date."""
        with self._lock:
            if process in self.processes:
                self.processes.remove(process)
                process.retire()


def python_of(argv: Sequence[str]) -> tuple[str, ...] | None:
    """Return the interpreter, with its `-X` options, of a kernel that can be forked; None for all others.

    >>> python_of(["R", "--slave", "-e", "IRkernel::main()"])
    """
    place = argv.index(LAUNCHER) if LAUNCHER in argv else 0
    match argv[:place], argv[place + 1 :]:
        case [program, *flags, "-m"], ["-f", _, *_]:
            here, other = Path(sys.executable), Path(program)
            # A virtual environment's `python` is a link.
            is_this = other.parent == here.parent and other.exists() and other.samefile(here)
            if is_this and all(flag.startswith("-X") and flag != "-X" for flag in flags):
                return sys.executable, *flags
    return None


def reason_for_cold_start(cells: Iterable[str], folder: Path) -> str | None:
    """Return why a notebook in ``folder`` may give another result when modules are imported before; None if it cannot.

    Searches the cells, and the modules of the folder that they name; the code of installed packages is not searched.

    >>> reason_for_cold_start(["import os; os.environ['TZ'] = 'UTC'"], Path("/nowhere"))
    'the notebook uses `environ`, which may change what an import finds or reads'
    """
    if (folder / "matplotlibrc").exists():
        return "its folder has a matplotlibrc"
    packages = [file.parent for file in folder.glob("*/__init__.py")]
    files = [file for place in (folder, *packages) for file in place.glob("*.py") if os.access(file, os.R_OK)]
    sources = list(cells)
    for source in sources:  # the loop adds to them
        try:
            code = ast.unparse(ast.parse(MAGIC.sub(r"\1pass", source)))  # without comments
        except (SyntaxError, ValueError, RecursionError):  # magic in an expression, another language
            code = source
        code = "\n".join([code, *(magic for _, magic in MAGIC.findall(source))])
        if change := CHANGES.search(code):
            return f"the notebook uses `{change[0].strip()}`, which may change what an import finds or reads"
        words = set(re.findall(r"\w+", " ".join(IMPORT.findall(code))))
        for file in list(files):
            if not words.issuperset({file.stem, file.parent.name} - {"__init__", folder.name}):
                continue
            spec = PathFinder.find_spec(file.relative_to(folder).parts[0].removesuffix(".py"))
            if spec and spec.origin and not Path(spec.origin).resolve().is_relative_to(folder.resolve()):
                return f"{file} hides an installed module"
            sources.append(file.read_text(errors="replace"))
            files.remove(file)
    return None


def cold_command(argv: Sequence[str]) -> list[str]:
    """Return the command for a kernel that is not forked: an IPython kernel of this Python as `forkserver` runs it."""
    python = python_of(argv)
    if not python:
        return list(argv)
    return [*python, "-c", START.format("forkserver", "run_cold_kernel"), *argv[argv.index(LAUNCHER) + 1 :]]


WARM = WarmProcesses()
