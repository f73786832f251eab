"""The files that a stage declares, read from real DVC repositories while DVC runs the stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from papermill_dask import EngineError, git_state
from papermill_dask.client.stage import read_declaration
from papermill_dask.client.transfer import list_entries
from papermill_dask.tracking import TaskContext, git_variables
from programs import BIN, clean_environment, run_program

# A stage's command: write its outs, and report its declaration as the engine reads it.
PROBE = """
import json, os, sys
from pathlib import Path
from papermill_dask.client.stage import read_declaration
outs, executed = sys.argv[1].split(","), sys.argv[2:]
declaration = read_declaration(Path.cwd(), os.environ["DVC_STAGE"], client_outs=map(Path, executed))
report = {"cwd": str(Path.cwd()), "stage": os.environ["DVC_STAGE"], "deps": declaration.deps, "outs": declaration.outs,
          "links": list(map(str, declaration.links_to))}
Path(os.environ["REPORTS"], os.environ["DVC_STAGE"].replace("/", "_") + ".json").write_text(json.dumps(report))
for out in outs:
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if out.endswith("/") else path.write_text("made")
"""
RUN = f"{sys.executable} $PROBE"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A function that creates a git and DVC repository with these files in its folder ``stages``."""
    for name in [name for name in os.environ if name.startswith("DVC_")]:
        monkeypatch.delenv(name)
    root = tmp_path / "repository"

    def make(**files: str) -> Path:
        for name, text in files.items():
            file = root / "stages" / name.replace("__", "/").replace("_yaml", ".yaml")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        for command in (["git", "init", "--quiet"], [BIN / "dvc", "init", "--quiet"], ["git", "add", "--all"]):
            subprocess.run(command, cwd=root, check=True, env=environment(tmp_path))
        run(tmp_path, root, "git", "commit", "--quiet", "--message", "All")
        return root / "stages"

    (tmp_path / "reports").mkdir()
    (tmp_path / "probe.py").write_text(PROBE)
    return make


def environment(place: Path) -> dict[str, str]:
    """Return the environment of git, DVC and the stages."""
    person = {f"GIT_{role}_{what}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    home = {"HOME": str(place / "home"), "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(place / "site")}
    return clean_environment() | person | home | {"PROBE": str(place / "probe.py"), "REPORTS": str(place / "reports")}


def run(place: Path, folder: Path, *command) -> None:
    """Run a program; it must succeed."""
    run_program(*command, cwd=folder, env=environment(place), timeout=120)


def dvc(place: Path, folder: Path, *arguments) -> dict[str, dict]:
    """Run DVC and return the stages' reports, by stage."""
    run(place, folder, BIN / "dvc", *arguments)
    reports = [json.loads(file.read_text()) for file in (place / "reports").iterdir()]
    return {report["stage"]: report for report in reports}


def test_declaration_is_parsed_by_dvc(repository, tmp_path):
    """Templates, `vars`, `foreach`, `matrix`, all kinds of outs, and folders are supported while DVC runs."""
    folder = repository(
        config_yaml="kinds: [rf, gb]\nplace: results\n",
        params_yaml="seed: 1\ndepth: {low: 2, high: 4}\n",
        other_yaml="rate: 3\n",
        data__x="x",
        data__y="y",
        one="1",
        dvc_yaml=f"""
vars: [config.yaml]
stages:
  train:
    foreach: ${{kinds}}
    do:
      cmd: {RUN} ${{place}}/${{item}}.json,${{place}}/${{item}}.metric,${{place}}/${{item}}.plot,models/${{item}}/
      deps: [data, one]
      params: [seed, {{other.yaml: [rate]}}]
      outs: ["${{place}}/${{item}}.json", {{"models/${{item}}": {{cache: false}}}}]
      metrics: ["${{place}}/${{item}}.metric"]
      plots: [{{"${{place}}/${{item}}.plot": {{x: a}}}}]
  grow:
    matrix: {{depth: ["${{depth.low}}", "${{depth.high}}"]}}
    cmd: {RUN} trees/${{item.depth}}
    deps: [one]
    outs: ["trees/${{item.depth}}"]
""",
    )
    declaration = dvc(tmp_path, folder, "repro")
    assert set(declaration) == {"train@rf", "train@gb", "grow@2", "grow@4"}
    assert set(declaration["train@rf"]["deps"]) == {"dvc.yaml", "data", "one", "params.yaml", "other.yaml"}
    assert set(declaration["train@rf"]["outs"]) == {
        "results/rf.json",
        "results/rf.metric",
        "results/rf.plot",
        "models/rf",
    }
    assert set(declaration["grow@4"]["deps"]) == {"dvc.yaml", "one"}
    assert declaration["grow@4"]["outs"] == ["trees/4"]


