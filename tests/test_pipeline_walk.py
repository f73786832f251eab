"""Chapter 4, followed in a clone: each command of its steps has the results of the text."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import requests
import yaml
from forecast.govern.gate import Registry
from forecast.terms.parameters import trainings
from walk import Walk, blocks
from workplace import BIN, PERSON, ROOT, environment_of, git, wait_for

from workshop.teaching.checkpoints import EXERCISE, examine, state_of

README = ROOT / "4_pipeline" / "README.md"
STEPS = blocks(README)
# The biases of wind power in the text, after each block of the step on monitoring.
STATED = [
    int(number) * (1 if word == "high" else -1)
    for number, word in re.findall(r"(\d+) % too\s(high|low)", README.read_text())
]
EXIT_CODES = {"mlflow-gate promote --dry-run": 3, "git pull --no-rebase": 1}  # refused; a conflict
WATCH = 7  # the number of the step on monitoring

pytestmark = pytest.mark.walk


def wind_bias(place):
    """Return the dashboard's bias of wind power in the latest weeks, in whole percent."""
    text = requests.get(f"{place.settings.dashboard_url}/metrics", timeout=10).text
    return round(float(re.search(r'^model_bias_percent{target="wind"} (.+)$', text, flags=re.MULTILINE)[1]))


def health(place):
    """Return the JSON of the dashboard's /health."""
    return requests.get(f"{place.settings.dashboard_url}/health", timeout=10).json()


@pytest.fixture(scope="module")
def walked(servers):
    """The output of each step as one string; the clone is restored at the end."""
    start, tracked = git(servers.root, "rev-parse", "HEAD").strip(), git(servers.root, "ls-files", ".dvc")
    # Restore the state after `make run`: the candidate is in production, and all stages are up to date.
    servers.run(BIN / "dvc", "repro", cwd=servers.pipeline)
    candidate = json.loads((servers.pipeline / "results" / "candidate.json").read_text())
    with environment_of(servers.environment):
        serving = Registry().production()
    if serving.run_id != candidate["run_id"]:
        servers.run(BIN / "mlflow-gate", "promote", "--force", "--why", "as after the first run", cwd=servers.pipeline)
        servers.run(BIN / "dvc", "repro", cwd=servers.pipeline)  # the gate runs again after a move of the alias
    code = servers.pipeline / "forecast" / "show" / "report.py"
    walk, outputs = Walk(servers.pipeline, servers.environment | PERSON, code), {"biases": []}
    stated = iter(STATED)
    try:
        for block in STEPS:
            output = walk.follow(block, exit_code=EXIT_CODES.get(block.text.strip(), 0))
            outputs[block.step] = outputs.get(block.step, "") + output
            if block.step == WATCH and block.language == "bash":
                bias = next(stated)
                outputs["biases"].append(wait_for(lambda bias=bias: wind_bias(servers) == bias, 60) and bias)
            elif "--force" in block.text:
                outputs["forced"] = _served(servers, "to see it live")
        outputs["tracked"] = git(servers.root, "ls-files", ".dvc") == tracked and not git(servers.root, "diff", ".dvc")
        outputs["commit"] = git(servers.root, "rev-parse", "HEAD").strip()
        with environment_of(servers.environment):
            outputs["open"] = [
                step.title for step in examine(state_of(servers.settings)) if step.chapter == 4 and not step.done
            ]
        yield outputs
    finally:
        git(servers.root, "reset", "--quiet", start)  # keep the lock, which matches the outputs
        git(servers.root, "checkout", "--", "4_pipeline/params.yaml", "4_pipeline/split.ipynb", str(code))
        for ref in git(servers.root, "for-each-ref", "--format=%(refname)", "refs/exps").split():
            git(servers.root, "update-ref", "-d", ref)
        (servers.root / ".dvc" / "config.local").unlink(missing_ok=True)
        (servers.pipeline / "own" / "germany.csv").unlink(missing_ok=True)
        for folder in ("scratch", "remote"):
            shutil.rmtree(servers.pipeline / folder, ignore_errors=True)
        servers.run(BIN / "dvc", "repro", cwd=servers.pipeline)


def _served(place, why):
    """Wait until the dashboard serves the version in production, and return its /health."""
    version = json.loads(place.run(BIN / "mlflow-gate", "history", "--json", cwd=place.pipeline).stdout)[-1]
    assert version["why"] == why
    return wait_for(lambda: (now := health(place)).get("version") == version["version"] and now, 60)


def test_data_is_changed_and_restored(walked):
    """DVC reports the change; `git checkout` and `dvc checkout` restore all four years."""
    assert re.search(r"modified: +germany\.csv", walked[1])
    assert "35017 germany.csv" in walked[1]


def test_stages_by_hand_run_what_changed(walked):
    """Both stages run first, then none, then only the training after a change of its parameter."""
    assert re.findall(r"Running stage '(\w+)'", walked[2]) == ["recent", "train", "train"]
    assert walked[2].count("Stage 'recent' didn't change, skipping") == 2
    first, *_, last = re.findall(r"R2 (0\.\d{3}) on the last 3504 hours", walked[2])
    assert f"R2 fell from {float(first):.2f} to {float(last):.2f}." in README.read_text()


def test_training_submitted_by_hand_runs_on_the_cluster(walked):
    """The future is pending at first; the predictions of its forest are those of the text."""
    assert "<Future: pending, key: fit-" in walked[3]
    slow, fast = map(float, re.search(r"^\[ *([\d.]+) +([\d.]+)\]$", walked[3], flags=re.MULTILINE).groups())
    assert f"predicts {slow:.0f} GW of wind power at 4 m/s, and {fast:.0f} GW at 8 m/s." in README.read_text()


