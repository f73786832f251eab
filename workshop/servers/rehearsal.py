"""Imported by the process that kernels are forked from: what each notebook would find out again, found out once.

What is found stays valid in a kernel: a module that has changed since is read again.
"""

from __future__ import annotations

import contextlib

from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

from workshop import fingerprint
from workshop.settings import get_settings

with contextlib.suppress(Exception):  # whatever is wrong, the notebook reports it, and kernels are forked all the same
    folder = get_settings().pipeline
    for stage in fingerprint.stages(folder).values():
        fingerprint.code_of(stage, folder)
warn_dependency_requirement_mismatches(["mlflow"])  # reads to which package each module belongs, as each `log_model`
