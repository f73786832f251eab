"""A session of pytest in this repository: what it runs on which machine, and what it leaves."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from workplace import ROOT, missing_powers

# From each place that has privileged tests a file with some.
PRIVILEGED = {
    ".": "tests/servers/test_services.py",
    "packages/dvc-parallel": "tests/test_recovery.py",
    "packages/mlflow-ftp": "tests/test_server.py",
    "packages/papermill-dask": "tests/test_faults.py",
    "examples/digits_search": "tests/test_digits_search.py",
    "examples/posts_over_ssh": "tests/test_posts_over_ssh.py",
}


def session_environment(**variables: str) -> dict[str, str]:
    """Return an environment in which pytest begins a session of its own."""
    foreign = ("PYTEST_", "TEST_", "WORKSHOP_REQUIRE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | variables


@pytest.mark.parametrize("folder", PRIVILEGED)
def test_privileged_tests_are_skipped_or_fail_without_the_powers(folder):
    """Root of an unprivileged container, or a person: skipped with the reason; where CI promised the powers, failed."""
    drop = [] if missing_powers() else ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    options = ["-n0", "-q", "-m", "privileged and not soak", "-p", "no:cacheprovider"]
    for variables, outcome in (
        ({"WORKSHOP_REQUIRE_ALL": "1"}, "skipped"),
        ({"WORKSHOP_REQUIRE_PRIVILEGED": "1"}, "error"),
    ):
        done = subprocess.run(
            [*drop, sys.executable, "-m", "pytest", *options, PRIVILEGED[folder]],
            cwd=ROOT / folder, env=session_environment(**variables), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == (outcome == "error"), done.stdout
        assert "unshare" in done.stdout
        result = done.stdout.splitlines()[-1]
        assert outcome in result
        assert "passed" not in result
