"""All uses of private interfaces of other libraries, each with its reason.

`tests/test_compat.py` checks that the names exist, and fails when a library has fixed a bug that is patched here.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import os
import socket
import sys
import threading
import types
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client, Worker
    from nbclient import NotebookClient

CONNECT_TRIES = 20
CHILD_LINGER_MILLISECONDS = 3000  # as in ipykernel


# -- Dask ----------------------------------------------------------------------------------------------------------
def new_client(address: Any, seconds: float) -> Client:
    """Connect to the scheduler at ``address`` (or to a cluster object) and return the client.

    Dask's errors propagate if the connection takes longer than ``seconds``.

    The scheduler reports each cancelled task to all clients. distributed 2026.8 asserts that a client's first batch
    holds a single message, so it fails if the batch also holds a report. A ConnectionAbortedError makes Dask clean up,
    so that a retry works. As of November 2026, Dask has no issue for this bug.
    """
    import distributed

    class PatientClient(distributed.Client):
        async def _ensure_connected(self, timeout: float | None = None) -> None:
            try:
                await super()._ensure_connected(timeout)
            except AssertionError:
                raise ConnectionAbortedError("another client's task was cancelled meanwhile") from None

    for _ in range(CONNECT_TRIES - 1):
        with contextlib.suppress(ConnectionAbortedError):
            return PatientClient(address, timeout=seconds, set_as_default=False)
    return PatientClient(address, timeout=seconds, set_as_default=False)


def scheduler_of(client: Client) -> Any:
    """Return a client's connection to its scheduler (untyped), which has an `address` and remote procedures."""
    return client.scheduler


