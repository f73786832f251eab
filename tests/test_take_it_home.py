"""What `make take-home` copies: nothing else of this repository is needed. `test_standalone.py` follows its page."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from places import tracking_server
from workplace import BIN, PERSON, ROOT, clean_environment, git, run_program, take_home

pytestmark = pytest.mark.walk

PAGE = (ROOT / "4_pipeline" / "take_it_home.md").read_text()
[CHANGES] = map(yaml.safe_load, re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))


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
        summary = json.loads((copy / "results" / "trained" / "train_linreg.json").read_text())
        client, run = MlflowClient(uri), summary["run_id"]
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


def test_fifth_model_takes_three_files(copy):
    """The page's ridge regression is compared, has its title, and goes with its stage; a title trains nothing."""

    environment = clean_environment() | PERSON

    def compared(*command: object) -> list[str]:
        done = run_program(BIN / command[0], *command[1:], "repro", "compare", cwd=copy, env=environment)
        assert copy.joinpath("results/trained/train_ridge.json").exists() == ("train_ridge" in pipeline["stages"])
        models = json.loads((copy / "results" / "metrics.json").read_text())
        return [*models, *re.findall(r"stage '(\w+)'", done.stdout)]

    texts = {name: (copy / name).read_text() for name in ("dvc.yaml", "params.yaml", "train_linreg.ipynb")}
    pipeline, parameters = (yaml.safe_load(texts[name]) for name in ("dvc.yaml", "params.yaml"))
    for name in ("train_rf", "train_gradient_boosting"):
        del pipeline["stages"][name], parameters[name]
    stage = json.dumps(pipeline["stages"]["train_linreg"]).replace("train_linreg", "train_ridge")
    stage = re.sub("-y '.*?'", "-p alpha ${train_ridge.alpha}", stage).replace("fit_intercept", "alpha")
    pipeline["stages"]["train_ridge"] = json.loads(stage)
    section = textwrap.dedent(*re.findall(r"^  ```yaml\n(.*?)^  ```", PAGE, flags=re.DOTALL | re.MULTILINE))
    [model] = re.findall(r"`(\w+\(Ridge\(alpha\)\))`, fitted on `inputs\(train\)`", PAGE)
    code = texts["train_linreg.ipynb"]
    for old, new in {
        "train_linreg": "train_ridge",
        "import LinearRegression": "import Ridge",
        "import evaluation, storage": "import evaluation, models, storage",
        "LinearRegression(fit_intercept=fit_intercept).fit(features(train)": f"models.{model}.fit(inputs(train)",
        "import features": "import inputs",
        "fit_intercept: bool = True": "alpha: float = 1.0",
    }.items():
        code = code.replace(old, new)
    (copy / "train_ridge.ipynb").write_text(code)
    (copy / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    (copy / "params.yaml").write_text(yaml.safe_dump(parameters) + section)
    assert {"train_linreg", "train_ridge"} <= {*compared("dvc-parallel")}
    (copy / "params.yaml").write_text(yaml.safe_dump(parameters) + section.replace("ridge regression", "ridges"))
    show = "from dashboard.parts import kind; print(kind('train_ridge', ''))"
    assert run_program(BIN / "python", "-c", show, cwd=copy, env=environment).stdout == "ridges\n"
    assert "compare" not in compared("dvc")
    del pipeline["stages"]["train_ridge"]
    (copy / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    (copy / "params.yaml").write_text(yaml.safe_dump(parameters))
    assert compared("dvc")[0] == "train_linreg"


@pytest.mark.parametrize("words", [(), ("KERAS=1",)], ids=["without", "with"])
def test_keras_is_left_out_unless_it_is_wanted(tmp_path, words):
    """Its notebook, module, tests, stage, section, extra, pins and link; nothing else goes with them."""
    home, name = take_home(tmp_path, *words), "train_keras"
    files = [f"{name}.ipynb", "plants/learn/network.py", "tests/template/learn/test_network.py"]
    texts = dict.fromkeys(["dvc.yaml", "params.yaml", "split.ipynb"], name)
    texts |= {"pyproject.toml": "keras>=", "requirements.txt": "keras="}
    parts = [text in (home / file).read_text() for file, text in texts.items()]
    assert {*parts, *((home / file).exists() for file in files)} == {bool(words)}
    assert {"train_rf", "compare"} <= {*yaml.safe_load((home / "dvc.yaml").read_text())["stages"]}
