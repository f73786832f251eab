"""Check that the private interfaces used by `compat.py` exist and are still needed."""

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
def test_private_names_exist(owner):
    """Each private attribute that is used or patched exists."""
    missing = [name for name in USED[owner] if not hasattr(pkgutil.resolve_name(owner), name)]
    assert not missing, f"{owner} has no {missing} any more: {UPGRADE}"


# Patched functions, each with a pattern that its source matches as long as the patch is needed.
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
def test_patched_function_still_needs_the_patch(function):
    """Each patched function still has the fault; otherwise the patch can be removed."""
    source = inspect.getsource(pkgutil.resolve_name(function))
    assert re.search(REPLACED[function], source), f"{function} was fixed: remove its patch from compat.py"
