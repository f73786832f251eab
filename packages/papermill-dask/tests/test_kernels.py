"""Kernels of the engine: real ones, cold and forked, and what becomes of them when all around them dies."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from hosts import document
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from papermill_dask.worker.kernels import manager as kernel_manager
from papermill_dask.worker.kernels.manager import KernelManager
from papermill_dask.worker.kernels.warm import WARM
from programs import wait_for

GONE_SECONDS = 5
READY_SECONDS = 120  # on a machine that has other things to do
kernel_manager.FORK_SECONDS = READY_SECONDS
FAMILY = """
    import ctypes, os, pathlib, subprocess, sys, time
    child = subprocess.Popen(["sleep", "600"])
    daemon = "import os, sys, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0)"
    note = "; open(sys.argv[1], 'a').write(f'{os.getpid()}\\\\n'); time.sleep(600)"
    subprocess.run([sys.executable, "-c", daemon + note, "family"], check=True)
    while not pathlib.Path("family").exists():
        time.sleep(0.01)
    with open("family", "a") as file:
        file.write(f"{child.pid}\\n{os.getpid()}\\n{os.getppid()}\\n")
    pathlib.Path("complete").touch()
"""


def run(*sources, folder=None, environment=None, manager=KernelManager, **options):
    """Run cells in a kernel of their own; return what they printed, joined, and the kernel's manager."""
    notebook, managers = document(*map(textwrap.dedent, sources)), []

    class Remembered(manager):
        def __init__(self, **keywords):
            super().__init__(**keywords)
            managers.append(self)

    client = NotebookClient(notebook, kernel_manager_class=Remembered, timeout=READY_SECONDS, **options)
    try:
        client.execute(cwd=str(folder or Path.cwd()), env=os.environ | (environment or {}))
    finally:
        run.manager = managers[0]
    return "".join(output.text for cell in notebook.cells for output in cell.outputs if "text" in output)


@contextlib.contextmanager
def warming(*modules):
    """Have a warm process with these modules; the first kernel waits for the imports."""
    WARM.start(modules, os.environ)
    try:
        yield
    finally:
        WARM.start((), {})
        WARM.end_all()


@pytest.fixture(scope="module")
def plotting():
    """A warm process with modules that ask in which shell they are imported."""
    with warming("numpy", "pandas", "matplotlib.pyplot", "plotly.graph_objects"):
        yield


@pytest.fixture(params=["cold", "warm"])
def either(request):
    """Each kernel twice: started cold and forked."""
    with contextlib.ExitStack() as stack:
        if request.param == "warm":
            stack.enter_context(warming("json"))
        yield request.param


@pytest.fixture(autouse=True)
def nothing_left():
    """After each test no process and no private folder of a kernel is left."""
    earlier_pids = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    manager = getattr(run, "manager", None)
    assert manager is None or not Path(manager.private_folder).exists()

    def left():
        earlier_pids.update(process.pid for process in warm_processes())
        return [process for process in psutil.Process().children(recursive=True) if process.pid not in earlier_pids]

    wait_for(lambda: not left(), GONE_SECONDS)


def warm_processes():
    """Return the fork servers that this process has started."""
    servers = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            servers += [child] if "serve_forks" in " ".join(child.cmdline()) else []
    return servers


