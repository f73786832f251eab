"""Warm processes: fork servers, shared by workers on a machine if their kernels would be identical."""

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
_parse_lock = threading.Lock()
MAX_PROCESSES = 2
CONNECT_TRIES = 5
STALE_SECONDS = 1.0
FORK, STALE = b".", b"!"  # a worker's requests to the fork server
# Drop the current folder, which `-c` prepends to `sys.path`: a notebook's modules would shadow installed ones.
# `exec` adds the stack frames that `runpy` adds for `-m`, so that the recursion limit is reached at the same depth.
START = (
    "import sys; sys.path[:] = filter(None, sys.path); exec('from papermill_dask.worker.kernels.{0} import {1}; {1}()')"
)

# Prefixes of variables that modules or their C libraries read during import. Kernels with different values need
# different fork servers. All other variables are read later, so each kernel can have its own.
SIGNIFICANT_VARIABLES = (
    *("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LANG", "LC_", "TZ"),  # interpreter, dynamic loader, C library
    *("HOME", "XDG_", "IPYTHON", "JUPYTER_", "TMP", "TEMP"),  # configuration and temporary folders
    *("OMP_", "GOMP_", "OPENBLAS_", "GOTO_", "MKL_", "BLIS_", "NUMEXPR_"),  # native thread pools
    *("NPY_", "NUMPY_", "SCIPY_", "PANDAS_", "PANDERA_", "ARROW_", "SKLEARN_", "JOBLIB_", "LOKY_", "PVLIB_"),
    *("TF_", "KERAS_", "XLA_", "CUDA_", "NVIDIA_", "ONEDNN_", "DNNL_"),
    *("MPL", "MATPLOTLIBRC", "PLOTLY_", "PILLOW_"),
    *("DASK_", "OTEL_", "PROTOCOL_BUFFERS_", "PYDANTIC_", "WRAPT_", "SSL_CERT_"),
    *("MLFLOW_CONFIGURE_LOGGING", "MLFLOW_LOGGING_", "MLFLOW_DISABLE_", "DO_NOT_TRACK"),
)

# Code that may change which modules an import finds, or the settings that modules read on import.
IMPORT_CHANGES = re.compile(
    r"\b(?:environb?(?!\.(?:get|items|keys|values|copy)\()|putenv|unsetenv|setenv|\w*dotenv|set_start_method|addsitedir"
    r"|sys\.(?:path|modules|meta_path|path_hooks)|install_import_hook|monkey\w*|patch_\w+|pip|conda|mamba)\b"
    r"|^\s*%%?(?:env|set_env|run|load_ext)\b",
    re.MULTILINE,
)
MAGIC = re.compile(r"^([ \t]*)([%!].*)", re.MULTILINE)
IMPORT = re.compile(r"^\s*(?:import|from) (.*)", re.MULTILINE)

# Properties inherited by a forked process: user, permissions and limits.
STATUS = re.compile(rb"^(?:Umask|Uid|Gid|Groups|Cap\w+|NoNewPrivs|Seccomp|Cpus_allowed|Mems_allowed):.*$", re.MULTILINE)
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


