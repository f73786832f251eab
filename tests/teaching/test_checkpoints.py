"""The checkpoints tick what is there, and nothing else; what is missing is told with its most likely reason."""

from __future__ import annotations

import json
import shutil
import socket
import time
from dataclasses import replace

import pytest
from attendee import git
from click.testing import CliRunner
from nbclient import NotebookClient
from workplace import BIN, ROOT, clean_environment

from workshop.cli import main
from workshop.data.schema import FEATURES, TARGETS
from workshop.models.registry import FORCED, PROMOTED, ROLLED_BACK, Move
from workshop.models.tracking import STAGE_TAG
from workshop.settings import EXPERIMENT, PRODUCTION, REGISTERED_MODEL, Settings
from workshop.teaching import brought
from workshop.teaching.checkpoints import STEPS, Progress, verdicts
from workshop.teaching.checkpoints.evidence import Evidence, gather
from workshop.teaching.checkpoints.files import Pipeline, Remote, Saved, read_notebook
from workshop.teaching.checkpoints.store import BROUGHT_TAG, Run, Store, Version

NOTHING = Evidence(
    root="/workshop", store=Store("http://here", identity="one"), pipeline=Pipeline(absent=("data/raw",))
)
SCORED = {"r2": 0.7}
LINREG = Run("1", models=("m-1",), metrics=SCORED, tags={"chapter": "2", "model": "linreg"})
LR = Run(
    "2", params={"fit_intercept": "true"},
    tags={"mlflow.source.name": "file:///workshop#3_projects/lr", "mlflow.project.entryPoint": "main"},
)  # fmt: skip
TRAINED = Run("3", params={"max_depth": "8"}, tags={STAGE_TAG: "train_rf"})
VERSION = Version(REGISTERED_MODEL, "2", run_id="1")
TABLE = "1_starting_point/germany.csv"


def look(title: str, **found):
    """Return the step of a title, as it looks where nothing but ``found`` is there."""
    store = {name: found.pop(name) for name in list(found) if name in Store.__dataclass_fields__}
    evidence = replace(NOTHING, store=replace(NOTHING.store, **store), **found)
    [checkpoint] = [each for each in verdicts(evidence) if each.title == title]
    return checkpoint


def move(action: str, version: str, **told) -> Move:
    """Return a move of the alias."""
    return Move(told.pop("number", 1), action, version, **told)


def changed(run: Run, **fields) -> Run:
    """Return a run with other fields; tags are added."""
    tags = run.tags | fields.pop("tags", {})
    return replace(run, tags=tags, **fields)


THERE = {
    "Weather and power in one table": {"present": frozenset([TABLE])},
    "A linear regression": {"notebooks": {"1_starting_point/model_linreg.ipynb": Saved(5, 5, 0)}},
    "A random forest": {"notebooks": {"1_starting_point/model_rf.ipynb": Saved(5, 5, 0)}},
    "A neural network": {"notebooks": {"1_starting_point/model_keras.ipynb": Saved(5, 5, 0)}},
    "The weekly report": {"present": frozenset(["1_starting_point/report/report.html"])},
    "The score that flatters": {"chapter_runs": (changed(LINREG, metrics={"r2_random_split": 0.8}),)},
    "A run tracked by hand, with its model": {"chapter_runs": (LINREG,)},
    "Several runs in one execution": {
        "chapter_runs": (
            changed(LINREG, run_id="p", tags={"model": "rf"}),
            *(changed(LINREG, run_id=each, tags={"model": "rf", "mlflow.parentRunId": "p"}) for each in "ab"),
        )
    },
    "A run filled by autolog": {"chapter_runs": (changed(LINREG, params={"epochs": "12"}, tags={"model": "keras"}),)},
    "The capacity factor in place of GW": {"chapter_runs": (changed(LINREG, tags={"target": "capacity_factor"}),)},
    "A registered version": {"chapter_runs": (LINREG,), "versions": (VERSION,)},
    "In production, by its alias": {
        "chapter_runs": (LINREG,), "versions": (VERSION,), "aliases": {REGISTERED_MODEL: {PRODUCTION: "2"}}
    },
    "Rolled back": {
        "chapter_runs": (LINREG,), "versions": (VERSION,), "moves": (move(ROLLED_BACK, "1", replaced="2"),)
    },
    "A project, run by one command": {"project_runs": (LR,)},
    "Run again with another parameter": {"project_runs": (LR, changed(LR, params={"fit_intercept": "false"}))},
    "A run of the entry point validate": {
        "project_runs": (changed(LR, tags={"mlflow.project.entryPoint": "validate"}),)
    },
    "A run from a git address": {
        "project_runs": (changed(LR, tags={"mlflow.source.name": "https://git.example/energy#3_projects/lr"}),)
    },
    "The pipeline ran here": {"pipeline": Pipeline(store="one")},
    "A stage ran again with a changed parameter": {
        "stage_runs": (TRAINED, changed(TRAINED, params={"max_depth": "9"}))
    },
    "A model promoted by you": {"moves": (move(PROMOTED, "1", why="better in winter"),)},
    "Your promotion rolled back": {"moves": (move(FORCED, "2", why="to see"), move(ROLLED_BACK, "1", number=2))},
    "Data pushed to a remote": {"pipeline": Pipeline(remote=Remote("local", "/tmp/x", holds=3, wanted=9))},
    "An experiment with dvc exp run": {"pipeline": Pipeline(experiments=("sour-soup",))},
}  # fmt: skip


