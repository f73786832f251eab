"""The kernels that JupyterLab offers: the notebooks name one, and it must be this environment's."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from workshop.teaching.doctor.findings import Finding, look, well, wrong

OWN = "python3"  # the kernel that the notebooks name


def examine() -> Iterator[Finding]:
    """Look at the kernel that notebooks would start, and at those that look the same in the menu."""
    from jupyter_client.kernelspec import KernelSpecManager

    specs = KernelSpecManager().get_all_specs()
    own = specs.get(OWN)
    if own is None:
        yield wrong("kernel", f"there is no kernel `{OWN}`", "make run")
        return
    program = own["spec"]["argv"][0]
    if not _is_ours(program):
        missing = "" if shutil.which(program) else ", which is not there"
        yield wrong(
            "kernel",
            f"notebooks would run on {program}{missing}, named by {own['resource_dir']}",
            f"jupyter kernelspec remove {OWN}",
        )
        return
    names = [
        name
        for name, spec in specs.items()
        if name != OWN
        and spec["spec"]["display_name"] == own["spec"]["display_name"]
        and not _is_ours(spec["spec"]["argv"][0])
    ]
    if names:
        yield look(
            "kernel",
            f"{len(names) + 1} kernels are called {own['spec']['display_name']!r} in the menu, not all of this clone",
            f"jupyter kernelspec remove {' '.join(names)}",
        )
        return
    yield well("kernel", f"notebooks run on {sys.executable}")


def _is_ours(program: str) -> bool:
    """Tell whether a kernel's program is this Python; a bare `python` is replaced by that of the server."""
    if os.sep not in program:
        return True
    return Path(program).parent == Path(sys.executable).parent and Path(program).exists()
