"""Parameter sweeps, on a real cluster and with a real tracking server."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import nbformat
import psutil
import pytest
from hosts import environment_of, notebook
from notebooks import notebook as document_of
from papermill_dask import EngineError, Sweep, run_many
from papermill_dask.client.sweep import NotebookRun, combinations, read_table
from programs import BIN, clean_environment, wait_for

STOP_SECONDS = 20

SCORES = """
# %% parameters
depth: int = 1  # levels
rate: float = 0.1
# %%
if depth == 3: raise ValueError("too deep\\nby far")
# %%
depth * rate
"""

TRACKED = """
# %% parameters
depth: int = 1
# %%
import mlflow
with mlflow.start_run(run_name="outer"):
    mlflow.log_metrics({"rmse": 1 / depth, "constant": 7.0})
"""

# The first run to start ends immediately; the others sleep.
SLOW = """
# %% parameters
part = 0
# %%
import os, pathlib, time
try:
    pathlib.Path("first").touch(exist_ok=False)
    seconds = 0
except FileExistsError:
    seconds = 600
pathlib.Path(f"{part}.pid").write_text(str(os.getpid()))
time.sleep(seconds)
"""


def write(folder: Path, text: str, name: str = "score.ipynb") -> Path:
    """Write a notebook of the cells in ``text``."""
    nbformat.write(document_of(text), folder / name)
    return folder / name


@pytest.fixture
def at(warm_cluster, tmp_path, monkeypatch) -> Path:
    """A working folder, in which this process is configured as a client of the cluster."""
    with environment_of(warm_cluster.environment):
        monkeypatch.chdir(tmp_path)
        yield tmp_path


# -- parameters ----------------------------------------------------------------------------------------------------
def test_combinations_are_the_product_with_typed_values():
    """Values are parsed as by papermill's -p, quotes protect commas, and the last name varies fastest."""
    assert combinations(["a=1, 2.5", 'b=True,None,"x,y"']) == [
        {"a": 1, "b": True}, {"a": 1, "b": None}, {"a": 1, "b": "x,y"},
        {"a": 2.5, "b": True}, {"a": 2.5, "b": None}, {"a": 2.5, "b": "x,y"},
    ]  # fmt: skip
    assert combinations([]) == [{}]


def test_raw_values_stay_strings(tmp_path):
    """Leading zeros, underscores and long decimals are kept, in `--sweep` and `--csv`; an unknown name is an error."""
    texts = ["007", "2020_01", "9007199254740993.0", "None"]
    assert combinations([f"a={','.join(texts)}"], raw=["a"]) == [{"a": text} for text in texts]
    table = "a,b\n" + "".join(f"{text},1\n" for text in texts)
    assert read_table(table.encode(), "table.csv", ["a"])[1] == [{"a": text, "b": 1} for text in texts]
    source = notebook(tmp_path / "in.ipynb", "# tags: parameters\na = 0")
    command = [BIN / "papermill-sweep", source, "--sweep", "a=007", "--raw", "c"]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, "unknown: c; allowed: a" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("sweeps", [["a="], ["a"], ["a=1,,2"], ["=1"], ["a=1,1"], ["a=1", "a=2"]])
def test_invalid_sweeps_are_errors(sweeps):
    """Empty values and duplicates are errors."""
    with pytest.raises(EngineError, match="Invalid sweep"):
        combinations(sweeps)


BAD_TABLES = {
    "semicolons": (b"depth;rate\n8;1\n", "separator seems to be ';'", "'depth;rate'"),
    "duplicate": (b"depth,rate,depth\n8,1,9\n", "'depth', number 3", "duplicate"),
    "no identifier": (b"depth,learning rate\n8,1\n", "'learning rate', number 2", "not an identifier"),
    "unknown": (b"dept,rate\n8,1\n", "'dept', number 1", "not in the notebook's cell", "depth, rate"),
    "empty header": (b"depth,,rate\n8,1,2\n", "'', number 2"),
    "long row": (b"depth,rate\n8,1\n8,1,2\n", "line 3 has 3 values, but the header has 2"),
    "empty cell": (b"depth,rate\n8,\n", "line 2 has 1 values, but the header has 2", "None for each missing value"),
    "UTF-16": ("depth,rate\n8,1\n".encode("utf-16"), "can't decode byte", "UTF-8"),
    "open quote": (b'depth,rate\n8,"1\n', "unexpected end of data"),
    "empty": (b"", "the file is empty"),
    "header only": (b"depth,rate\r\n", "no row"),
    "column that --sweep has": (b"seed,depth\n8,1\n", "'seed', number 3 in the header of table.csv, then --sweep"),
}


