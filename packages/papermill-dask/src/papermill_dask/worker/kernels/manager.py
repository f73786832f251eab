"""The kernels of a worker, for nbclient: each has a supervisor that ends it, and is forked if that is safe."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import weakref
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty
from typing import Any

import zmq.asyncio
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from traitlets import Float, Type, Unicode, default

from papermill_dask.worker.kernels.supervisor import ForkUnsafe, Request, WarmProcessStale
from papermill_dask.worker.kernels.warm import START, WARM, cold_command, python_of

logger = logging.getLogger(__name__)

END_SECONDS = 10.0
FORK_SECONDS = 15.0  # how long a notebook waits for imports, before its kernel starts cold
ROUND_SECONDS = 0.1
RECONNECT_MILLISECONDS = 10  # with libzmq's default, 100, a kernel that is ready would wait
READY_SECONDS = 0.2
MAX_FOLDER_BYTES = 60  # a Unix socket's path has room for 104 to 108
GRACE_SECONDS = 0.5  # for an idle kernel to end by itself


class Kernel:
    """A worker's connection to a kernel, similar to `subprocess.Popen`; any thread may call its methods.

    ``started`` has the process id, or the error that kept the kernel from starting; ``ended`` has the exit code;
    ``gone`` is done when no descendant is left.
    """

    stdin = stdout = stderr = None

    def __init__(
        self, connection: Connection, request: Request, supervisor: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.started: Future[int] = Future()
        self.ended: Future[int] = Future()
        self.gone: Future[None] = Future()
        self._connection, self._supervisor = connection, supervisor
        self._sending = threading.Lock()
        threading.Thread(target=self._listen, name="kernel", daemon=True).start()
        self._send(request)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, once the kernel has ended; None before."""
        return self.ended.result() if self.ended.done() else None

    def wait(self) -> int:
        """Wait for the kernel's end and return its exit code."""
        return self.ended.result()

    def send_signal(self, number: int) -> None:
        """Send a signal to the kernel's process group."""
        self._send(number)

    def kill(self) -> None:
        """Kill the kernel and all its descendants."""
        self._send(signal.SIGKILL)

    def _send(self, message: int | Request) -> None:
        with self._sending, contextlib.suppress(OSError):  # the supervisor is gone
            self._connection.send(message)

    def _listen(self) -> None:
        """Receive the supervisor's messages until the connection closes."""
        with contextlib.suppress(EOFError, OSError):
            match self._connection.recv():
                case int(pid):
                    self.started.set_result(pid)
                case error:
                    self.started.set_exception(error)
            self.ended.set_result(self._connection.recv())
            self._connection.recv()
        if not self.started.done():
            self.started.set_exception(WarmProcessStale("the process that starts it has ended"))
        if not self.ended.done():  # the supervisor was killed, and the kernel with it
            self.ended.set_result(-signal.SIGKILL)
        if self._supervisor is not None:
            self._supervisor.wait()
        with self._sending:
            self._connection.close()
        self.gone.set_result(None)


async def _until(event: Future[Any], seconds: float | None = None) -> None:
    await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(event)), seconds)


