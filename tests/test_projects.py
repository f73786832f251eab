"""Chapter 3: the MLflow projects, run as a user does; a run from a git URL, and a reproduced run."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from forecast.table.split import split_by_time
from walk import run_in, solve
from workplace import BIN, ROOT, clean_environment, free_port, run_program

from workshop.exports import exports_of
from workshop.settings import get_settings
from workshop.teaching import exercises
from workshop.teaching.pyenv import find_real

README = (ROOT / "3_projects" / "README.md").read_text()
SET_UP = 'eval "$(.venv/bin/workshop config --export)"'
NAMES = ("lr", "rf", "keras")
METRICS = {"r2", *(f"{kind}_{name}" for kind in ("r2", "mae", "bias", "lowest") for name in ("solar", "wind"))}
HEADER = "utc_timestamp,solar_GW,wind_GW,windspeed,temperature,rad_horizontal,rad_diffuse\n"
ROW = "2013-01-01T00:00:00Z,1,2,3,4,5,6\n"

# The README's commands are one fixture: a dozen programs in sequence.
pytestmark = [pytest.mark.walk, pytest.mark.timeout(1200)]

READ_RUNS = """
import json, mlflow, pandas, sys
frame = pandas.read_csv(sys.argv[1], nrows=24)[["windspeed", "temperature", "rad_horizontal", "rad_diffuse"]]
runs = []
for run_id in sys.argv[2:]:
    run = mlflow.get_run(run_id)
    model = mlflow.get_logged_model(run.outputs.model_outputs[0].model_id)
    loaded = mlflow.pyfunc.load_model(model.model_uri)
    runs.append({
        "experiment": mlflow.get_experiment(run.info.experiment_id).name,
        "status": run.info.status,
        "parameters": run.data.params,
        "metrics": run.data.metrics,
        "tags": run.data.tags,
        "files": [file.path for file in mlflow.artifacts.list_artifacts(model.model_uri)],
        "signed": loaded.metadata.signature is not None,
        "predicted": pandas.DataFrame(loaded.predict(frame)).values.tolist(),
    })
print(json.dumps(runs))
"""


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    """The folder for the projects' environments, instead of the one in the home folder."""
    return tmp_path_factory.mktemp("environments")


def path_without_pyenv() -> str:
    """Return PATH with this environment first and without folders that contain pyenv."""
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if find_real(folder) is None]
    return os.pathsep.join([str(BIN), *folders])


def type_line(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a line in a shell in ``folder``."""
    return subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )


def run_project(*arguments: str, projects: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run ``mlflow run`` with ``arguments`` in the folder ``projects``."""
    environment = {**os.environ, "PATH": path_without_pyenv(), **environment}
    return type_line(shlex.join(["mlflow", "run", *arguments]), projects, **environment)


def run_id_of(result: subprocess.CompletedProcess) -> str:
    """Return the run id at the end of a program's line about R2."""
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return next(line for line in result.stdout.splitlines() if line.startswith("R2 ")).split()[-1]


def read_runs(run_ids: list[str], servers) -> list[dict]:
    """Return the records of these runs on the tracking server and their models' predictions."""
    table = servers.root / "3_projects" / "germany.csv"
    done = run_program(sys.executable, "-c", READ_RUNS, table, *run_ids, env=servers.environment, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])


PLAIN_KERAS = "mlflow run keras"  # installs TensorFlow, in a separate test


