"""Chapter 3: the three MLflow projects, run as a person types it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from workshop.teaching.pyenv import find_real

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NAMES = ("lr", "rf", "keras")
METRICS = {"r2", "r2_solar", "r2_wind", "mae_GW"}
HEADER = "utc_timestamp,solar_GW,wind_GW,windspeed,temperature,rad_horizontal,rad_diffuse\n"
ROW = "2013-01-01T00:00:00Z,1,2,3,4,5,6\n"

READ_RUN = """
import json, mlflow, pandas, sys
run = mlflow.get_run(sys.argv[1])
model = mlflow.get_logged_model(run.outputs.model_outputs[0].model_id)
frame = pandas.read_csv(sys.argv[2], nrows=24)[["windspeed", "temperature", "rad_horizontal", "rad_diffuse"]]
loaded = mlflow.pyfunc.load_model(model.model_uri)
print(json.dumps({
    "experiment": mlflow.get_experiment(run.info.experiment_id).name,
    "status": run.info.status,
    "parameters": run.data.params,
    "metrics": run.data.metrics,
    "files": [file.path for file in mlflow.artifacts.list_artifacts(model.model_uri)],
    "signed": loaded.metadata.signature is not None,
    "predicted": pandas.DataFrame(loaded.predict(frame)).values.tolist(),
}))
"""


@pytest.fixture(scope="module")
def projects(germany_csv, tmp_path_factory):
    """A folder with the three projects and their data."""
    ignored = shutil.ignore_patterns("germany.csv", "__pycache__")
    folder = shutil.copytree(ROOT / "3_projects", tmp_path_factory.mktemp("chapter") / "3_projects", ignore=ignored)
    shutil.copy(germany_csv, folder / "germany.csv")
    return folder


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    """The folder in which MLflow makes the projects' environments, in place of one in the home folder."""
    return tmp_path_factory.mktemp("environments")


def path_without_pyenv() -> str:
    """Return PATH with this environment first and without the folders that hold a real pyenv."""
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if find_real(folder) is None]
    return os.pathsep.join([str(BIN), *folders])


def path_with_pyenv() -> str:
    """Return PATH with this environment first."""
    return os.pathsep.join([str(BIN), os.environ["PATH"]])


def run_project(*arguments: str, projects: Path, **environment: str) -> subprocess.CompletedProcess:
    """Type ``mlflow run`` with ``arguments`` in the folder ``projects``."""
    return subprocess.run(
        ["mlflow", "run", *arguments],
        cwd=projects,
        env={**os.environ, "PATH": path_with_pyenv(), **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def read_run(result: subprocess.CompletedProcess, servers, projects: Path) -> dict:
    """Return what the tracking server knows of the run that ``result`` names last, and its model's predictions."""
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    line = next(line for line in result.stdout.splitlines() if line.startswith("R2 "))
    told = subprocess.run(
        [sys.executable, "-c", READ_RUN, line.split()[-1], projects / "germany.csv"],
        env={**os.environ, **servers.environment, "MLFLOW_TRACKING_URI": servers.tracking_uri},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-4000:]
    return json.loads(told.stdout.splitlines()[-1])


def assert_is_whole(run: dict) -> None:
    """Check what every project's run has in common."""
    assert (run["experiment"], run["status"]) == ("predicting_wind_solar", "FINISHED")
    assert run["metrics"].keys() >= METRICS
    assert run["metrics"]["r2"] == pytest.approx((run["metrics"]["r2_solar"] + run["metrics"]["r2_wind"]) / 2)
    assert run["signed"]
    assert "input_example.json" in run["files"]
    assert [len(row) for row in run["predicted"]] == [2] * 24


def test_project_runs_as_typed_with_pyenv(servers, projects, tmp_path):
    """`mlflow run lr` makes its own environment and adds a run, where there is a pyenv."""
    path = path_with_pyenv()
    if find_real(path) is None:
        pytest.skip("no pyenv on this machine")
    environment = {**servers.environment, "MLFLOW_ENV_ROOT": str(tmp_path), "PATH": path}
    result = run_project("lr", "--experiment-name", "predicting_wind_solar", projects=projects, **environment)
    run = read_run(result, servers, projects)
    assert_is_whole(run)
    assert run["parameters"] == {"data": "../germany.csv", "test_fraction": "0.2", "fit_intercept": "true"}
    assert run["metrics"]["r2"] > 0.5
    assert "Creating a new environment" in result.stderr


minutes = pytest.mark.skipif(
    not os.environ.get("WORKSHOP_REQUIRE_ALL"), reason="installs TensorFlow anew, which takes minutes"
)


@pytest.mark.parametrize("name", ["lr", "rf", pytest.param("keras", marks=minutes)])
def test_project_runs_as_typed_without_pyenv(name, servers, projects, environments):
    """The plain `mlflow run` of each project works where there is no pyenv; alike environments are made once."""
    environment = {**servers.environment, "MLFLOW_ENV_ROOT": str(environments), "PATH": path_without_pyenv()}
    result = run_project(name, "--experiment-name", "predicting_wind_solar", projects=projects, **environment)
    run = read_run(result, servers, projects)
    assert_is_whole(run)
    assert run["metrics"]["r2"] > 0.5
    assert str(environments) in result.stderr


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lr", {"fit_intercept": "False", "test_fraction": "0.250"}),
        ("rf", {"n_estimators": "3", "max_depth": "4", "seed": "7"}),
        ("keras", {"epochs": "1", "hidden_units": "8", "seed": "7"}),
    ],
)
def test_project_runs_locally_with_parameters(name, parameters, servers, projects):
    """`--env-manager local` uses the environment at hand, and `-P` values are logged as they were typed."""
    typed = [word for key, value in parameters.items() for word in ("-P", f"{key}={value}")]
    options = ["--env-manager", "local", "--experiment-name", "predicting_wind_solar"]
    result = run_project(name, *options, *typed, projects=projects, **servers.environment)
    run = read_run(result, servers, projects)
    assert_is_whole(run)
    assert run["parameters"].items() >= parameters.items()
    if name == "keras":
        assert min(map(min, run["predicted"])) >= 0


