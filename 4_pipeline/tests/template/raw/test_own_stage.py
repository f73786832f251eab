"""The user's file as a dependency of the stage `fetch`, and the script that creates it, as in own/README.md."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from places import BIN, PROJECT, clean_environment, copy_project, run_program
from test_run import way_to

PAGE = (PROJECT / "own" / "README.md").read_text()
[STAGES] = [
    yaml.safe_load(block) for block in re.findall(r"^```yaml dvc.yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
]
[(SCRIPT, CODE)] = re.findall(r"^```python (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def pipeline(tmp_path) -> Path:
    """The stage `fetch` in a separate folder, without servers."""
    copy_project(tmp_path)
    stage = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]["fetch"]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"fetch": stage}}))
    dvc(tmp_path, "init", "--no-scm", "--quiet")
    return tmp_path


def dvc(folder: Path, *words: str) -> str:
    """Run a DVC command in a folder; return its output."""
    return run_program(BIN / "dvc", *words, cwd=folder, env=clean_environment()).stdout


def read_from(folder: Path, file: str) -> None:
    """Set the file of the source `csv` in params.yaml."""
    parameters = folder / "params.yaml"
    content = yaml.safe_load(parameters.read_text()) | {"fetch": {"source": "csv", "csv": {"file": file}}}
    parameters.write_text(yaml.safe_dump(content))


def runs_fetch(folder: Path) -> bool:
    """Return whether `dvc repro` runs the stage `fetch`."""
    return "Running stage 'fetch'" in dvc(folder, "repro")


def test_fetch_depends_on_the_folder_own(pipeline):
    """A file elsewhere is an error with the command for a link; changed data behind the link run the stage again."""
    (pipeline / "elsewhere.csv").write_text("a\n")
    read_from(pipeline, "elsewhere.csv")
    command = [BIN / "python", "-m", "forecast", "fetch", "--to", "data/raw"]
    done = run_program(*command, cwd=pipeline, env=clean_environment(), exit_code=1)
    assert "elsewhere.csv" in done.stderr
    step = done.stderr.split("next:")[1].partition(", and")[0]
    subprocess.run(step, shell=True, cwd=pipeline, check=True)
    read_from(pipeline, "own/elsewhere.csv")
    assert runs_fetch(pipeline)
    assert list(pipeline.rglob("__pycache__"))
    (pipeline / "own" / "README.md").write_text("as on another branch\n")
    assert not runs_fetch(pipeline)
    (pipeline / "elsewhere.csv").write_text("b\n")
    assert runs_fetch(pipeline)
    assert (pipeline / "data" / "raw" / "own.csv").read_text() == "b\n"


def test_users_file_is_shared_by_dvc(pipeline):
    """If the file is missing, the message of a skipped test names the command: `dvc add`, later `dvc pull`."""
    file, messages = pipeline / "own" / "plants.csv", []
    dvc(pipeline, "remote", "add", "--default", "team", "remote")
    for _ in range(2):
        messages.append(way_to("own/plants.csv", pipeline))
        if len(messages) == 1:
            file.write_text("a\n")
        dvc(pipeline, *re.findall("`dvc (.*)`", messages[-1])[0].split())
        assert file.read_text() == "a\n"
        dvc(pipeline, "push")
        file.unlink()
        shutil.rmtree(pipeline / ".dvc" / "cache")
    assert ["pull" in message for message in messages] == [False, True]


def test_script_that_creates_the_users_file_is_a_stage(pipeline):
    """Stage and script of own/README.md: hourly means of quarter hours, and changes, reach `fetch` in one run."""
    stamps = pd.date_range("2022-01-01", periods=8, freq="15min", tz="UTC", name="utc_timestamp")
    pd.DataFrame({"wind_GW": range(8)}, stamps).to_csv(pipeline / "own" / "quarters.csv")
    (pipeline / SCRIPT).write_text(CODE)
    content = yaml.safe_load((pipeline / "dvc.yaml").read_text())["stages"]
    added = {name: content.get(name, {}) | values for name, values in STAGES["stages"].items()}
    (pipeline / "dvc.yaml").write_text(yaml.safe_dump({"stages": content | added}))
    read_from(pipeline, STAGES["stages"]["prepare_own"]["outs"][0])
    assert way_to("own/plants.csv", pipeline) == "`dvc repro fetch` makes it"
    assert runs_fetch(pipeline)
    made = pipeline / "data" / "raw" / "own.csv"
    assert made.read_text() == "utc_timestamp,wind_GW\n2022-01-01T00:00:00Z,1.5\n2022-01-01T01:00:00Z,5.5\n"
    assert not runs_fetch(pipeline)
    (pipeline / SCRIPT).write_text(CODE.replace(".mean()", ".max()"))
    assert runs_fetch(pipeline)
    assert "T01:00:00Z,7" in made.read_text()
    with (pipeline / "own" / "quarters.csv").open("a") as quarters:
        quarters.write("2022-01-01 02:00:00+00:00,9\n")
    assert runs_fetch(pipeline)
    assert "T02:00:00Z,9" in made.read_text()


def test_scripts_are_committed_and_data_is_not():
    """Git tracks the scripts in own/ and ignores the data."""
    names = ["own/plants.py", "own/plants.ipynb", "own/plants.csv", "own/plants.parquet", "own/plants.xlsx"]
    done = run_program("git", "check-ignore", *names, cwd=PROJECT, env=clean_environment())
    assert done.stdout.split() == names[2:]