def failed_command(folder: Path, *words: str) -> str:
    """Run the command without a cluster; return its error message, which must not be a traceback."""
    done = subprocess.run(
        [BIN / "papermill-sweep", *words], cwd=folder, env=clean_environment() | {"DASK_SCHEDULER_ADDRESS": "none"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "scheduler" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_invalid_table_is_an_error(tmp_path, kind):
    """The error for wrong separators, names, rows or encodings names file, position and next step, before any run."""
    write(tmp_path, SCORES.replace("depth: int", "seed = 0\ndepth: int"))
    content, *words = BAD_TABLES[kind]
    (tmp_path / "table.csv").write_bytes(content)
    error = failed_command(
        tmp_path, "score.ipynb", "--csv", "table.csv", *(["--sweep", "seed=1"] if "--sweep" in kind else [])
    )
    for word in (*words, "table.csv", "next:"):
        assert word in error


def test_unknown_parameter_or_notebook_is_an_error(tmp_path):
    """An unknown parameter name or a missing notebook is an error before any run."""
    write(tmp_path, SCORES)
    assert "'trees', number 1 in --sweep" in failed_command(tmp_path, "score.ipynb", "--sweep", "trees=1,2")
    assert "does not exist" in failed_command(tmp_path, "scores.ipynb", "--sweep", "depth=1")
    with pytest.raises(EngineError, match="'dept', number 2 in the parameters"):
        run_many(tmp_path / "score.ipynb", [{"depth": 1}, {"depth": 2, "dept": 2}])
    assert "set the parameters" in failed_command(tmp_path, "score.ipynb", "--skip-tags", "parameters")
    (tmp_path / "broken.ipynb").write_text("{")
    assert "broken.ipynb" in failed_command(tmp_path, "broken.ipynb", "--sweep", "depth=1")


@pytest.mark.parametrize("content", [b'\xef\xbb\xbfdepth, rate\r\n8,a\r\n\r\n9,"x,y"\r\n', b'depth,rate\n8,a\n9,"x,y"'])
def test_table_of_a_spreadsheet_is_read(content):
    """A byte order mark, CRLF, empty lines, spaces and quotes are accepted."""
    assert read_table(content, "table.csv") == (
        ["depth", "rate"],
        [{"depth": 8, "rate": "a"}, {"depth": 9, "rate": "x,y"}],
    )


# -- the table -----------------------------------------------------------------------------------------------------
def test_table_shows_parameters_and_metrics():
    """Each run has a row with parameters, status and metrics."""
    runs = [
        NotebookRun({"seed": 1, "k": n}, Path("x"), "done", 1.26, metrics={"r2": r2}) for n, r2 in ((1, 0.5), (2, 0.75))
    ]
    assert Sweep(runs).table()[0] == {"seed": 1, "k": 1, "status": "done", "seconds": 1.3, "r2": 0.5}
    same = NotebookRun({"k": 1, "status": "new"}, Path("x"), "done", 1, metrics={"k": 2})
    assert Sweep([same]).table() == [
        {"k": 1, "status": "new", "status (result)": "done", "seconds": 1, "k (result)": 2}
    ]


# -- on the cluster ------------------------------------------------------------------------------------------------
def test_run_many_continues_after_a_failed_run(at):
    """The failed run is saved and reported with its error, and all others run."""
    lines = []
    parameter_sets = [{"rate": 0.5, "depth": depth} for depth in (2, 3, 4, 5)]
    sweep = run_many(write(at, SCORES).name, parameter_sets, report=lines.append)
    assert [run.status for run in sweep.runs] == ["done", "failed", "done", "done"]
    assert sweep.exit_code == 1
    assert [run.error for run in sweep.runs if run.error] == ["ValueError: too deep"]
    assert all(run.seconds > 0 for run in sweep.runs)
    folder = at / "executed" / "score"
    assert {file.name for file in folder.iterdir()} == {f"score-{n}.ipynb" for n in (1, 2, 3, 4)}
    saved = [nbformat.read(run.output, as_version=4) for run in sweep.runs]
    assert saved[3].cells[-1].outputs[0].data["text/plain"] == "2.5"
    assert saved[1].metadata.papermill.exception is True
    assert any("score-2: failed" in line and "ValueError: too deep" in line for line in lines)


def test_sweep_skips_cells_with_a_tag(at, warm_cluster):
    """`--skip-tags` applies to each run; an unknown tag is reported once."""
    write(at, SCORES.replace("# %%\nif", "# %% slow\nif"))
    program = start(at, warm_cluster.environment, "score.ipynb", "--sweep", "depth=3,4", "--skip-tags", "slow,plots")
    out, err = program.communicate(timeout=STOP_SECONDS)
    assert [line.split(",")[1] for line in out.splitlines()] == ["status", "done", "done"], err
    assert [line for line in err.splitlines() if "tag" in line] == ["No code cell has these tags to skip: plots."]
    cells = nbformat.read(at / "executed/score/score-1.ipynb", as_version=4).cells
    assert [cell.metadata.papermill.status for cell in cells[-2:]] == ["skipped", "completed"]


def start(folder: Path, environment: dict[str, str], *words: str) -> subprocess.Popen:
    """Start the command in a new process group, as a terminal does."""
    return subprocess.Popen(
        [BIN / "papermill-sweep", *words],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_sweep_keeps_finished_runs(at, warm_cluster, number):
    """Running notebooks are stopped and saved, waiting ones are not run, and the table lists all."""
    write(at, SLOW)
    program = start(at, warm_cluster.environment, "score.ipynb", "--sweep", "part=1,2,3,4,5,6,7,8")
    wait_for(lambda: program.poll() is not None or len(list(at.glob("*.pid"))) == 3)
    time.sleep(1)
    os.killpg(program.pid, number)
    kernels = [int(file.read_text()) for file in at.glob("*.pid")]
    out, err = program.communicate(timeout=STOP_SECONDS)
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in kernels if psutil.pid_exists(pid)], 10)
    assert not alive
    assert program.returncode == 128 + number, err
    assert "Traceback" not in err
    header, *rows = [line.split(",") for line in out.splitlines()]
    assert header == ["part", "status", "seconds"]
    statuses, started = {row[0]: row[1] for row in rows}, {file.stem for file in at.glob("*.pid")}
    assert len(statuses) == 8
    assert sorted(statuses[part] for part in started) == ["done", "stopped", "stopped"]
    waiting = [status for part, status in statuses.items() if part not in started]
    assert set(waiting) <= {"stopped", "not run"}
    assert waiting.count("not run") >= 3
    files = {file.stem.removeprefix("score-"): file for file in (at / "executed" / "score").iterdir()}
    assert started <= files.keys()
    for part, file in files.items():
        last = nbformat.read(file, as_version=4).cells[-1].metadata.papermill.status
        assert last == ("pending" if part not in started else "completed" if statuses[part] == "done" else "failed")


def test_run_many_shows_the_metrics_of_mlflow_runs(at, tracking_server, monkeypatch):
    """The table has the metrics of the MLflow runs, which have the executed notebooks as artifacts."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_server)
    sweep = run_many(write(at, TRACKED), [{"depth": 1}, {"depth": 2}])
    assert sweep.exit_code == 0, sweep.runs
    assert [row["rmse"] for row in sweep.table()] == [1.0, 0.5]
    assert sweep.runs[0].metrics == {"rmse": 1.0, "constant": 7.0}
    for run in sweep.runs:
        (logged,) = nbformat.read(run.output, as_version=4).metadata.papermill_dask.runs
        list_artifacts = partial(MlflowClient(tracking_server).list_artifacts, logged.run_id, "notebook")
        assert "notebook/score.ipynb" in [file.path for file in list_artifacts()]
        wait_for(lambda: "notebook/score.html" in [file.path for file in list_artifacts()])  # noqa: B023
