"""The README's programs and commands print what the README shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import requests
import yaml
from mlflow_gate import Scores
from mlflow_gate.rules import judge, read_rules

from servers import free_port, wait_for

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
BIN = Path(sys.executable).parent


def salient(text: str) -> list[str]:
    """Return lines without what differs from one machine to another: spaces, times, and the third decimal."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00", "TIME", text)
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", text)
    return [" ".join(line.split()) for line in text.splitlines()]


def assert_shows(shown: str, printed: str) -> None:
    """Fail unless the lines that the README shows are printed, in this order."""
    rest = iter(salient(printed))
    for line in salient(shown):
        assert line in rest, f"{line!r} is not, or not in this place, in\n{printed}"


def test_story_prints_what_the_readme_shows(tmp_path):
    """The example runs as it stands, and then the commands, the service and the settings."""
    programs = {name: code for _, code in BLOCKS for name in re.findall(r"\A# (\w+\.py)\n", code)}
    assert list(programs) == ["judge.py", "candidates.py", "serve.py"]
    assert max(len(code.splitlines()) for name, code in programs.items() if name == "serve.py") <= 25
    for name, code in programs.items():
        (tmp_path / name).write_text(code)
    environment = os.environ | {"LOGNAME": "ada", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    shown = [text for kind, text in BLOCKS if kind == "text"]
    for name, text in zip(("judge.py", "candidates.py"), shown, strict=True):
        assert_shows(text, run(sys.executable, name))
    for text in [text for kind, text in BLOCKS if kind == "console"]:
        command, _, lines = text.partition("\n")
        assert_shows(lines, run(*command.removeprefix("$ ").split()))
    (tmp_path / "pyproject.toml").write_text(next(text for kind, text in BLOCKS if kind == "toml"))
    assert "digits version 1 is in production" in run("mlflow-gate", "status")

    port = str(free_port())
    service = subprocess.Popen(["flask", "--app", "serve", "run", "--port", port], cwd=tmp_path, env=environment)
    try:
        address = f"http://127.0.0.1:{port}"

        def health() -> dict:
            try:
                return requests.get(f"{address}/health", timeout=5).json()
            except requests.ConnectionError:
                return {}

        wait_for(lambda: health() == {"model": "digits version 1", "trouble": None}, seconds=60)
        rows = pd.DataFrame(0.0, index=range(2), columns=[f"pixel_{y}_{x}" for y in range(8) for x in range(8)])
        answer = requests.post(f"{address}/predict", json=rows.to_dict("records"), timeout=30).json()
        assert (len(answer["digits"]), answer["model"]) == (2, "digits version 1")
        run("mlflow-gate", "rollback", "--to", "2")
        wait_for(lambda: health() == {"model": "digits version 2", "trouble": None}, seconds=60)
    finally:
        service.kill()
        service.wait()


def test_rules_of_the_readme_are_read():
    """The rules in YAML and the function are rules."""
    functions: dict = {}
    exec(next(code for kind, code in BLOCKS if kind == "python" and "def worst_block" in code), functions)
    rules = yaml.safe_load(next(text for kind, text in BLOCKS if kind == "yaml"))
    rules = read_rules(rules | {"worst block": functions["worst_block"]})
    scores = Scores({"accuracy": 0.9, "bias_percent": -6, "latency_ms": 20}, blocks={"1": 0.5})
    assert [(rule.passed, rule.next_step) for rule in judge(rules, scores)] == [
        (True, ""), (False, "predicts too little"), (True, ""), (False, "Look at the images of the worst block."),
    ]  # fmt: skip
