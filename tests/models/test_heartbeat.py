"""Runs whose owner dies, hangs, sleeps or computes: on a real tracking server, with real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest
from mlflow import MlflowClient

from workshop.models import heartbeat
from workshop.models.heartbeat import BEAT_TAG, ENDED_TAG, Reaper, Runs

OWNER = """
import sys, time
from workshop.models import tracking
with tracking.start_run("owner") as run:
    print(run.info.run_id, flush=True)
    {body}
"""


@pytest.fixture
def owner(servers):
    """Start programs that own a run; return each with the id of its run and a client."""
    client, started = MlflowClient(servers.tracking_uri), []

    def start(body: str = "time.sleep(600)") -> tuple[subprocess.Popen, str, MlflowClient]:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER.format(body=body)],
            env=servers.environment, cwd=servers.pipeline, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        run_id = process.stdout.readline().strip()
        wait_for(lambda: BEAT_TAG in client.get_run(run_id).data.tags)
        return process, run_id, client

    yield start
    for process in started:
        with process:
            process.kill()


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for a condition; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def hearts_of(process: subprocess.Popen) -> list[psutil.Process]:
    """Return the hearts that beat beside a process."""
    found = []
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.Error):  # it ends just now
            if "heartbeat" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_run_of_an_owner_that_dies_is_ended(owner, number):
    """However it dies, the run is FAILED within seconds, says why, and no heart is left."""
    process, run_id, client = owner()
    hearts = hearts_of(process)
    process.send_signal(number)
    process.wait()
    wait_for(lambda: client.get_run(run_id).info.status == "FAILED")
    assert client.get_run(run_id).data.tags[ENDED_TAG] == heartbeat.OWNER_DIED
    _, alive = psutil.wait_procs(hearts, timeout=10)
    assert not alive


def test_run_that_ends_well_is_finished(owner):
    """Its heart ends with it, and changes nothing."""
    process, run_id, client = owner("time.sleep(2)")
    assert process.wait(20) == 0
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert ENDED_TAG not in run.data.tags


def test_owner_that_stands_still_keeps_its_run(owner):
    """An owner that is stopped, as one deep in C, still has a heart."""
    process, run_id, client = owner()
    process.send_signal(signal.SIGSTOP)
    before = client.get_run(run_id).data.tags[BEAT_TAG]
    wait_for(lambda: client.get_run(run_id).data.tags[BEAT_TAG] != before)
    assert client.get_run(run_id).info.status == "RUNNING"


def test_heart_that_is_killed_beats_again(owner):
    """The owner starts another."""
    process, _, _ = owner()
    (heart,) = hearts_of(process)
    heart.kill()
    wait_for(lambda: hearts_of(process) and hearts_of(process) != [heart])


def test_run_whose_machine_slept_comes_back_to_life(owner, servers):
    """The reaper ends a run whose owner and heart are both silent; when they are back, it is RUNNING again."""
    process, run_id, client = owner()
    (heart,) = hearts_of(process)
    for sleeper in (process.pid, heart.pid):
        os.kill(sleeper, signal.SIGSTOP)
    reaper = Reaper(Runs(servers.tracking_uri), silent_seconds=3)
    wait_for(lambda: run_id in reaper.look())
    ended = client.get_run(run_id)
    assert (ended.info.status, ended.data.tags[ENDED_TAG]) == ("FAILED", heartbeat.REAPER)
    for sleeper in (process.pid, heart.pid):
        os.kill(sleeper, signal.SIGCONT)
    wait_for(lambda: client.get_run(run_id).info.status == "RUNNING")
    assert ENDED_TAG not in client.get_run(run_id).data.tags


def test_reaper_leaves_those_alone_that_beat(owner, servers):
    """A run that beats is not ended, nor one that never had a heart."""
    _, run_id, client = owner()
    plain = client.create_run("0").info.run_id
    reaper = Reaper(Runs(servers.tracking_uri), silent_seconds=heartbeat.BEAT_SECONDS + 3)
    until = time.monotonic() + 2 * heartbeat.BEAT_SECONDS
    while time.monotonic() < until:
        assert not {run_id, plain} & set(reaper.look())
        time.sleep(0.5)
    assert {client.get_run(run).info.status for run in (run_id, plain)} == {"RUNNING"}
    client.set_terminated(plain)


@pytest.mark.timeout(120)
@pytest.mark.soak
def test_server_ends_what_nobody_owns_any_more(owner):
    """Owner and heart killed at once, as when a machine loses its power: within a minute the run is not RUNNING."""
    process, run_id, client = owner()
    began = time.monotonic()
    for victim in [*hearts_of(process), psutil.Process(process.pid)]:
        victim.kill()
    wait_for(lambda: client.get_run(run_id).info.status == "FAILED", 60)
    assert time.monotonic() - began < 60