class SupervisedProvisioner(LocalProvisioner):
    """Starts a kernel with a supervisor; otherwise as jupyter_client's own provisioner."""

    parent: KernelManager
    kernel: Kernel | None = None
    _was_asked = False

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork the kernel from a warm process, or start it cold; raise OSError if it cannot be started."""
        request = {
            "argv": [os.path.expanduser(word) for word in cmd],  # noqa: PTH111 - as jupyter_client does
            "env": dict(kwargs["env"]),
            "cwd": str(Path(kwargs.get("cwd") or Path.cwd()).resolve()),
            "folder": self.parent.private_folder,
        }
        self.process = self.kernel = await self._fork(request) or await self._start_cold(request)  # type: ignore[assignment] # much like a Popen
        self.pid = self.kernel.started.result()
        if self.parent.is_unwanted:
            self.kernel.kill()
        return self.connection_info

    async def _fork(self, request: Request) -> Kernel | None:
        """Return a forked kernel that has started; None if the kernel must start cold."""
        if self.parent.reason_for_cold_start:
            logger.warning("A kernel starts cold: %s.", self.parent.reason_for_cold_start)
            return None
        origin = python_of(request["argv"]), request["env"]
        warm = WARM.find(*origin)
        if not warm or warm.reason:
            return None
        kernel, deadline = Kernel(warm.connect(), request), time.monotonic() + FORK_SECONDS
        try:
            while not self.parent.is_unwanted and time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    await _until(kernel.started, ROUND_SECONDS)
                    return kernel
            logger.info("A kernel starts cold: the modules are not imported yet.")
        except WarmProcessStale as reason:
            logger.info("The modules are imported again: %s.", reason)
            WARM.remove(warm)
            WARM.find(*origin)
        except ForkUnsafe as reason:
            logger.warning("Kernels start cold: %s.", reason)
            warm.close(str(reason))
        finally:
            if not kernel.started.done():
                kernel.kill()
        return None

    async def _start_cold(self, request: Request) -> Kernel:
        near, far = socket.socketpair()
        with far:
            command = [sys.executable, "-c", START.format("supervisor", "main"), str(far.fileno())]
            supervisor = subprocess.Popen(
                command, pass_fds=[far.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        kernel = Kernel(Connection(near.detach()), request | {"argv": cold_command(request["argv"])}, supervisor)
        try:
            await _until(kernel.started)
        except BaseException:
            kernel.kill()
            raise
        return kernel

    async def send_signal(self, signum: int) -> None:
        """Send a signal; ignore the interrupt that jupyter_client sends before it asks a kernel to end.

        An interrupt between two messages ends ipykernel's loop but not its threads, and ipykernel hangs for 2.5 s until
        it is killed. So `poll` interrupts only a kernel that does not end when it is asked to.
        """
        if signum != signal.SIGINT or not self.parent.shutting_down:
            await super().send_signal(signum)

    async def poll(self) -> int | None:
        """Return the exit code once the kernel has ended; wait a moment if it was asked to end."""
        if self.parent.shutting_down and not self._was_asked and self.kernel is not None:
            self._was_asked = True
            try:
                await _until(self.kernel.ended, GRACE_SECONDS)
            except TimeoutError:
                await super().send_signal(signal.SIGINT)
        return await super().poll()

    async def cleanup(self, restart: bool = False) -> None:
        """Wait until no descendant of the kernel is left, and remove the folder of its sockets."""
        if self.kernel is not None and self.kernel.poll() is not None:
            with contextlib.suppress(TimeoutError):
                await _until(self.kernel.gone, END_SECONDS)
        if not restart:
            self.parent.remove_folder()


@functools.cache
def _context() -> zmq.asyncio.Context:
    """Return a context whose sockets soon try again to connect to a kernel, and drop no messages."""
    context = zmq.asyncio.Context()
    context.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MILLISECONDS)
    context.setsockopt(zmq.RCVHWM, 0)
    return context


class PromptKernelClient(AsyncKernelClient):
    """A client that knows immediately when its kernel is ready."""

    parent: KernelManager

    @default("context")
    def _context_default(self) -> zmq.asyncio.Context:
        return _context()

    async def wait_for_ready(self, timeout: float | None = None) -> None:
        """Wait until the kernel answers and its outputs arrive; raise RuntimeError when it dies or takes too long (s).

        jupyter_client waits for 0.2 s without messages; the kernel's message `idle` means the same, and comes at once.
        """
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while True:
            request = self.kernel_info()
            try:
                await self.get_shell_msg(timeout=READY_SECONDS)
                while not _is_idle(await self.get_iopub_msg(timeout=READY_SECONDS), request):
                    pass
            except Empty:
                if not await self.parent.is_alive():
                    raise RuntimeError("Kernel died before replying to kernel_info") from None
                if time.monotonic() > deadline:
                    raise RuntimeError(f"Kernel didn't respond in {timeout:g} seconds") from None
            else:
                return


def _is_idle(message: dict[str, Any], request: str) -> bool:
    is_idle = message["content"].get("execution_state") == "idle"
    return is_idle and message["parent_header"].get("msg_id") == request


class KernelManager(AsyncKernelManager):
    """A kernel manager for nbclient whose kernels have supervisors and use Unix sockets in a private folder."""

    client_factory = Type(klass="jupyter_client.asynchronous.AsyncKernelClient", default_value=PromptKernelClient)
    # With jupyter_client's 5 s, handlers of `atexit` may not end on a busy machine.
    shutdown_wait_time = Float(8.0, config=True)
    private_folder = Unicode()
    is_unwanted = False
    reason_for_cold_start: str | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Its mode is 0700, and nobody can know its name before.
        place = tempfile.gettempdir() if len(os.fsencode(tempfile.gettempdir())) <= MAX_FOLDER_BYTES else "/tmp"  # noqa: S108
        self.private_folder = tempfile.mkdtemp(prefix="kernel-", dir=place)
        # Also without a shutdown of the kernel, and at the interpreter's end.
        self.remove_folder = weakref.finalize(self, shutil.rmtree, self.private_folder, ignore_errors=True)
        self.transport = "ipc"
        self.connection_file = str(Path(self.private_folder) / "kernel.json")

    @default("context")
    def _context_default(self) -> zmq.asyncio.Context:
        return _context()

    @property
    def kernel(self) -> Kernel | None:
        """The kernel, also after its end; None before it was started."""
        return getattr(self.provisioner, "kernel", None)

    def kill(self) -> None:
        """Kill the kernel and all its descendants, from any thread, even before it has started."""
        self.is_unwanted = True
        if self.kernel is not None:
            self.kernel.kill()

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override] # as in AsyncKernelManager
        """Start the kernel, with a supervisor unless its specification names another provisioner."""
        spec = self.kernel_spec
        if self.provisioner is None and spec and "kernel_provisioner" not in spec.metadata:
            self.kernel_id = self.kernel_id or str(uuid.uuid4())
            self.provisioner = SupervisedProvisioner(kernel_id=self.kernel_id, kernel_spec=spec, parent=self)
        await super().start_kernel(**options)