def test_project_refuses_a_missing_tracking_address(projects, monkeypatch):
    """Without an address MLflow would write to a file of the folder: refused, naming the command that sets it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = run_project("lr", "--env-manager", "local", projects=projects)
    assert result.returncode == 1
    assert 'eval "$(workshop config --export)"' in result.stderr
    assert "Traceback" not in result.stderr


def train(name: str, *arguments: str, folder: Path, address: str = "http://127.0.0.1:9") -> subprocess.CompletedProcess:
    """Run a project's `train.py` by itself, in ``folder``."""
    return subprocess.run(
        [sys.executable, ROOT / "3_projects" / name / "train.py", *arguments],
        cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": address},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("address", ["", "sqlite:///mlflow.db", "file:///tmp/runs", "runs"])
def test_training_refuses_an_address_that_is_no_server(name, address, tmp_path):
    """Only an http address will do; else exit code 2 before anything is read or written."""
    result = train(name, folder=tmp_path, address=address)
    assert result.returncode == 2
    assert "workshop config --export" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lr", ["--test_fraction", "2"]),
        ("lr", ["--test_fraction", "nan"]),
        ("lr", ["--fit_intercept", "perhaps"]),
        ("lr", ["--nonsense", "1"]),
        ("rf", ["--n_estimators", "0"]),
        ("rf", ["--n_estimators", "2.5"]),
        ("rf", ["--max_depth", "-1"]),
        ("rf", ["--seed", "-1"]),
        ("keras", ["--epochs", "none"]),
        ("keras", ["--hidden_units", "0"]),
    ],
)
def test_training_refuses_a_parameter_out_of_range(name, arguments, tmp_path):
    """A value that cannot be is named, with exit code 2."""
    result = train(name, *arguments, folder=tmp_path)
    assert result.returncode == 2
    assert arguments[0] in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "no data file"),
        ("", "No columns"),
        (HEADER.replace("wind_GW", "wind") + ROW, "wind_GW"),
        (HEADER + ROW.replace(",4,", ",mild,"), "mild"),
        (HEADER + ROW.replace(",4,", ",,"), "empty cells"),
        ("\0\xff" * 9, "cannot be used"),
    ],
)
def test_training_refuses_data_it_cannot_use(text, named, tmp_path):
    """A file that is missing or broken is named with the command that makes it, with exit code 1."""
    file = tmp_path / "germany.csv"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    result = train("lr", "--data", str(file), folder=tmp_path)
    assert result.returncode == 1
    assert str(file) in result.stderr
    assert named in result.stderr
    assert "workshop data csv 3_projects/germany.csv" in result.stderr
    assert "Traceback" not in result.stderr


def test_training_refuses_too_few_hours(tmp_path):
    """A split that leaves a part empty ends with exit code 2, in words."""
    (tmp_path / "germany.csv").write_text(HEADER + ROW * 3)
    result = train("lr", "--data", "germany.csv", folder=tmp_path)
    assert result.returncode == 2
    assert "too few" in result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_environment_agrees_with_the_lock(name):
    """`python_env.yaml` names exact versions, those of `requirements.txt`, and no Python."""
    environment = yaml.safe_load((ROOT / "3_projects" / name / "python_env.yaml").read_text())
    assert "python" not in environment
    lock = {line.split(" ")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    assert set(environment["dependencies"]) <= lock


@pytest.mark.parametrize("name", NAMES)
def test_project_file_agrees_with_its_program(name, monkeypatch):
    """The defaults in `MLproject` are those of `train.py`, and every parameter reaches it."""
    spec = importlib.util.spec_from_file_location("train", ROOT / "3_projects" / name / "train.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    entry = yaml.safe_load((ROOT / "3_projects" / name / "MLproject").read_text())["entry_points"]["main"]
    defaults = {key: value["default"] for key, value in entry["parameters"].items()}
    monkeypatch.setattr(sys, "argv", ["train.py"])
    expected = program.read_parameters()
    monkeypatch.setattr(sys, "argv", entry["command"].format(**defaults).split()[1:])
    assert program.read_parameters() == expected
    assert defaults.keys() == expected.keys()


def test_programs_import_nothing_else_of_the_repository():
    """A project's own environment holds what its `python_env.yaml` names: this package is not in it."""
    for file in (ROOT / "3_projects").rglob("*.py"):
        assert "import workshop" not in file.read_text()
        assert "from workshop" not in file.read_text()
