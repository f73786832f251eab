"""Wait for the end of a pytest session, however it ends; then end the processes that it left."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import psutil

GRACE_SECONDS = 3


def leftovers(mark: str) -> Iterator[psutil.Process]:
    """Yield the processes with the session's ``mark`` in their environment."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("TEST_SESSION") == mark:
                yield process


if __name__ == "__main__":
    sys.stdin.read()  # returns when the session ends, which never writes
    # Resource trackers, such as loky's, end just after the process that they watch.
    while processes := psutil.wait_procs(leftovers(sys.argv[1]), GRACE_SECONDS)[1]:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                print("the tests left, and this ends:", " ".join(process.cmdline())[:100], file=sys.stderr)
                process.kill()
        psutil.wait_procs(processes, 5)
