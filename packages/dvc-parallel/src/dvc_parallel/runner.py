"""Run each command of a stage in a session of its own, and end the session when the run is gone.

A fork runs a Python program as Python itself does, with its imports done. The children of `multiprocessing` know that
they are children, so a fork here uses none of it. A process between the fork server and a command watches the command.
It holds the lock of the stage, which is the log: a new copy of the stage waits until the old command has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import os
import pickle
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path

END_SECONDS = 2.0
WAIT_SECONDS = 0.1
PID_BYTES = 4


def serve() -> None:
    """Import the modules that the arguments name; then fork a process for each socket that arrives, and `run` there."""
    requests, modules = socket.socket(fileno=int(sys.argv[1])), sys.argv[2:]
    for module in modules:
        with contextlib.suppress(Exception):  # a program that needs the module fails with the same error, in its log
            importlib.import_module(module)
    sys.stdout.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    while numbers := socket.recv_fds(requests, 1, 1)[1]:
        if os.fork() == 0:
            requests.close()
            run(socket.socket(fileno=numbers[0]))
            return  # the program ends as Python ends
        os.close(numbers[0])
    os._exit(0)


def run(report: socket.socket) -> None:
    """Run the command that ``report`` brings; send back a process id, then an exit code. Only programs return."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the command
        signal.signal(number, signal.SIG_IGN)
    with report.makefile("rb") as file:
        words, shell, cwd, environment, log, ignored = pickle.load(file)  # noqa: S301 - from the run
    report.sendall(os.getpid().to_bytes(PID_BYTES))
    lock = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(lock, stream)
    _take(lock, report)
    os.chdir(cwd)
    variables = {}
    if words:  # the shell adds variables such as PWD
        process = subprocess.run([*shell[:-1], "env -0"], env=environment, stdout=subprocess.PIPE, check=False)
        variables = dict(text.split("=", 1) for text in os.fsdecode(process.stdout).split("\0")[:-1])
        variables |= {name: value for name, value in os.environ.items() if name not in environment}  # set by imports
    child = os.fork()
    if child == 0:
        for number, handler in (signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler):
            signal.signal(number, signal.SIG_IGN if number in ignored else handler)
        report.close()
        os.close(lock)
        if words and variables.get("PATH") == environment.get("PATH") and (program := _load(words)):
            return _run_program(program, words, variables)
        os._exit(_run_shell(shell, environment))
    ender = threading.Thread(target=_end_with, args=(report,), daemon=True)
    ender.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if select.select([report], [], [], 0)[0]:
        ender.join()
    fcntl.flock(lock, fcntl.LOCK_UN)  # a background process that the command leaves does not hold up the next one
    report.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def _take(lock: int, report: socket.socket) -> None:
    """Wait for the lock of the stage; exit if the run ends first."""
    seconds = 0.0
    while not select.select([report], [], [], seconds)[0]:
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not seconds:
            print("waiting for an earlier copy of this stage to end", flush=True)
        seconds = WAIT_SECONDS
    os._exit(128 + signal.SIGTERM)


def _end_with(report: socket.socket) -> None:
    """End the whole session, and this process with it, when the run is gone."""
    select.select([report], [], [])
    os.killpg(0, signal.SIGTERM)
    time.sleep(END_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _run_shell(words: list[str], environment: dict[str, str]) -> int:
    """Become the shell, as DVC starts it; return an exit code if that fails."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the shell would inherit that
        signal.signal(number, signal.SIG_DFL)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # a background process would keep them open
    try:
        os.execvpe(words[0], words, environment)  # noqa: S606
    except OSError as error:
        print(f"{words[0]}: {error.strerror}", flush=True)
        return 127


def _load(words: list[str]) -> Callable[[], object] | None:
    """Return the work of `python FILE ...` or `python -m MODULE ...`; None if only a new interpreter can do it."""
    file = Path(words[1])
    folder = str(Path.cwd() if words[1] == "-m" else file.resolve().parent)
    modules = {name: getattr(module, "__file__", None) for name, module in sys.modules.items() if "." not in name}
    specs = [PathFinder.find_spec(name, [folder]) for name in modules.keys() - {"__main__"}]
    if any(spec and spec.origin not in (None, modules[spec.name]) for spec in specs):
        return None  # the program would import another module of this name from its own folder
    sys.path[:0] = [] if sys.flags.safe_path else [folder]
    if words[1] == "-m":
        return functools.partial(runpy._run_module_as_main, words[2])  # type: ignore[attr-defined] # as `python -m`
    main, path = vars(sys.modules["__main__"]), words[1] if file.is_absolute() else f"{Path.cwd()}/{words[1]}"
    with contextlib.suppress(
        OSError, SyntaxError, ValueError
    ):  # a new interpreter explains it, or runs what is not source
        code = compile(file.read_bytes(), path, "exec", dont_inherit=True)
        main.update(__file__=path, __cached__=None, __loader__=SourceFileLoader("__main__", path))
        return functools.partial(exec, code, main)
    return None


def _run_program(program: Callable[[], object], words: list[str], variables: dict[str, str]) -> None:
    """Run a program in this process as in a new one; leave the end of the program to the interpreter."""
    os.environ.clear()
    os.environ.update(variables)
    if variables.get("_", "").endswith("/env"):  # bash names the program
        os.environ["_"] = words[1] if "/" in words[0] else sys.executable
    sys.orig_argv, sys.argv = words, [words[1], *words[3:]] if words[1] == "-m" else words[1:]
    importlib.invalidate_caches()
    if process := sys.modules.get("multiprocessing.process"):
        vars(process)["ORIGINAL_DIR"] = str(Path.cwd())
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # otherwise all programs that are forked from one process draw the same numbers
    code = 0
    try:
        program()
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - print it as Python does, without this function
        kind, trace = type(error), error.__traceback__ and error.__traceback__.tb_next
        vars(sys).update(last_type=kind, last_value=error, last_traceback=trace, last_exc=error)
        sys.excepthook(kind, error.with_traceback(trace), trace)
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if words[1] != "-m":
        del sys.modules["__main__"].__file__, sys.modules["__main__"].__cached__
    sys.exit(code)