def test_declaration_sends_existing_outs(repository, tmp_path):
    """An existing out with `persist` is also a dep; the executed notebook, written by the client, is no out."""
    folder = repository(
        one="1",
        dvc_yaml=f"""
stages:
  train:
    cmd: {RUN} log,result,executed/one.ipynb executed/one.ipynb
    deps: [one]
    outs: [result, executed/one.ipynb, {{log: {{persist: true}}}}]
""",
    )
    assert "log" not in dvc(tmp_path, folder, "repro")["train"]["deps"]
    (folder / "one").write_text("2")
    again = dvc(tmp_path, folder, "repro")["train"]
    assert set(again["deps"]) == {"dvc.yaml", "one", "log"}
    assert set(again["outs"]) == {"log", "result"}


def test_declaration_of_a_stage_in_another_folder(repository, tmp_path):
    """With DVC called from a parent folder, and a `wdir`, the stage is found by its working folder."""
    folder = repository(
        work__one="1",
        one="0",
        dvc_yaml=f"""
stages:
  work:
    wdir: work
    cmd: {RUN} made
    deps: [one]
    outs: [made]
""",
    )
    (declaration,) = dvc(tmp_path, folder.parent, "repro", "stages/dvc.yaml:work").values()
    assert Path(declaration["cwd"]) == folder / "work"
    assert (declaration["deps"], declaration["outs"]) == (["one"], ["made"])


def test_declaration_allows_links_into_dvcs_cache(repository, tmp_path):
    """With `cache.type symlink`, DVC's files are links into its cache, which are allowed."""
    folder = repository(
        dvc_yaml=f"""
stages:
  first: {{cmd: {RUN} a, outs: [a]}}
  second: {{cmd: {RUN} b, deps: [a], outs: [b]}}
"""
    )
    run(tmp_path, folder, BIN / "dvc", "config", "cache.type", "symlink")
    dvc(tmp_path, folder, "repro")
    assert (folder / "a").is_symlink()
    declaration = read_declaration(folder, "second")
    assert {entry.path: entry.size for entry in list_entries(folder, ["a"], links_to=declaration.links_to)} == {"a": 4}
    with pytest.raises(EngineError, match="cannot be transferred"):
        list_entries(folder, ["a"])


def test_declaration_errors_have_dvcs_reason(repository):
    """A missing stage, an invalid file, a template without value, a missing file: the error has DVC's reason."""
    folder = repository(dvc_yaml="stages: {run: {cmd: 'true'}}")
    for text in ["stages: {run: {cmd: 'true'}}", "stages: [", "stages: {absent: {cmd: '${no}'}}", None]:
        if text is None:
            (folder / "dvc.yaml").unlink()
        else:
            (folder / "dvc.yaml").write_text(text)
        with pytest.raises(EngineError, match="cannot read the stage `absent`") as caught:
            read_declaration(folder, "absent")
        assert caught.value.value


def test_declaration_excludes_urls_and_parameter_files_above(repository):
    """URLs are opened by the notebook itself; a parameter file above the folder is not sent."""
    folder = repository(
        **{"..__params_yaml": "x: 1\n"},
        dvc_yaml=json.dumps(
            {"stages": {"run": {"cmd": "true", "deps": ["https://localhost/x"], "params": [{"../params.yaml": ["x"]}]}}}
        ),
    )
    assert read_declaration(folder, "run").deps == ("dvc.yaml",)


def test_files_that_dvc_writes_are_no_changes(repository, monkeypatch):
    """A run of a notebook is tagged as dirty if a tracked file has changed, other than dvc.lock and outs in it."""
    lock = "schema: '2.0'\nstages:\n  a:\n    cmd: a\n    deps: [{path: a.py}]\n    outs: [{path: results/a.json}]\n"
    folder = repository(**{"dvc.lock": lock, "a.py": "", "results/a.json": "1"})
    monkeypatch.chdir(folder)
    for name, changes, is_dirty in (("results/a.json", [], "false"), ("a.py", ["stages/a.py"], "true")):
        Path(name).write_text("2")
        Path("dvc.lock").write_text(lock + "# changed")
        assert git_state()[1] == changes
        with monkeypatch.context() as kernel:
            for variable, value in git_variables().items():
                kernel.setenv(variable, value)
            assert TaskContext().tags()["mlflow.source.git.dirty"] == is_dirty
