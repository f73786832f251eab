"""A checkpoint is done by the result of its step and nothing else; an open one says what to do."""

from __future__ import annotations

import json
import re
import shutil
import socket
from dataclasses import replace

import pytest
from attendee import git
from click.testing import CliRunner
from forecast.problem import EXPERIMENT, REGISTERED_MODEL
from forecast.table.schema import FEATURES, TARGETS
from forecast.terms.errors import PipelineError, ServiceError
from forecast.tracking import PRODUCTION, STAGE_TAG
from mlflow_gate import Move
from workplace import BIN, ROOT, clean_environment, run_program

from workshop.cli import main
from workshop.settings import Settings
from workshop.teaching import checkpoints, start_page
from workshop.teaching.checkpoints import CHAPTERS, Checkpoint, State, examine, has_executed, next_step, state_of

TABLE = "1_starting_point/germany.csv"
SCORED = {"r2": 0.7}


def test_nothing_ticks_nothing(attendee):
    """An attendee who has done nothing sees no done step, and a hint at every step."""
    steps = attendee.steps().values()
    assert {step.chapter for step in steps} == {1, 2, 3, 4}
    assert all(step.done is False and step.reason for step in steps)


def test_runs_of_the_pipeline_tick_chapter_4_only(in_workplace, tmp_path):
    """After `make run` the pipeline's first step is done, and no run of a stage counts for chapters 2 and 3.

    The record alone, without the files that it names, ticks nothing.
    """
    state = state_of(in_workplace.settings)
    assert checkpoints.has_run_pipeline(state)
    stages = {run.info.run_id for run in state.runs(f"tags.`{STAGE_TAG}` LIKE 'train%'")}
    by_hand = [*state.runs("tags.chapter = '2'"), *state.runs("tags.`mlflow.source.type` = 'PROJECT'")]
    assert stages
    assert not stages & {run.info.run_id for run in by_hand}
    shutil.copytree(in_workplace.pipeline, tmp_path / "4_pipeline", ignore=shutil.ignore_patterns("results"))
    state.root = tmp_path
    assert not checkpoints.has_run_pipeline(state)


def log_run(name: str, *, model=None, metrics=None, params=None, parent=None, status="FINISHED", **tags) -> str:
    """Track a run as chapter 2's notebooks do, optionally with a real model."""
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

    weather = pd.DataFrame([[0.0] * len(FEATURES), [1.0] * len(FEATURES)], columns=FEATURES)
    return LinearRegression().fit(weather, pd.DataFrame([[0.0] * 2, [1.0] * 2], columns=TARGETS))


def test_chapter_2_is_ticked_step_by_step_on_a_real_server(attendee, model):
    """Each of real runs, a version, the alias and a rollback completes its own step and no other."""
    import mlflow
    from forecast.govern.gate import Registry

    with attendee.ticks():  # failed, in another experiment, without a model, alone
        log_run("linreg", metrics={"r2_random_split": 0.8}, status="FAILED")
        mlflow.set_experiment("Default")
        log_run("linreg", metrics={"r2_random_split": 0.8})
        mlflow.set_experiment(EXPERIMENT)
        log_run("linreg", metrics=SCORED)
        parent = log_run("rf")
        log_run("rf", metrics=SCORED, parent=parent)
    with attendee.ticks("A score that is too high"):
        log_run("linreg", metrics={"r2_random_split": 0.8})
    with attendee.ticks("A run tracked by hand, with its model"):
        run_id = log_run("linreg", metrics=SCORED, model=model)
    with attendee.ticks("Several runs in one execution"):
        log_run("rf", metrics=SCORED, parent=parent)
    with attendee.ticks("A run logged by autolog"):
        log_run("keras", metrics=SCORED, params={"epochs": 12})
    with attendee.ticks("The capacity factor instead of GW"):
        log_run("capacity_factor", metrics=SCORED, model=model, target="capacity_factor")
    [logged] = attendee.client.get_run(run_id).outputs.model_outputs
    with attendee.ticks():
        attendee.client.set_registered_model_alias(
            "another", PRODUCTION, mlflow.register_model(f"models:/{logged.model_id}", "another").version
        )
    with attendee.ticks("A registered version"):
        first = mlflow.register_model(f"models:/{logged.model_id}", REGISTERED_MODEL)
        second = mlflow.register_model(f"models:/{logged.model_id}", REGISTERED_MODEL)
    with attendee.ticks("Your version in production"):
        attendee.client.set_registered_model_alias(REGISTERED_MODEL, PRODUCTION, first.version)
    registry = Registry(attendee.client)
    registry.move(Move(0, "promoted", str(second.version), why="pipeline"))
    with attendee.ticks("A rollback"):
        registry.rollback(str(first.version), "too low at noon")
    assert {each.chapter for each in attendee.steps().values() if each.done} == {2}