def test_nothing_ticks_nothing():
    """An attendee who has done nothing sees no tick, and a reason at every step."""
    assert all(each.state == "missing" and each.reason for each in verdicts(NOTHING))


def test_each_step_has_a_tick_of_its_own():
    """The table above names every step there is, the exercises apart."""
    assert list(THERE) == [step.title for chapter in STEPS.values() for step in chapter]


@pytest.mark.parametrize("title", THERE)
def test_step_is_ticked_by_what_it_makes(title):
    """What the step leaves ticks it; a run that was brought, or failed, or lies in another experiment, does not."""
    found = THERE[title]
    assert look(title, **found).state == "done"
    for name in ("chapter_runs", "project_runs"):
        if name in found and "versions" not in found:
            tagged = tuple(changed(run, tags={BROUGHT_TAG: "up --chapter 4"}) for run in found[name])
            assert look(title, **{name: tagged}).state in ("brought", "missing")
            failed = tuple(changed(run, status="FAILED") for run in found[name])
            assert look(title, **{name: failed}).state == "missing"
            astray = tuple(changed(run, experiment="Default") for run in found[name])
            assert look(title, **{name: astray}).state == "missing"


@pytest.mark.parametrize(
    ("title", "found", "words"),
    [
        ("A linear regression", {}, "is not there, or damaged"),
        ("A linear regression", {"notebooks": {"1_starting_point/model_linreg.ipynb": Saved(5, 0, 0)}}, "the table of"),
        (
            "A linear regression",
            {"notebooks": {"1_starting_point/model_linreg.ipynb": Saved(5, 0, 0)}, "present": frozenset([TABLE])},
            "saved without outputs",
        ),
        ("A linear regression", {"notebooks": {"1_starting_point/model_linreg.ipynb": Saved(5, 3, 0)}}, "3 of its 5"),
        ("A linear regression", {"notebooks": {"1_starting_point/model_linreg.ipynb": Saved(5, 5, 1)}}, "an error"),
        ("A run tracked by hand, with its model", {}, "Run model_linreg.ipynb from top to bottom"),
        (
            "A run tracked by hand, with its model",
            {"notebooks": {"2_tracking/model_linreg.ipynb": Saved(9, 9, 0)}},
            "another server",
        ),
        (
            "A run tracked by hand, with its model",
            {"strays": ("2_tracking/mlflow.db",)},
            "wrote to 2_tracking/mlflow.db",
        ),
        (
            "A run tracked by hand, with its model",
            {"chapter_runs": (changed(LINREG, experiment="Default"),)},
            "experiment Default",
        ),
        ("A run tracked by hand, with its model", {"chapter_runs": (changed(LINREG, status="FAILED"),)}, "but failed"),
        (
            "Several runs in one execution",
            {"chapter_runs": (changed(LINREG, tags={"model": "rf"}),)},
            "fewer runs than the notebook makes",
        ),
        (
            "A registered version",
            {"chapter_runs": (LINREG,), "versions": (Version("my_model", "1", source="models:/m-1"),)},
            "registered as my_model",
        ),
        ("A registered version", {"versions": (Version(REGISTERED_MODEL, "1", "3"),)}, "comes from the pipeline"),
        ("In production, by its alias", {"aliases": {REGISTERED_MODEL: {"Production": "2"}}}, "spelled Production"),
        ("In production, by its alias", {"aliases": {"my_model": {PRODUCTION: "2"}}}, "on the model my_model"),
        (
            "In production, by its alias",
            {"chapter_runs": (LINREG,), "versions": (VERSION,), "aliases": {REGISTERED_MODEL: {PRODUCTION: "1"}}},
            "Move it to yours, version 2",
        ),
        ("Rolled back", {}, "Moving the alias in the UI leaves no record"),
        ("A project, run by one command", {}, "workshop data csv"),
        ("A project, run by one command", {"present": frozenset(["3_projects/germany.csv"])}, "mlflow run lr"),
        ("A project, run by one command", {"project_runs": (changed(LR, experiment="Default"),)}, "config --export"),
        ("Run again with another parameter", {"project_runs": (LR, LR)}, "the same parameters"),
        ("The pipeline ran here", {"pipeline": Pipeline(store="another")}, "another tracking store"),
        ("The pipeline ran here", {"pipeline": Pipeline(absent=("data/raw", "x"))}, "data/raw and 1 more"),
        ("A stage ran again with a changed parameter", {"stage_runs": (TRAINED, TRAINED)}, "different parameters"),
        ("A model promoted by you", {"moves": (move(PROMOTED, "1", why="pipeline"),)}, "--force --why REASON"),
        ("Your promotion rolled back", {"moves": (move(PROMOTED, "1", why="mine"),)}, "not rolled back since"),
        ("Data pushed to a remote", {"pipeline": Pipeline(remote=Remote("local", "/tmp/x", 0, 9))}, "holds none"),
    ],
)
def test_what_is_missing_has_its_most_likely_reason(title, found, words):
    """The reason is that of the mistake, and not the same for all."""
    checkpoint = look(title, **found)
    assert checkpoint.state == "missing"
    assert words in checkpoint.reason


