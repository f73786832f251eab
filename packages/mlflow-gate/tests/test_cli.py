"""The command line, as a user types it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from mlflow_gate.cli import main
from mlflow_gate.keys import Keys, hash_rows
from models import HELD_OUT, make_gate, train

MODULE = """
import models
gate = models.make_gate("{name}", candidate="candidate.json", decision="decision.json")
wrong = 3
def broken(): return models.make_gate("{name}", rules={{"r2": {{}}}})
"""
SETTINGS = '[tool.mlflow-gate]\ngate = "gate:gate"\n'


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, name):
    """Return a function that runs a command in a folder with settings and checks its exit code."""
    Path(tmp_path / "gate.py").write_text(MODULE.format(name=name))
    Path(tmp_path / "pyproject.toml").write_text(SETTINGS)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, code: int = 0):
        monkeypatch.delitem(sys.modules, "gate", raising=False)
        with pytest.raises(SystemExit) as error:
            main(arguments)
        output = capsys.readouterr()
        assert (error.value.code or 0) == code, output
        return output

    return call


def test_commands_from_promotion_to_rollback(run, name):
    """Each command does what its help says; a refused candidate is exit code 3."""
    gate, runs = make_gate(name), [train(1.0), train(0.5), train(2.0)]
    assert f"No version of {name} was ever in production. Next: mlflow-gate promote" in run("history").out
    output = run("promote", runs[0], "--dry-run").out
    assert "dry run, nothing changed; promoted: all rules passed" in output
    assert gate.registry.production() is None
    Path("candidate.json").write_text(json.dumps({"run_id": runs[0]}))
    run("promote", "--why", "the first")
    assert "mae 0.5000 beats the champion's 1.0000" in run("promote", runs[1]).out
    refused = run("promote", runs[2], code=3)
    assert "failed" in refused.out
    assert "next: mae gained over the model in production: worse" in refused.out
    assert "evaluating the candidate" in refused.err
    assert "requires a reason" in run("promote", runs[2], "--force", code=1).err
    assert "forced; the gate's decision" in run("promote", runs[2], "--force", "--why", "a test").out
    assert "in production again: rolled back from version 3 to version 2" in run("rollback", "--why", "worse").out
    assert "was never in production" in run("rollback", name, "--to", "9", code=1).err
    lines = run("history", name).out.splitlines()
    assert len(lines) == 5
    assert f"0.5000 (rows {hash_rows(HELD_OUT, Keys.of(HELD_OUT))})" in lines[-1]
    moves = json.loads(run("history", "--json").out)
    assert [move["action"] for move in moves] == ["promoted", "promoted", "forced", "rolled back"]
    assert [move["why"] for move in moves] == ["the first", "", "a test", "worse"]
    assert "version 2 is in production" in run("status").out
    assert run("lineage").out.splitlines()[0].startswith("data")
    assert json.loads(run("lineage", f"{name}/2", "--json").out)[-3]["name"] == f"{name} version 2"
    gate.registry.client.delete_registered_model_alias(name, "production")
    assert "the alias was removed. Next: mlflow-gate rollback" in run("history").err


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help_of_each_command_has_an_example(run, command):
    """The help of each command has an example; `-h` is short for `--help`."""
    assert f"Example:  mlflow-gate {command}" in run(command, "-h").out
    assert command in run("--help").out


def test_settings_are_found_in_parent_folders(run, name, monkeypatch):
    """A command in a subfolder uses the settings of its parent; options of the command line take precedence."""
    Path("deep/er").mkdir(parents=True)
    monkeypatch.chdir("deep/er")
    assert f"{name}: no version is in production" in run("status").out
    assert "other: no version is in production" in run("status", "other").out
    assert f"{name}: no version" in run("status", "--gate", "gate:gate").out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("", "No registered model is specified."),
        ("[tool.mlflow-gate\n", "pyproject.toml cannot be read"),
        (SETTINGS.replace("gate:", "gate_x:"), "No module named 'gate_x'"),
        (SETTINGS.replace(":gate", ":wrong"), "gate:wrong is not a gate"),
        (SETTINGS.replace("\ngate", "\nregistry"), "has invalid settings"),
        (SETTINGS.replace(":gate", ":broken"), "set min, max or both"),
        (SETTINGS.replace('"gate:gate"', "3"), "has invalid settings"),
    ],
)
def test_invalid_settings_are_explained(run, settings, words):
    """A mistake in the settings is an error that names the file or the object."""
    Path("pyproject.toml").write_text(settings)
    assert words in run("status", code=1).err


@pytest.mark.parametrize("content", [None, "{", "[]", '{"run": 1}'])
def test_invalid_candidate_file_is_explained(run, content):
    """A file that is missing or has no run id is an error with what is expected."""
    if content is not None:
        Path("candidate.json").write_text(content)
    assert "a run id of 32 characters, or a JSON file with run_id" in run("promote", code=1).err
    assert "The run does not exist" in run("promote", "0" * 32, code=1).err


def test_exit_codes_of_misuse_and_a_server_that_is_down(run, monkeypatch):
    """An unknown option is exit code 2; a server that is down is exit code 1, with a next step and no password."""
    assert "No such option" in run("history", "--unknown", code=2).err
    Path("pyproject.toml").unlink()
    assert "No gate is specified" in run("promote", "1", code=1).err
    assert "CANDIDATE is missing" in run("promote", "--gate", "models:make_gate", code=2).err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    message = run("history", "models", code=1).err
    assert "set MLFLOW_TRACKING_URI" in message
    assert "secret" not in message
