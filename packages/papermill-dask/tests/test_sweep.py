"""Many runs of one notebook, on the real cluster and with a real tracking server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
from notebooks import notebook as document_of
from papermill_dask.sweep import NotebookRun, Status, Sweep, combinations, file_names, plan, read_rank, run_many
from workplace import environment_of

from workshop.errors import EngineError

START_SECONDS = 120
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
    with mlflow.start_run(run_name="inner", nested=True): pass
"""

# The first of them to begin ends at once, whichever it is.
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

# What the command line does: run, print the rows, exit.
PROGRAM = """
import json, pathlib, sys
from papermill_dask.sweep import run_many
sweep = run_many(pathlib.Path(sys.argv[1]), sweeps=sys.argv[2:], tell=lambda line: print(line, file=sys.stderr))
print(json.dumps([run.as_dict() for run in sweep.runs]))
sys.exit(sweep.exit_code)
"""


def write(folder: Path, text: str, name: str = "score.ipynb") -> Path:
    """Write a notebook of the cells in ``text``."""
    nbformat.write(document_of(text), folder / name)
    return folder / name


@pytest.fixture
def at(cluster, tmp_path, monkeypatch) -> Path:
    """A folder in which this process is a client of the cluster, without a tracking server."""
    with environment_of(cluster.environment):
        monkeypatch.chdir(tmp_path)
        yield tmp_path


@pytest.fixture
def tracked(at, tracking_server, monkeypatch):
    """The same, with a tracking server, and MLflow's client for it."""
    from workshop.models.tracking import connect

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_server)
    return connect()


def wait_until(happened, seconds: float, program: subprocess.Popen | None = None) -> None:
    """Wait until something has happened; fail when it does not, or when the program ends before."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert program is None or program.poll() is None, program.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def started(folder: Path, environment: dict[str, str], *words: str) -> Iterator[subprocess.Popen]:
    """Run many notebooks from a process of its own, which leads its group as in a terminal."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as program:  # fmt: skip
        try:
            yield program
        finally:
            program.kill()


def children(client, parent: str) -> list:
    """Return the runs under a run, by name."""
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return sorted(found, key=lambda run: run.info.run_name)


# -- what to run -----------------------------------------------------------------------------------------------
def test_combinations_are_the_product_with_typed_values():
    """Values are read as papermill's -p does, quotes keep a comma, and the last name varies fastest."""
    assert combinations(["a=1, 2.5", 'b=True,None,"x,y"']) == [
        {"a": 1, "b": True}, {"a": 1, "b": None}, {"a": 1, "b": "x,y"},
        {"a": 2.5, "b": True}, {"a": 2.5, "b": None}, {"a": 2.5, "b": "x,y"},
    ]  # fmt: skip
    assert combinations([]) == [{}]