def test_projects_of_the_scratch_repository_are_not_chapter_3s():
    """Chapter 4 runs `lr` in a repository of its own, below this one: that ticks nothing of chapter 3."""
    tags = {"mlflow.source.name": "file:///workshop/4_pipeline/scratch#lr"}
    runs = tuple(changed(LR, tags=tags, params={"fit_intercept": value}) for value in ("true", "false"))
    evidence = replace(NOTHING, store=replace(NOTHING.store, project_runs=runs))
    assert [each.title for each in verdicts(evidence) if each.there] == []


def test_runs_of_the_pipeline_tick_chapter_4_only(in_workplace):
    """After `make run`, nothing of the chapters that are done by hand is ticked, the pipeline's first step is."""
    evidence = gather(in_workplace.settings)
    of_pipeline = {run.run_id for run in evidence.store.stage_runs}
    assert of_pipeline
    assert not of_pipeline & {run.run_id for run in (*evidence.store.chapter_runs, *evidence.store.project_runs)}
    # Other tests may have worked in this store by hand.
    versions = tuple(version for version in evidence.store.versions if version.run_id in of_pipeline)
    alone = replace(evidence.store, chapter_runs=(), project_runs=(), versions=versions, aliases={}, moves=())
    found = {each.title: each for each in verdicts(replace(evidence, store=alone, solved=frozenset()))}
    assert {each.chapter for each in found.values() if each.chapter in (2, 3) and each.there} == set()
    assert found["The pipeline ran here"].state == "done", found["The pipeline ran here"].reason