def worker_script(cell, modules=()):
    """Return a program that stands in for a worker: it runs a cell, forked if there are modules to import."""
    return textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_kernels import os, run, WARM
        WARM.start({list(modules)!r}, os.environ)
        run({cell!r})
    """)


# -- none is left behind -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("modules", [(), ("json",)], ids=["cold", "warm"])
@pytest.mark.parametrize("last", ["time.sleep(600)", "ctypes.PyDLL(None).sleep(600)"], ids=["idle", "in C"])
def test_kernel_ends_with_its_worker_and_all_that_it_started(tmp_path, modules, last):
    """Of a worker killed with -9 nothing is left 5 s later: children, daemons, a kernel that holds the GIL in C."""
    script = worker_script(textwrap.dedent(FAMILY) + last, modules)
    temporary = Path(tempfile.mkdtemp())  # not below `tmp_path`: the path of a socket has at most 108 characters
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    worker = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment)
    try:
        wait_for((tmp_path / "complete").exists)
        time.sleep(0.3)  # until the kernel is in the sleep
        family = [psutil.Process(int(pid)) for pid in (tmp_path / "family").read_text().split()]
        assert len(family) == 4
    finally:
        worker.kill()
        worker.wait()
    _, alive = psutil.wait_procs(family, timeout=GONE_SECONDS)
    assert not alive
    wait_for(lambda: not list(temporary.iterdir()), GONE_SECONDS)  # the fork server has gone, too
    temporary.rmdir()


def test_kernel_that_ends_by_itself_leaves_nobody(tmp_path, either):
    """After a graceful end handlers of `atexit` have run, open files are written, and no daemon lives on."""
    run(
        FAMILY,
        """
        import atexit
        atexit.register(lambda: pathlib.Path("farewell").write_text("good-bye"))
        unclosed = open("unclosed", "w")
        unclosed.write("all of it")
        """,
        folder=tmp_path,
    )
    assert run.manager.kernel.poll() == 0
    assert (tmp_path / "farewell").read_text() == "good-bye"
    assert (tmp_path / "unclosed").read_text() == "all of it"
    family = [int(pid) for pid in (tmp_path / "family").read_text().split()]
    wait_for(lambda: not any(map(psutil.pid_exists, family)), GONE_SECONDS)  # the supervisor is the last


def test_kernel_listens_on_no_port(either):
    """All channels are Unix sockets in a folder of mode 0700, also that for what forked children print."""
    text = run(
        """
        import os, psutil, stat, sys, warnings
        warnings.simplefilter("ignore")  # from Python 3.12 on, forking a process with threads warns
        child = os.fork()
        if child == 0:
            print("from a child", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        """,
        "import time; time.sleep(0.5)",
        """
        print(len(psutil.Process().net_connections("inet")))
        print(oct(stat.S_IMODE(os.stat(os.path.dirname(sys.argv[2])).st_mode) & 0o777))
        """,
    )
    assert text.splitlines() == ["from a child", "0", "0o700"]


# -- a forked kernel is a kernel like any other --------------------------------------------------------------------
PROBE = """
    import __main__, asyncio, builtins, comm, gc, json, locale, logging, multiprocessing, os, signal, sys, threading
    import warnings
    shell = get_ipython()
    loggers = {name: getattr(logger, "handlers", []) for name, logger in logging.root.manager.loggerDict.items()}
    print(json.dumps({
        "argv": [word.replace(sys.argv[2], "FILE") for word in sys.argv],
        "orig_argv": [word.replace(sys.argv[2], "FILE") for word in sys.orig_argv],
        "path": sys.path,
        "folder": os.getcwd(),
        "flags": str(sys.flags),
        "variables": {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"},
        "main": [sorted(name for name in vars(__main__) if name[:2] != "_i"), str(__main__.__spec__)],
        "builtins": sorted(vars(builtins)),
        "filters": [str(entry) for entry in warnings.filters],
        "root logger": [logging.root.level, str(logging.root.handlers)],
        "loggers": {name: [[type(handler).__name__, str(type(getattr(handler, "stream", None)))] for handler in found]
                    for name, found in sorted(loggers.items()) if found},
        "signals": {number: getattr(signal.getsignal(number), "__qualname__", str(signal.getsignal(number)))
                    for number in sorted(signal.valid_signals() - {9, 19})},
        "blocked": str(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "threads": sorted(type(thread).__name__ for thread in threading.enumerate()),
        "streams": [[type(stream).__name__, stream.encoding, stream.name]
                    for stream in (sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__)],
        "input": os.read(0, 1).decode(),
        "hooks": [getattr(hook, "__qualname__", str(type(hook)))
                  for hook in (sys.excepthook, sys.displayhook, sys.unraisablehook, threading.excepthook)],
        "session": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
        "parent": int(os.environ["JPY_PARENT_PID"]) == os.getppid(),
        "callbacks": {name: [function.__qualname__ for function in found]
                      for name, found in shell.events.callbacks.items()},
        "shell": [type(shell).__name__, sys.ps1, shell.profile_dir.location, shell.history_manager.hist_file],
        "magics": sorted(shell.magics_manager.lsmagic()["line"]),
        "formatters": {name: [len(found.type_printers), len(found.deferred_printers)]
                       for name, found in shell.display_formatter.formatters.items()},
        "comm targets": sorted(comm.get_comm_manager().targets),
        "collector": [gc.get_threshold(), gc.isenabled()],
        "locale": locale.getlocale(),
        "loop": type(asyncio.get_event_loop_policy()).__name__,
        "process": [multiprocessing.current_process().name, multiprocessing.parent_process(),
                    multiprocessing.get_start_method(allow_none=True), multiprocessing.get_start_method()],
    }))
"""
PLOTTING = "import numpy, pandas, matplotlib.pyplot as plt, plotly.graph_objects as go, plotly.io, logging, random"


def probe(folder, **options):
    """Return what a kernel finds in its process once it has imported the modules for plotting."""
    return json.loads(run(PLOTTING, PROBE, folder=folder, **options))


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_kernel_finds_what_jupyters_own_finds(request, tmp_path, start):
    """Arguments, path, variables, filters, loggers, signals, threads, streams and shell are those of a stock kernel."""
    options = {"folder": tmp_path, "environment": {"PROBE": start}}
    stock = probe(manager=AsyncKernelManager, **options)
    if start == "warm":
        request.getfixturevalue("plotting")
    assert probe(**options) == stock


def test_forked_kernels_share_no_state(plotting, tmp_path):
    """What one kernel does to its process the next does not see, and each draws other random numbers."""
    first = run(
        f"{PLOTTING}; import os, sys\nprint(random.random(), numpy.random.rand())",
        "pandas.leak = os.environ['LEAK'] = 'leak'; sys.path.append('leak'); plt.rcParams['lines.linewidth'] = 42",
        folder=tmp_path,
    )
    second = run(
        f"{PLOTTING}; import os, sys\nprint(random.random(), numpy.random.rand())",
        "assert not hasattr(pandas, 'leak'); assert 'LEAK' not in os.environ; assert 'leak' not in sys.path",
        "assert plt.rcParams['lines.linewidth'] != 42",
        folder=tmp_path,
    )
    assert not set(first.split()) & set(second.split())


def test_forked_kernel_imports_the_modules_beside_its_notebook(plotting, tmp_path):
    """A module in the notebook's folder is found, also when another folder's of that name was imported before."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "beside.py").write_text(f"name = {name!r}")
        assert run("import beside\nprint(beside.name)", folder=tmp_path / name) == f"{name}\n"


def is_forked(**options):
    """Run a kernel and tell whether it was forked: then the module is there although nobody imported it."""
    return run("import sys\nprint('wave' in sys.modules)", **options) == "True\n"


def test_kernel_starts_although_the_warm_process_is_killed():
    """As the memory killer may do: kernels start nevertheless, and soon are forked again."""
    WARM.end_all()
    wait_for(lambda: not warm_processes())
    with warming("wave"):
        wait_for(is_forked)
        [server] = warm_processes()
        server.kill()
        assert run("print('there')") == "there\n"
        wait_for(is_forked)  # a kernel that starts cold makes the next process


def test_module_that_changed_makes_a_new_warm_process(tmp_path, monkeypatch, caplog):
    """A kernel that starts after a module's file has changed has the new one, as have those forked later."""
    module = tmp_path / "changing_module.py"
    module.write_text("value = 1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cell = "import changing_module, sys\nprint(changing_module.value, 'wave' in sys.modules)"
    with warming("changing_module", "wave"), caplog.at_level(logging.INFO, "papermill_dask.worker.kernels"):
        assert run(cell) == "1 True\n"
        module.write_text("value = 1000")
        assert run(cell) == "1000 False\n"
        assert "changing_module.py has changed" in caplog.text
        assert run(cell) == "1000 True\n"


def test_variable_that_imports_read_makes_a_new_warm_process():
    """A kernel for which OMP_NUM_THREADS differs is not forked from a process that has read it; one of DVC's may."""
    with warming("wave"):
        assert is_forked(environment={"DVC_STAGE": "another"})
        assert not is_forked(environment={"OMP_NUM_THREADS": "1"})
        assert is_forked(environment={"OMP_NUM_THREADS": "1"})
        assert is_forked()


def test_module_that_starts_a_thread_makes_kernels_start_cold(tmp_path, monkeypatch, caplog):
    """Where a fork would not be safe the ordinary kernel starts, and a log line names the thread."""
    (tmp_path / "threaded.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, name='busy', daemon=True).start()"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with caplog.at_level(logging.INFO, "papermill_dask.worker.kernels"), warming("wave", "threaded"):
        assert not is_forked()
        assert not is_forked()
        assert caplog.text.count("Kernels start cold: a module started threads: busy.") == 1


def test_module_that_fails_makes_kernels_start_cold(tmp_path, monkeypatch):
    """An import that raises is the reason given; a module that is not installed is only skipped."""
    (tmp_path / "failing.py").write_text("raise ValueError('not today')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with warming("wave", "failing"):
        assert not is_forked()
        assert WARM.processes[-1].reason == "ValueError: not today"
    with warming("wave", "no_such_module", "json.no_such_module"):
        assert is_forked()


def test_warm_process_ends_when_idle_and_comes_back(tmp_path):
    """Nobody asks for a kernel for a while: the memory is given back; the next kernel is cold, a later one warm."""
    try:
        WARM.start(["wave"], os.environ, idle_seconds=5)
        wait_for(is_forked)
        family = warm_processes()
        wait_for(lambda: not WARM.processes)
        assert not psutil.wait_procs(family, timeout=GONE_SECONDS)[1]
        assert not is_forked()
        wait_for(is_forked)
    finally:
        WARM.start((), {})
        WARM.end_all()


def test_workers_share_a_warm_process_that_is_the_same_for_them(tmp_path):
    """It outlives the worker that started it, its kernels write where their worker does; other limits, another one."""
    temporary = Path(tempfile.mkdtemp())
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    cell = """
        import os, psutil
        parent = psutil.Process(os.getppid())
        print(parent.ppid(), os.readlink(f"/proc/{parent.pid}/fd/1"))
    """
    script = worker_script(cell, ["wave"]).replace("run(", "print(run(") + ", flush=True)\nsys.stdin.read()"
    workers = []

    def server(*prefix):
        command = [*prefix, sys.executable, "-c", script]
        worker = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        workers.append(worker)
        pid, output = worker.stdout.readline().split()
        assert output == str(Path(f"/proc/{worker.pid}/fd/1").readlink())
        return psutil.Process(int(pid))

    try:
        first = server()
        assert server() == first
        assert server("nice") != first
        workers[0].kill()
        workers[0].wait()
        assert server() == first
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    wait_for(lambda: not list(temporary.iterdir()), GONE_SECONDS)
    temporary.rmdir()
