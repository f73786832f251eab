"""Cold and forked kernels: their state, and their end when other processes die."""

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
READY_SECONDS = 120  # on a busy machine
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
    """Run cells in a new kernel and return their joined output; set `run.manager` to the kernel manager."""
    notebook, managers = document(*map(textwrap.dedent, sources)), []

    class RecordedManager(manager):
        def __init__(self, **keywords):
            super().__init__(**keywords)
            managers.append(self)

    client = NotebookClient(notebook, kernel_manager_class=RecordedManager, timeout=READY_SECONDS, **options)
    try:
        client.execute(cwd=str(folder or Path.cwd()), env=os.environ | (environment or {}))
    finally:
        run.manager = managers[0]
    return "".join(output.text for cell in notebook.cells for output in cell.outputs if "text" in output)


@contextlib.contextmanager
def warming(*modules):
    """Start a warm process with these modules; the first kernel waits for the imports."""
    WARM.start(modules, os.environ)
    try:
        yield
    finally:
        WARM.start((), {})
        WARM.end_all()


@pytest.fixture(scope="module")
def plotting():
    """A warm process with modules that check the shell during import."""
    with warming("numpy", "pandas", "matplotlib.pyplot", "plotly.graph_objects"):
        yield


@pytest.fixture(params=["cold", "warm"])
def either(request):
    """Run the test with a cold kernel and with a forked one."""
    with contextlib.ExitStack() as stack:
        if request.param == "warm":
            stack.enter_context(warming("json"))
        yield request.param


@pytest.fixture(autouse=True)
def nothing_left():
    """Check after each test that no process and no private folder of a kernel is left."""
    earlier_pids = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    manager = getattr(run, "manager", None)
    assert manager is None or not Path(manager.private_folder).exists()

    def left():
        earlier_pids.update(process.pid for process in warm_processes())
        return [process for process in psutil.Process().children(recursive=True) if process.pid not in earlier_pids]

    wait_for(lambda: not left(), GONE_SECONDS)


def warm_processes():
    """Return the fork servers started by this process."""
    servers = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            servers += [child] if "serve_forks" in " ".join(child.cmdline()) else []
    return servers


def worker_script(cell, modules=()):
    """Return a program that acts as a worker: it runs a cell, in a forked kernel if there are modules."""
    return textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_kernels import os, run, WARM
        WARM.start({list(modules)!r}, os.environ)
        run({cell!r})
    """)


# -- the end of kernels --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("modules", [(), ("json",)], ids=["cold", "warm"])
@pytest.mark.parametrize("last", ["time.sleep(600)", "ctypes.PyDLL(None).sleep(600)"], ids=["idle", "in C"])
def test_kernel_and_descendants_end_with_their_worker(tmp_path, modules, last):
    """5 s after a worker was killed, no child, daemon or kernel (even one that holds the GIL in C) is left."""
    script = worker_script(textwrap.dedent(FAMILY) + last, modules)
    temporary = Path(tempfile.mkdtemp())  # not in `tmp_path`: a socket's path is limited to 108 characters
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    worker = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment)
    try:
        wait_for((tmp_path / "complete").exists)
        time.sleep(0.3)  # until the kernel sleeps
        family = [psutil.Process(int(pid)) for pid in (tmp_path / "family").read_text().split()]
        assert len(family) == 4
    finally:
        worker.kill()
        worker.wait()
    _, alive = psutil.wait_procs(family, timeout=GONE_SECONDS)
    assert not alive
    wait_for(lambda: not list(temporary.iterdir()), GONE_SECONDS)  # the fork server has also ended
    temporary.rmdir()


def test_kernel_shutdown_leaves_no_process(tmp_path, either):
    """After a regular shutdown, `atexit` handlers have run, open files are flushed, and no daemon is alive."""
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
    wait_for(lambda: not any(map(psutil.pid_exists, family)), GONE_SECONDS)  # the supervisor ends last


def test_kernel_listens_on_no_port(either):
    """All channels, also for the output of forked children, are Unix sockets in a folder of mode 0700."""
    text = run(
        """
        import os, psutil, stat, sys, warnings
        warnings.simplefilter("ignore")  # from Python 3.12, forking a process with threads warns
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


# -- forked kernels ------------------------------------------------------------------------------------------------
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
    """Return the state of a kernel's process after importing the plotting modules."""
    return json.loads(run(PLOTTING, PROBE, folder=folder, **options))


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_kernel_state_equals_that_of_a_stock_kernel(request, tmp_path, start):
    """Arguments, path, variables, filters, loggers, signals, threads, streams and shell are as in Jupyter's own."""
    options = {"folder": tmp_path, "environment": {"PROBE": start}}
    stock = probe(manager=AsyncKernelManager, **options)
    if start == "warm":
        request.getfixturevalue("plotting")
    assert probe(**options) == stock


def test_forked_kernels_share_no_state(plotting, tmp_path):
    """Changes in one kernel do not affect the next, and each draws different random numbers."""
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
    """A module in the notebook's folder is imported, even after one with the same name from another folder."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "beside.py").write_text(f"name = {name!r}")
        assert run("import beside\nprint(beside.name)", folder=tmp_path / name) == f"{name}\n"


def is_forked(**options):
    """Run a kernel and return whether it was forked, i.e. whether the module is preloaded."""
    return run("import sys\nprint('wave' in sys.modules)", **options) == "True\n"


def test_kernel_starts_after_the_warm_process_was_killed():
    """After the OOM killer's work, kernels still start, and are soon forked again."""
    WARM.end_all()
    wait_for(lambda: not warm_processes())
    with warming("wave"):
        wait_for(is_forked)
        [server] = warm_processes()
        server.kill()
        assert run("print('there')") == "there\n"
        wait_for(is_forked)  # a cold start triggers a new warm process


def test_changed_module_starts_a_new_warm_process(tmp_path, monkeypatch, caplog):
    """After a module's file has changed, the next (cold) kernel and later forked ones import the new version."""
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


def test_variable_read_by_imports_needs_another_warm_process():
    """A kernel with another OMP_NUM_THREADS needs another warm process; one with another DVC_STAGE does not."""
    with warming("wave"):
        assert is_forked(environment={"DVC_STAGE": "another"})
        assert not is_forked(environment={"OMP_NUM_THREADS": "1"})
        assert is_forked(environment={"OMP_NUM_THREADS": "1"})
        assert is_forked()


def test_module_that_starts_a_thread_makes_kernels_start_cold(tmp_path, monkeypatch, caplog):
    """If forking is unsafe, kernels start cold, and the log names the thread."""
    (tmp_path / "threaded.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, name='busy', daemon=True).start()"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with caplog.at_level(logging.INFO, "papermill_dask.worker.kernels"), warming("wave", "threaded"):
        assert not is_forked()
        assert not is_forked()
        assert caplog.text.count("Kernels start cold: a module started threads: busy.") == 1


def test_module_that_fails_makes_kernels_start_cold(tmp_path, monkeypatch):
    """The reason is the import's error; a module that is not installed is only skipped."""
    (tmp_path / "failing.py").write_text("raise ValueError('not today')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with warming("wave", "failing"):
        assert not is_forked()
        assert WARM.processes[-1].reason == "ValueError: not today"
    with warming("wave", "no_such_module", "json.no_such_module"):
        assert is_forked()


def test_idle_warm_process_ends_and_restarts(tmp_path):
    """After the idle time the process ends and frees its memory; the next kernel starts cold, later ones are forked."""
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


def test_workers_share_a_warm_process(tmp_path):
    """It outlives the worker that started it; kernels use their worker's output; another niceness needs another one."""
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
