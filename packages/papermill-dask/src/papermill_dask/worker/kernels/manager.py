"""Kernel manager for nbclient: each kernel has a supervisor, and is forked if that is safe."""

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
from papermill_dask.worker.kernels.warm import START, WARM, cold_command, forkable_python

logger = logging.getLogger(__name__)

CLEANUP_SECONDS = 10.0
FORK_SECONDS = 15.0  # maximum wait for imports before a kernel starts cold
ROUND_SECONDS = 0.1
RECONNECT_MILLISECONDS = 10  # libzmq's default of 100 would delay a ready kernel
READY_SECONDS = 0.2
MAX_FOLDER_BYTES = 60  # for the temporary folder: a Unix socket's path is limited to 104 (macOS) or 108 bytes (Linux)
GRACE_SECONDS = 0.5  # time for an idle kernel to shut down


class Kernel:
    """A thread-safe handle for a kernel, similar to `subprocess.Popen`.

    Futures: ``started`` is the process id or the start error, ``ended`` is the exit code, and
    ``descendants_ended`` is done when no descendant is alive.
    """

    stdin = stdout = stderr = None

    def __init__(
        self, connection: Connection, request: Request, supervisor: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.started: Future[int] = Future()
        self.ended: Future[int] = Future()
        self.descendants_ended: Future[None] = Future()
        self._connection, self._supervisor = connection, supervisor
        self._sending = threading.Lock()
        threading.Thread(target=self._listen, name="kernel", daemon=True).start()
        self._send(request)

    def poll(self) -> int | None:
        """Return the exit code (negative for a signal), or None if the kernel is running."""
        return self.ended.result() if self.ended.done() else None

    def wait(self) -> int:
        """Wait until the kernel exits; return its exit code."""
        return self.ended.result()

    def send_signal(self, number: int) -> None:
        """Send a signal to the kernel's process group."""
        self._send(number)

    def kill(self) -> None:
        """Kill the kernel and all its descendants."""
        self._send(signal.SIGKILL)

    def _send(self, message: int | Request) -> None:
        with self._sending, contextlib.suppress(OSError):  # the supervisor has exited
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
            self.started.set_exception(WarmProcessStale("the process that starts the kernel has exited"))
        if not self.ended.done():  # the supervisor was killed, and the kernel with it
            self.ended.set_result(-signal.SIGKILL)
        if self._supervisor is not None:
            self._supervisor.wait()
        with self._sending:
            self._connection.close()
        self.descendants_ended.set_result(None)


async def _wait_for(event: Future[Any], seconds: float | None = None) -> None:
    await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(event)), seconds)


class SupervisedProvisioner(LocalProvisioner):
    """Like jupyter_client's LocalProvisioner, but starts each kernel under a supervisor."""

    parent: KernelManager
    kernel: Kernel | None = None
    _has_waited = False

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork the kernel from a warm process, or start it cold; raise OSError if starting fails."""
        request = {
            "argv": [os.path.expanduser(word) for word in cmd],  # noqa: PTH111 - as jupyter_client does
            "env": dict(kwargs["env"]),
            "cwd": str(Path(kwargs.get("cwd") or Path.cwd()).resolve()),
            "folder": self.parent.private_folder,
        }
        self.process = self.kernel = await self._fork(request) or await self._start_cold(request)  # type: ignore[assignment] # duck-typed Popen
        self.pid = self.kernel.started.result()
        if self.parent.is_cancelled:
            self.kernel.kill()
        return self.connection_info

    async def _fork(self, request: Request) -> Kernel | None:
        """Fork a kernel and wait for its start; return None if the kernel must start cold."""
        if self.parent.reason_for_cold_start:
            logger.warning("A kernel starts cold: %s.", self.parent.reason_for_cold_start)
            return None
        requirements = forkable_python(request["argv"]), request["env"]
        warm = WARM.find(*requirements)
        if not warm or warm.reason:
            return None
        kernel, deadline = Kernel(warm.connect(), request), time.monotonic() + FORK_SECONDS
        try:
            while not self.parent.is_cancelled and time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    await _wait_for(kernel.started, ROUND_SECONDS)
                    return kernel
            logger.info("A kernel starts cold: the modules are not imported yet.")
        except WarmProcessStale as reason:
            logger.info("Importing the modules again: %s.", reason)
            WARM.remove(warm)
            WARM.find(*requirements)
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
            await _wait_for(kernel.started)
        except BaseException:
            kernel.kill()
            raise
        return kernel

    async def send_signal(self, signum: int) -> None:
        """Send a signal, except for the interrupt that jupyter_client sends before a shutdown request.

        An interrupt between two messages stops ipykernel's event loop but not its threads, so the kernel hangs for
        2.5 s until it is killed. Instead, `poll` interrupts a kernel that ignores the shutdown request.
        """
        if signum != signal.SIGINT or not self.parent.shutting_down:
            await super().send_signal(signum)

    async def poll(self) -> int | None:
        """Return the exit code, or None if the kernel runs; after a shutdown request, wait briefly, then interrupt."""
        if self.parent.shutting_down and not self._has_waited and self.kernel is not None:
            self._has_waited = True
            try:
                await _wait_for(self.kernel.ended, GRACE_SECONDS)
            except TimeoutError:
                await super().send_signal(signal.SIGINT)
        return await super().poll()

    async def cleanup(self, restart: bool = False) -> None:
        """Wait until all descendants of the kernel have ended, and remove the folder of the kernel's sockets."""
        if self.kernel is not None and self.kernel.poll() is not None:
            with contextlib.suppress(TimeoutError):
                await _wait_for(self.kernel.descendants_ended, CLEANUP_SECONDS)
        if not restart:
            self.parent.remove_folder()


