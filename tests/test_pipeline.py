"""The pipeline as a user runs it: `dvc repro` in a clone, on real servers and a cluster."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
import yaml
from forecast.govern import gate
from forecast.govern.gate import Registry
from forecast.learn import evaluation
from forecast.table import processed, schema
from workplace import BIN, Servers, by_night, new_workplace, wait_for

from workshop.exports import exports_of

STAGES = [
    "tracking_store", "fetch", "prepare", "split", "train_linreg", "train_rf", "train_keras", "train_gradient_boosting",
    "compare", "promote", "report",
]  # fmt: skip
TRAINING = {stage for stage in STAGES if stage.startswith("train_")}


def dvc(place: Servers, *words: str, **options):
    """Run DVC in the pipeline's folder."""
    return place.run(BIN / "dvc", *words, cwd=place.pipeline, **options)


def ran(done) -> list[str]:
    """Return the stages that DVC reports as run."""
    return re.findall(r"^Running stage '([^']+)'", done.stdout, flags=re.MULTILINE)


def change(place: Servers, stage: str, key: str, value: object) -> None:
    """Change one parameter in params.yaml."""
    file = place.pipeline / "params.yaml"
    content = yaml.safe_load(file.read_text())
    content[stage][key] = value
    file.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def restored(servers, tmp_path_factory):
    """The clone; the files of its pipeline are restored at the end."""
    kept = shutil.copytree(servers.pipeline, tmp_path_factory.mktemp("kept"), dirs_exist_ok=True)
    yield servers
    for copy in filter(Path.is_file, kept.rglob("*")):
        file = servers.pipeline / copy.relative_to(kept)
        if not (file.exists() and filecmp.cmp(copy, file)):
            file.unlink(missing_ok=True)
            file.parent.mkdir(parents=True, exist_ok=True)  # DVC deletes outputs before a stage runs
            shutil.copy2(copy, file)
    shutil.rmtree(kept)


# -- what `make run` leaves ----------------------------------------------------------------------------------------
def test_run_reports_each_server_and_ends_with_a_table(servers):
    """The output has addresses, the model in production with its R2, and the next step."""
    settings = servers.settings
    urls = (settings.dashboard_url, settings.tracking_uri, settings.dask_dashboard_url)
    for address in (*urls, f"ftp://127.0.0.1:{settings.ftp_port}"):
        assert address in servers.output
    assert re.search(r"^Production  wind_solar 1, r2 0\.9\d+ \(test weeks, 2016-.{,25}$", servers.output, re.M)
    assert "Next:" in servers.output


def test_second_run_changes_nothing(servers):
    """Without changes the table is the same, no stage runs, and the server processes stay."""
    before = servers.run(BIN / "workshop", "status", "--json").stdout
    again = servers.run("make", "-o", ".venv/installed", f"BIN={BIN}", "run")
    # Another test may have moved the alias and restored it.
    tables = [re.sub("tion: .* from commit", "", text.split("Dashboard")[1]) for text in (again.stdout, servers.output)]
    assert tables[0] == tables[1]
    assert all(f"{stage}: unchanged" in again.stderr for stage in STAGES[1:])
    assert servers.run(BIN / "workshop", "status", "--json").stdout == before


def test_notebooks_run_on_the_cluster_of_the_clone(servers, tmp_path):
    """No stage of `make run` starts a local cluster, and kernels are forked, not started cold."""
    logs = [file.read_text() for file in (servers.root / ".dvc/tmp/dvc-parallel").glob("*.log")]
    notebooks = [log for log in logs if "--engine dask" in log]
    assert len(notebooks) == len(list((servers.pipeline / "executed").glob("*.ipynb")))
    assert not [log for log in notebooks if "local Dask cluster" in log]
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "empty.ipynb")  # a warm-up after idling
    words = ("--engine", "dask", "--kernel", "python3")
    servers.run(BIN / "papermill", tmp_path / "empty.ipynb", tmp_path / "executed.ipynb", *words)
    family = servers.process_of("dask-workers").children(recursive=True)
    warm = [process for process in family if "serve_forks" in " ".join(process.cmdline())]
    assert len(warm) == 1  # shared by all workers


