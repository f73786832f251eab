"""Imported by the process that Python programs are forked from: imports what they need, quietly."""

import contextlib
import gc
import importlib
import os

MODULES = "DVC_PARALLEL_PRELOAD"

if names := os.environ.pop(MODULES, "").split():
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # the terminal shows stages; a program gets its own output
        os.dup2(nothing, stream)
    for name in ("dvc_parallel.runner", *names):
        with contextlib.suppress(Exception):  # the program's to complain about
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, the pages that programs share
