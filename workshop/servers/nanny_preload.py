"""For `dask worker --preload-nanny`: end all workers of a process with the first, for supervisor to start them again.

A worker that loses the scheduler closes its nanny, too. The process lives on with the others, one worker less for ever.
"""

from __future__ import annotations

import os
import signal
from typing import Any


def dask_teardown(_: Any) -> None:
    """Stop the process in the regular way, unless a signal has done so: then Dask has put the default handler back."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        os.kill(os.getpid(), signal.SIGTERM)
