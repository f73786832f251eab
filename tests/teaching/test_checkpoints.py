"""A checkpoint is ticked by what its step makes, and by nothing else; an open one says what to do."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from attendee import git
from click.testing import CliRunner
from workplace import BIN, ROOT, clean_environment

from workshop.cli import main
from workshop.data.schema import FEATURES, TARGETS
from workshop.models.registry import FORCED, PROMOTED, Move
from workshop.settings import EXPERIMENT, PRODUCTION, REGISTERED_MODEL, Settings
from workshop.teaching import checkpoints
from workshop.teaching.checkpoints import Evidence, Progress, Tracked, gather, has_run, look

TABLE = "1_starting_point/germany.csv"
SCORED = {"r2": 0.7}


def test_nothing_ticks_nothing(tmp_path):
    """An attendee who has done nothing sees no tick, and at every step what to do."""
    found = list(look(Evidence(tmp_path, frozenset(), Tracked())))
    assert len(found) == 23 + 12
    assert all(each.done is False and each.reason for each in found)


def test_runs_of_the_pipeline_tick_chapter_4_only(in_workplace):
    """After `make run` nothing of the chapters that are done by hand is ticked, the pipeline's first step is."""
    evidence = gather(in_workplace.settings)
    pipeline = {run.info.run_id for run in evidence.tracked.stage_runs}
    assert pipeline
    # Other tests may have worked in this store by hand.
    versions = [version for version in evidence.tracked.versions if version.run_id in pipeline]
    alone = replace(evidence.tracked, chapter_runs=[], project_runs=[], versions=versions)
    found = {each.title: each for each in look(replace(evidence, server=alone, solved=frozenset()))}
    assert [each.title for each in found.values() if each.chapter in (2, 3) and each.done] == []
    assert found["The pipeline ran here"].done


def test_outputs_of_the_pipeline_that_are_gone_are_missing(in_workplace, tmp_path):
    """The record alone, without the files that it names, ticks nothing; nor do the files of another store."""
    evidence = gather(in_workplace.settings)
    shutil.copytree(in_workplace.pipeline, tmp_path / "4_pipeline", ignore=shutil.ignore_patterns("results"))
    assert not checkpoints.has_run_pipeline(replace(evidence, root=tmp_path))
    assert not checkpoints.has_run_pipeline(replace(evidence, server=Tracked(store_id="another")))


def log_run(name: str, *, model=None, metrics=None, params=None, parent=None, status="FINISHED", **tags) -> str:
    """Track a run as chapter 2's notebooks do, with a real model where one is given."""
    import mlflow

    tags = {"chapter": "2", "model": name} | tags | ({"mlflow.parentRunId": parent} if parent else {})
    run = mlflow.start_run(run_name=name, tags=tags)
    mlflow.log_metrics(metrics or {})
    mlflow.log_params(params or {})
    if model is not None:
        mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"])
    mlflow.end_run(status)
    return run.info.run_id


@pytest.fixture(scope="module")
def model():
    """A fitted model of four weather values and two targets."""
    import pandas as pd
    from sklearn.linear_model import LinearRegression

    weather = pd.DataFrame([[0.0] * 4, [1.0] * 4], columns=FEATURES)
    return LinearRegression().fit(weather, pd.DataFrame([[0.0] * 2, [1.0] * 2], columns=TARGETS))


def test_chapter_2_is_ticked_step_by_step_on_a_real_server(attendee, model):
    """Real runs, a version, the alias and a rollback: each ticks its step and no other, of any chapter."""
    import mlflow

    from workshop.models import registry

    with attendee.ticks():  # failed, in another experiment, without a model, alone
        log_run("linreg", metrics={"r2_random_split": 0.8}, status="FAILED")
        mlflow.set_experiment("Default")
        log_run("linreg", metrics={"r2_random_split": 0.8})
        mlflow.set_experiment(EXPERIMENT)
        log_run("linreg", metrics=SCORED)
        parent = log_run("rf")
        log_run("rf", metrics=SCORED, parent=parent)
    with attendee.ticks("The score that flatters"):
        log_run("linreg", metrics={"r2_random_split": 0.8})
    with attendee.ticks("A run tracked by hand, with its model"):
        run_id = log_run("linreg", metrics=SCORED, model=model)
    with attendee.ticks("Several runs in one execution"):
        log_run("rf", metrics=SCORED, parent=parent)
    with attendee.ticks("A run filled by autolog"):
        log_run("keras", metrics=SCORED, params={"epochs": 12})
    with attendee.ticks("The capacity factor in place of GW"):
        log_run("capacity_factor", metrics=SCORED, model=model, target="capacity_factor")
    [logged] = attendee.client.get_run(run_id).outputs.model_outputs
    with attendee.ticks():
        attendee.client.set_registered_model_alias(
            "another", PRODUCTION, mlflow.register_model(f"models:/{logged.model_id}", "another").version
        )
    with attendee.ticks("A registered version"):
        first = mlflow.register_model(f"models:/{logged.model_id}", REGISTERED_MODEL)
        second = mlflow.register_model(f"models:/{logged.model_id}", REGISTERED_MODEL)
    with attendee.ticks("In production, by its alias"):
        attendee.client.set_registered_model_alias(REGISTERED_MODEL, PRODUCTION, first.version)
    registry.move_alias(attendee.client, Move(0, PROMOTED, second.version, why="pipeline"))
    with attendee.ticks("Rolled back"):
        registry.rollback(first.version, "too low at noon")
    assert {each.chapter for each in attendee.steps().values() if each.done} == {2}


