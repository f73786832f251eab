"""The choice of ports: one clone of the machine at a time, of this user or another."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from workplace import ROOT, required

from workshop.servers import services

HOLD = """
import os, sys
from workshop.servers import services
if len(sys.argv) > 1:
    os.setgroups([]), os.setgid(int(sys.argv[1])), os.setuid(int(sys.argv[1]))
with services.only_one_chooses(lambda line: print(line, flush=True)):
    print("chooses", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("user", ["", "65534"], ids=["own", "other"])
def test_clones_choose_one_after_the_other(user):
    """While another clone looks for ports, of this user or of another, this one waits; then it is its turn."""
    if user:
        required("root, to be another user", os.geteuid() == 0 and sys.platform == "linux")
    reported = []
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, *filter(None, [user])],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        lines = iter(other.stdout.readline, "chooses\n")
        assert set(lines) <= {"waiting for another clone, which is choosing its ports\n"}  # a test beside this one
        threading.Timer(1, lambda: (other.stdin.write("\n"), other.stdin.flush())).start()
        with services.only_one_chooses(reported.append):
            assert other.wait(timeout=60) == 0
    assert reported == ["waiting for another clone, which is choosing its ports"]


def test_clone_that_hangs_is_passed_by(monkeypatch):
    """After a while the other clones wait no longer."""
    monkeypatch.setattr(services, "WAIT_SECONDS", 0.5)
    reported = []
    with services.only_one_chooses(lambda _: None), services.only_one_chooses(reported.append):
        assert len(reported) == 1
