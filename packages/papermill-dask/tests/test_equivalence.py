"""Compare `--engine dask` with papermill's own engine: run the same notebooks and compare them cell by cell."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import nbformat
import notebooks
import pytest
from notebooks import Outcome, add_echo_kernel, add_kernel, execute, notebook
from programs import BIN, wait_for

ENGINES = {"own": None, "dask": "dask"}
RUN_SECONDS = 120
CELL_SECONDS = 15
TIMES = ("start_time", "end_time", "duration")
# Values that differ between runs: process ids, ports, folders, and ids of widgets and kernels.
VARYING = [
    (re.compile(r"ipykernel_\d+/\d+\.py"), "ipykernel/cell.py"),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1"),
    (re.compile(r"/(own|dask)/"), "/engine/"),
    (re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "random"),
]
WIDGETS = "application/vnd.jupyter.widget-state+json"


@pytest.fixture
def folders(tmp_path):
    """A folder for each engine, for files with equal names."""
    for engine in ENGINES:
        (tmp_path / engine).mkdir()
    return {engine: tmp_path / engine for engine in ENGINES}


@pytest.fixture(scope="session")
def interpreters(warm_cluster):
    """A process for each engine, which imports papermill once for all notebooks."""
    with contextlib.ExitStack() as stack:
        # Spawned: a fork would inherit this process's imports and open files.
        spawn, environment = multiprocessing.get_context("spawn"), [warm_cluster.environment]
        pools = [ProcessPoolExecutor(1, spawn, notebooks.enter, environment) for _ in ENGINES]
        yield dict(zip(ENGINES, map(stack.enter_context, pools), strict=True))


@pytest.fixture
def both(interpreters, folders):
    """A function that executes a notebook with both engines in parallel; returns papermill's outcome, then ours."""

    def run(document, **options) -> list[Outcome]:
        # With both engines, nbclient sometimes misses a reply after an Output widget; with a timeout it polls again,
        # without one it waits forever.
        options = {"execution_timeout": CELL_SECONDS} | options
        outcomes = []
        for engine, folder in folders.items():
            nbformat.write(document, folder / "input.ipynb")
            outcomes.append(interpreters[engine].submit(execute, folder, ENGINES[engine], options))
        return [outcome.result(RUN_SECONDS) for outcome in outcomes]

    return run


