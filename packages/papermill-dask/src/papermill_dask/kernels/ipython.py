"""An IPython kernel: ipykernel as its own launcher runs it, with prompt output and a prompt end."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib.util
import inspect
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

LAUNCHER = "ipykernel_launcher"
FLUSH_SECONDS = 0.02  # a reader of live output would have to wait for ipykernel's own 0.2 s
LAST_REPLY_SECONDS = 1.0
CHILD_LINGER_MILLISECONDS = 3000  # as in ipykernel


def main() -> NoReturn:
    """Run the kernel that the command line's options describe."""
    run_kernel([*sys.orig_argv[: sys.orig_argv.index("-c")], "-m", LAUNCHER, *sys.argv[1:]])


def run_kernel(argv: list[str], prepare: Callable[[Any], None] | None = None) -> NoReturn:
    """Run a kernel to its end as ``argv``, `python -m ipykernel_launcher OPTIONS`, does; ``prepare`` gets its shell."""
    options = argv[argv.index(LAUNCHER) + 1 :]
    sys.argv, sys.orig_argv = [importlib.util.find_spec(LAUNCHER).origin, *options], argv
    code: Any = 0
    try:
        _serve(options, prepare)
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - what Python's own top level catches, too
        sys.excepthook(*sys.exc_info())
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.__stderr__)
        code = 1
    _end(code or 0)


def _serve(options: list[str], prepare: Callable[[Any], None] | None) -> None:
    import psutil
    import zmq
    from ipykernel.iostream import OutStream
    from ipykernel.kernelapp import IPKernelApp

    OutStream.flush_interval = FLUSH_SECONDS
    _listen_on_no_port(Path(options[1]).parent)
    # Outputs queue as long as they must; ZeroMQ would drop those for which a reader is 1,000 messages behind.
    init_iopub = IPKernelApp.init_iopub
    IPKernelApp.init_iopub = lambda app, context: (context.setsockopt(zmq.SNDHWM, 0), init_iopub(app, context))
    # In a fork ipykernel's own default is of the time when it was imported.
    app = IPKernelApp.instance(parent_handle=os.getppid())
    app.initialize(options)
    # A notebook seldom waits for what it starts; ipykernel would, for 14 s, and be killed before its `atexit` handlers.
    children = app.kernel._process_children
    app.kernel._process_children = lambda: psutil.wait_procs(children(), timeout=0)[1]
    _name_cells(app.shell.compile)
    if prepare:
        prepare(app.shell)
    app.start()
    if app.kernel._shutdown_message:
        # The control thread still flushes the streams of the reply. If the thread that writes them is stopped
        # first, as ipykernel itself does it now and then, the flush waits for 10 s.
        app.control_thread.join(LAST_REPLY_SECONDS)


def _listen_on_no_port(folder: Path) -> None:
    """Let what forked children print come through a Unix socket; ipykernel listens on a TCP port for that."""
    import zmq
    from ipykernel.iostream import IOPubThread
    from zmq.eventloop.zmqstream import ZMQStream

    address = f"ipc://{folder}/children"

    def listen(self: Any) -> None:
        self._pipe_uuid = os.urandom(16)
        receiving = self.socket.context.socket(zmq.PULL)
        receiving.linger = 0
        receiving.bind(address)
        self._pipe_in = ZMQStream(receiving, self.io_loop)
        self._pipe_in.on_recv(self._handle_pipe_msg)

    def connect(_: Any) -> tuple[Any, Any]:
        context = zmq.Context()
        sending = context.socket(zmq.PUSH)
        sending.linger = CHILD_LINGER_MILLISECONDS
        sending.connect(address)
        return context, sending

    IOPubThread._setup_pipe_in, IOPubThread._setup_pipe_out = listen, connect


def _name_cells(compiler: Any) -> None:
    """Tell `inspect` that a cell is no module's file: it would search all modules for it, for each line of a traceback.

    That takes 0.01 s with the modules of a warm kernel, and a RecursionError has 3,000 such lines.
    """
    cache = compiler.cache

    def remember(*arguments: Any, **options: Any) -> str:
        name = cache(*arguments, **options)
        inspect.modulesbyfile.setdefault(name, "")  # the name of no module
        return name

    compiler.cache = remember


def _end(code: int) -> NoReturn:
    """Do what Python does at its end, but for taking each module to pieces: with TensorFlow that takes a second."""
    threading._shutdown()  # there is no public name for these two
    atexit._run_exitfuncs()
    gc.collect()  # closes, and so writes out, the files that nobody closed
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)
    os._exit(code)
