"""Private interfaces of other libraries, and why each is needed.

`tests/test_compat.py` checks the names, and fails when a library has mended a function that this module replaces.
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
    """Return a client of the scheduler at ``address``, or of a cluster object.

    Raise what Dask raises when there is no connection in time.

    A scheduler reports each cancelled task to all clients. distributed 2026.8 asserts that the first message to a
    client comes alone; this fails when such a report comes with it. After a ConnectionAbortedError Dask clears up. Dask
    had no issue about this fault in November 2026.
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
    """Return a client's connection to its scheduler, whose remote procedures have no types; it has an `address`."""
    return client.scheduler


def run_in_loop(node: Client | Worker, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
    """Run a coroutine in the event loop of a client or a worker; may be called from any thread, and does not wait."""
    loop: Any = node.loop  # tornado's, which wraps one of asyncio's
    return asyncio.run_coroutine_threadsafe(coroutine, loop.asyncio_loop)


def ask_scheduler(client: Client, function: Callable[..., Coroutine[Any, Any, Any]], seconds: float) -> Any:
    """Return the result of a coroutine function on the scheduler; raise OSError when no answer comes in time.

    `Client.run_on_scheduler` never returns when the network is cut. Dask sends a nested function by value, so the
    scheduler need not have this package.
    """
    return client.sync(client._run_on_scheduler, function, callback_timeout=seconds)


async def ask_worker(client: Client, worker: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a function on a worker, or the error that it raised; raise OSError for an unknown worker.

    `Client.run` asks all workers together, and returns no answer while one hangs.
    """
    return (await client._run(function, *arguments, workers=[worker], on_error="return"))[worker]


def ask_for_task(worker: Worker, key: str, seconds: float) -> str | None:
    """Return the state of a task that runs on a worker, None if the scheduler has forgotten it; raise TimeoutError.

    Dask does not notify a running task that its client has gone. Call this from a thread of the worker.
    """
    ask = asyncio.wait_for(worker.scheduler.get_task_status(keys=[key]), seconds)
    return run_in_loop(worker, ask).result(2 * seconds)[key]


def forget(client: Client, topic: str) -> None:
    """Delete the events of a topic on the scheduler; Dask would keep the last thousand, of any size.

    End the subscription, too; `Client.unsubscribe_topic` would keep the handler, and so the notebook, in memory.
    """

    async def forget(dask_scheduler: Any) -> None:
        dask_scheduler._broker._topics.pop(topic, None)

    client._event_handlers.pop(topic, None)
    if client.status == "running":
        # Do not wait: this may be the client's own event loop.
        run_in_loop(client, client._run_on_scheduler(forget))


def listens(address: str, seconds: float) -> bool:
    """Return whether a Dask server accepts connections; the system accepts them even if the server is busy."""
    from distributed.comm.addressing import get_address_host_port

    try:
        socket.create_connection(get_address_host_port(address), seconds).close()
    except OSError:
        return False
    except ValueError:  # no address of a host: a server in this process
        pass
    return True


# -- papermill and nbclient ----------------------------------------------------------------------------------------
def folder_of_papermills_files() -> str | None:
    """Return the folder in which papermill writes files with a relative path; None without `--cwd`."""
    from papermill.iorw import papermill_io

    return papermill_io.get_handler("a file")._cwd


def read_parameter(text: str) -> bool | int | float | str | None:
    """Convert a text to a value as papermill's option ``-p`` does."""
    from papermill.cli import _resolve_type

    return _resolve_type(text)


def is_captured(client: NotebookClient, message_id: str) -> bool:
    """Tell whether an Output widget takes the outputs of this request; nbclient has no other way to ask."""
    return bool(client.output_hook_stack[message_id])


# -- ipykernel -----------------------------------------------------------------------------------------------------
def prepare_ipykernel(folder: Path) -> None:
    """Change what has no option in ipykernel: drop no output, listen on no TCP port, and list no modules.

    Only a debugger needs the list of all modules' files, and none is attached to this kernel. In a fork the list would
    copy the memory of each module: half of the memory that a kernel copies until it is ready.
    ipykernel listens on a port for the prints of forked children, even if its other sockets are Unix sockets; here it
    listens on a Unix socket in ``folder``. ZeroMQ drops outputs when a reader is 1,000 messages behind
    (https://github.com/nteract/papermill/issues/426); here outputs queue without a limit.
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


def prepare_kernel(app: Any) -> None:
    """Change what has no option in an initialized kernel: a prompt end, and prompt tracebacks.

    ipykernel waits up to 14 s for a notebook's child processes (https://github.com/ipython/ipykernel/pull/869), and
    would be killed before its `atexit` handlers run. For each line of a traceback `inspect` searches the files of all
    modules for the cell (https://github.com/python/cpython/issues/92041). This takes 0.01 s in a warm kernel, and a
    RecursionError has 3,000 lines; so a cell is registered there as the file of no module.
    """
    import psutil

    children, cache = app.kernel._process_children, app.shell.compile.cache

    def remember(*arguments: Any, **options: Any) -> str:
        name = cache(*arguments, **options)
        inspect.modulesbyfile.setdefault(name, "")  # the name of no module
        return name

    app.kernel._process_children = lambda: psutil.wait_procs(children(), timeout=0)[1]
    app.shell.compile.cache = remember


def finish_reply(app: Any, seconds: float) -> None:
    """Wait until a kernel has replied to the request to end.

    Its control thread then still flushes the streams. ipykernel sometimes stops the thread that writes them first, and
    the flush waits for 10 s.
    """
    if app.kernel._shutdown_message:
        app.control_thread.join(seconds)


# -- Python --------------------------------------------------------------------------------------------------------
def run_last_handlers() -> None:
    """Wait for threads and call the handlers of `atexit`, as the interpreter does at its end."""
    threading._shutdown()  # type: ignore[attr-defined] # private
    atexit._run_exitfuncs()
