"""The choice of ports: one clone of the machine at a time, of this user or another."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from workplace import ROOT, free_port

from workshop.servers import services
from workshop.settings import get_settings

HOLD = """
import os, sys
from workshop.servers import services
from workshop.settings import get_settings
settings = get_settings()
if len(sys.argv) > 1:
    os.setgroups([]), os.setgid(int(sys.argv[1])), os.setuid(int(sys.argv[1]))
with services.choosing_ports(settings, lambda line: print(line, flush=True)):
    print("chooses", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("user", ["", pytest.param("65534", marks=pytest.mark.privileged)], ids=["own", "other"])
def test_clones_choose_one_after_the_other(user, monkeypatch):
    """While another clone looks for ports, of this user or of another, this one waits; then it is its turn."""
    monkeypatch.setenv("WORKSHOP_PORT_LOCK", str(free_port()))  # tests beside this one have their own turn
    settings, reported = get_settings(), []
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, *filter(None, [user])],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "chooses\n"
        threading.Timer(1, lambda: (other.stdin.write("\n"), other.stdin.flush())).start()
        with services.choosing_ports(settings, reported.append):
            assert other.wait(timeout=60) == 0
    assert reported == ["waiting for another clone, which is choosing its ports"]


def test_clone_that_hangs_is_passed_by(monkeypatch):
    """After a while the other clones wait no longer."""
    monkeypatch.setattr(services, "WAIT_SECONDS", 0.5)
    monkeypatch.setenv("WORKSHOP_PORT_LOCK", str(free_port()))
    settings, reported = get_settings(), []
    with services.choosing_ports(settings, lambda _: None), services.choosing_ports(settings, reported.append):
        assert len(reported) == 1