def test_chapter_3_is_ticked_step_by_step_by_real_project_runs(attendee):
    """What MLflow writes of a project's run ticks the steps; a failed run and other projects tick none."""
    import mlflow

    project = attendee.root / "3_projects" / "lr"
    project.mkdir(parents=True)
    entry = '  {}:\n    parameters:\n      a: {{type: float, default: 1}}\n    command: "test {{a}} != -1"\n'
    (project / "MLproject").write_text("entry_points:\n" + entry.format("main") + entry.format("validate"))
    scratch = attendee.root / "4_pipeline" / "scratch"
    shutil.copytree(project, scratch / "lr")
    shutil.copytree(project, project.with_name("rf"))
    git(attendee.root, "add", "--all")
    git(attendee.root, "commit", "--quiet", "--message", "Projects")
    published = attendee.root / "3_projects" / "published"
    git(attendee.root, "clone", "--quiet", "--bare", str(attendee.root), f"{published}.git")

    def run(address=project, entry_point="main", **parameters):
        mlflow.projects.run(
            str(address), entry_point, parameters=parameters, experiment_name=EXPERIMENT, env_manager="local"
        )

    with attendee.ticks():
        run(project.with_name("rf"))
        run(scratch / "lr")
        with pytest.raises(mlflow.exceptions.ExecutionException):
            run(a=-1)
    with attendee.ticks("A project, run by one command"):
        run()
    with attendee.ticks("Run again with another parameter"):
        run(a=2)
    with attendee.ticks("A run of the entry point validate"):
        run(entry_point="validate")
    with attendee.ticks("A run from a git address"):
        run(f"file://{published}#3_projects/lr")


def test_chapter_4_is_ticked_step_by_step(attendee, model, monkeypatch):
    """Runs of a stage, promotions by the pipeline and by a person, a rollback: as the commands write them."""
    import mlflow

    from workshop.models import registry
    from workshop.models.tracking import start_run

    monkeypatch.chdir(attendee.root)
    with attendee.ticks():
        with start_run("train_rf", parameters={"max_depth": 8}) as parent:
            logged = mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"])
        log_run("rf", params={"max_depth": 5}, parent=parent.info.run_id, chapter="4", **{"workshop.stage": "train_rf"})
        registered = [mlflow.register_model(logged.model_uri, REGISTERED_MODEL).version for _ in range(2)]
        registry.move_alias(attendee.client, Move(0, PROMOTED, registered[0], why="pipeline"))
    with (
        attendee.ticks("A stage ran again with a changed parameter"),
        start_run("train_rf", parameters={"max_depth": 9}),
    ):
        pass
    with attendee.ticks("A model promoted by you"):
        registry.move_alias(attendee.client, Move(0, FORCED, registered[1], why="to see", replaced=registered[0]))
    with attendee.ticks("Your promotion rolled back"):
        registry.rollback()