def test_run_changes_no_file_but_the_lock(servers):
    """Git ignores all outputs; `dvc.lock` changes, since it has the id of this machine's store."""
    changed = servers.run("git", "status", "--porcelain").stdout.splitlines()
    assert set(changed) <= {" M 4_pipeline/dvc.lock", " M 4_pipeline/results/metrics.json"}


def test_sample_is_reproducible(servers):
    """The hashes of the data in the committed lock are those of the data on this machine."""
    committed = yaml.safe_load(servers.run("git", "show", "HEAD:4_pipeline/dvc.lock").stdout)["stages"]
    local = yaml.safe_load((servers.pipeline / "dvc.lock").read_text())["stages"]
    assert committed["fetch"]["outs"] == local["fetch"]["outs"]


def test_runs_carry_their_lineage(in_workplace):
    """Each training run has commit, DVC's hash of its data, stage, parameters, executed notebook and model."""
    import mlflow

    client = mlflow.MlflowClient(in_workplace.tracking_uri)
    commit = in_workplace.run("git", "rev-parse", "HEAD").stdout.strip()
    lock = yaml.safe_load((in_workplace.pipeline / "dvc.lock").read_text())["stages"]
    hashes = {out["path"]: out["md5"] for out in lock["split"]["outs"] if out["path"].startswith("data/")}
    del hashes["data/test.parquet"]  # no training stage reads it
    for stage in TRAINING:
        summary = json.loads((in_workplace.pipeline / "results" / "trained" / f"{stage}.json").read_text())
        run = client.get_run(summary["run_id"])
        tags = run.data.tags
        assert run.info.status == "FINISHED"
        assert tags["pipeline.stage"] == stage
        assert tags["mlflow.source.git.commit"] == commit
        assert tags["pipeline.git.dirty"] == "false"
        data = {
            name.removeprefix("mlflow_gate.data."): tags[name] for name in tags if name.startswith("mlflow_gate.data")
        }
        assert data == hashes
        section = yaml.safe_load((in_workplace.pipeline / "params.yaml").read_text())[stage]
        section = {name: section[name] for name in section["limits"]}
        # and the parameters found by a search
        assert run.data.params.items() >= {name: str(value) for name, value in section.items()}.items()
        assert run.data.metrics["r2"] == pytest.approx(summary["r2"])
        executed = json.loads(mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/notebook/{stage}.ipynb"))
        assert [each["run_id"] for each in executed["metadata"]["papermill_dask"]["runs"]] == [run.info.run_id]
        assert executed["metadata"]["papermill"]["exception"] is None


def test_lineage_is_from_the_data_to_the_alias(in_workplace):
    """Every link in the lineage of the model in production is known."""
    registry = Registry()
    links = registry.lineage()
    assert [(link.kind, link.known) for link in links] == [(kind, True) for kind in gate.KINDS]
    facts = {link.kind: link.facts for link in links}
    assert {f"md5 of data/{name}" for name in ("train.parquet", "validation.parquet")} <= facts["data"].keys()
    assert facts["data"]["source"] == "modelled sample"
    assert ", 2013-01-01T00:00:00Z to 2016-" in facts["data"]["learned"]
    assert facts["stage"]["coverage"] == "0.8"
    assert facts["commit"]["uncommitted changes"] == "no"
    assert registry.lineage(f"wind_solar/{registry.production().version}") == links


def test_validation_is_a_notebook_and_a_run(in_workplace):
    """The executed notebook shows the rows left out and the checks; the counts are metrics of the run."""
    import mlflow

    client = mlflow.MlflowClient(in_workplace.tracking_uri)
    findings = json.loads((in_workplace.pipeline / "results" / "findings.json").read_text())
    executed = nbformat.read(in_workplace.pipeline / "executed" / "prepare.ipynb", as_version=4)
    (run_id,) = [run["run_id"] for run in executed["metadata"]["papermill_dask"]["runs"]]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["pipeline.stage"] == "prepare"
    assert run.data.params == {"first_year": "2013", "last_year": "2016"}
    assert run.data.metrics["steps_left_out"] == findings["steps_left_out"] == 48
    assert run.data.metrics["warnings"] == sum(check["verdict"] == "warning" for check in findings["checks"])
    assert mlflow.artifacts.load_dict(f"runs:/{run_id}/findings.json") == findings
    outputs = str([cell.get("outputs") for cell in executed.cells])
    for words in ("35,016 of 35,064 hours kept", "duplicate hours", "the first row of each hour was kept"):
        assert words in outputs


# -- what runs again, and what does not ----------------------------------------------------------------------------
def test_deleted_runs_make_their_stages_stale(restored, in_workplace):
    """Without the experiment and its runs, DVC would repeat prepare and training, but not fetch."""
    import mlflow

    client = mlflow.MlflowClient(in_workplace.tracking_uri)
    experiment = client.get_experiment_by_name("predicting_wind_solar")
    client.rename_experiment(experiment.experiment_id, f"wiped_{time.time():.0f}")
    try:
        dvc(restored, "repro", "--single-item", "tracking_store")
        status = json.loads(dvc(restored, "status", "--json").stdout)
        stale = {stage for stage, changes in status.items() if "data/tracking_store.json" in str(changes)}
        assert stale - {"tracking_store"} == {"prepare"} | TRAINING
        assert "fetch" not in status
    finally:
        new = client.get_experiment_by_name("predicting_wind_solar")
        client.rename_experiment(new.experiment_id, f"empty_{time.time():.0f}")
        client.rename_experiment(experiment.experiment_id, "predicting_wind_solar")


# -- bad input and faults ------------------------------------------------------------------------------------------
def test_repro_with_an_invalid_parameter_stops_at_once(restored):
    """The error has key, value and what is allowed before a notebook runs; the notebook has the same error."""
    change(restored, "split", "test_fraction", 2)
    done = dvc(restored, "repro", exit_code=None)
    assert done.returncode != 0
    assert ran(done) == ["tracking_store"]
    assert all(word in done.stderr for word in ("split.test_fraction", "2", "from 0.05, to 0.5")), done.stderr
    assert "Traceback" not in done.stderr
    done = dvc(restored, "repro", "--single-item", "split", exit_code=None)
    assert "ParameterError: params.yaml: split.test_fraction is invalid." in done.stderr


def test_repro_without_servers_stops_at_tracking_store(tmp_path):
    """The error comes before any training, with the address and the next step."""
    lonely = Servers(*new_workplace(tmp_path / "lonely"))
    lonely.environment |= exports_of(lonely.settings)
    done = dvc(lonely, "repro", exit_code=None)
    assert done.returncode != 0
    assert ran(done) == ["tracking_store"]
    assert lonely.settings.tracking_uri in done.stderr
    assert "mlflow server" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("temporary", [[], *by_night(["--temp"])])
def test_experiment_does_not_change_production(restored, in_workplace, temporary):
    """In `dvc exp run`, in the workspace or a copy, the gate accepts the better candidate, but the alias stays."""
    registry, started = Registry(), restored.run("git", "rev-parse", "HEAD").stdout.strip()
    line = ("results/trained/train_linreg.json", "--force", "--why", "a worse one, for a test")
    restored.run(BIN / "mlflow-gate", "promote", *line, cwd=restored.pipeline)
    before = registry.production()
    try:
        words = ("--name", "lower", "--set-param", "promote.max_gain=1", *temporary, "promote")
        dvc(restored, "exp", "run", *words)
        assert registry.production() == before
        if not temporary:
            decision = json.loads((restored.pipeline / "results" / "decision.json").read_text())
            assert (decision["promoted"], decision["experiment"]) == (True, "lower")
            assert "the alias does not move, because this is the DVC experiment lower" in decision["words"]
    finally:
        restored.run(BIN / "mlflow-gate", "rollback", "--why", "the test is over", cwd=restored.pipeline)
        dvc(restored, "exp", "remove", "lower")
        restored.run("git", "reset", "--quiet", started)


@pytest.mark.soak
def test_pipeline_runs_without_dvc(restored):
    """The commands printed by `dvc repro --force --dry`, run without any outputs, give the same scores."""
    folder = restored.pipeline
    metrics = (folder / "results" / "metrics.json").read_text()
    commands = re.findall(r"^> (.+)$", dvc(restored, "repro", "--force", "--dry").stdout, re.MULTILINE)
    for name in ("data", "executed", "results"):
        for path in (folder / name).iterdir():
            if not path.name.startswith("."):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for command in commands:
        restored.run("bash", "-c", command, cwd=folder)
    assert (folder / "results" / "metrics.json").read_text() == metrics
    assert (folder / "results" / "report.html").exists()


@pytest.mark.walk
def test_extension_of_vs_code_sees_the_pipeline(restored):
    """The calls of the extension iterative.dvc return an experiment, its metrics, parameters, plots and data."""

    def query(*arguments: str):
        return json.loads(dvc(restored, *arguments, "--json").stdout)

    started = restored.run("git", "rev-parse", "HEAD").stdout.strip()
    assert dvc(restored, "root").stdout.strip() == ".."
    try:
        dvc(restored, "exp", "run", "--name", "origin", "-S", "train_linreg.fit_intercept=false", "compare")
        workspace, commit, *_ = query("exp", "show", "-n", "3")
        assert [each["name"] for each in commit["experiments"]] == ["origin"]
        scores = workspace["data"]["metrics"]["4_pipeline/results/metrics.json"]["data"]
        assert scores["train_linreg"]["r2"] < scores["train_keras"]["r2"]
        assert query("params", "diff")["params.yaml"]["train_linreg.fit_intercept"]["new"] is False
        assert "train_linreg.r2" in query("metrics", "diff")["results/metrics.json"]
        plots = query("plots", "diff", "HEAD", "origin", "-o", ".dvc/tmp/plots", "--split")["data"]
        (plot,) = plots["results/scores.csv"]
        assert (plot["type"], plot["revisions"][-1]) == ("vega", "origin")
        status = query("data", "status", "--granular", "--unchanged")
        assert "4_pipeline/results/trained/train_linreg.json" in status["committed"]["modified"]
    finally:
        dvc(restored, "exp", "remove", "origin")
        restored.run("git", "reset", "--quiet", started)
        restored.run("git", "checkout", "--quiet", "--", "4_pipeline/params.yaml")


@pytest.mark.parametrize(
    "stage", ["train_linreg", pytest.param("train_gradient_boosting", marks=pytest.mark.walk), *by_night("train_keras")]
)
def test_training_never_sees_the_held_out_period(restored, in_workplace, tmp_path, stage):
    """With shuffled validation weeks the model is identical: they are not used to fit, tune, stop or scale it.

    The test weeks are deleted. The second training also shows that the seed reproduces the model exactly.
    """
    from forecast.learn import storage

    folder = restored.pipeline
    before = storage.load(json.loads((folder / "results" / "trained" / f"{stage}.json").read_text())["model_uri"])
    validation = processed.read(folder / "data" / "validation.parquet")
    wrong = validation.copy()
    for column in schema.RANGES:
        wrong[column] = validation[column].sample(frac=1, random_state=1).to_numpy() * 0.5
    for name in ("validation", "test"):
        (folder / "data" / f"{name}.parquet").unlink()  # may be a link into DVC's cache
    wrong.to_parquet(folder / "data" / "validation.parquet", index=False)
    parameters = yaml.safe_load((folder / "params.yaml").read_text())[stage]
    words = [word for name in parameters["limits"] for word in ("-p", name, str(parameters[name]))]
    command = [f"{stage}.ipynb", tmp_path / "executed.ipynb", "--engine", "dask", *words]
    restored.run(BIN / "papermill", *command, cwd=folder)
    summary = json.loads((folder / "results" / "trained" / f"{stage}.json").read_text())
    assert summary["r2"] < 0.5  # it was scored on the shuffled hours
    after = storage.load(summary["model_uri"])
    assert after.predict(validation).equals(before.predict(validation))


def test_model_in_production_is_refitted_on_all_hours(in_workplace):
    """The version is a refit of the candidate on the whole table; the scores are those of the evaluated model."""
    candidate = json.loads((in_workplace.pipeline / "results" / "candidate.json").read_text())
    decision = json.loads((in_workplace.pipeline / "results" / "decision.json").read_text())
    now = Registry().production()
    assert now.evaluated.run_id == candidate["run_id"] == decision["run_id"] != now.run_id
    assert gate.training_end(now) == "2016-12-31T23:00:00Z" > gate.training_end(now.evaluated)
    test = processed.read(in_workplace.pipeline / "data" / "test.parquet")
    evaluated, refit = (Registry().load(uri) for uri in (now.evaluated.model_uri, now.model_uri))
    r2 = [evaluation.score(test, model.predict(test)).r2 for model in (evaluated, refit)]
    assert r2[0] == pytest.approx(decision["candidate"]["metrics"]["r2"]) == pytest.approx(now.move.value, abs=1e-6)
    assert r2[1] > r2[0]  # these hours are in its training data


def test_gradient_boosting_is_the_candidate_with_explanations(in_workplace):
    """Its run has the search, the explanations, and the coverage of the band."""
    import mlflow

    candidate = json.loads((in_workplace.pipeline / "results" / "candidate.json").read_text())
    assert candidate["model"] == "train_gradient_boosting"
    client = mlflow.MlflowClient(in_workplace.tracking_uri)
    run = client.get_run(candidate["run_id"])
    assert run.data.metrics["r2"] > 0.9
    assert 0.75 < run.data.metrics["coverage_solar"] < 0.85
    assert 0.75 < run.data.metrics["coverage_wind"] < 0.85
    assert len(mlflow.artifacts.load_text(f"runs:/{candidate['run_id']}/search.csv").splitlines()) == 7
    for name in ("importance", "responses"):
        figure = mlflow.artifacts.load_dict(f"runs:/{candidate['run_id']}/explanations/{name}.json")
        assert {trace["name"] for trace in figure["data"]} == {"Solar", "Wind"}
        assert "<script" in mlflow.artifacts.load_text(f"runs:/{candidate['run_id']}/explanations/{name}.html")


@pytest.mark.parametrize(
    ("stage", "parameter", "value"),
    [
        ("train_rf", "n_estimators", 300),
        pytest.param("train_gradient_boosting", "candidates", 50, marks=pytest.mark.night),
    ],
)
def test_training_that_loses_its_worker_is_a_failed_run(restored, in_workplace, stage, parameter, value):
    """The run is open during training (step 8 of chapter 4). Last test, since warm kernels end with the workers."""
    import mlflow

    client = mlflow.MlflowClient(in_workplace.tracking_uri)
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    change(restored, stage, parameter, value)
    workers = restored.process_of("dask-workers")
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(dvc, restored, "repro", "--single-item", stage, exit_code=None)
        [run] = wait_for(lambda: client.search_runs(everywhere, f"params.{parameter} = '{value}'"))
        workers.kill()
    assert "The Dask worker that ran the notebook was lost" in done.result().stderr
    assert client.get_run(run.info.run_id).info.status == "FAILED"
    restored.run(BIN / "workshop", "up")