def test_outputs_of_the_pipeline_that_are_gone_are_missing(in_workplace, tmp_path):
    """The record alone, without what it names, ticks nothing."""
    shutil.copytree(in_workplace.pipeline, tmp_path / "4_pipeline", ignore=shutil.ignore_patterns("results"))
    settings = in_workplace.settings.model_copy(update={"root": tmp_path})
    [checkpoint, *_] = [each for each in verdicts(gather(settings)) if each.chapter == 4]
    assert checkpoint.state == "missing"
    assert "results/" in checkpoint.reason


def log_run(attendee, name: str, *, model=None, metrics=None, params=None, parent=None, **tags) -> str:
    """Track a run as chapter 2's notebooks do, with a real model where one is given."""
    import mlflow

    tags = {"chapter": "2", "model": name} | tags | ({"mlflow.parentRunId": parent} if parent else {})
    with mlflow.start_run(run_name=name, tags=tags) as run:
        mlflow.log_metrics(metrics or {})
        mlflow.log_params(params or {})
        if model is not None:
            mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"])
    return run.info.run_id


@pytest.fixture(scope="module")
def model():
    """A fitted model of four weather values and two targets."""
    import pandas as pd
    from sklearn.linear_model import LinearRegression

    weather = pd.DataFrame([[0.0] * 4, [1.0] * 4], columns=FEATURES)
    return LinearRegression().fit(weather, pd.DataFrame([[0.0] * 2, [1.0] * 2], columns=TARGETS))


def test_chapter_2_is_ticked_step_by_step_on_a_real_server(attendee, model):
    """Real runs, a real version, the alias and a rollback: each ticks its step and no other, of any chapter."""
    import mlflow

    from workshop.models import registry

    with attendee.ticks("The score that flatters"):
        log_run(attendee, "linreg", metrics={"r2_random_split": 0.8})
    with attendee.ticks("A run tracked by hand, with its model"):
        run_id = log_run(attendee, "linreg", metrics=SCORED, model=model)
    with attendee.ticks("Several runs in one execution"):
        parent = log_run(attendee, "rf")
        for _ in range(2):
            log_run(attendee, "rf", metrics=SCORED, parent=parent)
    with attendee.ticks("A run filled by autolog"):
        log_run(attendee, "keras", metrics=SCORED, params={"epochs": 12})
    with attendee.ticks("The capacity factor in place of GW"):
        log_run(attendee, "capacity_factor", metrics=SCORED, model=model, target="capacity_factor")
    [logged] = attendee.client.get_run(run_id).outputs.model_outputs
    with attendee.ticks("A registered version"):
        first = mlflow.register_model(f"models:/{logged.model_id}", REGISTERED_MODEL)
        second = mlflow.register_model(f"models:/{logged.model_id}", REGISTERED_MODEL)
    with attendee.ticks("In production, by its alias"):
        attendee.client.set_registered_model_alias(REGISTERED_MODEL, PRODUCTION, first.version)
    registry.move_alias(attendee.client, Move(0, PROMOTED, second.version, why="pipeline"))
    with attendee.ticks("Rolled back"):
        registry.rollback(first.version, "too low at noon")
    assert {each.chapter for each in attendee.steps().values() if each.state == "done"} == {2}


def test_chapter_3_is_ticked_step_by_step_by_real_project_runs(attendee, tmp_path):
    """What MLflow itself writes of a project's run ticks the steps; a failed run and another project tick none."""
    import mlflow

    project = attendee.root / "3_projects" / "lr"
    project.mkdir(parents=True)
    entry = (
        "  {}:\n    parameters:\n      a: {{type: float, default: 1}}\n    command: \"python -c 'assert {{a}} > 0'\"\n"
    )
    (project / "MLproject").write_text("entry_points:\n" + entry.format("main") + entry.format("validate"))
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
        with start_run("train_rf", parameters={"max_depth": 8}):
            logged = mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"])
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
    import subprocess

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
    dvc("remote", "add", "--quiet", "--local", "--default", "aside", str(attendee.root / "aside"))
    assert "holds none" in attendee.steps()["Data pushed to a remote"].reason
    with attendee.ticks("Data pushed to a remote"):
        dvc("push", "--quiet")


