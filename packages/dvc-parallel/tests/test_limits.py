"""Resource limits of parallel stages: `uses` in dvc.yaml, and `--limit`."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml
from dvc_parallel import ReproError, State, reproduce
from repositories import PACKAGE, concurrency, dvc, new_repository, program, read, timed


def using(**amounts: object) -> dict:
    """Return the `meta` of a stage that uses resources."""
    return {"meta": {"dvc-parallel": {"uses": amounts}}}


def test_limit_is_kept_while_other_stages_run(tmp_path):
    """Three stages with 0.1 fit into 0.3, a fourth waits; a mutex is a limit of 1; without limits all run."""
    stages = {f"a{i}": timed(f"a{i}", 2, **using(part=0.1)) for i in range(4)}
    stages |= {f"b{i}": timed(f"b{i}", 0.5, **using(db=1)) for i in range(3)} | {"free": timed("free", 2)}
    repo = new_repository(tmp_path / "place", stages)
    done = program(repo, "dvc-parallel", "repro", "-j", "8", "--limit", "part=0.3", "--limit", "db=1")
    assert done.returncode == 0, done.stderr
    assert concurrency(repo, "a0", "a1", "a2", "a3") == 3
    assert concurrency(repo, "b0", "b1", "b2") == 1
    assert concurrency(repo, *stages) >= 5
    assert dvc(repo, "repro").stdout.count("Running stage") == 0
    reproduce(folder=repo, jobs=8, force=True)
    assert concurrency(repo, "a0", "a1", "a2", "a3") == 4


def test_jobs_bound_stages_within_a_limit(tmp_path):
    """`-j` counts stages, whatever they use; in a `matrix` the amount may be an item."""
    stage = timed("n${item.n}", 1, **using(gpu="${item.gpu}"))
    repo = new_repository(tmp_path / "place", {"m": {"matrix": {"n": [0, 1, 2], "gpu": [1]}, **stage}})
    assert set(reproduce(folder=repo, jobs=2, limits={"gpu": 3}).values()) == {State.DONE}
    assert concurrency(repo, "n0", "n1", "n2") == 2
    with pytest.raises(ReproError, match=r"Stage m@\d-\d exceeds a limit"):
        reproduce(folder=repo, limits={"gpu": 0.5})


def test_stage_without_changes_waits_for_no_limit(tmp_path):
    """While one stage uses the whole limit, a stage that is up to date does not wait, and its dependents run."""
    stages = {"old": timed("old", 0, **using(gpu=1))}
    repo = new_repository(tmp_path / "place", stages)
    reproduce(folder=repo)
    (repo / "old.at").unlink()
    stages = {"long": timed("long", 3, **using(gpu=1)), "next": timed("next", 0, deps=["old.txt"])} | stages
    stages |= {"last": timed("last", 0, **using(gpu=1))}
    (repo / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    states = reproduce(folder=repo, jobs=4, limits={"gpu": 1})
    assert (states["old"], states["next"], states["last"]) == (State.UNCHANGED, State.DONE, State.DONE)
    assert concurrency(repo, "long", "next") == 2
    assert concurrency(repo, "long", "last") == 1


def test_failed_stage_releases_its_resources(tmp_path):
    """Other stages with the same resource run after it; its dependents do not."""
    bad = {"cmd": ["sleep 0.5", "false"], "outs": ["bad.txt"], **using(gpu=1)}
    stages = {"bad": bad, "good": timed("good", 0, **using(gpu=1)), "c": timed("c", 0, deps=["bad.txt"])}
    repo = new_repository(tmp_path / "place", stages)
    done = program(repo, "dvc-parallel", "repro", "--limit", "gpu=1", "--force")
    assert done.returncode == 1
    assert "1 of 3 stages failed: bad. These stages did not run because they depend on failed stages: c." in done.stderr
    assert (repo / "good.txt").exists()


@pytest.mark.parametrize(
    ("settings", "limit", "code", "words"),
    [
        ({"uses": {"gpu": 2}}, "gpu=1", 1, "Stage a exceeds a limit"),
        ({"uses": {"gpu": 1}}, "gpus=1", 1, "expected: gpu"),
        ({}, "gpu=1", 1, "expected: none"),
        ({"uses": {"gpu": 1}}, "gpu", 2, "not a number that is 0 or greater"),
        ({"uses": {"gpu": 1}}, "gpu=-1", 2, "not a number that is 0 or greater"),
        ({"uses": {"gpu": 1}}, "gpu=nan", 2, "not a number that is 0 or greater"),
        ({"uses": {"gpu": "8 GB"}}, "gpu=1", 1, "invalid dvc-parallel settings"),
        ({"uses": {"gpu": True}}, None, 1, "invalid dvc-parallel settings"),
        ({"uses": ["gpu"]}, None, 1, "invalid dvc-parallel settings"),
        ({"use": {"gpu": 1}}, None, 1, "invalid dvc-parallel settings"),
        ("gpu", None, 1, "invalid dvc-parallel settings"),
    ],
)
def test_invalid_limit_is_an_error_before_anything_runs(tmp_path, settings, limit, code, words):
    """The error says what is wrong."""
    stages = {"a": timed("a", 0, meta={"dvc-parallel": settings}), "b": timed("b", 0, meta="free text")}
    repo = new_repository(tmp_path / "place", stages)
    done = program(repo, "dvc-parallel", "repro", *(["--limit", limit] if limit else []))
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert not list(repo.glob("*.at"))


def test_experiment_of_the_readme_is_saved(tmp_path):
    """After `dvc-parallel repro`, `dvc exp save` saves the same experiment as `dvc exp run`."""
    stages = {"a": {"cmd": "cp params.yaml m.json", "params": ["x"], "metrics": [{"m.json": {"cache": False}}]}}
    repo = new_repository(tmp_path / "place", stages)
    (repo / "params.yaml").write_text("x: 1\n")
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run(["git", *names, *words], cwd=repo, check=True)
    (repo / "params.yaml").write_text("x: 2\n")
    text = read(PACKAGE / "README.md")
    (shell,) = re.findall(r"^```shell\n(dvc-parallel repro\ndvc exp save.*?)```$", text, re.MULTILINE | re.DOTALL)
    for line in shell.splitlines():
        done = program(repo, *line.split())
        assert done.returncode == 0, done.stderr
    assert "x: 2" in subprocess.run(
        ["git", "show", f"{dvc(repo, 'exp', 'list', '--sha-only').stdout.split()[-1]}:params.yaml"],
        cwd=repo, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_example_of_the_readme_runs(tmp_path):
    """The README's stages and command run; a limit below what a stage uses is an error."""
    blocks = re.findall(r"^```\w+\n(.*?)^```$", read(PACKAGE / "README.md"), re.MULTILINE | re.DOTALL)
    (stages,) = [text for text in blocks if "uses:" in text]
    (shell,) = [text for text in blocks if "--limit" in text]
    repo = new_repository(tmp_path / "place", stages)
    refused = program(repo, *shell.replace("memory_GB=32", "memory_GB=7").split())
    assert "exceeds a limit" in refused.stderr
    done = program(repo, *shell.split())
    assert (done.returncode, len(list(repo.glob("?.txt")))) == (0, 4), done.stderr