@functools.cache
def _context() -> zmq.asyncio.Context:
    """Return a ZeroMQ context with fast reconnects and unlimited receive queues."""
    context = zmq.asyncio.Context()
    context.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MILLISECONDS)
    context.setsockopt(zmq.RCVHWM, 0)
    return context


class FastKernelClient(AsyncKernelClient):
    """A kernel client that notices without delay when the kernel is ready."""

    parent: KernelManager

    @default("context")
    def _context_default(self) -> zmq.asyncio.Context:
        return _context()

    async def wait_for_ready(self, timeout: float | None = None) -> None:
        """Wait until the kernel responds on both channels; raise RuntimeError if it dies or needs over ``timeout`` s.

        jupyter_client waits until 0.2 s pass without a message; the `idle` message announces readiness sooner.
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
    """Kernel manager whose kernels have supervisors and use Unix sockets in a private folder."""

    client_factory = Type(klass="jupyter_client.asynchronous.AsyncKernelClient", default_value=FastKernelClient)
    # On a busy machine `atexit` handlers may need more than the 5 s that jupyter_client allows.
    shutdown_wait_time = Float(8.0, config=True)
    private_folder = Unicode()
    is_cancelled = False
    reason_for_cold_start: str | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # /tmp is safe: `mkdtemp` uses mode 0700 and an unpredictable name.
        parent = tempfile.gettempdir() if len(os.fsencode(tempfile.gettempdir())) <= MAX_FOLDER_BYTES else "/tmp"  # noqa: S108
        self.private_folder = tempfile.mkdtemp(prefix="kernel-", dir=parent)
        # Remove the folder even if the kernel is never shut down, at interpreter exit at the latest.
        self.remove_folder = weakref.finalize(self, shutil.rmtree, self.private_folder, ignore_errors=True)
        self.transport = "ipc"
        self.connection_file = str(Path(self.private_folder) / "kernel.json")

    @default("context")
    def _context_default(self) -> zmq.asyncio.Context:
        return _context()

    @property
    def kernel(self) -> Kernel | None:
        """The kernel, even if it has ended; None if it has not been started yet."""
        return getattr(self.provisioner, "kernel", None)

    def kill(self) -> None:
        """Kill the kernel and all its descendants, even if it is still starting; thread-safe."""
        self.is_cancelled = True
        if self.kernel is not None:
            self.kernel.kill()

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override] # as in AsyncKernelManager
        """Start the kernel, with a supervisor unless the kernelspec specifies another provisioner."""
        spec = self.kernel_spec
        if self.provisioner is None and spec and "kernel_provisioner" not in spec.metadata:
            self.kernel_id = self.kernel_id or str(uuid.uuid4())
            self.provisioner = SupervisedProvisioner(kernel_id=self.kernel_id, kernel_spec=spec, parent=self)
        await super().start_kernel(**options)