def test_chapter_3_is_ticked_step_by_step_by_real_project_runs(attendee):
    """Real project runs complete their steps; a failed run and other projects complete none."""
    import mlflow

    project = attendee.root / "3_projects" / "lr"
    project.mkdir(parents=True)
    entry = '  {}:\n    parameters:\n      fit_intercept: {{default: "true"}}\n      test_fraction: {{default: 0.2}}\n'
    entry += '    command: "test {{test_fraction}} != 0 && test {{fit_intercept}} != none  # other parameters"\n'
    (project / "MLproject").write_text("entry_points:\n" + entry.format("main") + entry.format("validate"))
    forest = shutil.copytree(project, project.with_name("rf"))
    git(attendee.root, "add", "--all")
    git(attendee.root, "commit", "--quiet", "--message", "Projects")
    published = attendee.root / "3_projects" / "published"
    git(attendee.root, "clone", "--quiet", "--bare", str(attendee.root), f"{published}.git")
    scratch = attendee.root / "4_pipeline" / "scratch"
    shutil.copytree(project, scratch / "lr")
    git(scratch, "init", "--quiet")

    def run(address=project, entry_point="main", **parameters):
        return mlflow.projects.run(
            str(address), entry_point, parameters=parameters, experiment_name=EXPERIMENT, env_manager="local"
        )

    with attendee.ticks():
        attendee.client.set_tag(run(forest).run_id, "mlflow.project.env", "virtualenv")
        with pytest.raises(mlflow.exceptions.ExecutionException):
            run(test_fraction=0)
    with attendee.ticks("A project run with one command"):
        run()
        run(test_fraction=0.1)  # exercise 3.1
    with attendee.ticks("A run with another parameter"):
        run(fit_intercept="false")
    with attendee.ticks("A run in your own environment"):
        run(forest)
    with attendee.ticks():
        run(forest, last_hours=8760)
        run(by_capacity="true", last_hours=8760)  # of another project
        winner = run(forest, by_capacity="true", last_hours=8760).run_id
        attendee.client.set_tag(winner, "MLproject", (forest / "MLproject").read_text())  # without the added parameter
    with attendee.ticks("Your winner as a project"):
        attendee.client.set_tag(winner, "MLproject", 'command: "python train.py --by_capacity {by_capacity}"')
    with attendee.ticks("A run of the validate entry point"):
        run(entry_point="validate")
    with attendee.ticks("A failed run"), pytest.raises(mlflow.exceptions.ExecutionException):
        run(forest, test_fraction=0)
    with attendee.ticks("A run from a Git URL"):
        run(f"file://{published}#3_projects/lr")
    with attendee.ticks("A colleague's run, reproduced"):
        cell = {"cell_type": "code", "source": "print()", "outputs": [], "execution_count": 1}
        (attendee.root / "3_projects" / "reproduce.ipynb").write_text(json.dumps({"cells": [cell]}))
    with attendee.ticks("Versioned data"):
        (scratch / "germany.csv.dvc").write_text("outs: []")
        run(scratch / "lr")
    with attendee.ticks("Stages defined by hand"):
        (scratch / "germany.csv.dvc").unlink()
        run(scratch / "lr", fit_intercept="false")
    assert "Versioned data" in attendee.known


def test_chapter_4_is_ticked_step_by_step(attendee, model, monkeypatch):
    """Runs of a stage, promotions by the pipeline and by a person, a rollback and a commit complete their steps."""
    import mlflow
    from forecast.govern.gate import Registry
    from forecast.tracking import start_run

    def commit_lock(when: str) -> None:
        (attendee.root / "4_pipeline" / "dvc.lock").write_text(when)
        monkeypatch.setenv("GIT_COMMITTER_DATE", when)
        git(attendee.root, "add", "--all")
        git(attendee.root, "commit", "--quiet", "--message", "A lock")

    monkeypatch.chdir(attendee.root)
    with attendee.ticks():
        commit_lock("2020-05-31T00:00:00Z")
        with start_run("train_rf", parameters={"max_depth": 8}) as parent:
            logged = mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"])
        log_run("rf", params={"max_depth": 5}, parent=parent.info.run_id, chapter="4", **{"pipeline.stage": "train_rf"})
        registered = [mlflow.register_model(logged.model_uri, REGISTERED_MODEL).version for _ in range(2)]
        registry = Registry(attendee.client)
        registry.move(Move(0, "promoted", str(registered[0]), why="pipeline"))
    with (
        attendee.ticks("A stage run again with a changed parameter"),
        start_run("train_rf", parameters={"max_depth": 9}),
    ):
        pass
    with attendee.ticks("A model promoted by you"):
        move = Move(
            0, "forced", str(registered[1]), when="2020-06-01T00:00:00Z", why="to see", replaced=str(registered[0])
        )
        registry.move(move)
    with attendee.ticks("Your promotion rolled back"):
        registry.rollback()
    with attendee.ticks("A gate rule changed by you"):
        registry.move(Move(0, "promoted", str(registered[1]), when="2020-06-01T01:00:00Z", why="any gain will do"))
    with attendee.ticks():  # no second forced promotion yet
        registry.rollback()
    with attendee.ticks():
        registry.move(Move(0, "forced", str(registered[1]), when="2020-06-01T02:00:00Z", why="smaller errors"))
    with attendee.ticks("A bad quarter seen, its model rolled back"):
        registry.rollback()
    with attendee.ticks("The original parameters, run and committed"):
        commit_lock("2020-06-02T00:00:00Z")
    lost, trees = pytest.raises(ServiceError), {"n_estimators": 300}
    with attendee.ticks("A training run that lost its worker"), lost, start_run("train_rf", parameters=trees):
        raise ServiceError("The worker was lost.")