def test_notebook_of_chapter_1_counts_once_it_ran_and_was_saved(attendee, germany_csv):
    """As committed, then cut short, then run to its end: only the last is ticked."""
    import nbformat

    folder = attendee.root / "1_starting_point"
    folder.mkdir()
    file = folder / "model_linreg.ipynb"
    shutil.copy(ROOT / "1_starting_point" / file.name, file)
    shutil.copy(germany_csv, folder / "germany.csv")
    title = "A linear regression"
    assert "without outputs" in attendee.steps()[title].reason
    document = nbformat.read(file, as_version=4)
    NotebookClient(document, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    with attendee.ticks(title):
        nbformat.write(document, file)
    document.cells[-2 if document.cells[-2].cell_type == "code" else 1].execution_count = None
    nbformat.write(document, file)
    assert "cells ran" in attendee.steps()[title].reason


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": [1]}', '{"cells": "x"}', "\x00", "[" * 100_000])
def test_notebook_that_is_none_is_told_as_damaged(tmp_path, text):
    """Whatever lies there, nobody sees a traceback."""
    (tmp_path / "model.ipynb").write_text(text)
    assert read_notebook(tmp_path / "model.ipynb") is None


@pytest.mark.parametrize("listens", [True, False])
def test_server_that_does_not_answer_leaves_chapter_1(tmp_path, listens):
    """Down or frozen: files are still looked at, runs are unknown and never ticked from memory, in seconds."""
    (tmp_path / "1_starting_point").mkdir()
    (tmp_path / TABLE).write_text("utc_timestamp\n")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        settings = Settings(root=tmp_path, state=tmp_path / "state").model_copy(update={"mlflow_tracking_uri": uri})
        began = time.monotonic()
        found = verdicts(gather(settings))
    assert time.monotonic() - began < 10
    assert [each.title for each in found if each.there] == ["Weather and power in one table"]
    for each in found:
        if each.chapter in (2, 3) and "Exercise" not in each.title:
            assert each.state == "unknown"
            assert f"{uri} does not answer" in each.reason


def test_look_needs_few_requests_however_many_runs(attendee, monkeypatch):
    """No request for a run: with twenty of them it is as many as with none, and below a dozen."""
    import requests

    def count() -> int:
        sent = []
        with monkeypatch.context() as patched:
            real = requests.Session.send
            patched.setattr(requests.Session, "send", lambda *a, **k: sent.append(1) or real(*a, **k))
            attendee.steps()
        return len(sent)

    before = count()
    for _ in range(20):
        attendee.client.create_run("0", tags={"chapter": "2", "mlflow.source.type": "PROJECT"})
    assert count() == before < 12


def test_check_tells_what_is_next_and_exits_by_the_chapter(attendee):
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
    assert {each["state"] for each in json.loads(done.stdout)} == {"missing"}


def test_who_skipped_chapters_goes_on_where_they_began(tmp_path):
    """The next step is in the chapter that was asked for; what was skipped comes last, and is not ticked."""
    found = verdicts(replace(NOTHING, present=frozenset([TABLE]), brought=frozenset([TABLE])))
    assert found[0].state == "brought"
    assert Progress(tuple(found), begun_at=3).next.chapter == 3
    rest = tuple(replace(each, state="done") if each.chapter >= 3 else each for each in found)
    assert Progress(rest, begun_at=3).next.title == "A linear regression"


def test_file_that_was_brought_and_made_again_is_the_attendees(tmp_path):
    """A table that `up --chapter` made is brought until somebody makes it anew."""
    settings = Settings(root=tmp_path, state=tmp_path / "state")
    (tmp_path / "table").write_text("1")
    brought.add(settings, 2, ["table", "absent"])
    assert brought.read(settings).untouched(tmp_path) == {"table"}
    time.sleep(0.01)
    (tmp_path / "table").write_text("1")
    assert brought.read(settings).untouched(tmp_path) == set()
    assert brought.read(settings).chapter == 2
