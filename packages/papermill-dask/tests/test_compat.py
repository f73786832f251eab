"""Private interfaces that `compat.py` uses or replaces: each exists, and is still needed."""

from __future__ import annotations

import inspect
import pkgutil
import re

import ipykernel
import pytest

UPGRADE = "an upgrade changed it: see papermill_dask/compat.py"


USED = {
    "distributed:Client": ["_run_on_scheduler", "_ensure_connected"],
    "papermill.iorw:LocalHandler": ["cwd"],
    "ipykernel.iostream:IOPubThread": ["_setup_pipe_in", "_setup_pipe_out", "_handle_pipe_msg"],
    "ipykernel.kernelapp:IPKernelApp": ["init_iopub", "control_thread"],
    "ipykernel.ipkernel:IPythonKernel": ["_process_children", "_shutdown_message"],
    "IPython.core.compilerop:CachingCompiler": ["cache"],
    "threading": ["_shutdown"],
    "atexit": ["_run_exitfuncs"],
    "inspect": ["modulesbyfile"],
}  # fmt: skip


@pytest.mark.parametrize("owner", USED)
def test_kernels_find_what_they_change(owner):
    """What is changed in a kernel or in a forked process is there under the same name."""
    missing = [name for name in USED[owner] if not hasattr(pkgutil.resolve_name(owner), name)]
    assert not missing, f"{owner} has no {missing} any more: {UPGRADE}"


# Functions that are replaced, each with what its source has as long as that is needed.
LISTS_MODULES, LISTS_NONE = r"in sys\.modules", r"(?s)\A(?!.*sys\.modules)"
REPLACED = {
    "distributed:Client._ensure_connected": r"assert len\(msg\) == 1",
    "ipykernel.kernelapp:IPKernelApp.init_iopub": r"(?s)\A(?!.*(HWM|NODROP))",  # neither option is set
    "ipykernel.iostream:IOPubThread._setup_pipe_in": r"bind_to_random_port\(.tcp:",
    "ipykernel.iostream:IOPubThread._setup_pipe_out": r"connect\(.*tcp:",
    "ipykernel.ipkernel:IPythonKernel.__init__": LISTS_MODULES if ipykernel.version_info >= (7, 2) else LISTS_NONE,
    "ipykernel.kernelbase:Kernel._progressively_terminate_all_children": r"0\.3, 1, 3, 10",
    "inspect:getmodule": r"for modname, module in sys\.modules\.copy\(\)\.items\(\):",
}


@pytest.mark.parametrize("function", REPLACED)
def test_what_is_replaced_still_needs_it(function):
    """Each function that `compat` replaces, or works around, has the fault; else the replacement can go."""
    source = inspect.getsource(pkgutil.resolve_name(function))
    assert re.search(REPLACED[function], source), f"{function} was mended: see what compat.py does about it"