def _fork_server_key(python: tuple[str, ...], modules: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return a hash of everything a kernel inherits from its fork server; workers with equal hashes share a server."""
    variables = sorted(item for item in environment.items() if item[0].startswith(SIGNIFICANT_VARIABLES))
    proc = Path("/proc/self")
    properties = [
        *STATUS.findall((proc / "status").read_bytes()),
        *((proc / name).read_bytes() for name in ("limits", "cgroup", "oom_score_adj")),
        *((proc / "ns" / name).readlink() for name in NAMESPACES),
        os.nice(0),
    ]
    return hashlib.sha256(repr((python, tuple(modules), variables, properties)).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _private_folder() -> Iterator[tuple[Path, Path]]:
    """Lock this user's folder for fork servers' sockets and yield its path; raise OSError if other users have access.

    Also yield an alias that is short enough for a socket's path, valid in this process only.
    """
    import dask.config  # not at the top: the fork server also imports this module, but does not need Dask

    folder = (
        Path(dask.config.get("temporary-directory", None) or tempfile.gettempdir()) / f"papermill-dask-{os.getuid()}"
    )
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise PermissionError(f"other users can access {folder}; delete it, or set TMPDIR to a private folder")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder, Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


class WarmProcess:
    """A worker's connection to a fork server, which exits when its last worker disconnects.

    The server forks the kernels that have its ``key``; ``reason`` says why, if it must not. Raises OSError if the
    server cannot be started.
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
            # A server that exits may remove the folder at any time.
            with contextlib.suppress(FileNotFoundError), _private_folder() as (folder, short):
                self._control = self._join(str(short / key), str(folder / key))
                return
        raise OSError(f"connecting to a fork server failed {CONNECT_TRIES} times")

    def _join(self, path: str, lasting_path: str) -> socket.socket:
        """Connect to the server at ``path``; start one if there is none."""
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
        """Start the server and wait for it to exit, in its own thread; during the imports, it dies with the thread."""
        with listener:
            server = subprocess.Popen(
                [*self._command, path, str(listener.fileno())],
                env=self._environment,
                cwd="/",  # contains no modules to import by mistake
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        server.wait()

    def connect(self) -> Connection:
        """Return a connection to a new supervisor, which responds after the imports; it is closed if no server runs."""
        near, far = socket.socketpair()
        with far, contextlib.suppress(OSError):
            socket.send_fds(self._control, [FORK], [far.fileno(), 1, 2])
        return Connection(near.detach())

    def close(self, reason: str | None = None) -> None:
        """Disconnect from the server; running kernels continue."""
        self.reason = reason
        self._control.close()

    def retire(self) -> None:
        """Make an outdated server stop accepting workers, and disconnect."""
        with contextlib.suppress(OSError):  # already ended
            self._control.settimeout(STALE_SECONDS)
            self._control.send(STALE)
            self._control.recv(1)
        self.close()


class WarmProcesses:
    """The warm processes of this worker, least recently used first; thread-safe."""

    def __init__(self) -> None:
        self.processes: list[WarmProcess] = []
        self._modules: tuple[str, ...] = ()
        self._idle_seconds: float | None = None
        self._end: threading.Timer | None = None
        self._lock = threading.Lock()

    def start(self, modules: Sequence[str], environment: Mapping[str, str], idle_seconds: float | None = None) -> None:
        """Import ``modules`` in the background for kernels with ``environment``; without modules, start kernels cold.

        After ``idle_seconds`` without a new kernel, disconnect from all processes; the next kernel starts a new one.
        """
        self._modules, self._idle_seconds = tuple(modules), idle_seconds
        self.find((sys.executable,), environment)

    def find(self, python: tuple[str, ...] | None, environment: Mapping[str, str]) -> WarmProcess | None:
        """Return the warm process for this interpreter; if there is none yet, start or join one and return None."""
        if not self._modules or not python:
            return None
        if sys.platform != "linux":
            logger.info("Kernels start cold: forking a process with loaded libraries is unsafe on %s.", sys.platform)
            return None
        with self._lock:
            key = _fork_server_key(python, self._modules, environment)
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
        """Disconnect from all warm processes; the next kernel starts a new one."""
        with self._lock:
            self._shrink(0)

    def remove(self, process: WarmProcess) -> None:
        """Retire a process that has exited or is outdated."""
        with self._lock:
            if process in self.processes:
                self.processes.remove(process)
                process.retire()


def forkable_python(argv: Sequence[str]) -> tuple[str, ...] | None:
    """Return a kernel's interpreter with its `-X` options if the kernel can be forked, else None.

    >>> forkable_python(["R", "--slave", "-e", "IRkernel::main()"])
    """
    index = argv.index(LAUNCHER) if LAUNCHER in argv else 0
    match argv[:index], argv[index + 1 :]:
        case [program, *flags, "-m"], ["-f", _, *_]:
            ours, theirs = Path(sys.executable), Path(program)
            # Compare folders, too: `python` in another virtual environment may be a link to the same file.
            is_same = theirs.parent == ours.parent and theirs.exists() and theirs.samefile(ours)
            if is_same and all(flag.startswith("-X") and flag != "-X" for flag in flags):
                return sys.executable, *flags
    return None


def reason_for_cold_start(cells: Iterable[str], folder: Path) -> str | None:
    """Return why preloaded modules could change the results of a notebook in ``folder``; None if they cannot.

    Search the cells and the modules that they import from the folder, but not installed packages.

    >>> reason_for_cold_start(["import os; os.environ['TZ'] = 'UTC'"], Path("/nowhere"))
    'the notebook uses `environ`, which may change the modules or settings of an import'
    """
    if (folder / "matplotlibrc").exists():
        return "the notebook's folder contains a matplotlibrc"
    packages = [file.parent for file in folder.glob("*/__init__.py")]
    files = [file for parent in (folder, *packages) for file in parent.glob("*.py") if os.access(file, os.R_OK)]
    sources = list(cells)
    for source in sources:  # the list grows during the loop
        try:
            with _parse_lock:  # in Python 3.11, `ast.parse` in two threads may raise SystemError
                code = ast.unparse(ast.parse(MAGIC.sub(r"\1pass", source)))  # removes comments
        except (SyntaxError, ValueError, RecursionError, SystemError):  # a magic in an expression, or another language
            code = source
        code = "\n".join([code, *(magic for _, magic in MAGIC.findall(source))])
        if change := IMPORT_CHANGES.search(code):
            return f"the notebook uses `{change[0].strip()}`, which may change the modules or settings of an import"
        words = set(re.findall(r"\w+", " ".join(IMPORT.findall(code))))
        for file in list(files):
            if not words.issuperset({file.stem, file.parent.name} - {"__init__", folder.name}):
                continue
            spec = PathFinder.find_spec(file.relative_to(folder).parts[0].removesuffix(".py"))
            if spec and spec.origin and not Path(spec.origin).resolve().is_relative_to(folder.resolve()):
                return f"{file} shadows an installed module"
            sources.append(file.read_text(errors="replace"))
            files.remove(file)
    return None


def cold_command(argv: Sequence[str]) -> list[str]:
    """Return the command that starts a kernel cold, with `forkserver.run_cold_kernel` if it uses this interpreter."""
    python = forkable_python(argv)
    if not python:
        return list(argv)
    return [*python, "-c", START.format("forkserver", "run_cold_kernel"), *argv[argv.index(LAUNCHER) + 1 :]]


WARM = WarmProcesses()