def add_parameter(text: str) -> str:
    """Return the `MLproject` of `rf` with the entry point `main` of the README's solution."""
    [main] = re.findall(r"^```yaml\n(  main:\n.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    before, rest = text.split("  main:\n")
    return before + main + rest[rest.index("  validate:\n") :]


@pytest.fixture(scope="module")
def typed(servers, environments) -> dict[str, subprocess.CompletedProcess]:
    """The results of the README's shell lines, run in order in one terminal without pyenv."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    blocks = [re.sub(r" \\\n +", " ", block) for block in blocks]  # continued lines
    first, *lines = [line for block in blocks for line in block.splitlines() if line != PLAIN_KERAS]
    assert first == SET_UP  # set in the environment of `servers`
    environment = {**servers.environment, "MLFLOW_ENV_ROOT": str(environments), "PATH": path_without_pyenv()}
    results, folder, trained = {}, servers.root, []
    for line in lines:
        if line.startswith("cd "):
            folder /= line.removeprefix("cd ")
            continue
        # As in the text: the run of step 2 is validated, the last one is described.
        run_id = (trained or [""])[-1 if "describe" in line else 0]
        if "by_capacity" in line:
            (folder / "rf" / "MLproject").write_text(add_parameter((folder / "rf" / "MLproject").read_text()))
        results[line] = result = type_line(line.replace("RUN_ID", run_id), folder, **environment)
        trained += re.findall(r"^R2 .*; run (\w{32})$", result.stdout, re.MULTILINE)
    return results


def typed_run(typed, pattern: str) -> subprocess.CompletedProcess:
    """Return the result of the one README line that fully matches ``pattern``."""
    [line] = [line for line in typed if re.fullmatch(pattern, line)]
    return typed[line]


def test_readme_commands_work(typed):
    """Every command of the README works as typed; the two that should fail do, with a message."""
    assert len(typed) >= 10
    assert "`mlflow run lr`" in (ROOT / "README.md").read_text()  # needs no option
    for line, result in typed.items():
        meant = "n_estimators=0" in line or "floor=0.9" in line
        assert result.returncode == (1 if meant else 0), line + result.stdout[-2000:] + result.stderr[-4000:]
        assert "Traceback" not in result.stderr
    assert "--n_estimators: 0 is not a whole number of at least 1" in typed_run(typed, ".*n_estimators=0").stderr
    assert "is below the floor of 0.9" in typed_run(typed, ".*floor=0.9").stderr


@pytest.mark.parametrize(
    ("project", "option", "value", "allowed"),
    [
        ("lr", "test_fraction", "abc", "a number between 0 and 1"),
        ("lr", "test_fraction", "10", "a number between 0 and 1"),
        ("lr", "test_fraction", "nan", "a number between 0 and 1"),
        ("lr", "test_fraction", "[0.1]", "a number between 0 and 1"),
        ("rf", "max_depth", "3.5", "a whole number of at least 1"),
        ("rf", "last_hours", "-1", "a whole number of at least 0"),
        ("keras", "seed", "-1", "a whole number between 0 and 4294967295"),
    ],
)
def test_parameter_out_of_range_is_an_error_with_its_range(project, option, value, allowed):
    """The error, in one line, has the value and the range; the value may be a word or a number."""
    command = [BIN / "python", "train.py", f"--{option}={value}"]
    done = run_program(*command, cwd=ROOT / "3_projects" / project, exit_code=2)
    assert done.stderr.strip().endswith(f"argument --{option}: {value} is not {allowed}")


def test_plain_run_creates_its_environment_once(typed, environments):
    """The plain `mlflow run` works without pyenv; projects with the same requirements share the environment."""
    first = typed_run(typed, "mlflow run lr --run-name lr").stderr
    assert "Creating a new environment" in first
    assert str(environments) in first
    assert "already exists" in typed_run(typed, "mlflow run rf").stderr


def test_runs_are_complete(typed, servers):
    """Each run, also of the plain `mlflow run rf`, has parameters, metrics and a model that predicts."""
    patterns = ["lr --run-name lr", "lr .*false", "rf .*max_depth=8", "keras .*epochs=10", "rf"]
    patterns.append("rf .*by_capacity=true")
    runs = read_runs([run_id_of(typed_run(typed, f"mlflow run {pattern}")) for pattern in patterns], servers)
    for run in runs:
        assert (run["experiment"], run["status"]) == ("predicting_wind_solar", "FINISHED")
        assert run["metrics"].keys() >= METRICS
        assert run["metrics"]["r2"] == pytest.approx((run["metrics"]["r2_solar"] + run["metrics"]["r2_wind"]) / 2)
        assert run["metrics"]["r2"] > 0.5
        assert run["signed"]
        assert "input_example.json" in run["files"]
        assert [len(row) for row in run["predicted"]] == [2] * 24
        assert run["tags"]["mlflow.project.entryPoint"] == "main"
    assert [run["tags"]["mlflow.runName"] for run in runs[:2]] == ["lr", "lr-no-intercept"]
    first, lr, rf, keras, plain, winner = runs
    before, after = (run["metrics"]["r2_wind"] for run in (first, lr))
    assert f"`r2_wind` falls from {before:.2f} to {after:.2f}" in README
    assert f"`bias_wind` is {first['metrics']['bias_wind']:.2f}:" in README
    assert f"R2 is {winner['metrics']['r2']:.3f}, as in chapter 2's notebook" in README
    assert winner["tags"]["target"] == "capacity_factor"
    assert ["{by_capacity}" in run["tags"]["MLproject"] for run in (rf, plain, winner)] == [False, False, True]
    assert [run["tags"]["target"] for run in (rf, plain)] == ["GW", "GW"]
    assert winner["parameters"].items() >= {"last_hours": "8760", "by_capacity": "true"}.items()
    assert max(map(max, winner["predicted"])) < 1
    assert first["metrics"]["r2_solar"] == pytest.approx(lr["metrics"]["r2_solar"], abs=0.005)
    assert lr["parameters"] == {"data": "../germany.csv", "test_fraction": "0.2", "fit_intercept": "false"}
    assert rf["parameters"].items() >= {"n_estimators": "50", "max_depth": "8"}.items()
    assert min(map(min, keras["predicted"])) >= 0


def test_run_from_a_git_url_is_tagged_with_commit_and_url(typed, servers):
    """The tags of the README's last two runs have the commit and the source of the code."""
    described = typed_run(typed, "mlflow runs describe .*")
    tags = json.loads(described.stdout)["data"]["tags"]
    assert tags["mlflow.source.type"] == "PROJECT"
    assert tags["mlflow.source.name"] == f"file://{servers.root}/3_projects/published#3_projects/lr"
    assert tags["mlflow.source.git.repoURL"] == f"file://{servers.root}/3_projects/published"
    assert tags["mlflow.source.git.commit"] == servers.run("git", "rev-parse", "HEAD").stdout.strip()
    # Neither the repository nor this clone has changed.
    assert not (servers.root / "3_projects" / "published.git" / ".git").exists()
    assert "?? 3_projects" not in servers.run("git", "status", "--porcelain").stdout


@pytest.mark.usefixtures("typed")
def test_run_from_a_git_url_has_only_committed_files(servers):
    """Run from the git URL without `-P data=`, the project fails because its data file is missing."""
    address = f"file://{servers.root}/3_projects/published#3_projects/lr"
    result = run_project(address, "--env-manager", "local", projects=servers.root, **servers.environment)
    assert result.returncode == 1
    assert "There is no data file" in result.stderr
    assert "Traceback" not in result.stderr


def test_validation_has_the_score_of_the_training(typed, servers):
    """`validate` reproduces each model's logged score exactly, also for networks and capacity factors."""
    import mlflow

    client = mlflow.MlflowClient(servers.tracking_uri)
    for name, last in (("lr", "--run-name lr"), ("keras", ".*epochs=10"), ("rf", ".*by_capacity=true")):
        trained = client.get_run(run_id_of(typed_run(typed, f"mlflow run {name} {last}")))
        if name == "lr":
            result = typed_run(typed, ".*validate -P run_id=RUN_ID")
        else:
            asked = ["-e", "validate", "-P", f"run_id={trained.info.run_id}", "--env-manager", "local"]
            result = run_project(name, *asked, projects=servers.root / "3_projects", **servers.environment)
        validated = client.get_run(run_id_of(result)).data
        assert validated.metrics.keys() == {f"validation_{metric}" for metric in METRICS}
        assert validated.metrics["validation_r2"] == pytest.approx(trained.data.metrics["r2"], abs=1e-6)
        assert validated.params["run_id"] == trained.info.run_id


@pytest.mark.parametrize(("file", "words"), [("model.skops", "getcwd"), ("model.pkl", "neither")])
def test_validation_loads_only_trusted_types(file, words, tmp_path, monkeypatch, capsys):
    """A pickle, or a model with types that `validate.py` does not list, is an error."""
    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    dumps = skops.io.dumps if file.endswith("skops") else pickle.dumps
    (tmp_path / file).write_bytes(dumps(FunctionTransformer(os.getcwd)))
    monkeypatch.syspath_prepend(ROOT / "3_projects")
    program = load_program(ROOT / "3_projects" / "validate.py")
    with pytest.raises(SystemExit) as ended:
        program.predict(tmp_path, None)
    assert ended.value.code == 1
    assert words in capsys.readouterr().err


def test_checks_recognise_near_misses(typed, in_workplace, capsys):
    """An answer that is nearly right gets a hint, and is not recorded."""
    import mlflow

    lr, rf = (run_id_of(typed_run(typed, pattern)) for pattern in (".*lr .*=false", ".*rf .*max_depth=8"))
    theirs = mlflow.MlflowClient(in_workplace.tracking_uri).get_run(lr)
    answers = [
        ("3.1", lr, "test_fraction of 0.2, not 0.1"),
        ("3a", 0.0016, "differs from `theirs` in n_estimators, max_depth", theirs, rf),
        ("3a", 0.0016, "not a run of the `rf` project", theirs, lr),
        ("3.1", rf, "not a run of the `lr` project"),
        ("3.1", "0" * 32, "has no run"),
        ("3.2", (lr, "0" * 40), "a different commit"),
        ("3.2", (lr, theirs.data.tags["mlflow.source.git.commit"][:8]), "only the beginning of the right commit"),
        ("3.3", lr, "`validate` entry point"),
    ]
    before = exercises.solved(in_workplace.settings)
    for number, answer, words, *evidence in answers:
        exercises.check(number, answer, *evidence)
        printed = capsys.readouterr().out
        assert printed.startswith(f"Exercise {number}, not yet")
        assert words in printed
    assert exercises.solved(in_workplace.settings) == before


@pytest.mark.soak  # two minutes, mostly TensorFlow's download; the other projects run so in each session
def test_plain_run_of_the_network_works(servers, environments):
    """The README's plain `mlflow run keras` creates its environment without pyenv, and trains in it."""
    environment = {**servers.environment, "MLFLOW_ENV_ROOT": str(environments), "PATH": path_without_pyenv()}
    assert PLAIN_KERAS in README.splitlines()
    result = type_line(PLAIN_KERAS, servers.root / "3_projects", **environment)
    assert run_id_of(result)
    assert str(environments) in result.stderr


@pytest.fixture(scope="module")
def reproduced(servers) -> dict[str, str]:
    """The outputs of the cells of `reproduce.ipynb` by id; an added last cell compares the two runs."""
    folder = servers.root / "3_projects"
    notebook = nbformat.read(folder / "reproduce.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("print(theirs.data.metrics == ours.data.metrics, len(table))"))
    notebook.cells[-1]["id"] = "compared"
    solve(notebook)
    notebook.cells.append(nbformat.v4.new_code_cell('check("3a", -answer, theirs, plain)', id="turned"))
    run_in(folder, notebook, servers.environment)
    return {
        cell["id"]: "".join(output.get("text", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def test_logged_requirements_are_incomplete(reproduced):
    """The model's logged requirements lack packages imported before the run, so that training fails."""
    assert "scikit-learn==" in reproduced["requirements"]
    assert "pvlib" not in reproduced["requirements"]
    assert "No module named 'pvlib'" in reproduced["first-attempt"]


def test_reproduced_run_has_identical_metrics(reproduced):
    """With the missing package, all metrics equal those of the colleague's run."""
    assert "run " in reproduced["missing"]
    assert reproduced["compared"].strip() == f"True {len(METRICS)}"


def test_gain_of_the_colleagues_feature_is_measured(reproduced):
    """With the solution of the notebook's exercise, the forest without sun elevation is slightly worse."""
    assert reproduced["gain"].endswith(f"Exercise 3a, solved: {exercises.EXERCISES['3a'].lesson}.\n")
    assert "has the wrong sign" in reproduced["turned"]


def test_plain_run_without_the_variables_fails_at_once(tmp_path):
    """The error names the line to type, and comes before an environment is created."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"MLFLOW_ENV_ROOT": str(tmp_path / "environments"), "PATH": path_without_pyenv()}
    result = type_line(f"mlflow run {ROOT / '3_projects' / 'lr'}", tmp_path, **environment)
    assert result.returncode == 1
    assert SET_UP in result.stderr
    assert not (tmp_path / "environments").exists()


def test_run_while_the_server_is_down_is_an_error(tmp_path):
    """With the variables set and a closed port, the last line is the one in the README."""
    address = f"http://127.0.0.1:{free_port()}"
    environment = clean_environment() | exports_of(get_settings()) | {"MLFLOW_TRACKING_URI": address}
    done = type_line(f"mlflow run {ROOT / '3_projects' / 'lr'}", tmp_path, **environment)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert address in last
    assert "Connection refused" in last
    assert "last line contains `Connection refused`" in " ".join(README.split())


def train(name: str, *arguments: str, folder: Path, address: str = "http://127.0.0.1:9") -> subprocess.CompletedProcess:
    """Run a project's `train.py` directly in ``folder``."""
    command = [sys.executable, str(ROOT / "3_projects" / name / "train.py"), *arguments]
    return type_line(shlex.join(command), folder, **os.environ | {"MLFLOW_TRACKING_URI": address})


@pytest.mark.parametrize(("name", "address"), [("lr", ""), ("rf", "sqlite:///mlflow.db"), ("keras", "mlruns")])
def test_training_needs_the_address_of_a_server(name, address, tmp_path):
    """Without an http address, training exits with code 2 before anything is read or written."""
    result = train(name, folder=tmp_path, address=address)
    assert result.returncode == 2
    assert SET_UP in result.stderr
    assert "MLFLOW_TRACKING_URI" not in result.stderr  # set by MLflow itself
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "text", "named"),
    [
        ("lr", None, "no data file"),
        ("lr", HEADER.replace("wind_GW", "wind") + ROW, "wind_GW"),
        ("lr", HEADER + ROW.replace(",4,", ",,"), "empty cells"),
        ("lr", "\0\xff" * 9, "cannot be used"),
        # The table of chapter 1 has no installed capacity, which only capacity factors need.
        ("rf --by_capacity true", HEADER + ROW * 20, "wind_capacity_GW"),
    ],
)
def test_training_on_invalid_data_is_an_error(options, text, named, tmp_path):
    """A missing or broken file is named with the command that creates it; the exit code is 1."""
    file, (name, *words) = tmp_path / "germany.csv", options.split()
    if text is not None:
        file.write_text(text, encoding="latin-1")
    result = train(name, "--data", str(file), *words, folder=tmp_path)
    assert result.returncode == 1
    for part in (str(file), named, "python -m forecast csv 3_projects/germany.csv"):
        assert part in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("rows", [20, 35_016, 35_017])
@pytest.mark.parametrize("test_fraction", [0.15, 0.2])
def test_projects_split_hours_like_the_pipeline(rows, test_fraction, monkeypatch):
    """Chapters 3 and 4 train on the same number of hours: of the sample's 35,016 on 28,012."""
    monkeypatch.syspath_prepend(ROOT / "3_projects")
    hourly = load_program(ROOT / "3_projects" / "hourly.py")
    hours = pd.DataFrame({"utc_timestamp": range(rows)})
    train, test = hourly.split_by_time(hours, test_fraction)
    assert [len(train), len(test)] == [len(part) for part in split_by_time(hours, test_fraction)]
    assert (rows, test_fraction) != (35_016, 0.2) or len(train) == 28_012


@pytest.mark.parametrize("name", NAMES)
def test_environment_agrees_with_the_lock(name):
    """`python_env.yaml` has the exact versions of `requirements.txt`, and no Python version."""
    environment = yaml.safe_load((ROOT / "3_projects" / name / "python_env.yaml").read_text())
    assert "python" not in environment
    lock = {line.split(" ")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    assert {line.split(";")[0] for line in environment["dependencies"]} <= lock


def load_program(file: Path):
    """Import a program as a module."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


@pytest.mark.parametrize("entry_point", ["main", "validate"])
@pytest.mark.parametrize("name", NAMES)
def test_project_file_agrees_with_its_program(name, entry_point, monkeypatch):
    """`MLproject` has the program's defaults and passes all parameters, also the one that the reader adds."""
    folder = ROOT / "3_projects" / name
    text = (folder / "MLproject").read_text()
    entry = yaml.safe_load(add_parameter(text) if name == "rf" else text)["entry_points"][entry_point]
    python, file, *arguments = entry["command"].split()
    assert python == "python"
    monkeypatch.syspath_prepend(ROOT / "3_projects")
    program = load_program(folder / file)
    options = {"run_id": "0" * 32} if entry_point == "validate" else {}
    monkeypatch.setattr(sys, "argv", [file, *(word for key in options for word in (f"--{key}", options[key]))])
    expected = program.read_parameters()
    defaults = {key: value.get("default", options.get(key)) for key, value in entry["parameters"].items()}
    monkeypatch.setattr(sys, "argv", [file, *" ".join(arguments).format(**defaults).split()])
    assert program.read_parameters() == expected
    assert defaults.keys() == expected.keys()