def test_dvc_commands_tick_their_steps(attendee):
    """Real calls of `dvc repro`, `dvc exp run` and `dvc push` in a pipeline of one stage complete their steps."""
    from forecast.tracking import store_id

    folder = attendee.root / "4_pipeline"
    (folder / "params.yaml").write_text("x: 1\n")
    (folder / "dvc.yaml").write_text("stages:\n  one:\n    cmd: echo ${x} > out\n    params: [x]\n    outs: [out]\n")
    who = {f"GIT_{role}_{name}": "t@localhost" for role in ("AUTHOR", "COMMITTER") for name in ("NAME", "EMAIL")}
    environment = clean_environment() | who | {"HOME": str(attendee.root), "DVC_NO_ANALYTICS": "1"}

    def dvc(*words):
        run_program(BIN / "dvc", *words, cwd=folder, env=environment)

    (attendee.root / ".dvc").mkdir()
    (attendee.root / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (attendee.root / ".dvc" / ".gitignore").write_text("/tmp\n/cache\n/config.local\n")
    remote = "[core]\n    remote = aside\n['remote \"aside\"']\n    url = {}\n"
    (folder / "data").mkdir()
    with attendee.ticks("The pipeline has run here"):
        dvc("repro", "--quiet")
        (folder / "data" / "tracking_store.json").write_text(json.dumps({"store_id": "another"}))
        assert not checkpoints.has_run_pipeline(state_of(attendee.settings))
        (folder / "data" / "tracking_store.json").write_text(json.dumps({"store_id": store_id()}))
    git(attendee.root, "add", "--all")
    git(attendee.root, "commit", "--quiet", "--message", "A pipeline")
    with attendee.ticks("An experiment with dvc exp run"):
        dvc("exp", "run", "--quiet", "--set-param", "x=2")
    with attendee.ticks():
        (attendee.root / ".dvc" / "config.local").write_text(remote.format(attendee.root / "aside"))
    with attendee.ticks("Data pushed to a remote"):
        dvc("push", "--quiet")
    with attendee.ticks():
        (attendee.root / ".dvc" / "config.local").write_text(remote.format("ssh://files.example.org/aside"))
    assert attendee.steps()["Data pushed to a remote"].done is None


def test_notebook_counts_once_it_ran_to_its_end_and_was_saved(tmp_path):
    """A notebook as committed, run in part, or with an error does not count; a complete run does."""
    import nbformat

    def saved(*counts, error=False) -> bool:
        cells = [nbformat.v4.new_code_cell("1 / 0", execution_count=count) for count in counts]
        if error:
            cells[-1].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
        nbformat.write(nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell("")]), tmp_path / "n.ipynb")
        return has_executed("n.ipynb", State(tmp_path, [], ServiceError("No server.")))

    assert not saved(None, None)
    assert not saved(1, None)
    assert not saved(1, 2, error=True)
    assert saved(1, 2)
    assert not has_executed("model_linreg.ipynb", State(ROOT / "1_starting_point", [], ServiceError("No server.")))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": [1]}', '{"cells": "x"}', "\x00", "[" * 100_000])
def test_damaged_notebook_counts_as_not_run(tmp_path, text):
    """A damaged file raises no error."""
    (tmp_path / "model.ipynb").write_text(text)
    assert not has_executed("model.ipynb", State(tmp_path, [], ServiceError("No server.")))


@pytest.mark.parametrize("listens", [True, False])
def test_server_that_does_not_answer_leaves_chapter_1(tmp_path, monkeypatch, listens):
    """With the server down or frozen, files are still checked; runs are unknown after the timeout of one request."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "1_starting_point").mkdir()
    (tmp_path / TABLE).write_text("utc_timestamp\n")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        items = examine(state_of(Settings(root=tmp_path, state=tmp_path / "state")))
    assert [each.title for each in items if each.done] == ["Weather and power in one table"]
    for each in items:
        if each.chapter in (2, 3) and not each.title.startswith(("Exercise", "A colleague's run")):
            assert each.done is None
            assert f"{uri} does not respond" in each.reason
    assert checkpoints.summary(each for each in items if each.chapter == 2) == "0 of 18 done, 8 unknown"


def test_check_shows_the_next_step_and_exits_by_the_chapter(attendee):
    """The overview exits 0; an incomplete chapter exits 1 and shows its own next step; lines wrap; --json works."""
    (attendee.root / "1_starting_point").mkdir()
    (attendee.root / TABLE).write_text("utc_timestamp\n")
    done = CliRunner().invoke(main, ["check"])
    assert done.exit_code == 0, done.output
    assert "✔ Weather and power in one table" in done.output
    assert "✔ done · ○ to do" in done.output
    assert "Next: A linear regression (1_starting_point/model_linreg.ipynb, chapter 1)" in done.output
    assert "Next: A linear regression" in (attendee.root / "START.md").read_text()
    done = CliRunner().invoke(main, ["check", "3"])
    assert "Next: A project run with one command (3_projects/README.md, 2. Run it, chapter 3)" in done.output
    done = CliRunner().invoke(main, ["check", "3", "--json"])
    assert done.exit_code == 1
    expected = [False for step in attendee.steps().values() if step.chapter == 3]
    assert [each["done"] for each in json.loads(done.stdout)] == expected != []
    assert "\n       predicting_wind_solar has" in CliRunner(env={"COLUMNS": "40"}).invoke(main, ["check", "3"]).output


def test_next_step_of_an_attendee_who_skipped_chapters(tmp_path):
    """The next step is in the chapter where the attendee started; skipped steps come last."""
    settings = Settings(root=tmp_path, state=tmp_path / "state")
    assert checkpoints.first_chapter(settings) == 1
    checkpoints.save_first_chapter(settings, 3)
    assert checkpoints.first_chapter(settings) == 3
    assert next_step(STEPS).chapter == 1
    assert next_step(STEPS, 3).chapter == 3
    assert next_step([replace(each, done=each.chapter >= 3) for each in STEPS], 3) == STEPS[0]


DONE = {"run here": "Weather", "A random": "A neural network", "validate": "A failed run", "4.3": "Weather"} | {
    "A neural|1d": "The weekly report", "registered|2": "Your version", "reproduced|3": "A project run",
}  # fmt: skip


@pytest.mark.parametrize(("done", "following"), DONE.items())
def test_next_step_follows_what_is_done(done, following):
    """The next step follows the last done step, then come skipped steps. Exercises and `make run` do not count."""
    steps = [replace(each, done=bool(re.search(done, each.title))) for each in STEPS]
    assert next_step(steps).title.startswith(following)


# -- the start page ---------------------------------------------------------------------------------------------------
STEPS = examine(State(ROOT / "nowhere", [], ServiceError("No server.", next_step="workshop up")))


def all_in(done: bool | None) -> list[Checkpoint]:
    """Return all steps, with the same value of ``done``."""
    return [replace(each, done=done) for each in STEPS]


def test_links_lead_to_pages_and_headings_that_exist():
    """Each link of the start page resolves; the heading of each step exists in its page."""
    targets = re.findall(r"\]\(([^)]+)\)", start_page.render(all_in(False), STEPS[0]))
    assert [target for target in targets if not (ROOT / target.partition("#")[0]).exists()] == []
    assert len(targets) == len(CHAPTERS) + len(STEPS) + 3  # the terms; the next step and its chapter once more
    for step in STEPS:
        page, mark, heading = step.where.partition("#")
        assert not mark or f"# {heading}\n" in (ROOT / page).read_text(), step.title
        assert step.link == f"{page}{mark}{heading.replace(' ', '-')}"


def test_page_that_cannot_be_written_is_an_error(tmp_path):
    """A folder at the page's path is reported, and no temporary file is left."""
    settings = Settings(root=tmp_path, state=tmp_path / "state")
    (tmp_path / "START.md").mkdir()
    with pytest.raises(PipelineError, match="could not be written"):
        start_page.write(settings, all_in(False))
    assert [path.name for path in tmp_path.iterdir()] == ["START.md"]