def test_dvc_itself_ticks_its_steps(attendee):
    """`dvc repro`, `dvc exp run` and `dvc push`, for real, in a pipeline of one stage."""
    from workshop.models.tracking import store_id

    folder = attendee.root / "4_pipeline"
    (folder / "params.yaml").write_text("x: 1\n")
    (folder / "dvc.yaml").write_text("stages:\n  one:\n    cmd: echo ${x} > out\n    params: [x]\n    outs: [out]\n")
    who = {f"GIT_{role}_{name}": "t@localhost" for role in ("AUTHOR", "COMMITTER") for name in ("NAME", "EMAIL")}
    environment = clean_environment() | who | {"HOME": str(attendee.root), "DVC_NO_ANALYTICS": "1"}

    def dvc(*words):
        done = subprocess.run(
            [BIN / "dvc", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    dvc("init", "--quiet", "--subdir")
    shutil.move(folder / ".dvc", attendee.root / ".dvc")
    (folder / "data").mkdir()
    with attendee.ticks("The pipeline ran here"):
        dvc("repro", "--quiet")
        (folder / "data" / "tracking_store.json").write_text(json.dumps({"store_id": store_id()}))
    git(attendee.root, "add", "--all")
    git(attendee.root, "commit", "--quiet", "--message", "A pipeline")
    with attendee.ticks("An experiment with dvc exp run"):
        dvc("exp", "run", "--quiet", "--set-param", "x=2")
    with attendee.ticks():
        dvc("remote", "add", "--quiet", "--local", "--default", "aside", str(attendee.root / "aside"))
    with attendee.ticks("Data pushed to a remote"):
        dvc("push", "--quiet")
    with attendee.ticks():
        dvc("remote", "add", "--quiet", "--local", "--force", "--default", "aside", "ssh://files.example.org/aside")
    assert attendee.steps()["Data pushed to a remote"].done is None


def test_notebook_counts_once_it_ran_to_its_end_and_was_saved(tmp_path):
    """As committed, run in part, with an error, and whole: only the last counts."""
    import nbformat

    def saved(*counts, error=False) -> bool:
        cells = [nbformat.v4.new_code_cell("1 / 0", execution_count=count) for count in counts]
        if error:
            cells[-1].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
        nbformat.write(nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell("")]), tmp_path / "n.ipynb")
        return has_run("n.ipynb", Evidence(tmp_path, frozenset(), Tracked()))

    assert not saved(None, None)
    assert not saved(1, None)
    assert not saved(1, 2, error=True)
    assert saved(1, 2)
    assert not has_run("model_linreg.ipynb", Evidence(ROOT / "1_starting_point", frozenset(), Tracked()))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": [1]}', '{"cells": "x"}', "\x00", "[" * 100_000])
def test_damaged_notebook_counts_as_not_run(tmp_path, text):
    """Whatever the file contains, there is no traceback."""
    (tmp_path / "model.ipynb").write_text(text)
    assert not has_run("model.ipynb", Evidence(tmp_path, frozenset(), Tracked()))


@pytest.mark.parametrize("listens", [True, False])
def test_server_that_does_not_answer_leaves_chapter_1(tmp_path, monkeypatch, listens):
    """Down or frozen: files are still looked at, and runs are unknown, within seconds."""
    (tmp_path / "1_starting_point").mkdir()
    (tmp_path / TABLE).write_text("utc_timestamp\n")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        found = list(look(gather(Settings(root=tmp_path, state=tmp_path / "state"))))
    assert [each.title for each in found if each.done] == ["Weather and power in one table"]
    for each in found:
        if each.chapter in (2, 3) and "Exercise" not in each.title:
            assert each.done is None
            assert f"{uri} does not answer" in each.reason


def test_check_shows_the_next_step_and_exits_by_the_chapter(attendee):
    """Exit 0 for the overview, 1 for a chapter that is not complete, whose own step is next; JSON has every step."""
    (attendee.root / "1_starting_point").mkdir()
    (attendee.root / TABLE).write_text("utc_timestamp\n")
    done = CliRunner().invoke(main, ["check"])
    assert done.exit_code == 0, done.output
    assert "✔ Weather and power in one table" in done.output
    assert "✔ done · ○ to do\n" in done.output
    assert "Next: A linear regression (1_starting_point/model_linreg.ipynb, chapter 1)" in done.output
    assert "Next: A linear regression" in (attendee.root / "START.md").read_text()
    done = CliRunner().invoke(main, ["check", "3"])
    assert "Next: A project, run by one command (3_projects/README.md, 2. Run it, chapter 3)" in done.output
    done = CliRunner().invoke(main, ["check", "3", "--json"])
    assert done.exit_code == 1
    assert [each["done"] for each in json.loads(done.stdout)] == [False] * (4 + 3)


def test_next_step_of_an_attendee_who_skipped_chapters(tmp_path):
    """The next step is in the chapter at which they began; the skipped steps come last."""
    settings = Settings(root=tmp_path, state=tmp_path / "state")
    checkpoints.begin_at(settings, 3)
    found = tuple(look(Evidence(tmp_path, frozenset(), Tracked())))
    assert Progress(found).next_of().chapter == 1
    assert Progress(found, first_chapter=3).next_of().chapter == 3
    rest = tuple(replace(each, done=each.chapter >= 3) for each in found)
    assert Progress(rest, first_chapter=3).next_of().title == "Weather and power in one table"
    assert Path(tmp_path, "state", "first_chapter").read_text() == "3\n"