def test_change_of_code_runs_the_stages_that_import_it(walked):
    """Only the report runs, when the line changes and when it is restored."""
    ran = re.findall(r"Running stage '(\w+)'", walked[3])
    assert ran == ["tracking_store", "tracking_store", "report", "tracking_store", "report"]


def test_change_of_a_parameter_runs_its_dependents(walked):
    """Search, comparison, gate and report run; `dvc params diff` and `dvc metrics diff` show both states."""
    assert "train_gradient_boosting:" in walked[4].split("Running stage")[0]
    # Another test may have run the same search: then it is in the run cache.
    ran = re.findall(r"(?:Running stage|Stage) '(\w+)'(?: is cached|:)", walked[4])
    assert ran == ["tracking_store", "train_gradient_boosting", "compare", "promote", "report"]
    assert re.search(r"train_gradient_boosting\.candidates +6 +2", walked[4])
    assert re.search(r"train_gradient_boosting\.r2 +0\.9\d+ +0\.9\d+ +0\.001\d*", walked[4])


def test_plot_shows_both_states(walked, servers):
    """The plot has every model's score at the last commit and in the workspace, on an axis from 0 to 1."""
    plot = json.loads((servers.pipeline / "results" / "scores.vl.json").read_text())
    bars = {(row["model"], row["rev"]) for row in plot["data"]["values"]}
    assert bars == {(model, rev) for model in trainings(servers.pipeline) for rev in ("HEAD", "workspace")}
    assert plot["encoding"]["x"]["scale"]["domain"] == [0, 1]
    assert "rev" in [layer["encoding"].get("text", {}).get("field") for layer in plot["layer"]]  # without colour too
    graph = (servers.pipeline / "results" / "dag.md").read_text()
    assert graph.startswith("```mermaid")
    assert "train_keras" in graph


def test_gate_refuses_and_a_user_forces(walked):
    """The paired test refuses; the dashboard follows the forced version; then a rollback, and a lenient rule."""
    assert "refused: R2 gained over the model in production: 0.00" in walked[5]
    assert "forced; the gate's decision" in walked[5]
    assert walked["forced"]
    assert "is in production again: rolled back from version" in walked[5]
    history = walked[5].split("what  ")[-1]
    moves = [
        "forced .* to see it live",
        "rolled back .* seen enough",
        "promoted .* any gain will do",
        "rolled back .* chance",
    ]
    assert re.search(r"\n.* ".join(moves), history)


def test_every_step_is_ticked_that_the_blocks_do(walked):
    """Only the exercises are open, and the worker that a person kills in the second terminal."""
    steps = [title for title in walked["open"] if not title.startswith(EXERCISE)]
    assert steps == ["A training run that lost its worker"]


def test_lineage_links_to_the_notebook(walked, in_workplace):
    """The printed URL is that of the executed notebook, and the lineage of a version can be requested."""
    import mlflow

    run_id, path = re.search(r"runs/(\w{32})/artifacts/(notebook/train_gradient_boosting)\.html", walked[6]).groups()
    notebook = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{path}.ipynb"))
    assert any(cell["cell_type"] == "code" and cell["outputs"] for cell in notebook["cells"])
    assert len(re.findall(r"^model +wind_solar version \d+$", walked[6], flags=re.MULTILINE)) == 2


def test_state_follows_a_bad_quarter_and_a_rollback(walked):
    """The dashboard shows the biases of the text: faulty data, another model, right data, the model before."""
    assert len(STATED) == 4
    assert walked["biases"] == STATED
    assert "forced; the gate's decision" in walked[WATCH]
    assert "is in production again: rolled back from version" in walked[WATCH]


def test_remote_restores_deleted_data(walked, servers):
    """After push, deletion and pull only the stage that always runs is left, and no tracked setting changed."""
    assert re.search(r"\d+ files pushed", walked[9])
    assert re.search(r"A +data/germany\.parquet", walked[9])
    assert walked[9].split("Initialized empty Git repository")[0].strip().endswith("tracking_store:\n\talways changed")
    assert walked["tracked"]


def test_conflict_of_two_people_ends_with_one_run_of_both_changes(walked):
    """Only `dvc.lock` conflicts; then the training runs with both changes: three years, and no intercept."""
    assert re.findall(r"^CONFLICT .* in (\S+)$", walked[9], flags=re.MULTILINE) == ["dvc.lock"]
    assert "Missing cache files" not in walked[9]
    after = walked[9].split("CONFLICT")[1]
    assert re.findall(r"Running stage '(\w+)'", after) == ["train"]
    assert re.search(r"R2 0\.\d{3} on the last 5253 hours", after)


def test_experiment_has_a_name_and_a_run(walked, in_workplace):
    """It is listed after the files were restored; its run has the commit, the parameter and the dirty flag."""
    import mlflow

    assert re.search(r"train_linreg\.r2 +0\.75\d+ +0\.7[12]\d+ +-0\.03", walked[10])
    assert "[no-intercept]" in walked[10].split("train_linreg.r2 ")[-1]
    assert "Running stage 'promote'" not in walked[10]
    client = mlflow.MlflowClient(in_workplace.tracking_uri)
    experiment = client.get_experiment_by_name("predicting_wind_solar").experiment_id
    query = "tags.`pipeline.stage` = 'train_linreg' and params.fit_intercept = 'False'"
    run = client.search_runs([experiment], query, order_by=["start_time DESC"], max_results=1)[0]
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.source.git.commit"] == walked["commit"]
    assert run.data.tags["pipeline.git.dirty"] == "true"
    assert yaml.safe_load((in_workplace.pipeline / "params.yaml").read_text())["train_linreg"]["fit_intercept"] is True
