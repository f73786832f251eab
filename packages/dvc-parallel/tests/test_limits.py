"""Limits of what stages that run in parallel use together: `uses` in dvc.yaml, and `--limit`."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml
from dvc_parallel import ReproError, State, reproduce
from repositories import PACKAGE, dvc, new_repository, program, read, stamped, together


def using(**amounts: object) -> dict:
    """Return the `meta` of a stage that uses something."""
    return {"meta": {"dvc-parallel": {"uses": amounts}}}


def test_limit_is_kept_while_other_stages_run(tmp_path):
    """Three stages with 0.1 fit into 0.3, a fourth waits; a mutex is a limit of 1; without a limit all run at once."""
    stages = {f"a{i}": stamped(f"a{i}", 2, **using(part=0.1)) for i in range(4)}
    stages |= {f"b{i}": stamped(f"b{i}", 0.5, **using(db=1)) for i in range(3)} | {"free": stamped("free", 2)}
    place = new_repository(tmp_path / "place", stages)
    done = program(place, "dvc-parallel", "repro", "-j", "8", "--limit", "part=0.3", "--limit", "db=1")
    assert done.returncode == 0, done.stderr
    assert together(place, "a0", "a1", "a2", "a3") == 3
    assert together(place, "b0", "b1", "b2") == 1
    assert together(place, *stages) >= 5
    assert dvc(place, "repro").stdout.count("Running stage") == 0
    reproduce(folder=place, jobs=8, force=True)
    assert together(place, "a0", "a1", "a2", "a3") == 4


def test_jobs_bound_stages_within_a_limit(tmp_path):
    """`-j` counts stages, whatever they use; a `matrix` may use what its items say."""
    stage = stamped("n${item.n}", 1, **using(gpu="${item.gpu}"))
    place = new_repository(tmp_path / "place", {"m": {"matrix": {"n": [0, 1, 2], "gpu": [1]}, **stage}})
    assert set(reproduce(folder=place, jobs=2, limits={"gpu": 3}).values()) == {State.DONE}
    assert together(place, "n0", "n1", "n2") == 2
    with pytest.raises(ReproError, match=r"Stage m@\d-\d exceeds a limit"):
        reproduce(folder=place, limits={"gpu": 0.5})


def test_stage_without_changes_waits_for_no_limit(tmp_path):
    """While a stage holds the whole limit, one that is up to date is seen as such, and what needs it runs."""
    stages = {"old": stamped("old", 0, **using(gpu=1))}
    place = new_repository(tmp_path / "place", stages)
    reproduce(folder=place)
    (place / "old.at").unlink()
    stages = {"long": stamped("long", 3, **using(gpu=1)), "next": stamped("next", 0, deps=["old.txt"])} | stages
    stages |= {"last": stamped("last", 0, **using(gpu=1))}
    (place / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    states = reproduce(folder=place, jobs=4, limits={"gpu": 1})
    assert (states["old"], states["next"], states["last"]) == (State.UNCHANGED, State.DONE, State.DONE)
    assert together(place, "long", "next") == 2
    assert together(place, "long", "last") == 1


def test_failed_stage_gives_back_what_it_used(tmp_path):
    """Other stages that use the same run after it, and what needs it does not."""
    bad = {"cmd": ["sleep 0.5", "false"], "outs": ["bad.txt"], **using(gpu=1)}
    stages = {"bad": bad, "good": stamped("good", 0, **using(gpu=1)), "c": stamped("c", 0, deps=["bad.txt"])}
    place = new_repository(tmp_path / "place", stages)
    done = program(place, "dvc-parallel", "repro", "--limit", "gpu=1", "--force")
    assert done.returncode == 1
    assert "1 of 3 stages failed: bad. Not run, because they depend on failed stages: c." in done.stderr
    assert (place / "good.txt").exists()


@pytest.mark.parametrize(
    ("settings", "limit", "code", "words"),
    [
        ({"uses": {"gpu": 2}}, "gpu=1", 1, "Stage a exceeds a limit"),
        ({"uses": {"gpu": 1}}, "gpus=1", 1, "expected: gpu"),
        ({}, "gpu=1", 1, "expected: none"),
        ({"uses": {"gpu": 1}}, "gpu", 2, "not a number of 0 or more"),
        ({"uses": {"gpu": 1}}, "gpu=-1", 2, "not a number of 0 or more"),
        ({"uses": {"gpu": 1}}, "gpu=nan", 2, "not a number of 0 or more"),
        ({"uses": {"gpu": "8 GB"}}, "gpu=1", 1, "invalid settings"),
        ({"uses": {"gpu": True}}, None, 1, "invalid settings"),
        ({"uses": ["gpu"]}, None, 1, "invalid settings"),
        ({"use": {"gpu": 1}}, None, 1, "invalid settings"),
        ("gpu", None, 1, "invalid settings"),
    ],
)
def test_wrong_limit_is_refused_before_anything_runs(tmp_path, settings, limit, code, words):
    """The error says what is wrong, in words."""
    stages = {"a": stamped("a", 0, meta={"dvc-parallel": settings}), "b": stamped("b", 0, meta="free text")}
    place = new_repository(tmp_path / "place", stages)
    done = program(place, "dvc-parallel", "repro", *(["--limit", limit] if limit else []))
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert not list(place.glob("*.at"))


def test_experiment_of_the_readme_is_saved(tmp_path):
    """After `dvc-parallel repro`, `dvc exp save` keeps what `dvc exp run` would have kept."""
    stages = {"a": {"cmd": "cp params.yaml m.json", "params": ["x"], "metrics": [{"m.json": {"cache": False}}]}}
    place = new_repository(tmp_path / "place", stages)
    (place / "params.yaml").write_text("x: 1\n")
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run(["git", *names, *words], cwd=place, check=True)
    (place / "params.yaml").write_text("x: 2\n")
    text = read(PACKAGE / "README.md")
    (shell,) = re.findall(r"^```shell\n(dvc-parallel repro\ndvc exp save.*?)```$", text, re.MULTILINE | re.DOTALL)
    for line in shell.splitlines():
        done = program(place, *line.split())
        assert done.returncode == 0, done.stderr
    assert "x: 2" in subprocess.run(
        ["git", "show", f"{dvc(place, 'exp', 'list', '--sha-only').stdout.split()[-1]}:params.yaml"],
        cwd=place, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_example_of_the_readme_runs(tmp_path):
    """The stages and the command of the README: with a limit below what a stage uses, the command refuses them."""
    blocks = re.findall(r"^```\w+\n(.*?)^```$", read(PACKAGE / "README.md"), re.MULTILINE | re.DOTALL)
    (stages,) = [text for text in blocks if "uses:" in text]
    (shell,) = [text for text in blocks if "--limit" in text]
    place = new_repository(tmp_path / "place", stages)
    refused = program(place, *shell.replace("memory_GB=32", "memory_GB=7").split())
    assert "exceeds a limit" in refused.stderr
    done = program(place, *shell.split())
    assert (done.returncode, len(list(place.glob("?.txt")))) == (0, 4), done.stderr
