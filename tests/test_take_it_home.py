"""The copy of `make take-home` needs nothing else of this repository. `test_standalone.py` follows its page."""

from __future__ import annotations

import json
import os
import re
import shutil
import textwrap
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from places import tracking_server
from workplace import BIN, PERSON, ROOT, clean_environment, git, run_program, take_home

pytestmark = pytest.mark.walk

PAGE = (ROOT / "4_pipeline" / "take_it_home.md").read_text()
[CHANGES] = map(yaml.safe_load, re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))

WEEKLY = {"github": ".github/workflows/weekly.yml", "gitlab": ".gitlab-ci.yml"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The copy, in which one notebook and its dependencies ran without a server, in this environment."""
    folder = take_home(tmp_path_factory.mktemp("home"))
    done = run_program(BIN / "dvc", "repro", "train_linreg", cwd=folder, env=clean_environment() | PERSON)
    assert done.stderr.count("MLFLOW_TRACKING_URI is not set") == 1
    return folder


def test_tracking_server_can_use_the_store(copy):
    """A server started in the folder has the notebook's run, with the executed notebook as page and as file."""
    with tracking_server(copy, artifacts="mlartifacts") as uri:
        summary = json.loads((copy / "results" / "trained" / "train_linreg.json").read_text())
        client, run = MlflowClient(uri), summary["run_id"]
        files = {file.path for file in client.list_artifacts(run, "notebook")}
    assert files == {"notebook/train_linreg.ipynb", "notebook/train_linreg.html"}


def test_copy_does_not_mention_this_repository(copy):
    """Package and data have new names, the README has the problem; links resolve; git ignores outputs."""
    names = git(copy, "ls-files", "--cached", "--others", "--exclude-standard").split()
    assert "plants/problem.py" in names
    texts = {name: (copy / name).read_text(errors="replace") for name in names if not name.endswith(".whl")}
    wrong = re.compile(r"\bforecast[./]|4_pipeline|make (run|lab|lock)\b|\bgermany\b(?!-)")
    assert [name for name, text in texts.items() if wrong.search(text)] == []
    assert [name for name, text in texts.items() if "workshop" in (name + text).casefold()] == []
    assert texts["README.md"].startswith("# Solar and wind power in Germany\n\n")
    pages = {name: text for name, text in texts.items() if name.endswith((".md", ".ipynb"))}
    links = [(name, link) for name, text in pages.items() for link in re.findall(r"\]\(([^)#\s\"]+)[^)\"]*\)", text)]
    links = [(name, link) for name, link in links if not re.match(r"[a-z]+:", link) and "\\" not in link]
    assert [link for link in links if not (copy / link[0]).parent.joinpath(link[1]).exists()] == []
    changes = git(copy, "status", "--porcelain", "--untracked-files=all").split()[1::2]
    assert set(changes) <= {"dvc.lock", "results/metrics.json"}


def test_fifth_model_needs_three_files(copy):
    """The page's ridge regression is compared with its title, and removed with its stage; a title does not retrain."""
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
    show = "from dashboard.parts import model_title; print(model_title('train_ridge', ''))"
    assert run_program(BIN / "python", "-c", show, cwd=copy, env=environment).stdout == "ridges\n"
    assert "compare" not in compared("dvc")
    del pipeline["stages"]["train_ridge"]
    (copy / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    (copy / "params.yaml").write_text(yaml.safe_dump(parameters))
    assert compared("dvc")[0] == "train_linreg"


def test_deletions_of_the_page_leave_tests_that_pass(copy, tmp_path):
    """Without dashboard, a model, or sun and wind, `pytest` passes on an own file, and their packages are removed."""
    git(tmp_path, "clone", "--quiet", str(copy), "clone")
    clone, environment = tmp_path / "clone", clean_environment() | PERSON
    shutil.copy(copy / "data" / "observations.csv", clone / "own")
    part = (clone / "take_it_home.md").read_text().split("## What you can delete\n")[1].split("## Once a week\n")[0]
    sun_and_wind, compiling = re.findall(r"^```bash\n(.*?)^```", part, flags=re.DOTALL | re.MULTILINE)
    dashboard, tests = re.findall("`(git rm .*?)`", part)
    own = yaml.safe_load((clone / "own" / "README.md").read_text().split("```yaml\n")[1].split("```")[0])
    for file, change in {"dvc.yaml": {}, "params.yaml": own}.items():
        content = yaml.safe_load((clone / file).read_text()) | change
        del content.get("stages", content)["train_rf"]
        (clone / file).write_text(yaml.safe_dump(content, sort_keys=False))
    (clone / "dashboard.py").write_text("raise ModuleNotFoundError")  # hides the dashboard of this environment
    for deletion in (dashboard, "git rm train_rf.ipynb", sun_and_wind):
        run_program("bash", "-ec", deletion, cwd=clone, env=environment)
        done = run_program(BIN / "pytest", "-q", cwd=clone, env=environment)
        assert re.search(r"[1-9]\d passed, 1 skipped in", done.stdout), done.stdout
    project, pins = clone / "pyproject.toml", clone / "requirements.txt"
    project.write_text(re.sub(r"(?ms)^(look = .*?^\]|test = .*?\])\n", "", project.read_text()))
    before = re.findall("^[a-z][^ =]*==[^ \n]*", pins.read_text(), re.MULTILINE)
    run_program("bash", "-ec", f"{tests}\n{compiling}", cwd=clone, env=environment)
    assert "\n--find-links wheels\n" in pins.read_text()
    left = re.findall("^[a-z][^ =]*==[^ \n]*", pins.read_text(), re.MULTILINE)
    assert set(left) < set(before)
    assert {"dash", "pytest", "demandlib", "windpowerlib"}.isdisjoint(pin.split("==")[0] for pin in left)


@pytest.mark.parametrize("service", WEEKLY)
def test_weekly_job_pushes_what_changed_or_fails(tmp_path, service):
    """A new or changed `dvc.lock` is committed, an unchanged one is not; a rejected push fails the job."""
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "home.git")
    git(tmp_path, "clone", "--quiet", "home.git", "clone")
    home, clone = tmp_path / "home.git", tmp_path / "clone"
    (clone / "results").mkdir()
    (clone / "results" / "metrics.json").write_text("{}")
    git(clone, "config", "url.../home.git.insteadOf", "https://token:1@host/us.git")
    for words in (["add", "."], ["commit", "--quiet", "--message", "Ours"], ["push", "--quiet"]):
        git(clone, *words)
    names = ["GITHUB_ACTOR", "GITLAB_USER_NAME", "GITLAB_USER_EMAIL"]
    places = {"PUSH_TOKEN": "1", "CI_SERVER_HOST": "host", "CI_PROJECT_PATH": "us", "CI_COMMIT_BRANCH": "main"}
    environment = os.environ | dict.fromkeys(names, "job") | places
    job = yaml.safe_load((ROOT / "4_pipeline" / WEEKLY[service]).read_text())
    steps = job["weekly"]["script"] if service == "gitlab" else [job["jobs"]["weekly"]["steps"][-1]["run"]]
    script = "\n".join(step for step in steps if step.startswith("git "))

    def commits(lock: str, exit_code: int = 0) -> int:
        (clone / "dvc.lock").write_text(lock)
        run_program("bash", "-ec", script, cwd=clone, env=environment, exit_code=exit_code)
        return int(git(home, "rev-list", "--count", "main"))

    assert [commits(lock) for lock in ("new", "new", "changed")] == [2, 2, 3]
    theirs = git(clone, "commit-tree", "-p", "main", "-m", "A colleague's", "main^{tree}").strip()
    git(clone, "push", "--quiet", "origin", f"{theirs}:main")
    assert commits("changed") == 4
    assert commits("changed again", exit_code=1) == 4


@pytest.mark.parametrize("words", [(), ("KERAS=1",)], ids=["without", "with"])
def test_keras_is_optional(tmp_path, words):
    """Without Keras its notebook, module, tests, stage, section, extra, pins and link are left out, and no more."""
    home, name = take_home(tmp_path, *words), "train_keras"
    files = [f"{name}.ipynb", "plants/learn/network.py", "tests/template/learn/test_network.py"]
    texts = dict.fromkeys(["dvc.yaml", "params.yaml", "split.ipynb"], name)
    texts |= {"pyproject.toml": "keras>=", "requirements.txt": "keras="}
    parts = [text in (home / file).read_text() for file, text in texts.items()]
    assert {*parts, *((home / file).exists() for file in files)} == {bool(words)}
    assert {"train_rf", "compare"} <= {*yaml.safe_load((home / "dvc.yaml").read_text())["stages"]}


def test_option_of_take_home_does_not_reach_the_installation():
    """FROM names the pipeline to copy, not where packages are installed from."""
    done = run_program("make", "--dry-run", "--always-make", ".venv/installed", "FROM=examples/any_table", cwd=ROOT)
    assert "examples/any_table" not in done.stdout


def test_small_pipeline_governs_a_csv_in_one_command(tmp_path):
    """Parameters, module and data of the copy are the table's; its pipeline and its tests pass."""
    table = pd.DataFrame({"who's": [f"C{number:03}" for number in range(400)], 'size "m"': [1.5, 2.5, None, 4.0] * 100})
    table["left: early"] = ["yes" if number % 4 in (0, number % 3) else "no" for number in range(400)]
    table.assign(plan=["basic", "tumours", None, None, "pro"] * 80).to_csv(
        tmp_path / "some people.csv", sep=";", decimal=",", index=False
    )
    words = {"FROM": "examples/any_table", "CSV": tmp_path / "some people.csv", "ID": "who's", "TARGET": "left: early"}
    home = take_home(tmp_path, *(f"{name}={value}" for name, value in words.items()), "POSITIVE=yes")
    environment, options = clean_environment() | PERSON, yaml.safe_load((home / "params.yaml").read_text())
    assert options["table"]["read_csv"] == {"sep": ";", "decimal": ","}
    assert [options["table"][name] for name in ("file", "id", "target", "positive", "group")] == [
        "own/some people.csv", "who's", "left: early", "yes", None
    ]  # fmt: skip
    names = git(home, "ls-files").split("\n")
    assert {"plants.py", "own/some people.csv.dvc", "tests/test_table.py"} < {name.strip('"') for name in names}
    texts = {
        name: (home / name).read_text() for name in names if name.endswith((".py", ".md", ".ipynb", ".yaml", ".txt"))
    }
    assert not [name for name, text in texts.items() if re.search(r"\btumours\b|\.\./|make (take|lock)|workshop", text)]
    assert (home / "own" / "some people.csv").read_bytes() == (tmp_path / "some people.csv").read_bytes()
    run_program(BIN / "dvc-parallel", "repro", cwd=home, env=environment)
    decision = json.loads((home / "results" / "decision.json").read_text())
    assert decision["promoted"] == (decision["candidate"]["metrics"]["skill"] > 0.05)
    run_program(BIN / "python", "-m", "pytest", cwd=home, env=environment)
    assert {line.split()[-1] for line in git(home, "status", "--porcelain").splitlines()} == {
        "dvc.lock",
        "results/metrics.json",
    }