@pytest.mark.parametrize(
    ("sweeps", "what"),
    [
        (["a="], "no values"),
        (["a"], "no values"),
        (["a=1,,2"], "empty one"),
        (["=1"], "no values"),
        (["a=1,1"], "same value twice"),
        (["a=1", "a=2"], "swept twice"),
        ([f"{name}={','.join(map(str, range(22)))}" for name in "abc"], "too many"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(sweeps, what):
    """Empty sweeps, repetitions and more than 10,000 combinations are errors, in words."""
    with pytest.raises(EngineError, match=what):
        combinations(sweeps)


def test_file_names_say_the_parameters_and_are_safe_and_unique():
    """Plain values stand in the name; what a file system might not take, or take for another name, gets a digest."""
    assert file_names("rf", [{"max_depth": 8, "seed": 1}, {}]) == ["rf__max_depth=8__seed=1.ipynb", "rf.ipynb"]
    awkward = ["a/b", "a_b", "a b", "A_B", "../up", "{x}", "é" * 300, "é" * 301]
    names = file_names("rf", [{"name": value} for value in awkward])
    assert len({name.casefold() for name in names}) == len(awkward)
    assert all(len(name.encode()) < 240 and not set(name) & set("/ {}") for name in names)
    assert names == file_names("rf", [{"name": value} for value in awkward])


@pytest.mark.parametrize(
    ("fixed", "sweeps", "found"),
    [
        ({"dept": 1}, [], "one of depth, rate"),
        ({}, ["dept=1,2"], "one of depth, rate"),
        ({"depth": 1}, ["depth=1,2"], "both fixed and swept"),
    ],
)
def test_plan_refuses_unknown_parameters(tmp_path, fixed, sweeps, found):
    """A name that the parameters cell does not set is an error that names those that it sets."""
    with pytest.raises(EngineError, match=found):
        plan(write(tmp_path, SCORES), fixed, sweeps)


def test_plan_refuses_what_is_no_notebook_for_it(tmp_path):
    """No file, no notebook, no parameters cell, its own place as the output: each is said in words."""
    with pytest.raises(EngineError, match="no such notebook"):
        plan(tmp_path / "none.ipynb", {}, [])
    (tmp_path / "text.ipynb").write_text("text")
    with pytest.raises(EngineError, match="cannot be read"):
        plan(tmp_path / "text.ipynb", {}, [])
    with pytest.raises(EngineError, match="tagged `parameters`"):
        plan(write(tmp_path, "# %%\n1"), {"a": 1}, [])
    with pytest.raises(EngineError, match="own place"):
        plan(write(tmp_path, SCORES), {}, [], tmp_path)


def test_plan_takes_any_parameter_of_a_language_that_papermill_cannot_read(tmp_path):
    """papermill reads the parameters cell of some languages only; for others it has no names to compare with."""
    document = document_of("# %% parameters\nx <- 1", kernel="ir", language="R")
    nbformat.write(document, tmp_path / "r.ipynb")
    assert plan(tmp_path / "r.ipynb", {"x": 2}, [])[0].parameters == {"x": 2}


# -- the table -------------------------------------------------------------------------------------------------
def test_table_shows_what_tells_the_runs_apart():
    """Metrics that are the same in all runs are left out; a name that stands twice is told apart."""
    runs = [
        NotebookRun(
            {"seed": 1, "k": n}, Path(f"{n}.ipynb"), "t", Status.DONE, 1.26, metrics={"r2": r2, "same": 1, "k": n}
        )
        for n, r2 in ((1, 0.5), (2, 0.75))
    ]
    rows = Sweep(runs, ["k"]).table()
    assert rows[0] == {"k": 1, "status": "done", "seconds": 1.3, "r2": 0.5, "k (metric)": 1}


def test_ranked_puts_the_best_first():
    """Lower is better for errors, higher for scores, unless said otherwise; runs without the metric come last."""

    def order(rank_by, **metrics):
        runs = [NotebookRun({"n": n}, Path("x"), "t", metrics=values) for n, values in enumerate(zip_metrics(metrics))]
        return [run.parameters["n"] for run in Sweep(runs, ["n"]).ranked(rank_by).runs]

    def zip_metrics(metrics):
        ((name, values),) = metrics.items()
        return [{} if value is None else {name: value} for value in values]

    assert order("rmse", rmse=[2.0, None, 1.0, float("nan")]) == [2, 0, 1, 3]
    assert order("r2", r2=[0.1, 0.9]) == [1, 0]
    assert order("r2:min", r2=[0.1, 0.9]) == [0, 1]
    with pytest.raises(EngineError, match="one of r2"):
        order("accuracy", r2=[1.0, 2.0])
    assert read_rank("wind_MAE") == ("wind_MAE", True)
    assert read_rank("mape_solar") == ("mape_solar", True)
    with pytest.raises(EngineError, match="METRIC:min"):
        read_rank("r2:best")


# -- on the cluster --------------------------------------------------------------------------------------------
def test_run_many_keeps_the_rest_when_one_fails(at):
    """The failed one is listed with its error and saved; all others run; a stray file of an earlier time is gone."""
    lines = []
    sweep = run_many(Path(write(at, SCORES).name), {"rate": 0.5}, ["depth=2,3,4,5"], tell=lines.append)
    assert [run.status for run in sweep.runs] == ["done", "failed", "done", "done"]
    assert sweep.exit_code == 1
    assert [run.error for run in sweep.failed] == ["ValueError: too deep"]
    assert all(run.seconds > 0 for run in sweep.runs)
    folder = at / "executed" / "score"
    assert {file.name for file in folder.iterdir()} == {f"score__rate=0.5__depth={n}.ipynb" for n in (2, 3, 4, 5)}
    saved = [nbformat.read(run.output, as_version=4) for run in sweep.runs]
    assert saved[3].cells[-1].outputs[0].data["text/plain"] == "2.5"
    assert saved[1].metadata.papermill.exception is True
    assert any("nothing is tracked" in line for line in lines)
    assert any("depth=3: failed" in line and "ValueError: too deep" in line for line in lines)


def test_run_many_takes_braces_literally(at):
    """papermill fills in parameters between braces of a path; a folder's own name is none."""
    folder = at / "{depth}"
    folder.mkdir()
    sweep = run_many(write(folder, SCORES), {}, ["depth=1,2"], folder / "out")
    assert sweep.exit_code == 0
    assert {file.name for file in (folder / "out").iterdir()} == {"score__depth=1.ipynb", "score__depth=2.ipynb"}


def test_run_many_in_threads_leaves_papermill_as_it_was(at):
    """papermill's file handler, which all threads share, forgets the folder in which they ran."""
    from papermill.iorw import papermill_io

    before = papermill_io.get_handler("local")._cwd
    run_many(write(at, SCORES), {}, ["depth=1,2,4,5"])
    assert papermill_io.get_handler("local")._cwd == before != str(at)


def test_run_many_does_not_mix_two_versions_of_a_notebook(at):
    """When the notebook is edited meanwhile, the runs that have not begun fail and say why."""
    source = "# %% parameters\nn = 0\n# %%\nopen('notebook.ipynb', 'a').write('\\n')"
    sweep = run_many(write(at, source, "notebook.ipynb"), {}, [f"n={','.join(map(str, range(8)))}"])
    assert sweep.runs[0].status is Status.DONE
    assert sweep.runs[-1].status is Status.FAILED
    assert "changed" in sweep.runs[-1].error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_many_interrupted_keeps_what_was_finished(at, cluster, number):
    """What ran is stopped with its kernels and saved, what waited is not run, what was finished is kept and listed."""
    write(at, SLOW)
    with started(at, cluster.environment, "score.ipynb", "part=1,2,3,4,5,6,7,8") as program:
        wait_until(lambda: len(list(at.glob("*.pid"))) == 3, START_SECONDS, program)
        time.sleep(1)
        os.killpg(program.pid, number)
        kernels = [int(file.read_text()) for file in at.glob("*.pid")]
        wait_until(lambda: not any(map(psutil.pid_exists, kernels)), 10)
        out, err = program.communicate(timeout=STOP_SECONDS)
    assert program.returncode == 128 + number, err
    assert "Traceback" not in err
    rows = json.loads(out)
    assert sorted(row["status"] for row in rows) == ["done"] + ["not run"] * 5 + ["stopped"] * 2
    begun = [row for row in rows if row["status"] != "not run"]
    assert {f"{row['parameters']['part']}.pid" for row in begun} == {file.name for file in at.glob("*.pid")}
    assert {at / row["notebook"] for row in begun} == set((at / "executed" / "score").iterdir())
    for row in begun:
        last = nbformat.read(at / row["notebook"], as_version=4).cells[-1].metadata.papermill.status
        assert last == {"done": "completed", "stopped": "failed"}[row["status"]]


# -- tracked ---------------------------------------------------------------------------------------------------
def test_run_many_puts_the_runs_of_notebooks_under_one_parent(tracked, at):
    """A notebook's own runs, but for nested ones, are the parent's children; their metrics are in the table."""
    sweep = run_many(write(at, TRACKED), {}, ["depth=1,2"])
    assert sweep.exit_code == 0, sweep.failed
    parent = tracked.get_run(sweep.parent_run)
    assert (parent.info.run_name, parent.info.status) == ("score", "FINISHED")
    assert parent.data.tags["workshop.sweep"] == "depth=1,2"
    assert [run.info.run_name for run in children(tracked, sweep.parent_run)] == ["outer", "outer"]
    assert [row["rmse"] for row in sweep.ranked("rmse").table()] == [0.5, 1.0]
    assert sweep.runs[0].metrics == {"rmse": 1.0, "constant": 7.0}
    assert "WORKSHOP_PARENT_RUN" not in os.environ


def test_run_many_makes_a_run_for_a_notebook_that_opened_none(tracked, at, capsys):
    """It has parameters, seconds, status and the executed notebook; the parent of a failed one is FAILED, too."""
    sweep = run_many(write(at, SCORES), {"rate": 0.5}, ["depth=2,3"])
    parent = tracked.get_run(sweep.parent_run)
    assert (parent.info.status, parent.data.params) == ("FAILED", {"rate": "0.5"})
    done, failed = children(tracked, sweep.parent_run)
    assert (done.info.status, failed.info.status) == ("FINISHED", "FAILED")
    assert done.data.params == {"rate": "0.5", "depth": "2"}
    assert done.data.metrics["seconds"] == pytest.approx(sweep.runs[0].seconds)
    artifacts = tracked.list_artifacts(failed.info.run_id, "notebook")
    assert [file.path for file in artifacts] == ["notebook/score__rate=0.5__depth=3.ipynb"]
    assert capsys.readouterr().out == ""


def test_run_many_interrupted_ends_the_mlflow_runs(tracked, at, cluster, tracking_server):
    """Ctrl-C ends the parent, and the run that a stopped notebook had open, as KILLED."""
    opened = 'import mlflow; mlflow.start_run(run_name=f"own {part}"); open(f"{part}.run", "w").close()'
    write(at, f"# %% parameters\npart = 0\n# %%\n{opened}\n# %%\nimport time; time.sleep(600)")
    environment = cluster.environment | {"MLFLOW_TRACKING_URI": tracking_server}
    with started(at, environment, "score.ipynb", "part=2,3") as program:
        wait_until(lambda: len(list(at.glob("*.run"))) == 2, START_SECONDS, program)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=STOP_SECONDS)
    assert program.returncode == 128 + signal.SIGINT, err
    runs = [tracked.get_run(run_id) for row in json.loads(out) for run_id in row["run_ids"]]
    assert [(run.info.run_name, run.info.status) for run in runs] == [("own 2", "KILLED"), ("own 3", "KILLED")]
    assert tracked.get_run(runs[0].data.tags["mlflow.parentRunId"]).info.status == "KILLED"
