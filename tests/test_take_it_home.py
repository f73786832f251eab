"""What `make take-home` copies: nothing else of this repository is needed. `test_standalone.py` follows its page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from places import tracking_server
from workplace import BIN, PERSON, ROOT, clean_environment, git, run_program, take_home

pytestmark = pytest.mark.walk

PAGE = (ROOT / "4_pipeline" / "take_it_home.md").read_text()
LINES = re.findall(r"^\d+\. \*\*(.+?)\*\*(.+(?:\n   .+)*)$", PAGE, flags=re.MULTILINE)
[CHANGES] = [
    yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The copy, in which a notebook and what it depends on ran without a server, with the packages of this place."""
    folder = take_home(tmp_path_factory.mktemp("home"))
    done = run_program(BIN / "dvc", "repro", "train_linreg", cwd=folder, env=clean_environment() | PERSON)
    assert done.stderr.count("No MLFLOW_TRACKING_URI") == 1
    return folder


def test_server_takes_the_records_over(copy):
    """Started in the folder, it has the run of the notebook, with the executed notebook as page and as file."""
    with tracking_server(copy, artifacts="mlartifacts") as uri:
        client, run = MlflowClient(uri), json.loads((copy / "results" / "trained" / "train_linreg.json").read_text())["run_id"]
        files = {file.path for file in client.list_artifacts(run, "notebook")}
    assert files == {"notebook/train_linreg.ipynb", "notebook/train_linreg.html"}


def test_copy_holds_no_word_of_this_repository(copy):
    """Its package has the new name, no file imports the old ones; links resolve; git ignores what programs leave."""
    names = git(copy, "ls-files", "--cached", "--others", "--exclude-standard").split()
    assert "plants/problem.py" in names
    texts = {name: (copy / name).read_text(errors="replace") for name in names if not name.endswith(".whl")}
    wrong = re.compile(r"\bforecast[./]|4_pipeline|make (run|lab)\b")
    assert [name for name, text in texts.items() if wrong.search(text)] == []
    assert [name for name, text in texts.items() if "workshop" in (name + text).casefold()] == []
    assert {texts[name].split("\n\n")[1] for name in ("README.md", "take_it_home.md")} == {PAGE.split("\n\n")[1]}
    pages = {name: text for name, text in texts.items() if name.endswith((".md", ".ipynb"))}
    links = [(name, link) for name, text in pages.items() for link in re.findall(r"\]\(([^)#\s\"]+)[^)\"]*\)", text)]
    links = [(name, link) for name, link in links if not re.match(r"[a-z]+:", link) and "\\" not in link]
    assert [link for link in links if not (copy / link[0]).parent.joinpath(link[1]).exists()] == []
    changes = git(copy, "status", "--porcelain", "--untracked-files=all").split()[1::2]
    assert set(changes) <= {"dvc.lock", "results/metrics.json"}


def test_fifth_model_takes_three_files(copy, environment):
    """The page's ridge regression is compared, has its title, and is forgotten with its stage; a title trains nothing.

    The others are deleted first, from the same files.
    """

    def types(*words: object) -> str:
        return run_program(BIN / words[0], *words[1:], cwd=copy, env=environment).stdout

    def compared() -> set[str]:
        return set(json.loads((copy / "results" / "metrics.json").read_text()))

    pipeline, parameters = (yaml.safe_load((copy / name).read_text()) for name in ("dvc.yaml", "params.yaml"))
    for content in (pipeline["stages"], parameters):
        for name in [name for name in content if name.startswith("train_") and name != "train_linreg"]:
            del content[name]
    [section] = re.findall(r"^  ```yaml\n(.*?)^  ```", PAGE, flags=re.DOTALL | re.MULTILINE)
    stage, lines = yaml.safe_dump(pipeline["stages"]["train_linreg"]), {"train_linreg": "train_ridge"}
    stage = re.sub("-y .*}'", "-p alpha ${train_ridge.alpha}", stage.replace("\n    ", " ")).replace("fit_intercept", "alpha")
    pipeline["stages"]["train_ridge"] = yaml.safe_load(stage.replace("train_linreg", "train_ridge"))
    for name, content in (("dvc.yaml", pipeline), ("params.yaml", parameters | yaml.safe_load(section))):
        (copy / name).write_text(yaml.safe_dump(content, sort_keys=False))
    lines |= {"fit_intercept: bool = True": "alpha: float = 1.0", "(fit_intercept=fit_intercept)": "(alpha)"}
    notebook = (copy / "train_linreg.ipynb").read_text()
    for old, new in (lines | {"LinearRegression": "Ridge"}).items():
        notebook = notebook.replace(old, new)
    (copy / "train_ridge.ipynb").write_text(notebook)
    types("dvc-parallel", "repro", "compare")
    assert compared() == {"train_linreg", "train_ridge"}
    (copy / "params.yaml").write_text((copy / "params.yaml").read_text().replace("ridge regression", "ridges"))
    assert types("python", "-c", "from dashboard.parts import kind; print(kind('train_ridge', ''))") == "ridges\n"
    assert "Running" not in types("dvc", "repro", "compare").replace("Running stage 'tracking_store'", "")
    del pipeline["stages"]["train_ridge"]
    (copy / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    (copy / "params.yaml").write_text(yaml.safe_dump(parameters))
    types("dvc", "repro", "compare")
    assert compared() == {"train_linreg"}


def test_checklist_is_short_and_names_what_there_is():
    """At most ten lines, numbered; every parameter that it and its example name exists."""
    assert 5 <= len(LINES) <= 10
    parameters = yaml.safe_load((ROOT / "4_pipeline" / "params.yaml").read_text())
    for stage, values in CHANGES.items():
        assert set(values) - {"csv"} <= set(parameters[stage])
    known = {"MLFLOW_TRACKING_URI", "DASK_SCHEDULER_ADDRESS", *parameters}.union(*parameters.values())
    assert set(re.findall(r"`(\w+)`", " ".join(text for _, text in LINES))) <= known
