"""Wait for the end of a session of pytest, however it ends; then end what is left of all that the session started."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import psutil


def leftovers(mark: str) -> Iterator[psutil.Process]:
    """Yield the processes with the session's ``mark`` in their environment; resource trackers end by themselves."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_of_session = process.pid != os.getpid() and process.environ().get("TEST_SESSION") == mark
            if is_of_session and "resource_tracker" not in " ".join(process.cmdline()):
                yield process


if __name__ == "__main__":
    sys.stdin.read()  # the session never writes: this returns when it has ended
    while processes := list(leftovers(sys.argv[1])):
        for process in processes:
            with contextlib.suppress(psutil.Error):
                print("the tests left, and this ends:", " ".join(process.cmdline())[:100], file=sys.stderr)
                process.kill()
        psutil.wait_procs(processes, 5)
