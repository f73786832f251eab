"""Notebooks that cover papermill's features, and their execution in a separate process."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

CELL = re.compile(r"^# %% ?(?:\[(?P<kind>markdown|raw)\])? ?(?P<tags>[\w -]*)\n", flags=re.MULTILINE)

RICH = r"""
# %%
from IPython.display import HTML, JSON, SVG, Image, Latex, Markdown, display
display(HTML("<b>bold</b>"), JSON({"a": [1, None, 2.5]}), Latex("$x^2$"), Markdown("*x*"))
SVG("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
# %%
figure = {"data": [{"type": "bar", "y": [1, 2]}], "layout": {"title": {"text": "Ä"}}}
bundle = {"application/vnd.plotly.v1+json": figure, "text/html": "<div/>", "text/plain": "a figure"}
display(bundle, raw=True, metadata={"application/vnd.plotly.v1+json": {"responsive": True}})
# %%
PNG = b"\x89PNG\r\n\x1a\n"
Image(PNG + bytes(range(256)), format="png", metadata={"alt": "noise"})
# %%
print("ä 漢字 🦉 עברית e\u0301 \u2028 \0 \x07 end"); "ä 漢字 🦉"
# %%
print("\x1b[31mred\x1b[0m and \x1b[1;38;5;208morange\x1b[0m")
# %%
print("10 %\r20 %\r", end=""); print("ab\bc")
# %%
__name__, _, len(In), Out.keys() >= {5}
"""

DISPLAYS = """
# %%
from IPython.display import clear_output, display, update_display
handle = display("first", display_id="here")
# %%
update_display({"text/plain": "third", "text/html": "<i>third</i>"}, display_id="here", raw=True)
# %%
update_display("of nobody", display_id="unknown")
# %%
print("gone"); clear_output(); print("kept")
# %%
print("gone"); clear_output(wait=True); print("kept")
# %%
print("stays, for nothing follows"); clear_output(wait=True)
# %%
for number in range(5):
    clear_output(wait=number % 2 == 0)
    display(number)
# %%
display("gone", display_id="cleared"); clear_output()
update_display("of nobody", display_id="cleared"); display("shown", display_id="cleared")
# %%
update_display("updated", display_id="cleared"); 42
"""

STREAMS = """
# %%
import sys, time
for number in range(5):
    print(f"out {number}\\n", end="", flush=True)
    print(f"err {number}\\n", end="", file=sys.stderr, flush=True)
# %%
print("x" * 1_000_000)
# %%
for number in range(10_000):
    print(number)
# %%
%%bash
echo out; sleep 0.3; echo err >&2
# %%
import warnings; warnings.warn("beware")
# %%
import asyncio
await asyncio.sleep(0.01)
await asyncio.gather(*(asyncio.sleep(0.01, result=number) for number in range(3)))
# %%
import subprocess
subprocess.run(["echo", "from a child"]); time.sleep(0.5)
# %%
import threading
thread = threading.Thread(target=print, args=("from a thread",)); thread.start(); thread.join()
# %% [markdown]
# Title
# %% [raw]
raw
# %% skip-execution
print("never"); skipped = True
# %%
"skipped" in dir()
# %%
def count_calls():
    try:
        return 1 + count_calls()
    except RecursionError:
        return 1
count_calls()
"""

ALLOWED = """
# %% raises-exception
print("before", flush=True); {}["missing"]
# %% raises-exception
def inner(): raise ValueError("ä")
try:
    inner()
except ValueError as error:
    raise RuntimeError("outer") from error
# %% raises-exception
import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)
# %% raises-exception
def broken(:
# %% raises-exception
input("stdin is not allowed")
# %% raises-exception
class Broken:
    def _repr_html_(self): raise ValueError("no good")
    def __repr__(self): return "Broken()"
Broken()
# %%
print("after all that")
"""

ERRORS = {
    "chained": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('no good') from error",
    "exit 0": "raise SystemExit(0)",
    "exit 1": "import sys\nsys.exit(1)",
    "interrupt": "raise KeyboardInterrupt",
    "syntax": "print('never'\nx = (",
}

DEATHS = {
    "exit": "import os\nos._exit(3)",
    "kill": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "time-out": "import time\ntime.sleep(60)",
}

WIDGETS = """
# %%
import ipywidgets as widgets
from IPython.display import HTML, display
slider = widgets.IntSlider(value=3, description="n")
slider
# %%
slider.value = 5
# %%
held = widgets.Output()
display(held)
with held:
    print("caught"); display(HTML("<b>caught</b>"))
# %%
print("not caught"); len(held.outputs)
# %%
with held:
    held.clear_output(); print("again")
# %%
[output["output_type"] for output in held.outputs]
# %%
from comm import create_comm
comm = create_comm(target_name="nobody", data={"state": {"a": 1}}); comm.send({"b": 2})
"""

TEXTS = """
# %% [markdown]
# Title
# %% [raw]
raw
# %%

"""

# Reads the saved notebook while it runs; the words that it searches for are not in its source.
SAVED = """
# %%
print("fir" + "st")
# %%
import pathlib, time
print("sec" + "ond", flush=True); time.sleep(1.5); print("thi" + "rd", flush=True); time.sleep(0.7)
file = pathlib.Path("output.ipynb")
text = file.read_text() if file.exists() else ""
print([word in text for word in ("fir" + "st", "sec" + "ond")])
"""

LOGGED = """
# %%
# papermill_description=Reading
import sys, time
print(open("data.txt").read(), flush=True)
for number in range(3):
    print(f"out {number}\\n", end="", flush=True); time.sleep(0.1)
    print(f"err {number}\\n", end="", file=sys.stderr, flush=True); time.sleep(0.1)
# %%
from IPython.display import clear_output, display
display("shown"); clear_output(); print("after"); open("written.txt", "w").write("by the notebook")
# %% [markdown]
text
# %%
# papermill_description=Ending
{"an": "execute_result"}
"""

OPTIONS = """
# %%
print("first", flush=True); import sys; print("second", file=sys.stderr, flush=True); print("third"); print("a\\rb")
# %% later
print("skipped by another tag")
# %% skip-execution
print("not skipped")
# %%
1 / 0
# %%
import ipywidgets; ipywidgets.IntText()
"""

# Each sets matplotlib's configuration folder before matplotlib is imported.
BEFORE_IMPORTS = {
    "item": "import os; os.environ['MPLCONFIGDIR'] = 'config'",
    "name": "from os import environ as variables; variables['MPLCONFIGDIR'] = 'config'",
    "text": "exec(\"import os; os.environ['MPLCONFIGDIR'] = 'config'\")",
    "magic": "%env MPLCONFIGDIR=config",
    "module": "import helper",
    "run": "%run script.py",
    "matplotlibrc": "open('matplotlibrc').close()",
    "other module": "import sys; sys.modules['matplotlib.cbook'] = None",
    "path": "import os, sys; sys.path.insert(0, os.path.abspath('modules'))",
}
READ_CONFIGURATION = """
import pathlib
try:
    import matplotlib
    print(pathlib.Path(matplotlib.get_configdir()).name, matplotlib.rcParams["figure.dpi"], matplotlib.__name__)
except ImportError as error:
    print(type(error))
except AttributeError:
    print("another matplotlib")
"""


def add_configuration(folder: Path) -> None:
    """Write the files that `BEFORE_IMPORTS` uses."""
    for name in ("config", "modules"):
        (folder / name).mkdir()
    (folder / "config" / "matplotlibrc").write_text("figure.dpi: 33")
    (folder / "modules" / "matplotlib.py").touch()
    for name in ("helper.py", "script.py"):
        (folder / name).write_text("import os\nos.environ['MPLCONFIGDIR'] = 'config'\n")


ECHO_KERNEL = """
import os
from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel

class Echo(Kernel):
    implementation, implementation_version, banner = "echo", "1", "Echo"
    language_info = {"name": "echo", "mimetype": "text/plain", "file_extension": ".txt", "version": "1"}

    def do_execute(self, code, silent, store_history=True, user_expressions=None, allow_stdin=False, **_):
        said = {"name": "stdout", "text": os.environ["GREETING"] + code}
        self.send_response(self.iopub_socket, "stream", said)
        bundle = {"data": {"text/x-echo": code}, "metadata": {}}
        self.send_response(self.iopub_socket, "display_data", bundle)
        if code != "fail":
            return {"status": "ok", "execution_count": self.execution_count, "payload": [], "user_expressions": {}}
        error = {"ename": "Echo", "evalue": "failed", "traceback": ["line 1"]}
        self.send_response(self.iopub_socket, "error", error)
        return {"status": "error", "execution_count": self.execution_count, **error}

IPKernelApp.launch_instance(kernel_class=Echo)
"""


def notebook(text: str, *, kernel: str = "python3", language: str = "python") -> NotebookNode:
    """Parse a notebook from cells separated by lines such as ``# %% [markdown] tag1 tag2``."""
    # An empty string before the first separator, then kind, tags and source of each cell.
    _, *parts = CELL.split(text)
    document = nbformat.v4.new_notebook()
    document.metadata.kernelspec = {"name": kernel, "display_name": kernel.title(), "language": language}
    for number, (kind, tags, source) in enumerate(zip(parts[0::3], parts[1::3], parts[2::3], strict=True)):
        make = getattr(nbformat.v4, f"new_{kind or 'code'}_cell")
        cell = make(source.strip("\n"), id=f"cell-{number}")
        if tags:
            cell.metadata.tags = tags.split()
        document.cells.append(cell)
    return document


def add_kernel(folder: Path, name: str, argv: list[str], language: str = "python", **spec: Any) -> None:
    """Write a kernelspec into a folder of kernelspecs."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    spec |= {"argv": argv, "display_name": name.title(), "language": language}
    (folder / name / "kernel.json").write_text(json.dumps(spec))


def add_echo_kernel(folder: Path) -> None:
    """Install a kernel of another language, which echoes its cells."""
    add_kernel(
        folder, "echo", [sys.executable, str(folder / "echo" / "kernel.py"), "-f", "{connection_file}"],
        language="echo", env={"GREETING": "I hear: "},
    )  # fmt: skip
    (folder / "echo" / "kernel.py").write_text(ECHO_KERNEL)


@dataclass
class Outcome:
    """Results of `papermill.execute_notebook`: returned and saved notebooks, error and log.

    ``error`` lists the names of the exception's classes in method resolution order; empty without an error.
    """

    returned: NotebookNode | None
    saved: NotebookNode | None
    error: list[str]
    text: str
    log: list[tuple[str, str]]

    @property
    def document(self) -> NotebookNode:
        """The returned notebook, or the saved one after an error."""
        return self.returned or self.saved


class Log(logging.Handler):
    """A handler that collects papermill's log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Collect the lines of a record, except for empty ones."""
        self.lines += [(record.levelname, line) for line in record.getMessage().splitlines() if line.strip()]


def enter(environment: dict[str, str]) -> None:
    """Replace the environment, before papermill and Dask are imported."""
    os.environ.clear()
    os.environ.update(environment)


def execute(folder: Path, engine: str | None, options: dict[str, Any]) -> Outcome:
    """Execute `input.ipynb` in ``folder`` with `papermill.execute_notebook`, and save `output.ipynb`."""
    import papermill

    os.chdir(folder)
    logger, log = logging.getLogger("papermill"), Log()
    logger.setLevel(logging.INFO)
    logger.addHandler(log)
    returned, error = None, None
    try:
        returned = papermill.execute_notebook(
            "input.ipynb", "output.ipynb", engine_name=engine, progress_bar=False, **options
        )
    except BaseException as problem:  # noqa: BLE001 - the test compares the errors
        error = problem
    finally:
        logger.removeHandler(log)
    saved = nbformat.read("output.ipynb", as_version=4) if Path("output.ipynb").exists() else None
    classes = [kind.__qualname__ for kind in type(error).__mro__] if error else []
    return Outcome(returned, saved, classes, str(error) if error else "", log.lines)
