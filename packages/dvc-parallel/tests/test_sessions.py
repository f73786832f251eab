"""Sessions: what the package of a console script starts before the script's first command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from dvc_parallel.imports import shared_imports
from programs import wait_for
from repositories import ENVIRONMENT, RUN, new_repository, read

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are forked on Linux alone")
PLUGIN = """
import contextlib, json, os, runpy, sys, time
def main():
    open(sys.argv[1], "w").write(os.environ.get("SESSION", "none"))
    time.sleep(float(sys.argv[3]))
    return int(sys.argv[2])
@contextlib.contextmanager
def session(commands, imports, *, jobs, folder):
    with open("session", "a") as log:
        print(json.dumps([commands, imports(), jobs, folder.is_dir()]), file=log, flush=True)
        try:
            yield {"SESSION": "entered"}
        finally:
            print("closed", file=log)
"""
ENTRIES = "[console_scripts]\nwrite = writing:main\n[dvc_parallel.session]\nwrite = writing:session\n"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of an environment with the console script `write FILE EXIT_CODE SECONDS`, which has a session."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "all.pth").write_text("\n".join(path for path in sys.path if path.endswith(("site-packages", "src"))))
    (site / "writing.py").write_text(PLUGIN)
    (site / "writing-1.dist-info").mkdir()
    (site / "writing-1.dist-info" / "METADATA").write_text("Name: writing\nVersion: 1\n")
    (site / "writing-1.dist-info" / "entry_points.txt").write_text(ENTRIES)
    script = folder / "bin" / "write"
    script.write_text(f"#!{script.with_name('python')}\nimport sys\nfrom writing import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return script.with_name("python")


def start(python: Path, repository: Path) -> subprocess.Popen:
    """Start a run with two jobs."""
    environment = ENVIRONMENT | {"PATH": f"{python.parent}:{ENVIRONMENT['PATH']}"}
    return subprocess.Popen([python, "-c", RUN, "2"], cwd=repository, env=environment, stderr=subprocess.PIPE)


@pytest.mark.parametrize(("code", "signal_number"), [(0, 0), (3, 0), (0, signal.SIGINT), (0, signal.SIGTERM)])
def test_session_lasts_until_the_run_ends(python, tmp_path, code, signal_number):
    """The session is entered once, for the commands that may run, and closed after success, failure and signals."""
    seconds = 60 if signal_number else 0
    stages = {
        "one": {"cmd": f"write one.txt 0 {seconds}", "outs": ["one.txt"]},
        "two": {"cmd": f"write two.txt {code} 0", "outs": ["two.txt"], "deps": ["one.txt"]},
        "shell": {"cmd": "env > shell.txt", "outs": ["shell.txt"]},
    }
    repository = new_repository(tmp_path / "repository", stages)
    with start(python, repository) as run:
        if signal_number:
            wait_for(lambda: read(repository / "one.txt"))
            run.send_signal(signal_number)
        text = run.communicate(timeout=120)[1].decode()
    assert run.returncode == (128 + signal_number if signal_number else int(code > 0)), text
    first, *rest = read(repository / "session").splitlines()
    assert json.loads(first) == [[stages["one"]["cmd"], stages["two"]["cmd"]], [], 2, True]
    assert rest == ["closed"]
    assert read(repository / "one.txt") in ("entered", "")
    assert "SESSION" not in read(repository / "shell.txt")


def test_session_is_not_entered_without_its_commands(python, tmp_path):
    """Nothing is entered if no stage with the script is outdated; the session gets only the outdated ones."""
    stages = {name: {"cmd": f"write {name}.txt 0 0", "outs": [f"{name}.txt"], "deps": ["in"]} for name in ("a", "b")}
    stages["b"]["deps"] = ["other"]
    repository = new_repository(tmp_path / "repository", stages | {"c": {"cmd": "true", "deps": ["other"]}})
    for name in ("in", "other"):
        (repository / name).write_text("1")
    for changed, count in ((None, 1), (None, 1), ("other", 2)):
        if changed:
            (repository / changed).write_text("2")
        with start(python, repository) as run:
            assert run.wait(120) == 0
        entered = [json.loads(line)[0] for line in read(repository / "session").splitlines() if line != "closed"]
        assert len(entered) == count
    assert entered[-1] == [stages["b"]["cmd"]]


def test_shared_imports_are_installed_modules(tmp_path, monkeypatch):
    """Modules imported by two commands, also through a local module or as an attribute, but not local ones."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "one.py": "import click, local, json, nothing\nfrom dvc import repo\nclick.core.Context",
        "two.py": "def main():\n    import click, yaml\n    click.core\nimport local",
        "local.py": "from dvc.stage import cache, Stage",
        "broken.py": "import (",
    }.items():
        (tmp_path / name).write_text(text)
    lines = [(f"python {name}.py", os.fspath(tmp_path)) for name in ("one", "two", "broken", "missing")]
    assert set(shared_imports(lines)) == {"click", "click.core", "dvc.stage", "dvc.stage.cache"}
