"""The example runs without servers, with an MLflow server and on the workshop's servers; its README's commands work."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import requests
from places import tracking_server
from workplace import (
    BIN,
    PERSON,
    ROOT,
    answer_of,
    clean_environment,
    free_port,
    git,
    new_workplace,
    run_program,
    running,
)

EXAMPLE = ROOT / "examples" / "any_table"
README = (EXAMPLE / "README.md").read_text()
[FOURTH_MODEL] = re.findall("^  neighbours: .*\n", README, re.MULTILINE)
SERVE, DOWNLOAD = (re.search(f"^{words}.*", README, re.MULTILINE)[0] for words in ("mlflow models", "mlflow artifacts"))


class Project:
    """A copy of the example in a repository of its own."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder, self.environment = folder, clean_environment() | PERSON | variables
        files = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", str(EXAMPLE)).split()
        for file in (ROOT / name for name in files):
            (copy := folder / file.relative_to(EXAMPLE)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        self.types("git init --quiet && git add --all && git commit --quiet --message Ours")

    def types(self, line: str) -> str:
        """Run a command line; return its output."""
        done = run_program("bash", "-ec", line, cwd=self.folder, env=self.environment, timeout=900)
        return done.stdout + done.stderr

    def repro(self, **changes: str) -> tuple[list[str], str]:
        """Replace text in params.yaml and run the pipeline; return the stages that ran, and the decision."""
        file = self.folder / "params.yaml"
        for old, new in changes.items():
            file.write_text(re.sub(f"^ *{old}:.*\n", new, file.read_text(), count=1, flags=re.MULTILINE))
        stages = re.findall("^  (.*): running$", self.types("dvc-parallel repro"), re.MULTILINE)
        return stages, json.loads((self.folder / "results" / "decision.json").read_text())["words"]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """The example after `dvc repro` with nothing started."""
    project = Project(tmp_path_factory.mktemp("project"))
    output = project.types("dvc repro")
    stages = ["prepare", "train@linear", "train@forest", "train@boosting", "promote", "report"]
    assert re.findall("^Running stage '(.*)'", output, re.MULTILINE) == stages
    assert "promoted: all rules passed, and nothing was in production yet" in output
    return project


def test_report_and_lineage_name_model_and_data(project):
    """The page has the version, the rules and the figures, without code; the lineage has the rows and the commit."""
    page = (project.folder / "results" / "report.html").read_text()
    assert all(words in page for words in ("tumours version 1", "recall at the threshold", "ten rows"))
    assert page.count("jp-RenderedImage") >= 2
    assert not any(words in page for words in ("import tumours", "In this notebook"))
    commit, lineage = git(project.folder, "rev-parse", "HEAD").strip(), project.types("mlflow-gate lineage")
    assert all(words in lineage for words in ("learned: 425 rows", "md5 of data/train.parquet", commit))


def test_owner_changes_models_and_rules(project):
    """Only the fourth or the changed model is trained; a refused model may be forced, served, and rolled back."""
    assert project.repro(models=f"models:\n{FOURTH_MODEL}")[0] == ["train@neighbours", "promote", "report"]
    assert project.repro(neighbours="", linear="")[0] == ["promote", "report"]
    assert (
        "refused: average_precision gained over the model in production"
        in project.repro(near_tie="  near_tie: 0.1\n")[1]
    )
    answers = {}
    assert "forced" in project.types("mlflow-gate promote --force --why 'a trial'")
    for version, then in {"2": "mlflow-gate rollback --why 'after the trial'", "1": "mlflow-gate history"}.items():
        url, words = f"http://127.0.0.1:{(port := free_port())}", SERVE.split()
        command = [BIN / words[0], *words[1:-1], port]
        with running(command, project.environment, project.folder, lambda _, url=url: answer_of(f"{url}/ping")):
            project.types(DOWNLOAD)
            rows = project.folder.joinpath("results/model/serving_input_example.json").read_text()
            answer = requests.post(f"{url}/invocations", rows, headers={"Content-Type": "application/json"})
        answers[version] = answer.json()["predictions"]
        assert f"tumours version {version} is in production" in project.types("mlflow-gate status")
        history = project.types(then)
    assert {*answers["1"], *answers["2"]} == {0, 1}
    assert re.findall("promoted|forced|rolled back", history) == ["promoted", "forced", "rolled back"]


def test_server_has_the_runs_of_parallel_stages(tmp_path):
    """`dvc-parallel repro` records in an MLflow server, and leaves `dvc repro` nothing to do."""
    (tmp_path / "server").mkdir()
    with tracking_server(tmp_path / "server") as uri:
        project = Project(tmp_path / "project", MLFLOW_TRACKING_URI=uri)
        assert len(project.repro()[0]) == 6
        assert "Data and pipelines are up to date" in project.types("dvc repro")
        assert "tumours version 1 is in production" in project.types("mlflow-gate status")
    assert not (project.folder / "mlflow.db").exists()


def test_workshop_servers_run_the_example(tmp_path):
    """The exported addresses suffice: runs and models are on the workshop's servers, notebooks on its workers."""
    root, environment = new_workplace(tmp_path / "clone")
    project = Project(tmp_path / "project", **environment)
    run_program(BIN / "workshop", "up", cwd=root, env=environment, timeout=900)
    try:
        exports = run_program(BIN / "workshop", "config", "--export", cwd=root, env=environment).stdout
        project.types(f"{exports}\ndvc repro")
        assert "tumours version 1 is in production" in project.types(f"{exports}\nmlflow-gate status")
    finally:
        run_program(BIN / "workshop", "down", cwd=root, env=environment, timeout=900)
    assert not (project.folder / "mlflow.db").exists()
