"""A pytest session in this repository: skipped tests, and processes left by an interrupt."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from places import START_SECONDS
from workplace import ROOT, by_night, missing_powers, processes_of, run_program, wait_for

# One file from each folder with privileged tests.
PRIVILEGED = {
    ".": "tests/test_standalone.py",
    "packages/dvc-parallel": "tests/test_recovery.py",
    "packages/mlflow-ftp": "tests/test_server.py",
    "packages/papermill-dask": "tests/test_faults.py",
    "examples/digits_search": "tests/test_digits_search.py",
    "examples/posts_over_ssh": "tests/test_posts_over_ssh.py",
}

# Two sessions in one process, to import once: CI guarantees all but the privileges, then the privileges too.
SESSIONS = """
import os, sys, pytest
for name in ("WORKSHOP_REQUIRE_ALL", "WORKSHOP_REQUIRE_PRIVILEGED"):
    os.environ[name] = "1"
    words = ["-n0", "-q", "-m", "privileged and not soak", "-p", "no:cacheprovider", sys.argv[1]]
    print("exit code", int(pytest.main(words)))
"""

# Two groups of tests, each with a server that outlives its parent process.
SERVER = """
import os, subprocess, sys, time
from pathlib import Path

def test_server():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path(os.environ["STARTED"] + os.environ["PYTEST_XDIST_WORKER"]).touch()
    time.sleep(600)
"""


def session_environment(**variables: str) -> dict[str, str]:
    """Return an environment for a separate pytest session."""
    foreign = ("PYTEST_", "TEST_", "WORKSHOP_REQUIRE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | variables


@pytest.mark.parametrize("folder", [".", *by_night(*sorted(PRIVILEGED.keys() - {"."}))])
def test_privileged_tests_are_skipped_or_fail_without_privileges(folder):
    """Without privileges tests are skipped with the reason; if CI guarantees the privileges, they fail."""
    drop = [] if missing_powers() else ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    command = [*drop, sys.executable, "-c", SESSIONS, PRIVILEGED[folder]]
    done = run_program(*command, cwd=ROOT / folder, env=session_environment())
    sessions = re.findall(r"(.+?)^exit code (\d)$", done.stdout, re.DOTALL | re.MULTILINE)
    assert [code for _, code in sessions] == ["0", "1"], done.stdout
    for (text, _), outcome in zip(sessions, ("skipped", "error"), strict=True):
        assert "unshare" in text
        assert outcome in text.splitlines()[-1]
        assert "passed" not in text.splitlines()[-1]


@pytest.mark.walk
@pytest.mark.parametrize("number", [signal.SIGKILL, *by_night(signal.SIGINT, signal.SIGTERM)])
def test_processes_end_with_an_interrupted_session(tmp_path, number):
    """A signal to pytest alone ends its workers and the servers that tests started."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("conftest.py", "leftovers.py", "programs.py", "workplace.py"):
        (tmp_path / "tests").mkdir(exist_ok=True)
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    for name in ("first", "second"):
        (tmp_path / "tests" / f"test_{name}.py").write_text(SERVER)
    folders = (ROOT, ROOT / "4_pipeline", *(ROOT / "4_pipeline" / name for name in ("tests", "tests/template")))
    path = os.pathsep.join(map(str, folders))
    environment = session_environment(STARTED=str(tmp_path / "started"), PYTHONPATH=path)
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-n2"], cwd=tmp_path, env=environment,
        # These tests may be a background job, which ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as controller:  # fmt: skip
        try:
            wait_for(lambda: len(list(tmp_path.glob("started*"))) == 2, START_SECONDS)
            assert len(processes_of(tmp_path)) >= 5  # the controller, two workers, two servers
            controller.send_signal(number)
            controller.wait(START_SECONDS)  # pytest-xdist waits up to 30 s for its workers
        finally:
            controller.kill()
    wait_for(lambda: not processes_of(tmp_path), 60)
