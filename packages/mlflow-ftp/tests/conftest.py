"""Privileged tests are skipped where their powers are missing."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile

import pytest


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """What MLflow downloads without a target, and leaves, is below the folder that pytest removes."""
    tempfile.tempdir = str(tmp_path_factory.mktemp("downloads"))


@functools.cache
def missing_powers() -> str:
    """Return why mounts and network namespaces are not possible here, or nothing where they are."""
    tried = "unshare --mount --net sh -ec 'mount -t tmpfs tmpfs /tmp; ip link add type veth'"
    done = subprocess.run(tried, shell=True, capture_output=True, text=True, check=False)
    return f"needs root that may mount and make networks: {tried}: {done.stderr}" if done.returncode else ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip a privileged test where the powers are missing; fail it where CI promised that they are there."""
    if item.get_closest_marker("privileged") and (reason := missing_powers()):
        (pytest.fail if os.environ.get("WORKSHOP_REQUIRE_PRIVILEGED") else pytest.skip)(reason)