@pytest.fixture
def command_lines(warm_cluster, folders):
    """A function that runs the command `papermill` with both engines in parallel; returns the completed processes."""

    def run(document, *words, paths=("input.ipynb", "output.ipynb"), piped=None):
        processes = []
        for engine, folder in folders.items():
            nbformat.write(document, folder / "input.ipynb")
            with_engine = ["--engine", engine] if ENGINES[engine] else []
            command = [BIN / "papermill", *paths, *words, *with_engine]
            stdin = subprocess.PIPE if piped else subprocess.DEVNULL
            processes.append(
                subprocess.Popen(
                    command, cwd=folder, env=warm_cluster.environment, text=True,
                    stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
        done = []
        for process in processes:
            try:
                out, err = process.communicate(piped, timeout=RUN_SECONDS)
            finally:
                process.kill()
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
        return done

    return run


def comparable(document) -> dict:
    """Return a notebook without values that differ between runs.

    Times and papermill's ids are reduced to their presence; adjacent outputs of a stream are joined.
    """
    document = json.loads(nbformat.writes(document))
    if widgets := document["metadata"].get("widgets"):
        # In random order, because their keys are random ids.
        states = widgets[WIDGETS]["state"].values()
        widgets[WIDGETS]["state"] = sorted(without_varying(json.dumps(state)) for state in states)
    document = json.loads(without_varying(json.dumps(document, ensure_ascii=False)))
    without_times(document["metadata"]["papermill"])
    for cell in document["cells"]:
        without_times(cell["metadata"].get("papermill", {}))
        if "execution" in cell["metadata"]:
            cell["metadata"]["execution"] = sorted(cell["metadata"]["execution"])
        if "id" in cell and not cell["id"].startswith("cell-"):
            cell["id"] = "random"
        if "outputs" in cell:
            cell["outputs"] = with_whole_streams(cell["outputs"])
    return shortened(document)


def without_varying(text: str) -> str:
    """Replace process ids, random ids and the like in ``text``."""
    for pattern, word in VARYING:
        text = pattern.sub(word, text)
    return text


def without_times(metadata: dict) -> None:
    """Replace papermill's times by whether they are set."""
    metadata |= {name: metadata[name] is not None for name in TIMES if name in metadata}


def with_whole_streams(outputs: list[dict]) -> list[dict]:
    """Join adjacent outputs of the same stream, whose boundaries depend on timing."""
    whole: list[dict] = []
    for output in outputs:
        text = "".join(output.get("text", ""))
        if whole and "name" in output and output["name"] == whole[-1].get("name"):
            whole[-1]["text"] += text
        else:
            whole.append(output | ({"text": text} if "text" in output else {}))
    return whole


def shortened(value):
    """Replace long strings by length and digest, so that pytest's diff is readable."""
    if isinstance(value, dict):
        return {name: shortened(part) for name, part in value.items()}
    if isinstance(value, list):
        return [shortened(part) for part in value]
    if isinstance(value, str) and len(value) > 5000:
        return f"{len(value)} characters, {hashlib.sha256(value.encode()).hexdigest()}"
    return value


def assert_same_notebook(dask, stock) -> None:
    """Compare two notebooks cell by cell, then as a whole."""
    dask, stock = comparable(dask), comparable(stock)
    for number, (cell, other) in enumerate(zip(dask["cells"], stock["cells"], strict=True)):
        assert cell == other, f"cell {number}"
    assert dask == stock


def assert_same(dask: Outcome, stock: Outcome) -> None:
    """Compare two outcomes: returned and saved notebooks, error, warnings."""
    assert (dask.error[:1], without_varying(dask.text)) == (stock.error[:1], without_varying(stock.text))
    assert (dask.returned is None, dask.saved is None) == (stock.returned is None, stock.saved is None)
    for document, other in ((dask.returned, stock.returned), (dask.saved, stock.saved)):
        if document is not None:
            assert_same_notebook(document, other)
    assert warnings_of(dask) == warnings_of(stock)


def warnings_of(outcome: Outcome) -> list[str]:
    """Return the log lines of level WARNING and above."""
    return [without_varying(line) for level, line in outcome.log if level not in {"DEBUG", "INFO"}]


def outputs(document) -> list[dict]:
    """Return the outputs of all cells."""
    return [output for cell in document.cells for output in cell.get("outputs", [])]


def lines(text: str) -> list[str]:
    """Return papermill's lines, except for empty ones and those of IPKernel.

    Empty lines depend on timing; a kernel's own log goes to the process that started it.
    """
    return [line for line in without_varying(text).splitlines() if line.strip() and not line.startswith("[IPKernel")]


def assert_same_files(folders, *names) -> None:
    """Compare files written with both engines."""
    for name in names:
        assert (folders["dask"] / name).read_text() == (folders["own"] / name).read_text(), name


def assert_same_saved(folders) -> None:
    """Compare the notebooks saved by both engines."""
    dask, stock = (nbformat.read(folders[engine] / "output.ipynb", as_version=4) for engine in ("dask", "own"))
    assert_same_notebook(dask, stock)


# -- notebooks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (notebooks.RICH, {"display_data", "execute_result", "stream"}),
        (notebooks.DISPLAYS, {"display_data", "execute_result", "stream"}),
        (notebooks.STREAMS, {"execute_result", "stream"}),
        (notebooks.WIDGETS, {"display_data", "execute_result", "stream"}),
        (notebooks.TEXTS, set()),
        ("", set()),
    ],
    ids=["rich", "displays", "streams", "widgets", "texts", "empty"],
)
def test_equivalence_of_outputs(both, text, expected):
    """Rich, updated, cleared, long, binary and stream outputs, widgets, and empty cells are equal."""
    stock, dask = both(notebook(text))
    assert stock.error == []
    assert {output.output_type for output in outputs(stock.document)} == expected
    assert_same(dask, stock)


def comparable_outputs(cell) -> list[dict]:
    """Return a cell's outputs with joined streams."""
    return with_whole_streams(json.loads(json.dumps(cell.outputs)))