def run_in_loop(node: Client | Worker, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
    """Schedule a coroutine on the event loop of a client or worker, from any thread; return its future."""
    loop: Any = node.loop  # tornado's wrapper of an asyncio loop
    return asyncio.run_coroutine_threadsafe(coroutine, loop.asyncio_loop)


def run_on_scheduler(client: Client, function: Callable[..., Coroutine[Any, Any, Any]], seconds: float) -> Any:
    """Run a coroutine function on the scheduler and return its result; raise OSError if it does not respond in time.

    `Client.run_on_scheduler` never returns if the network is down. Dask pickles nested functions by value, so this
    package need not be installed on the scheduler.
    """
    return client.sync(client._run_on_scheduler, function, callback_timeout=seconds)


async def run_on_worker(client: Client, worker: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function on a worker and return its result, or the error it raised; raise OSError for an unknown worker.

    `Client.run` waits for all workers, so a single hanging worker would block it.
    """
    return (await client._run(function, *arguments, workers=[worker], on_error="return"))[worker]


def get_task_status(worker: Worker, key: str, seconds: float) -> str | None:
    """Return a task's state on the scheduler, or None if it was released; raise TimeoutError if there is no response.

    Poll this from a worker thread, because Dask does not notify a running task when its client disconnects.
    """
    request = asyncio.wait_for(worker.scheduler.get_task_status(keys=[key]), seconds)
    return run_in_loop(worker, request).result(2 * seconds)[key]


def delete_topic(client: Client, topic: str) -> None:
    """Unsubscribe from a topic and delete its events on the scheduler, which would keep the last 1,000, however large.

    `Client.unsubscribe_topic` would keep the handler, and with it the notebook, in memory.
    """

    async def delete(dask_scheduler: Any) -> None:
        dask_scheduler._broker._topics.pop(topic, None)

    client._event_handlers.pop(topic, None)
    if client.status == "running":
        # Do not wait: this may run in the client's event loop, which waiting would block.
        run_in_loop(client, client._run_on_scheduler(delete))


def is_listening(address: str, seconds: float) -> bool:
    """Return whether a Dask server accepts connections; if it is busy, the operating system accepts them."""
    from distributed.comm.addressing import get_address_host_port

    try:
        socket.create_connection(get_address_host_port(address), seconds).close()
    except OSError:
        return False
    except ValueError:  # an in-process server has no network address
        pass
    return True


# -- papermill and nbclient ----------------------------------------------------------------------------------------
def papermill_cwd() -> str | None:
    """Return the folder for papermill's relative output paths (option `--cwd`); None if it is not set."""
    from papermill.iorw import papermill_io

    return papermill_io.get_handler("a file")._cwd


def parse_parameter(text: str) -> bool | int | float | str | None:
    """Convert a string to a value as papermill's option ``-p`` does."""
    from papermill.cli import _resolve_type

    return _resolve_type(text)


def is_captured(client: NotebookClient, message_id: str) -> bool:
    """Return whether an Output widget captures the outputs of a request; nbclient has no public API for this."""
    return bool(client.output_hook_stack[message_id])


# -- ipykernel -----------------------------------------------------------------------------------------------------
def patch_ipykernel(folder: Path) -> None:
    """Patch ipykernel where it has no options: drop no output, open no TCP port, and do not list all modules.

    Only a debugger needs the list of module files, and none is attached. In a forked kernel, building it would copy the
    memory pages of every module: half of all pages that are copied before the kernel is ready.
    ipykernel opens a TCP port for the output of forked children even if its other sockets are Unix sockets; use a Unix
    socket in ``folder``. ZeroMQ drops outputs when a reader is 1,000 messages behind
    (https://github.com/nteract/papermill/issues/426); remove this limit.
    """
    import zmq
    from ipykernel import ipkernel
    from ipykernel.iostream import IOPubThread
    from ipykernel.kernelapp import IPKernelApp
    from zmq.eventloop.zmqstream import ZMQStream

    address = f"ipc://{folder}/children"
    init_iopub = IPKernelApp.init_iopub

    def listen(self: Any) -> None:
        self._pipe_uuid = os.urandom(16)
        receiver = self.socket.context.socket(zmq.PULL)
        receiver.linger = 0
        receiver.bind(address)
        self._pipe_in = ZMQStream(receiver, self.io_loop)
        self._pipe_in.on_recv(self._handle_pipe_msg)

    def connect(_: Any) -> tuple[Any, Any]:
        context = zmq.Context()
        sender = context.socket(zmq.PUSH)
        sender.linger = CHILD_LINGER_MILLISECONDS
        sender.connect(address)
        return context, sender

    IPKernelApp.init_iopub = lambda app, context: (context.setsockopt(zmq.SNDHWM, 0), init_iopub(app, context))  # type: ignore[method-assign] # replaced
    ipkernel.sys = types.SimpleNamespace(**vars(sys) | {"modules": {}})  # type: ignore[assignment] # replaced
    IOPubThread._setup_pipe_in, IOPubThread._setup_pipe_out = listen, connect  # type: ignore[method-assign] # replaced


def patch_kernel(app: Any) -> None:
    """Patch an initialized kernel for fast shutdown and fast tracebacks, for which ipykernel has no options.

    At shutdown ipykernel waits up to 14 s for a notebook's child processes
    (https://github.com/ipython/ipykernel/pull/869), and would be killed before its `atexit` handlers run.
    For each traceback line `inspect` searches all module files for the cell (https://github.com/python/cpython/issues/92041):
    this takes 0.01 s in a warm kernel, and a RecursionError has 3,000 lines. Registering each cell avoids the search.
    """
    import psutil

    children, cache = app.kernel._process_children, app.shell.compile.cache

    def cache_and_register(*arguments: Any, **options: Any) -> str:
        name = cache(*arguments, **options)
        inspect.modulesbyfile.setdefault(name, "")  # "": the cell belongs to no module
        return name

    app.kernel._process_children = lambda: psutil.wait_procs(children(), timeout=0)[1]
    app.shell.compile.cache = cache_and_register


def wait_for_shutdown_reply(app: Any, seconds: float) -> None:
    """Wait until a kernel has sent its shutdown reply, but not longer than ``seconds``.

    After the reply the kernel's control thread flushes the streams. This blocks for 10 s if ipykernel has already
    stopped the thread that writes the streams, as it sometimes does.
    """
    if app.kernel._shutdown_message:
        app.control_thread.join(seconds)


# -- Python --------------------------------------------------------------------------------------------------------
def run_exit_handlers() -> None:
    """Join threads and call `atexit` handlers, as the interpreter does at exit."""
    threading._shutdown()  # type: ignore[attr-defined] # private
    atexit._run_exitfuncs()
