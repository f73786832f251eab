"""Private interfaces that `compat.py` uses: each exists, and does what it is used for."""

from __future__ import annotations

import ast
import asyncio
import graphlib
import inspect
import pkgutil
import re
from pathlib import Path

import distributed
import ipykernel
import nbclient
import nbformat
import pytest
from hosts import wait_for
from papermill_dask import compat

SOURCE = Path(compat.__file__).parent
UPGRADE = "an upgrade changed it: see papermill_dask/compat.py"


@pytest.fixture(scope="module")
def client():
    """A client of a cluster in this process."""
    from distributed import Client

    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as client:
        yield client


def test_dask_answers_within_a_time(client):
    """A scheduler is asked by `_run_on_scheduler` with a time-out, a worker by `_run` with its error returned."""

    async def name(dask_scheduler) -> str:
        return type(dask_scheduler).__name__

    async def sleep(dask_scheduler) -> None:
        import asyncio

        await asyncio.sleep(60)

    assert compat.ask_scheduler(client, name, 10) == "Scheduler", UPGRADE
    with pytest.raises((OSError, TimeoutError)):
        compat.ask_scheduler(client, sleep, 0.2)
    (worker,) = client.scheduler_info()["workers"]
    assert client.sync(compat.ask_worker, client, worker, int, "3") == 3, UPGRADE
    assert isinstance(client.sync(compat.ask_worker, client, worker, int, "x"), ValueError), UPGRADE


def test_dask_forgets_a_topic(client):
    """The scheduler's broker has `_topics`, from which a topic goes for good."""

    async def topics(dask_scheduler) -> list[str]:
        return list(dask_scheduler._broker._topics)

    events = []
    client.subscribe_topic("a topic", events.append)
    wait_for(lambda: client.log_event("a topic", "an event") or events)  # the subscription may come after an event
    assert "a topic" in compat.ask_scheduler(client, topics, 10), UPGRADE
    compat.forget(client, "a topic")
    assert "a topic" not in client._event_handlers, UPGRADE
    wait_for(lambda: "a topic" not in compat.ask_scheduler(client, topics, 10), 10, UPGRADE)


def test_dask_knows_the_tasks_that_run(client):
    """A worker's scheduler answers `get_task_status`, None for what is forgotten."""

    def ask(key: str) -> tuple:
        worker = distributed.get_worker()
        return worker.id, worker.status.name, compat.ask_for_task(worker, key, 5), callable(worker.log_event)

    task = client.submit(ask, "unknown")
    name, status, state, logs = task.result()
    assert name, UPGRADE
    assert (status, state, logs) == ("running", None, True), UPGRADE
    assert client.submit(ask, task.key, pure=False).result()[2] == "memory", UPGRADE


def test_papermill_has_what_is_used_of_it(tmp_path):
    """The folder of relative paths, the reading of ``-p``, and a client that sets its kernel up by a context."""
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.iorw import papermill_io

    before = compat.folder_of_papermills_files()
    papermill_io.get_handler("a file").cwd(str(tmp_path))
    try:
        assert Path(compat.folder_of_papermills_files()) == tmp_path, UPGRADE
    finally:
        papermill_io.get_handler("a file").cwd(before)
    assert [compat.read_parameter(text) for text in ("1", "1.5", "True", "None", "a")] == [1, 1.5, True, None, "a"]
    assert "with self.setup_kernel(" in inspect.getsource(PapermillNotebookClient.execute), UPGRADE
    assert not asyncio.iscoroutinefunction(PapermillNotebookClient.process_message), UPGRADE


def test_nbclient_says_which_widget_takes_outputs():
    """A client has a list of hooks for each message; an Output widget adds one."""
    client = nbclient.NotebookClient(nbformat.v4.new_notebook())
    assert not compat.is_captured(client, "a message"), UPGRADE
    client.register_output_hook("a message", object())
    assert compat.is_captured(client, "a message"), UPGRADE


USED = {
    "ipykernel.iostream:IOPubThread": ["_setup_pipe_in", "_setup_pipe_out", "_handle_pipe_msg"],
    "ipykernel.kernelapp:IPKernelApp": ["init_iopub", "control_thread"],
    "ipykernel.ipkernel:IPythonKernel": ["_process_children", "_shutdown_message"],
    "IPython.core.compilerop:CachingCompiler": ["cache"],
    "threading": ["_shutdown"],
    "atexit": ["_run_exitfuncs"],
    "inspect": ["modulesbyfile"],
}  # fmt: skip


@pytest.mark.parametrize("owner", USED)
def test_kernels_find_what_they_change(owner):
    """What is changed in a kernel or in a forked process is there under the same name."""
    missing = [name for name in USED[owner] if not hasattr(pkgutil.resolve_name(owner), name)]
    assert not missing, f"{owner} has no {missing} any more: {UPGRADE}"


# Functions that are replaced, each with what its source has as long as that is needed.
LISTS_MODULES, LISTS_NONE = r"in sys\.modules", r"(?s)\A(?!.*sys\.modules)"
REPLACED = {
    "distributed:Client._ensure_connected": r"assert len\(msg\) == 1",
    "ipykernel.kernelapp:IPKernelApp.init_iopub": r"(?s)\A(?!.*(HWM|NODROP))",  # neither option is set
    "ipykernel.iostream:IOPubThread._setup_pipe_in": r"bind_to_random_port\(.tcp:",
    "ipykernel.iostream:IOPubThread._setup_pipe_out": r"connect\(.*tcp:",
    "ipykernel.ipkernel:IPythonKernel.__init__": LISTS_MODULES if ipykernel.version_info >= (7, 2) else LISTS_NONE,
    "ipykernel.kernelbase:Kernel._progressively_terminate_all_children": r"0\.3, 1, 3, 10",
    "inspect:getmodule": r"for modname, module in sys\.modules\.copy\(\)\.items\(\):",
}


@pytest.mark.parametrize("function", REPLACED)
def test_what_is_replaced_still_needs_it(function):
    """Each function that `compat` replaces, or works around, has the fault; else the replacement can go."""
    source = inspect.getsource(pkgutil.resolve_name(function))
    assert re.search(REPLACED[function], source), f"{function} was mended: see what compat.py does about it"


MODULES = {file.relative_to(SOURCE).with_suffix("").as_posix(): file for file in SOURCE.rglob("*.py")}


@pytest.mark.parametrize("module", [name for name in MODULES if name != "compat"])
def test_private_names_of_others_are_used_in_one_module(module):
    """Outside of `compat` no name with a leading underscore is used or imported, but this package's and `os._exit`."""
    nodes = list(ast.walk(ast.parse(MODULES[module].read_text())))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and not node.module.startswith("__")]
    assert not [alias.name for node in imports for alias in node.names if "._" in f".{node.module}.{alias.name}"]
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    private = {ast.unparse(node) for node in attributes if node.attr.startswith("_") and not node.attr.endswith("__")}
    assert not [name for name in private if not name.startswith(("self._", "cls._")) and name != "os._exit"]


def test_imports_form_no_circle():
    """No module imports, not even in a function, one that imports it."""
    imports = {
        name: {
            f"{node.module}.{alias.name}".removeprefix("papermill_dask.").replace(".", "/")
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module.startswith("papermill_dask")
            for alias in [*node.names, ast.alias("")]
        }
        for name, file in MODULES.items()
        if name != "__init__"  # which names all, and imports each only when it is asked for
    }
    graph = {name: {part.rstrip("/") for part in parts} & set(MODULES) for name, parts in imports.items()}
    assert list(graphlib.TopologicalSorter(graph).static_order())