@pytest.mark.parametrize("change", notebooks.BEFORE_IMPORTS)
def test_changes_before_imports_take_effect(both, folders, change):
    """Variables, modules and paths that a notebook changes before its imports also take effect with warm kernels."""
    for folder in folders.values():
        notebooks.add_configuration(folder)
        if change == "matplotlibrc":
            (folder / "matplotlibrc").write_text("figure.dpi: 44")
    stock, dask = both(notebook(f"# %%\n{notebooks.BEFORE_IMPORTS[change]}\n# %%{notebooks.READ_CONFIGURATION}"))
    texts = [with_whole_streams(outcome.document.cells[1].outputs) for outcome in (stock, dask)]
    assert texts[1] == texts[0]


def test_notebook_that_only_reads_variables_has_a_warm_kernel(both, folders):
    """Methods that read variables allow a warm kernel; a module that shadows an installed one does not."""
    cells = "import os  # environ\nos.environ.get('A'), {**os.environ.copy()}, 'A' in os.environ.keys()"
    unseen = "getattr(os, 'env' + 'iron')['MPLCONFIGDIR'] = 'config'"  # no effect if matplotlib is already imported
    for folder in folders.values():
        notebooks.add_configuration(folder)

    def is_warm() -> bool:
        stock, dask = both(notebook(f"# %%\n{cells}\n{unseen}\n# %%{notebooks.READ_CONFIGURATION}"))
        return dask.document.cells[1].outputs != stock.document.cells[1].outputs

    wait_for(is_warm)  # on a busy machine the first kernels may start before the imports have finished
    for folder in folders.values():
        (folder / "matplotlib.py").touch()
    stock, dask = both(notebook(f"# %%{notebooks.READ_CONFIGURATION}"))
    assert dask.document.cells[0].outputs[0].text == stock.document.cells[0].outputs[0].text == "another matplotlib\n"


def test_equivalence_of_allowed_errors(both):
    """Cells tagged `raises-exception` fail, the others run, and papermill raises the same error at the end."""
    stock, dask = both(notebook(notebooks.ALLOWED))
    assert stock.error[0] == "PapermillExecutionError"
    assert "after all that\n" in [output.get("text") for output in outputs(stock.document)]
    assert_same(dask, stock)


@pytest.mark.parametrize("source", notebooks.ERRORS.values(), ids=notebooks.ERRORS)
def test_equivalence_of_errors(both, source):
    """A failed cell ends the notebook: error, marks in the notebook and pending cells are equal."""
    stock, dask = both(notebook(f"# %%\nprint('before')\n# %%\n{source}\n# %%\nprint('after')"))
    assert any(output.output_type == "error" for output in outputs(stock.document))
    assert_same(dask, stock)


@pytest.mark.parametrize("options", [{"autosave_cell_every": 1}, {"request_save_on_cell_execute": False}], ids=str)
def test_equivalence_of_saving(both, options):
    """The file saved while a cell runs is equal, as read by the notebook itself."""
    stock, dask = both(notebook(notebooks.SAVED), **options)
    assert stock.error == []
    assert outputs(stock.document)[-1].text.endswith("]\n")
    assert_same(dask, stock)


def test_equivalence_of_nbclient_options(both):
    """Options that papermill passes to nbclient have the same effect."""
    stock, dask = both(
        notebook(notebooks.OPTIONS), allow_errors=True, record_timing=False, coalesce_streams=True,
        store_widget_state=False, skip_cells_with_tag="later", start_timeout=60,
    )  # fmt: skip
    assert stock.error[0] == "PapermillExecutionError"
    assert all("execution" not in cell.metadata for cell in stock.document.cells)
    assert_same(dask, stock)


def test_equivalence_of_another_language(both, warm_cluster):
    """A kernel of another language, with variables in its kernelspec, runs on a worker that has it."""
    add_echo_kernel(warm_cluster.folder / "jupyter" / "kernels")
    stock, dask = both(notebook("# %%\nhello\n# %%\nfail\n# %%\nnever", kernel="echo", language="echo"))
    assert stock.error[0] == "PapermillExecutionError"
    assert outputs(stock.document)[0].text == "I hear: hello"
    assert_same(dask, stock)


