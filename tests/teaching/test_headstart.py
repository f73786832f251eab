"""A head start makes what earlier chapters leave, marks it as such, and touches nothing of an attendee's."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest
from attendee import git
from workplace import BIN, ROOT

from workshop.data.schema import FEATURES, TARGETS
from workshop.errors import EngineError
from workshop.settings import EXPERIMENT, PRODUCTION, REGISTERED_MODEL
from workshop.teaching import brought, headstart
from workshop.teaching.checkpoints.store import BROUGHT_TAG, look
from workshop.teaching.checkpoints.tracking import RUN_NOTEBOOKS

PROJECT = ["3_projects/hourly.py", *(f"3_projects/lr/{name}" for name in ("MLproject", "python_env.yaml", "train.py"))]


@pytest.fixture
def chapters(attendee, germany_csv, store, monkeypatch):
    """The attendee's repository with a notebook of chapter 2 and a project of chapter 3, and the table of chapter 1."""
    monkeypatch.setenv("WORKSHOP_STATE", str(store))  # so that the server is this clone's own
    for name in ("2_tracking/model_linreg.ipynb", *PROJECT):
        (attendee.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, attendee.root / name)
    git(attendee.root, "add", "--all")
    git(attendee.root, "commit", "--quiet", "--message", "Chapters")
    (attendee.root / "1_starting_point").mkdir()
    shutil.copy(germany_csv, attendee.root / "1_starting_point" / "germany.csv")
    return attendee


def log_runs(*notebooks: str, model=None) -> None:
    """Track what these notebooks would leave."""
    import mlflow

    runs = {
        "model_linreg": {"model": "linreg", "target": "GW"},
        "model_rf": {"model": "rf", "target": "GW"},
        "model_keras": {"model": "keras", "target": "GW"},
        "capacity_factor": {"model": "rf", "target": "capacity_factor"},
    }
    for notebook in notebooks:
        with mlflow.start_run(tags={"chapter": "2"} | runs[notebook]) as parent:
            mlflow.log_metrics({"r2": 0.1, "r2_random_split": 0.8})
            mlflow.log_param("epochs", 12)
            if model is not None:
                mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"])
        if notebook == "model_rf":
            for _ in range(2):
                with mlflow.start_run(tags={"chapter": "2", "model": "rf", "mlflow.parentRunId": parent.info.run_id}):
                    pass


@pytest.fixture(scope="module")
def model():
    """A fitted model of four weather values and two targets."""
    import pandas as pd
    from sklearn.linear_model import LinearRegression

    weather = pd.DataFrame([[0.0] * 4, [1.0] * 4], columns=FEATURES)
    return LinearRegression().fit(weather, pd.DataFrame([[0.0] * 2, [1.0] * 2], columns=TARGETS))


@contextlib.contextmanager
def bar(title: str, total: int):
    """Count a notebook's cells; all of them are shown as done in the end."""
    done = []
    yield lambda: done.append(1)
    assert len(done) == total > 0, title


def test_chapter_4_can_be_begun_with_what_the_others_leave(chapters, model):
    """The one notebook whose runs are missing runs, a version is registered, a project runs; again, nothing happens."""
    log_runs("model_rf", "model_keras")
    log_runs("capacity_factor", model=model)
    notebook = chapters.root / "2_tracking" / "model_linreg.ipynb"
    notebook.write_text("the attendee's, half done")
    told = []
    headstart.bring(chapters.settings, 4, told.append, bar)
    assert notebook.read_text() == "the attendee's, half done"
    assert [line.split(":")[0] for line in told] == [
        "2_tracking/germany.csv", "3_projects/germany.csv", "2_tracking/model_linreg.ipynb",
        f"{REGISTERED_MODEL} version 1", f"{REGISTERED_MODEL} version 1", "3_projects/lr",
    ]  # fmt: skip
    steps = chapters.steps()
    made = {title for title, step in steps.items() if step.state == "brought"}
    assert made == {
        "The score that flatters", "A run tracked by hand, with its model", "A registered version",
        "In production, by its alias", "A project, run by one command",
    }  # fmt: skip
    assert steps["Several runs in one execution"].state == "done"
    store = look(chapters.settings)
    [version] = store.versions
    run = next(run for run in store.chapter_runs if run.run_id == version.run_id)
    assert run.tags[BROUGHT_TAG] == version.tags[BROUGHT_TAG] == "up --chapter 4"
    assert run.metrics["r2"] > 0.5
    assert brought.read(chapters.settings).chapter == 4
    told.clear()
    headstart.bring(chapters.settings, 4, told.append, bar)
    assert told == []
    assert look(chapters.settings) == store


def test_model_of_the_pipeline_stays_in_production(chapters, model):
    """Where the alias points at a version already, chapter 2's is registered beside it."""
    import mlflow

    log_runs(*RUN_NOTEBOOKS, model=model)
    with mlflow.start_run(tags={"workshop.stage": "train_rf"}):
        logged = mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"])
    mlflow.register_model(logged.model_uri, REGISTERED_MODEL)
    chapters.client.set_registered_model_alias(REGISTERED_MODEL, PRODUCTION, "1")
    told = []
    headstart.bring(chapters.settings, 3, told.append, bar)
    assert told[-1] == f"{REGISTERED_MODEL} version 1: stays in production"
    assert look(chapters.settings).in_production == "1"
    assert chapters.steps()["A registered version"].state == "brought"
    assert chapters.steps()["In production, by its alias"].state == "missing"


def test_notebook_that_fails_is_told_by_its_name_and_error(chapters):
    """The way to go on is said; what was made so far is kept, and marked."""
    notebook = chapters.root / "2_tracking" / "model_linreg.ipynb"
    document = json.loads(notebook.read_text())
    next(cell for cell in document["cells"] if cell["cell_type"] == "code")["source"] = "raise ValueError('no sun')"
    notebook.write_text(json.dumps(document))
    git(chapters.root, "commit", "--quiet", "--all", "--message", "Break it")
    with pytest.raises(EngineError, match=r"model_linreg.ipynb could not be run(.|\n)*ValueError: no sun"):
        headstart.bring(chapters.settings, 3, [].append, lambda *_: contextlib.nullcontext(lambda: None))
    assert chapters.client.search_runs([chapters.client.get_experiment_by_name(EXPERIMENT).experiment_id]) == []
    assert chapters.steps()["Weather and power in one table"].state == "done"


def test_up_brings_the_table_of_chapter_1_and_writes_the_start_page(servers):
    """`workshop up --chapter 2` on running servers: the table is there, the start page says who made it."""
    table = servers.root / "1_starting_point" / "germany.csv"
    table.unlink(missing_ok=True)  # other tests may have worked in this clone by hand
    done = servers.run(BIN / "workshop", "up", "--chapter", "2")
    assert done.returncode == 0, done.stderr
    assert table.stat().st_size > 1_000_000
    page = (servers.root / "START.md").read_text()
    assert "↓ [Weather and power in one table]" in page
    assert "**Next: " in page
    assert "chapter 1" not in page.split("**Next: ")[1].splitlines()[0]
