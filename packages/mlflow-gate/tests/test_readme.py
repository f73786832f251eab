"""The wheel, in a new environment, prints what its README shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import requests
import yaml
from mlflow_gate import Scores
from mlflow_gate.rules import check, read_rules
from programs import free_port, install_alone, run_program, running, wait_for

PACKAGE = Path(__file__).parents[1]
TEXT = (PACKAGE / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def normalize(text: str) -> list[str]:
    """Return lines without what differs between machines: spaces, times, hashes, second decimals."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00", "TIME", text)
    text = re.sub(r"(\(p-value\): )[\d.]+", r"\1P", text)  # one more wrong image doubles it
    text = re.sub(r"(\d\.\d)\d+", r"\1", text)
    text = re.sub(r"\(rows \w{16}\)", "(rows HASH)", text)
    return [" ".join(line.split()) for line in text.splitlines()]


def assert_shows(expected: str, output: str) -> None:
    """Fail unless the output contains the lines of the README, in this order."""
    rest = iter(normalize(output))
    for line in normalize(expected):
        assert line in rest, f"{line!r} is not, or not in this place, in\n{output}"


@pytest.fixture
def programs(tmp_path) -> Path:
    """Install the wheel and only what the README names, with the tested MLflow; return the folder `bin`."""
    pins = [f"{name}=={version(name)}" for name in ("mlflow", "sqlalchemy")]  # MLflow has no upper bound for SQLAlchemy
    return install_alone(PACKAGE, tmp_path, *pins, "scikit-learn", "pandas", "flask", extra="[paired-test]")


@pytest.mark.timeout(600)
def test_examples_print_what_the_readme_shows(tmp_path, programs):
    """The example files run unchanged, then the commands, the service and the settings."""
    files = {name: code for _, code in BLOCKS for name in re.findall(r"\A# (\w+\.py)\n", code)}
    assert list(files) == ["gate.py", "candidates.py", "serve.py"]
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["LOGNAME"] = "ada"

    def run(program: str, *words: str) -> str:
        return run_program(programs / program, *words, cwd=tmp_path, env=environment)

    expected = [text for kind, text in BLOCKS if kind == "text"]
    for name, text in zip(("gate.py", "candidates.py"), expected, strict=True):
        assert_shows(text, run("python", name))
    for text in [text for kind, text in BLOCKS if kind == "console"]:
        command, _, lines = text.partition("\n")
        assert_shows(lines, run(*command.removeprefix("$ ").split()))
    (tmp_path / "pyproject.toml").write_text(next(text for kind, text in BLOCKS if kind == "toml"))
    assert "digits version 1 is in production" in run("mlflow-gate", "status")

    port = str(free_port())
    address, service = f"http://127.0.0.1:{port}", [programs / "flask", "--app", "serve", "run", "--port", port]
    with running(service, tmp_path, f"{address}/health", environment):

        def health() -> dict:
            return requests.get(f"{address}/health", timeout=5).json()

        wait_for(lambda: health() == {"model": "digits version 1", "problem": None}, seconds=60)
        rows = pd.DataFrame(0.0, index=range(2), columns=[f"pixel_{y}_{x}" for y in range(8) for x in range(8)])
        answer = requests.post(f"{address}/predict", json=rows.to_dict("records"), timeout=30).json()
        assert (len(answer["digits"]), answer["model"]) == (2, "digits version 1")
        run("mlflow-gate", "rollback", "--to", "2")
        wait_for(lambda: health() == {"model": "digits version 2", "problem": None}, seconds=60)


def test_rules_of_the_readme_are_valid():
    """The rules in YAML and the function are valid, with the results that the README describes."""
    functions: dict = {}
    exec(next(code for kind, code in BLOCKS if kind == "python" and "def worst_block" in code), functions)
    rules = yaml.safe_load(next(text for kind, text in BLOCKS if kind == "yaml"))
    rules = read_rules(rules | {"worst block": functions["worst_block"]})
    scores = Scores({"accuracy": 0.9, "bias_percent": -6, "latency_ms": 20}, blocks={"1": 0.5})
    assert [(rule.passed, rule.next_step) for rule in check(rules, scores)] == [
        (True, ""), (False, "predicts too little"), (True, ""), (False, "Look at the images of the worst block."),
    ]  # fmt: skip


def test_import_is_lazy():
    """`import mlflow_gate` imports neither MLflow nor SciPy; each public name is imported on first use."""
    program = (
        "import sys, mlflow_gate; print({'mlflow', 'pandas', 'scipy'} & set(sys.modules)); "
        "print(all(hasattr(mlflow_gate, name) for name in mlflow_gate.__all__), hasattr(mlflow_gate, 'Unknown'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nTrue False\n"