# -- kernel failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([sys.executable, "-c", "import time; time.sleep(60)", "{connection_file}"], "2 seconds"),
        ([sys.executable, "-c", "raise SystemExit(1)", "{connection_file}"], "died"),
        (["no-such-program", "{connection_file}"], "no-such-program"),
        (None, "No such kernel"),
    ],
    ids=["sleeps", "ends", "missing program", "unknown"],
)
def test_equivalence_of_kernels_that_do_not_start(both, warm_cluster, request, argv, text):
    """A missing kernel, or one that starts too slowly, raises the same error; no cell has outputs."""
    name = re.sub(r"\W", "", request.node.callspec.id)
    if argv:
        add_kernel(warm_cluster.folder / "jupyter" / "kernels", name, argv)
    stock, dask = both(notebook("# %%\n1"), kernel_name=name, start_timeout=2)
    assert text in stock.text
    assert stock.error[0] in dask.error
    assert stock.text in dask.text
    assert outputs(dask.document) == outputs(stock.document) == []


@pytest.mark.parametrize(("how", "source"), notebooks.DEATHS.items(), ids=notebooks.DEATHS)
def test_dead_kernel_has_the_same_error_and_correct_statuses(both, how, source):
    """The error of a dead kernel is the same, but the notebook shows which cell failed and which never ran.

    papermill's own engine saves every cell as completed, even those that never ran.
    """
    # With either engine, output that is still in the kernel is lost.
    first_lines = "import time\nprint('said', flush=True)\ntime.sleep(1)"
    document = notebook(f"# %%\nprint('before')\n# %%\n{first_lines}\n{source}\n# %%\nprint('after')")
    stock, dask = both(document, execution_timeout=3 if how == "time-out" else CELL_SECONDS)
    assert stock.error[0] == ("CellTimeoutError" if how == "time-out" else "DeadKernelError")
    assert stock.error[0] in dask.error
    assert statuses(stock) == ["completed", "completed", "completed"]
    assert stock.document.metadata.papermill.exception is None
    assert statuses(dask) == ["completed", "failed", "pending"]
    assert [cell.metadata.papermill.exception for cell in dask.document.cells] == [False, True, None]
    assert dask.document.metadata.papermill.exception is True
    last = ["KeyboardInterrupt"] if how == "time-out" else []
    assert outputs_of_each(dask) == outputs_of_each(stock) == [["before\n"], ["said\n", *last], []]


def statuses(outcome: Outcome) -> list[str]:
    """Return papermill's status of each cell."""
    return [cell.metadata.papermill.status for cell in outcome.document.cells]


def outputs_of_each(outcome: Outcome) -> list[list[str]]:
    """Return each cell's printed texts and error names."""
    return [
        [output.get("text") or output["ename"] for output in comparable_outputs(cell)]
        for cell in outcome.document.cells
    ]


# -- the command line --------------------------------------------------------------------------------------------


def test_equivalence_of_command_line_logs(command_lines, folders):
    """`--log-output`, `--stdout-file` and `--stderr-file` write the same, also with `--cwd`."""
    for folder in folders.values():
        (folder / "inside").mkdir()
        (folder / "inside" / "data.txt").write_text("read in the folder")
    files = ("--stdout-file", "out.txt", "--stderr-file", "err.txt")
    stock, dask = command_lines(notebook(notebooks.LOGGED), "--log-output", *files, "--cwd", "inside")
    assert stock.returncode == dask.returncode == 0, stock.stderr + dask.stderr
    # papermill opens these files at their first line, when `--cwd` is the current folder.
    assert "out 2\n" in (folders["own"] / "inside" / "out.txt").read_text()
    assert_same_saved(folders)
    assert_same_files(folders, *(f"inside/{name}" for name in ("out.txt", "err.txt", "written.txt")))
    assert lines(dask.stderr) == lines(stock.stderr)


@pytest.mark.parametrize("paths", [("-", "-"), ()], ids=["named", "implied"])
def test_equivalence_of_command_line_pipes(command_lines, paths):
    """A notebook is read from a pipe and written to one, without any other output."""
    document = notebook("# %%\nprint('ä')")
    stock, dask = command_lines(document, paths=paths, piped=nbformat.writes(document))
    assert stock.returncode == dask.returncode == 0, stock.stderr + dask.stderr
    assert_same_notebook(nbformat.reads(dask.stdout, as_version=4), nbformat.reads(stock.stdout, as_version=4))
    # Compare as sets: Python repeats a warning after an import has changed the filters.
    assert set(lines(dask.stderr)) == set(lines(stock.stderr))
